"""Decoding: the colour that a viewer shows, whatever the file; what is no single image is refused with a sentence."""

import io
import json
import re
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from time import thread_time

import numpy as np
import PIL
import pytest
from PIL import Image, ImageCms
from transformers import AutoImageProcessor

from embedder.errors import InvalidInput
from embedder.prepare import images
from embedder.prepare.images import colour, decoding, rendering, samples
from embedder.prepare.images import png as png_reader
from tests import viewer_files
from tests.bad_inputs import COLOUR, ENDLESS, IMAGES, LIMIT, NOISE, PNG, animated, chunk, encoded, png, solid
from tests.waits import SLOWER


def decoded(data: bytes) -> np.ndarray:
    return np.asarray(images.decode(data, max_bytes=20 * 2**20, max_pixels=LIMIT))


def attempt(data: bytes) -> np.ndarray | str:
    """The image, or the sentence that refuses it."""
    try:
        return decoded(data)
    except InvalidInput as error:
        return str(error)


def pixel(data: bytes) -> tuple[int, ...]:
    return tuple(decoded(data)[0, 0].tolist())


def half_transparent() -> Image.Image:
    return solid("RGBA", (*COLOUR, 128))


def palette(transparent: bool) -> bytes:
    image = solid("P", 1)
    image.putpalette([0, 0, 0, *COLOUR])
    return encoded(image, transparency=1) if transparent else encoded(image)


def grey16(value: int) -> bytes:
    return encoded(Image.fromarray(np.full((40, 40), value, dtype=np.uint16)))


def grey16_keyed(value: int) -> bytes:
    """All of it is the colour that counts as transparent."""
    return encoded(Image.fromarray(np.full((40, 40), value, dtype=np.uint16)), transparency=value)


def ycck() -> bytes:
    """Pillow writes CMYK only, so the planes are turned by hand and the file then says that they are YCCK."""
    luma, blue, red = (band.point(lambda v: 255 - v) for band in solid("RGB", COLOUR).convert("YCbCr").split())
    planes = Image.merge("CMYK", (luma, blue, red, solid("L", 0)))
    data = encoded(planes, "JPEG", quality=95)
    adobe = data.index(b"Adobe") + 11
    return data[:adobe] + b"\2" + data[adobe + 1 :]


def tiff(values: np.ndarray) -> bytes:
    return encoded(Image.fromarray(values), "TIFF")


def with_tag(data: bytes, tag: int, value: int) -> bytes:
    """A TIFF whose tag, one short number, has another value."""
    start = int.from_bytes(data[4:8], "little")
    for at in range(start + 2, start + 2 + 12 * int.from_bytes(data[start : start + 2], "little"), 12):
        if int.from_bytes(data[at : at + 2], "little") == tag:
            return data[: at + 8] + value.to_bytes(4, "little") + data[at + 12 :]
    raise KeyError(tag)


