"""The commands that load a checkpoint here, without a server: sweep and calibrate. Torch is imported inside them."""

from pathlib import Path
from typing import Annotated

from qwen3_vl_embed.cli.app import app, from_checkout, option
from qwen3_vl_embed.serving.console import Console

Checkpoint = Annotated[str | None, option("A folder, or a hub id; left out, what serve serves.", envvar="CHECKPOINT")]
Prompts = Annotated[list[str] | None, option("A preset or a template; left out, seven presets.", "--prompt")]
Resolutions = Annotated[list[int] | None, option("Largest area of an image; left out, the server's.", "--max-pixels")]
Count = Annotated[int | None, option("The first so many of the 949 colours, for a quick look.", "--colours", min=20)]
Captioned = Annotated[Path | None, option("A folder of images with captions, in place of the colours.", "--images")]
SweepFolder = Annotated[Path, option("Where to; a second run continues what it holds.", "--output", "-o")]
CalibrationFile = Annotated[Path, option("The file to write.", "--output", "-o")]
Method = Annotated[
    str, option("mean, abtt-K (K principal directions), zca-A (shrinkage A) or align (texts to images).")
]
AnyOption = Annotated[list[str] | None, option("KEY=VALUE of the recipe to fit to, such as layer=-2.", "--option")]
PROMPTS = ["eol", "colour", "freeret", "hierarchical", "echo", "chat", "none"]


@app.command()
def sweep(
    checkpoint: Checkpoint = None,
    prompt: Prompts = None,
    max_pixels: Resolutions = None,
    colours: Count = None,
    images: Captioned = None,
    output: SweepFolder = Path("sweep"),
) -> None:
    """Which hidden state is the right embedding? All layers, poolings and norms, for each prompt and resolution.

    Each text and image goes through the model once a prompt. Half of the pairs choose, the other half judge.
    Writes a heat map and every figure, prints the best recipes and the options that ask for them. Beside them what no
    server serves: means over layers, the stages of the vision tower, and the layer that needs no labels to be found.

    [bold]Examples[/bold]
      qwen3-vl-embed sweep
      qwen3-vl-embed sweep --checkpoint Qwen/Qwen3-VL-4B-Instruct --max-pixels 65536 --max-pixels 16384 -o sweep-4b
      qwen3-vl-embed sweep --prompt eol --prompt "{content}\\nColour name:" --colours 100
      qwen3-vl-embed sweep --images photos/ -o sweep-photos
    """
    with from_checkout("sweep"):
        from qwen3_vl_embed.cli.sweep import run, subject
        from qwen3_vl_embed.serving.settings import checkpoint as served

    what = subject(colours, images)
    run(checkpoint or served(), prompt or PROMPTS, max_pixels or [], what, output, Console())


@app.command()
def calibrate(
    checkpoint: Checkpoint = None,
    method: Method = "mean",
    option: AnyOption = None,
    output: CalibrationFile = Path("calibration.npz"),
) -> None:
    """Fit a calibration: what all texts and all images of one recipe share, to be taken away with "center": true.

    Fitted on CSS colour names and random swatches, none of which the evaluation asks about.

    [bold]Examples[/bold]
      qwen3-vl-embed calibrate
      qwen3-vl-embed calibrate --method align -o align.npz
      qwen3-vl-embed calibrate --method zca-0.1 --option layer=-2 --option prompt=colour -o colour-2.npz
      EMBED_CALIBRATION=calibration.npz make serve
    """
    with from_checkout("calibrate"):
        import orjson

        from qwen3_vl_embed.cli.calibrate import run
        from qwen3_vl_embed.cli.recipe import chosen
        from qwen3_vl_embed.serving.settings import checkpoint as served

    options = orjson.dumps(chosen({}, option))
    run(checkpoint or served(), method, options, output, Console())
