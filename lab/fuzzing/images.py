"""Mutated image files through decoding, resizing and cutting into patches, in process.

    python -m lab.fuzzing.images --inputs 100000 --seed 1
    python -m lab.fuzzing.images --minutes 2 --findings found

Every file is answered with patches or with a sentence, within seconds and without memory that stays. The files begin as
real ones of every format that is read, and are changed where headers and lengths are more often than elsewhere. PNG's
checksums are put right again in half of them, or nothing behind the first would ever be read.
"""

import struct
import zlib
from functools import partial
from io import BytesIO
from pathlib import Path
from time import monotonic
from typing import Annotated

import numpy as np
import typer
from PIL import Image, ImageCms
from rich.progress import track

from embedder.prepare import images
from lab.fuzzing.findings import Findings, console, hush
from lab.fuzzing.mutations import mutated, smaller

MAX_BYTES, MAX_PIXELS = 20 * 2**20, 40_000_000  # the server's defaults
PATCH, LOW, HIGH = 16, 4096, 2**20
PNG = b"\x89PNG\r\n\x1a\n"
app = typer.Typer(add_completion=False, rich_markup_mode=None)


def seeds() -> list[bytes]:
    """Real files: every format, mode and kind of metadata that we read, small so that changes hit something."""
    noise = np.random.default_rng(0).integers(0, 256, (24, 20, 4), dtype=np.uint8)
    rgba = Image.fromarray(noise)
    rgb, grey, palette = rgba.convert("RGB"), rgba.convert("L"), rgba.convert("RGB").quantize(16)
    deep = Image.fromarray(noise[..., 0].astype(np.uint16) * 257)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    plain = [_file(rgb, name) for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")]
    jpegs = [_file(rgb, "JPEG", progressive=True, exif=exif), _file(rgba.convert("CMYK"), "JPEG"), _file(grey, "JPEG")]
    pngs = [_file(image, "PNG", exif=exif) for image in (rgba, palette, deep, rgba.convert("LA"), rgb.convert("1"))]
    pngs.append(
        _file(
            palette,
            "PNG",
            transparency=3,
            icc_profile=ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        )
    )
    webps = [_file(rgba, "WEBP", lossless=True), _file(rgb, "WEBP", exif=exif), _film(rgb, "WEBP")]
    tiffs = [_file(rgb, "TIFF", compression=name) for name in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits")]
    tiffs += [_file(image, "TIFF") for image in (deep, rgba, grey.convert("F").point(lambda v: v / 255))]
    tiffs += [_file(rgba.convert("CMYK"), "TIFF", tile=(16, 16), compression="tiff_lzw"), _film(rgb, "TIFF")]
    return [*plain, *jpegs, *pngs, *webps, *tiffs, _film(rgb, "GIF"), _film(rgba, "PNG"), _file(grey, "BMP")]


def _file(image: Image.Image, format: str, **options: object) -> bytes:
    file = BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def _film(image: Image.Image, format: str) -> bytes:
    return _file(image, format, save_all=True, append_images=[image.rotate(90), image.rotate(180)])


def with_checksums(content: bytes) -> bytes:
    """A PNG whose chunks have the checksums of what they hold now."""
    fixed, at = content[:8], 8
    while at + 12 <= len(content) and (length := int.from_bytes(content[at : at + 4])) <= len(content) - at - 12:
        chunk = content[at + 4 : at + 8 + length]
        fixed += struct.pack(">I", length) + chunk + struct.pack(">I", zlib.crc32(chunk))
        at += 12 + length
    return fixed + content[at:]


def generated(random: np.random.Generator, files: list[bytes]) -> bytes:
    """The next input."""
    content = mutated(files, random)
    return with_checksums(content) if content.startswith(PNG) and random.random() < 0.5 else content


def run(content: bytes) -> None:
    """What the server does with an image before the model sees it."""
    image = images.decode(content, MAX_BYTES, MAX_PIXELS)
    patches = images.to_patches(images.resize(image, PATCH, LOW, HIGH), PATCH)
    assert patches.pixels.shape == (patches.grid[0] * patches.grid[1], PATCH * PATCH * 3)


@app.command(epilog="Example: python -m lab.fuzzing.images --inputs 100000 --seed 1")
def main(
    inputs: Annotated[int, typer.Option(help="how many files to try")] = 100_000,
    seed: Annotated[int, typer.Option(help="the same seed gives the same files")] = 0,
    minutes: Annotated[float, typer.Option(help="stop after so long all the same")] = 30.0,
    findings: Annotated[Path, typer.Option(help="where files without a documented outcome are kept")] = Path(
        "findings"
    ),
) -> None:
    """Try mutated image files; the last line is what came of it, as JSON."""
    hush()
    random, files = np.random.default_rng(seed), seeds()
    result = Findings("images", seed, findings)
    until = monotonic() + minutes * 60
    for content in files:
        result.judge(content, partial(run, content))
    for _ in track(range(inputs), "images", console=console, transient=True):
        content = generated(random, files)
        if problem := result.judge(content, partial(run, content)):
            _shrink(result, problem, content)
        if monotonic() > until:
            break
    result.report(files=len(files))


def _shrink(result: Findings, problem: str, content: bytes) -> None:
    if result.found[problem] is content:
        trial = Findings("trial", 0, result.folder)
        found = smaller(content, lambda shorter: trial.judge(shorter, lambda: run(shorter)) == problem)
        result.found[problem] = found


if __name__ == "__main__":
    app()
