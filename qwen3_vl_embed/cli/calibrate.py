"""Fit a calibration file for a checkpoint that is loaded here. Imported by its command alone: it needs torch."""

from pathlib import Path
from shlex import quote

from embedder import EmbedError, Options
from embedder.prepare.calibration import parsed, save
from qwen3_vl_embed.cli import terminal
from qwen3_vl_embed.cli.checkpoint import load
from qwen3_vl_embed.evaluation.calibrate import calibrate, default_images, default_texts
from qwen3_vl_embed.files.errors import SourceError
from qwen3_vl_embed.files.vectors import check_place, replacing
from qwen3_vl_embed.serving.console import Console


def run(checkpoint: str, method: str, options: bytes, output: Path, console: Console) -> None:
    """Write `output` (.npz) and say how to use it.

    Raises:
        SourceError: no such checkpoint, option or method.
        VectorFileError: the file cannot be written.
    """
    check_place(output)
    try:
        parsed(method)
        asked, embedder = Options.parse(options), load(checkpoint)
        with terminal.err.status("embedding the calibration's own texts and images …"):
            about, arrays = calibrate(embedder, default_texts(), default_images(), asked, method)
    except (EmbedError, ValueError) as error:
        raise SourceError(str(error)) from None
    with replacing(output, sum(each.nbytes for each in arrays.values())) as file:
        save(file, about, arrays)
    console.print(
        f"{output}: {method} of {about['samples']['text']} texts and {about['samples']['image']} images", soft_wrap=True
    )
    setting = f"EMBED_CALIBRATION={quote(str(output.absolute()))}"  # which is read in another folder
    console.print(f'serve with {setting}, ask with "center": true', soft_wrap=True)