ON_WHITE = tuple(round(channel * 128 / 255 + 255 * 127 / 255) for channel in COLOUR)
OLD_PILLOW = int(PIL.__version__.partition(".")[0]) < 13
CASES = {
    "png": (encoded(solid("RGB", COLOUR)), COLOUR, 0),
    "bmp": (encoded(solid("RGB", COLOUR), "BMP"), COLOUR, 0),
    "tiff": (encoded(solid("RGB", COLOUR), "TIFF"), COLOUR, 0),
    "webp lossless": (encoded(solid("RGB", COLOUR), "WEBP", lossless=True), COLOUR, 0),
    "jpeg": (encoded(solid("RGB", COLOUR), "JPEG", quality=95), COLOUR, 3),
    "cmyk jpeg": (encoded(solid("RGB", COLOUR).convert("CMYK"), "JPEG", quality=95), COLOUR, 3),
    "ycck jpeg": (ycck(), tuple(255 - channel for channel in COLOUR), 3),
    "ycbcr tiff": (encoded(solid("RGB", COLOUR).convert("YCbCr"), "TIFF"), COLOUR, 2),
    "lab tiff": (encoded(solid("LAB", (128, 128, 128)), "TIFF"), (119, 119, 119), 3),
    "grey": (encoded(solid("L", 77)), (77,) * 3, 0),
    "one bit, white": (encoded(solid("1", 1)), (255,) * 3, 0),
    "one bit, black": (encoded(solid("1", 0)), (0,) * 3, 0),
    "alpha": (encoded(half_transparent()), ON_WHITE, 1),
    "wholly transparent": (encoded(solid("RGBA", (*COLOUR, 0))), (255,) * 3, 0),
    "alpha webp": (encoded(half_transparent(), "WEBP", lossless=True), ON_WHITE, 1),
    "grey and alpha": (encoded(solid("LA", (0, 128))), (127,) * 3, 1),
    "palette": (palette(False), COLOUR, 0),
    "palette, transparent": (palette(True), (255,) * 3, 0),
    "colour key": (encoded(solid("RGB", COLOUR), transparency=COLOUR), (255,) * 3, 0),
    "gif": (encoded(solid("RGB", COLOUR), "GIF"), COLOUR, 0),
    "animated gif": (animated("GIF"), COLOUR, 0),
    "animated webp": (animated("WEBP"), COLOUR, 0),
    "animated png": (animated("PNG"), COLOUR, 0),
    "16-bit grey, white": (grey16(65535), (255,) * 3, 0),
    "16-bit grey, middle": (grey16(30000), (117,) * 3, 0),
    "16-bit grey, dark": (grey16(300), (1,) * 3, 0),
    "16-bit grey, transparent": (grey16_keyed(30000), (255,) * 3, 0),
    "32-bit grey": (with_tag(tiff(np.full((40, 40), 2**30, dtype=np.int32)), 339, 1), (64,) * 3, 0),
    "float grey": (tiff(np.full((40, 40), 0.5, dtype=np.float32)), (128,) * 3, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_the_colour_a_viewer_shows(name):
    if name == "ycbcr tiff" and OLD_PILLOW:
        pytest.skip("Pillow reads its own since 13")
    data, expected, tolerance = CASES[name]
    image = decoded(data)
    assert (image.dtype, image.shape) == (np.uint8, (40, 40, 3))
    assert np.abs(image.astype(int) - expected).max() <= tolerance


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(orientation):
    upright = Image.fromarray(np.random.default_rng(0).integers(0, 256, (3, 5, 3), dtype=np.uint8)).resize((50, 30))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # PIL's transposition that the tag undoes
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decoded(encoded(stored, exif=exif)), np.asarray(upright))


def wide_gamut_profile() -> bytes:
    """A display profile that is not sRGB: sRGB's own with red and blue primaries swapped."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, blue = data.find(b"rXYZ"), data.find(b"bXYZ")
    data[red : red + 4], data[blue : blue + 4] = b"bXYZ", b"rXYZ"
    return bytes(data.replace(b"s\0R\0G\0B", b"s\0w\0a\0p"))


def test_icc_profiles_are_honoured():
    assert pixel(encoded(solid("RGB", COLOUR), icc_profile=wide_gamut_profile())) == COLOUR[::-1]
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    assert pixel(encoded(solid("RGB", COLOUR), icc_profile=srgb)) == COLOUR
    assert pixel(encoded(solid("RGB", COLOUR), icc_profile=b"nonsense")) == COLOUR


def test_a_profile_and_alpha_together():
    data = encoded(half_transparent(), icc_profile=wide_gamut_profile())
    assert np.abs(np.array(pixel(data)) - ON_WHITE[::-1]).max() <= 1


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("name", IMAGES)
def test_a_picture_or_a_sentence(name):
    """And neither takes long."""
    data, sentence = IMAGES[name]
    started = thread_time()
    if sentence is None:
        patches = images.to_patches(images.resize(decoded(data), 16, 4096, 4096), 16)
        assert patches.pixels.shape == (patches.grid[0] * patches.grid[1], 16 * 16 * 3)
    else:
        with pytest.raises(InvalidInput, match=re.escape(sentence)):
            decoded(data)
    assert thread_time() - started < 3 * SLOWER


@pytest.mark.parametrize("name", ENDLESS)
def test_what_takes_too_long_is_given_up(name, monkeypatch):
    monkeypatch.setattr(decoding, "HEADER_SECONDS", 0.05)
    monkeypatch.setattr(decoding, "DECODE_SECONDS", 0.05)
    started = thread_time()
    with pytest.raises(InvalidInput, match="too long to read"):
        decoded(ENDLESS[name])
    assert thread_time() - started < 0.5 * SLOWER


@pytest.mark.parametrize(("depth", "kind"), png_reader.MODES)
def test_every_kind_of_samples_that_a_png_has(depth, kind):
    """Each filter, interlaced or not, in several chunks: the samples that Pillow's own reader of the file finds."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    random = np.random.default_rng(depth + kind)
    palette = (
        chunk(b"PLTE", random.bytes(3 * 2 ** min(depth, 8))) + chunk(b"tRNS", random.bytes(2)) if kind == 3 else b""
    )
    for interlaced, passes in ((0, [(21, 19)]), (1, [(3, 3), (3, 3), (6, 2), (5, 5), (11, 5), (10, 10), (21, 9)])):
        stream = b""
        for width, height in passes:
            for row in range(height):
                stream += bytes([row % 5]) + random.bytes((width * depth * channels + 7) // 8)
        packed = zlib.compress(stream)
        header = chunk(b"IHDR", struct.pack(">IIBBBBB", 21, 19, depth, kind, 0, 0, interlaced))
        pixels = chunk(b"IDAT", packed[:30]) + chunk(b"IDAT", packed[30:])
        file = png_reader.MAGIC + header + palette + pixels + chunk(b"IEND", b"")
        with Image.open(io.BytesIO(file)) as image:
            theirs = samples.grey(image, 65535) if image.mode.startswith("I") else image.copy()
        np.testing.assert_array_equal(decoded(file), np.asarray(rendering._on_white(theirs, None)))


VIEWED = [
    file
    for files in ("PNG_COLOURS", "PNG_PICTURES", "GIFS", "WEBPS", "BMPS", "JPEGS")
    for file in getattr(viewer_files, files).items()
]


def test_a_small_image_has_the_pixels_of_its_strips(monkeypatch):
    """What is decoded at once, and what takes a row at a time."""
    for name, data in VIEWED:
        at_once = attempt(data)
        with monkeypatch.context() as patched:
            patched.setattr(samples, "STRIP", 1)
            in_rows = attempt(data)
        np.testing.assert_array_equal(at_once, in_rows, err_msg=name)


def test_size_is_checked_before_decoding(monkeypatch):
    monkeypatch.setattr(decoding, "rendered", lambda picture: pytest.fail("decoded"))
    with pytest.raises(InvalidInput, match="9000×9000 pixels; at most 10000000"):
        images.decode(png((9000, 9000), pixels=b""), 10**7, 10**7)
    with pytest.raises(InvalidInput, match="bytes; at most 10"):
        images.decode(PNG, 10, 10**7)


@pytest.mark.parametrize(
    ("size", "bounds", "expected"),
    [
        ((244, 244), (65536, 2**20), (256, 256)),  # the benchmark's swatch; 252 would be patch 14
        ((1, 1), (65536, 2**20), (256, 256)),
        ((64, 64), (4096, 2**20), (64, 64)),
        ((1, 200), (65536, 2**20), None),
        ((4000, 3000), (65536, 2**20), None),
        ((10, 1000), (4096, 4096), (32, 128)),  # qwen-vl-utils alone would ask Pillow for a width of zero
        ((1000, 10), (4096, 4096), (128, 32)),
        ((200, 1), (4096, 4096), None),
        ((333, 97), (4096, 4096), None),
    ],
)
def test_resized_once_within_the_bounds(size, bounds, expected):
    image = images.resize(np.asarray(solid("RGB", COLOUR, size)), 16, *bounds)
    height, width, _ = image.shape
    assert width % 32 == height % 32 == 0
    assert width * height <= bounds[1]
    assert expected is None or (width, height) == expected
    assert tuple(image[5, 5]) == COLOUR


def test_every_shape_has_a_size():
    """Reduced images keep the bound; enlarged ones may pass it by qwen-vl-utils' rounding up to multiples of 32."""
    for side in range(1, 200, 7):
        for size in ((1, side), (side, 1), (5, 5 * side), (40, 20 * side)):
            height, width, _ = images.resize(np.asarray(solid("RGB", COLOUR, size)), 16, 4096, 4096).shape
            assert width % 32 == height % 32 == 0
            assert 2048 <= width * height <= (4096 if size[0] * size[1] > 4096 else 200 * 32 * 32)


def test_patches_are_transformers_patches():
    image = np.random.default_rng(0).integers(0, 256, (96, 160, 3), dtype=np.uint8)
    processor = AutoImageProcessor.from_pretrained("tests/data/configs/Qwen3-VL-4B-Instruct")
    expected = processor(images=[Image.fromarray(image)], do_resize=False, return_tensors="np")
    patches = images.to_patches(image, 16)
    assert expected["image_grid_thw"].tolist() == [[1, *patches.grid]]
    assert patches.tokens == 15
    ours = patches.pixels.reshape(-1, 1, 256, 3).transpose(0, 3, 1, 2) / 127.5 - 1  # channel first, one frame
    np.testing.assert_allclose(np.repeat(ours, 2, axis=2).reshape(60, -1), expected["pixel_values"], atol=1e-6)


def test_all_grey_levels_stay_apart():
    greys = [np.full((40, 40, 3), value, np.uint8) for value in range(256)]
    levels = [images.to_patches(images.resize(grey, 16, 4096, 4096), 16) for grey in greys]
    assert [int(p.pixels.min()) for p in levels] == [int(p.pixels.max()) for p in levels] == list(range(256))


CASES_OF_VIEWERS = (
    Path(__file__).parent / "data/images"
)  # made with Pillow, struct and avifenc; right.json: Chromium's values
RIGHT = json.loads((CASES_OF_VIEWERS / "right.json").read_text())["cases"]


@pytest.mark.parametrize("case", RIGHT, ids=[case["file"] for case in RIGHT])
def test_right_values(case):
    """The colours that browsers show, or a sentence: with some words, or without those that would not be true."""
    data = (CASES_OF_VIEWERS / case["file"]).read_bytes()
    outcome = attempt(data)
    if isinstance(outcome, str):
        assert {"refuse", "refused_or_right", "or_refused_without", "sentence"} & {*case}, outcome
        assert "mean" not in case or "or_refused_without" in case, outcome
        assert all(word in outcome.lower() for word in case.get("sentence", []))
        assert not any(
            word in outcome for word in case.get("or_refused_without", []) + case.get("sentence_without", [])
        )
        return
    image = outcome
    assert not case.get("refuse"), "shown"
    assert [image.shape[1], image.shape[0]] == case["size"]
    np.testing.assert_allclose(image.mean(axis=(0, 1)), case["mean"], atol=case["tolerance"])
    if "top_left" in case:
        np.testing.assert_allclose(image[1:5, 1:5].mean(axis=(0, 1)), case["top_left"], atol=case["tolerance"] + 1)


@pytest.mark.parametrize("name", viewer_files.HDR)
def test_hdr_is_refused(name):
    with pytest.raises(InvalidInput, match="HDR"):
        decoded(viewer_files.HDR[name])


def test_a_profile_is_known_by_what_it_does():
    """A cube of colours decides: one that moves by two levels at most is sRGB, whatever its name; kept by its hash."""
    assert colour.transform(viewer_files.SRGB, "RGB") is None
    almost = colour.profile(colour.PRIMARIES[1], (2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.0400))
    assert colour.transform(almost, "RGB") is None
    made = colour.transform(viewer_files.P3, "RGB")
    assert made is not None
    assert colour.transform(bytes(bytearray(viewer_files.P3)), "RGB") is made


@pytest.mark.parametrize("cut", [0.05, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_cut_jpeg_is_refused_whatever_stands_behind_it(cut, progressive, mode):
    data = encoded(NOISE.convert(mode), "JPEG", progressive=progressive)
    start = data.index(b"\xff\xda")
    part = data[: start + 20 + int((len(data) - start - 20) * cut)]
    for end in (b"", b"\xff\xd9", bytes(50) + b"\xff\xd9", b"\xff\xd9 and more"):
        with pytest.raises(InvalidInput, match="is cut"):
            decoded(part + end)


def test_a_jpeg_cut_between_two_scans_is_refused():
    data = encoded(NOISE.convert("RGB"), "JPEG", progressive=True)
    scans = [match.start() for match in re.finditer(b"\xff\xda", data)]
    assert len(scans) > 5
    for at in scans[1:]:
        with pytest.raises(InvalidInput, match="is cut"):
            decoded(data[:at] + b"\xff\xd9")
    np.testing.assert_array_equal(decoded(data[:-2]), decoded(data))  # only its end is missing


@pytest.mark.parametrize("name", viewer_files.SENTENCES)
def test_what_is_not_read_is_named(name):
    data, words = viewer_files.SENTENCES[name]
    with pytest.raises(InvalidInput) as caught:
        decoded(data)
    assert all(word in str(caught.value) for word in words.split("; "))
    assert "video" not in str(caught.value)


@pytest.mark.skipif(OLD_PILLOW, reason="the order of the two passes is that of Pillow 13")
def test_resized_within_two_levels_of_pillow():
    """And so of transformers, whose pixels the parity tests compare: of each picture, noise or smooth, of any shape.

    What is between the two passes is rounded, so their order shows: noise in the other order is 23 levels away.
    """
    random = np.random.default_rng(0)
    rows_first = set()
    for _ in range(40):
        height, width = random.integers(70, 500, 2)
        area = int(random.integers(32 * 32, height * width))
        coarse = random.integers(0, 256, (height // 10, width // 10, 3), dtype=np.uint8)
        smooth = np.array(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
        for image in (smooth, random.integers(0, 256, (height, width, 3), dtype=np.uint8)):
            ours = images.resize(image, 16, 32 * 32, area).astype(int)
            theirs = np.asarray(Image.fromarray(image).resize(ours.shape[1::-1], Image.Resampling.BICUBIC))
            assert np.abs(ours - theirs).max() <= 2
            assert np.abs(ours - theirs).mean() <= 0.01
            rows_first.add(bool(height - ours.shape[0] > 2 * (width - ours.shape[1])))
    assert rows_first == {False, True}


MEASURED = """
import sys
from pathlib import Path
import numpy as np
from embedder.prepare import images

def kilobytes(name):
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith(name))

images.resize(np.zeros((64, 64, 3), np.uint8), 16, 4096, 4096)
for path in sys.argv[1:]:
    data = Path(path).read_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = kilobytes("VmRSS")
    shape = np.asarray(images.decode(data, 2**30, 40_000_000)).shape
    print((kilobytes("VmHWM") - before) * 1024 / (shape[0] * shape[1]))
"""


@pytest.mark.faults
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux tells a process's peak")
def test_memory(tmp_path):
    """At most 5 bytes a pixel beyond the decoded image of 4 (Pillow's RGB, or alpha), but for AVIF's planes."""
    files = viewer_files.large((1600, 1200))
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    command = [sys.executable, "-c", MEASURED, *(str(tmp_path / name) for name in files)]
    output = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert output.stderr == ""
    taken = dict(zip(files, map(float, output.stdout.split()), strict=True))
    most = dict.fromkeys(files, 9.0) | {"avif, alpha": 12.5, "avif, 4:4:4": 10.0}
    assert {name: value for name, value in taken.items() if value > most[name] + 1.5} == {}  # and what does not grow


def test_libraries_write_nothing(capfd):
    """Neither libtiff nor LittleCMS nor Pillow, whatever they find."""
    broken_tiff = encoded(NOISE.convert("RGB"), "TIFF", compression="tiff_lzw")
    for data in (
        broken_tiff[:8] + bytes(200) + broken_tiff[208:],
        broken_tiff[: len(broken_tiff) // 2],
        encoded(solid("RGB", COLOUR), icc_profile=viewer_files.P3[:200] + bytes(len(viewer_files.P3) - 200)),
        encoded(solid("RGB", COLOUR), "TIFF", compression="tiff_lzw", tiffinfo={60000: "a tag"}),
    ):
        attempt(data)
    assert capfd.readouterr() == ("", "")
