"""Which hidden state is the right embedding: every layer, pooling and norm from one forward pass for each prompt.

One block is one prompt at one resolution. All N texts and images go through the model once, and all states are pooled
in every way. Each way becomes rows of figures, which are the report's. The pairs are cut into two halves: one chooses,
the other judges, and what a calibration takes is from the half that is not judged.

What no server serves is measured beside it: means over several layers, and what the vision tower knows at each stage.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from embedder import Embedder, EmbedInput, Options
from embedder.forward.device import to_device
from embedder.forward.model import PackedModel
from embedder.forward.packing import Packed, indices_of, pack, plan
from embedder.forward.pooling import average
from embedder.options import Layer
from embedder.poolings import POOLINGS
from embedder.prepare.calibration import Calibration, NoSpread, fit
from embedder.prepare.prompts import prompt
from embedder.prepare.sequence import Sequence
from qwen3_vl_embed.evaluation import FloatArray, geometry, probe
from qwen3_vl_embed.evaluation.captions import read_folder
from qwen3_vl_embed.evaluation.colours import Palette, png, swatch
from qwen3_vl_embed.evaluation.pairs import Pairs
from qwen3_vl_embed.evaluation.report import values
from qwen3_vl_embed.evaluation.resampling import Resampling
from qwen3_vl_embed.evaluation.space import Fit, cross_fitted, raw, unit
from qwen3_vl_embed.files.errors import SourceError
from qwen3_vl_embed.files.vectors import replacing

CALIBRATIONS = ("none", "mean", "align")  # by what is served as `center`
IMAGES = "eol"  # the prompt of the images where a prompt is for texts alone
# Means over several layers' unit vectors: of the last two (BERT-flow, arXiv 2011.05864, November 2020), of the first
# and the last (BERT-whitening, 2103.15316, March 2021), and of all but the input.
MEANS: dict[str, Callable[[int], tuple[int, ...]]] = {
    "last 2": lambda last: (last - 1, last),
    "first+last": lambda last: (1, last),
    "all": lambda last: tuple(range(1, last + 1)),
}


@dataclass(frozen=True)
class Subject:
    """N texts and N images that belong together; `rgb`, uint8 (N, 3), of solid colours."""

    names: tuple[str, ...]
    images: tuple[bytes, ...]
    rgb: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.names)

    @property
    def digest(self) -> str:
        """Eight hex digits that change with any text or image."""
        whole = hashlib.sha256(json.dumps(self.names).encode())
        for image in self.images:
            whole.update(hashlib.sha256(image).digest())
        return whole.hexdigest()[:8]


def colours(palette: Palette) -> Subject:
    return Subject(palette.names, tuple(png(swatch(rgb)) for rgb in palette.rgb), palette.rgb)


def captioned(folder: Path) -> Subject:
    """Raises SourceError, OSError."""
    found = read_folder(folder)
    return Subject(tuple(each.caption for each in found), tuple(each.path.read_bytes() for each in found))


@dataclass(frozen=True)
class Block:
    """One prompt at one resolution (the server's own bounds when None)."""

    prompt: str
    max_pixels: int | None = None

    def options(self, kind: str) -> Options:
        """Of "text" or "image"."""
        return Options(prompt=prompt_of(self.prompt, kind), max_pixels=self.max_pixels)


@dataclass(frozen=True)
class Row:
    """One recipe's figures. `choose_mrr` is of the half that recommendations are chosen by, `test_*` of the other.

    `layer` is one that a request can ask for, or a mean over several (`MEANS`).
    """

    prompt: str
    max_pixels: int | None
    layer: Layer | str
    pooling: str
    final_norm: bool
    calibration: str
    probe: float  # leave-one-out R² of CIELAB or of the captions' words, mean of texts and images
    intrinsic_dimension: float  # mean of texts and images: no labels
    choose_mrr: float  # mean reciprocal rank, mean of both directions
    test_mrr: float
    test_recall_1: float
    test_mixed_recall_1: float  # in one pool of texts and images
    test_matched: float  # mean cosine distances
    test_unmatched: float

    @property
    def served(self) -> bool:
        return self.layer not in MEANS

    def options(self, kind: str = "text") -> dict[str, Any]:
        """The options of a request that gives these vectors, of "text" or "image". A calibration is fitted before."""
        given: dict[str, Any] = {"prompt": prompt_of(self.prompt, kind), "pooling": self.pooling}
        given |= {"layer": self.layer, "final_norm": self.final_norm}
        given |= {"max_pixels": self.max_pixels} if self.max_pixels else {}
        return given | ({"center": True} if self.calibration != "none" else {})


@dataclass(frozen=True)
class Stage:
    """What the images' own side knows after a block of the vision tower, the merger, or a level of DeepStack.

    Of the mean of its patches or tokens, which no request can ask for. Texts have no such vector: nothing to rank.
    """

    stage: str
    max_pixels: int | None
    dimension: int
    probe: float  # as in `Row`, of the images alone
    intrinsic_dimension: float


def prompt_of(name: str, kind: str) -> str:
    return IMAGES if kind == "image" and prompt(name).repeats else name


def sweep(
    embedder: Embedder, subject: Subject, todo: list[Block], file: Path, advance: Callable[[int], None]
) -> tuple[list[Row], list[Stage]]:
    """Fill in what `file` (JSON lines, one for each row) does not hold yet, block by block; returns what is of `todo`.

    `advance` is called with the number of inputs that have gone through the model.

    Raises:
        EmbedError: an input cannot be embedded.
        SourceError: there are too few or too many pairs, a state is not finite, or `file` is none of these.
        VectorFileError: it cannot be written.
    """
    rows, stages = load(file)
    for block in todo:
        if any((row.prompt, row.max_pixels) == (block.prompt, block.max_pixels) for row in rows):
            advance(2 * len(subject))
            continue
        fresh, seen = evaluate(embedder, subject, block, advance)
        if any(stage.max_pixels == block.max_pixels for stage in stages):
            seen = []  # no prompt changes what the vision tower sees
        before = file.read_bytes() if file.exists() else b""
        with replacing(file) as out:  # a block is there whole, or not at all
            out.write(before + "".join([*map(line, seen), *map(line, fresh)]).encode())
        rows, stages = rows + fresh, stages + seen
    wanted = {(block.prompt, block.max_pixels) for block in todo}
    return (
        [row for row in rows if (row.prompt, row.max_pixels) in wanted],
        [stage for stage in stages if stage.max_pixels in {block.max_pixels for block in todo}],
    )


def line(each: Row | Stage) -> str:
    """As JSON, which has no NaN: null."""
    return json.dumps({name: None if value != value else value for name, value in asdict(each).items()}) + "\n"


def load(file: Path) -> tuple[list[Row], list[Stage]]:
    """What a file holds; nothing if there is none yet. Raises SourceError for one that is none of `sweep`'s."""
    try:
        found = [json.loads(each) for each in file.read_text().splitlines()] if file.exists() else []
        for each in found:
            each |= {name: float("nan") for name, value in each.items() if value is None and name != "max_pixels"}
        rows, stages = ([each for each in found if ("stage" in each) is kind] for kind in (False, True))
        return [Row(**each) for each in rows], [Stage(**each) for each in stages]
    except (ValueError, TypeError, AttributeError) as error:
        raise SourceError(f"{file} cannot be continued ({error}): take it away.") from None


def evaluate(
    embedder: Embedder, subject: Subject, block: Block, advance: Callable[[int], None]
) -> tuple[list[Row], list[Stage]]:
    """All rows of one block, and the vision tower's stages."""
    of_text, of_image = block.options("text"), block.options("image")
    texts, _ = vectors(embedder, [EmbedInput(text=name, options=of_text) for name in subject.names], advance)
    images, seen = vectors(embedder, [EmbedInput(image=file, options=of_image) for file in subject.images], advance)
    rows = []
    for (layer, pooling, final_norm), text in texts.items():
        pairs = Pairs(subject.names, text, images[layer, pooling, final_norm], subject.rgb)
        found: dict[str, Any] = {
            "probe": readable(pairs, "text", "image"),
            "intrinsic_dimension": intrinsic(pairs, "text", "image"),
        }
        for calibration in CALIBRATIONS:
            with suppress(NoSpread):  # the input's last token is the same of all
                found |= halves(pairs, fitted(calibration))
                rows.append(Row(block.prompt, block.max_pixels, layer, pooling, final_norm, calibration, **found))
    stages = []
    for stage, image in seen.items():
        pairs = Pairs(subject.names, image, image, subject.rgb)
        size = image.shape[1]
        stages.append(Stage(stage, block.max_pixels, size, readable(pairs, "image"), intrinsic(pairs, "image")))
    return rows, stages


Way = tuple[Layer | str, str, bool]


def vectors(
    embedder: Embedder, inputs: list[EmbedInput], advance: Callable[[int], None]
) -> tuple[dict[Way, FloatArray], dict[str, FloatArray]]:
    """Every layer, pooling and norm of every input, and of images every stage: (N, D) each, from one forward pass."""
    prepared = [embedder.prepare(item).sequence for item in inputs]
    found: dict[Any, FloatArray] = {}
    for batch in plan(dict(enumerate(prepared)), embedder.batch_tokens):
        ways, stages = every_way(embedder.model, [prepared[i] for i in batch])
        for key, rows in (ways | stages).items():
            found.setdefault(key, np.empty((len(inputs), rows.shape[1]), dtype=np.float32))[batch] = rows
        advance(len(batch))
    ways = {key: rows for key, rows in found.items() if isinstance(key, tuple)}
    return ways | means(ways, embedder.model.layers), {key: found[key] for key in found if key not in ways}


def every_way(
    model: PackedModel, sequences: list[Sequence]
) -> tuple[dict[Way, NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """One forward pass: every layer and pooling, with the final norm or not, and every stage; float32 (N, D) each."""
    layers: list[Layer] = [*range(model.layers + 1), "attn"]
    packed = pack(sequences, model.device)
    poolings = [name for name, each in POOLINGS.items() if not each.append]  # with a token more it is another pass
    pooled = {pooling: indices_of(packed.starts, [each.pooled(pooling) for each in sequences]) for pooling in poolings}
    rows = [np.concatenate(each) for each in pooled.values()]
    with watched(model, packed) as stages:
        states = model.hidden(packed, layers, to_device(np.concatenate(rows), model.device))
    found: dict[Way, NDArray[np.float32]] = {}
    for layer in layers:
        parts = states[layer].split(list(map(len, rows)))
        for (pooling, indices), chosen in zip(pooled.items(), parts, strict=True):
            for final_norm in (True, False):
                norm, weights = model.final_norm if final_norm else None, POOLINGS[pooling].weights
                mean = average(chosen, [weights(len(each)) for each in indices], norm)
                found[layer, pooling, final_norm] = mean.cpu().numpy()
    return found, stages


@contextmanager
def watched(model: PackedModel, packed: Packed) -> Iterator[dict[str, NDArray[np.float32]]]:
    """What a pass leaves: of each image the mean of its patches after every block, of its tokens after every merger."""
    visual, found = model.model.visual, {}
    modules = {f"block {number}": block for number, block in enumerate(visual.blocks, 1)}
    modules |= {f"DeepStack {number}": merger for number, merger in enumerate(visual.deepstack_merger_list, 1)}
    modules["merger"] = visual.merger
    patches = packed.images.bounds.lengths if packed.images else ()

    def keep(stage: str) -> Callable[[torch.nn.Module, Any, torch.Tensor], None]:
        def hook(module: torch.nn.Module, given: Any, rows: torch.Tensor) -> None:
            merged = sum(patches) // len(rows)  # patches a row
            found[stage] = average(rows, [np.ones(each // merged, np.float32) for each in patches], None).cpu().numpy()

        return hook

    with ExitStack() as hooks:
        for stage, module in modules.items():
            hooks.callback(module.register_forward_hook(keep(stage)).remove)
        yield found


def means(found: dict[Way, FloatArray], last: int) -> dict[Way, FloatArray]:
    """Over several layers: (N, D) each. Of unit vectors, or the layer with the largest ones would be the mean."""
    ways = dict.fromkeys((pooling, final_norm) for _, pooling, final_norm in found)
    return {
        (name, *way): np.mean([unit(found[layer, *way]) for layer in chosen(last)], axis=0).astype(np.float32)
        for name, chosen in MEANS.items()
        for way in ways
    }


def fitted(calibration: str) -> Fit:
    """What `calibrate` would fit, by its own arithmetic."""

    def fit_halves(text: FloatArray, image: FloatArray) -> Any:
        if calibration == "none":
            return (lambda rows: rows), (lambda rows: rows)
        found = Calibration.of(fit({"text": text, "image": image}, calibration))
        return (lambda rows: found.apply(rows, "text")), (lambda rows: found.apply(rows, "image"))

    return fit_halves


def halves(pairs: Pairs, how: Fit) -> dict[str, float]:
    """Both halves' figures; each half's candidates are its own, and what it is calibrated by is the other's."""
    choosing, testing = (values(view.alone()) for view in cross_fitted(pairs, how))

    def both(found: dict[str, float], name: str) -> float:
        return (found[f"text_to_image_{name}"] + found[f"image_to_text_{name}"]) / 2

    return {
        "choose_mrr": both(choosing, "mrr"),
        "test_mrr": both(testing, "mrr"),
        "test_recall_1": both(testing, "recall_1"),
        "test_mixed_recall_1": both(testing, "mixed_recall_1"),
        "test_matched": testing["matched_mean"],
        "test_unmatched": testing["unmatched_mean"],
    }


def readable(pairs: Pairs, *modalities: str) -> float:
    """The report's R² of what can be read off, mean over `modalities`; NaN where nothing is known to read."""
    wanted = probe.wanted(pairs)
    if wanted is None:
        return float("nan")
    found = probe.figures(raw(pairs), wanted, Resampling(len(pairs), resamples=0))
    return float(np.mean([found[f"probe_{modality}"].value for modality in modalities]))


def intrinsic(pairs: Pairs, *modalities: str) -> float:
    return float(np.mean([geometry.intrinsic_dimension(raw(pairs), modality) for modality in modalities]))


def ranking(rows: list[Row]) -> list[Row]:
    """Best first, by what may be chosen by: the choosing half's MRR, then the probe."""
    return sorted(rows, key=lambda row: (round(row.choose_mrr, 3), np.nan_to_num(row.probe)), reverse=True)


def recommended(rows: list[Row]) -> Iterator[tuple[str, Row]]:
    """The best row that is served without a calibration, and the best that is served if that needs one."""
    best = [row for row in ranking(rows) if row.served]
    plain = next(row for row in best if row.calibration == "none")
    yield "best", plain
    if best[0] != plain:
        yield f"best with a calibration ({best[0].calibration})", best[0]


@dataclass(frozen=True)
class LabelFree:
    """What the intrinsic dimension, for which no pairs are needed, says of layers: its least is KV-Embedding's choice.

    (arXiv 2601.01046, January 2026.) `agreement`: Spearman's rank correlation of dimension and MRR over the layers.
    """

    chosen: Row
    best: Row
    agreement: float


def label_free(rows: list[Row]) -> Iterator[LabelFree]:
    """For each prompt, resolution and pooling: single layers with the final norm, without a calibration."""
    plain = [row for row in rows if row.served and row.final_norm and row.calibration == "none"]
    for key in dict.fromkeys((row.prompt, row.max_pixels, row.pooling) for row in plain):
        layers = [row for row in plain if (row.prompt, row.max_pixels, row.pooling) == key]
        layers = [row for row in layers if np.isfinite(row.intrinsic_dimension)]
        if len({row.intrinsic_dimension for row in layers}) < 2 or len({row.test_mrr for row in layers}) < 2:
            continue
        agreement = spearmanr([row.intrinsic_dimension for row in layers], [row.test_mrr for row in layers]).statistic
        chosen = min(layers, key=lambda row: row.intrinsic_dimension)
        yield LabelFree(chosen, max(layers, key=lambda row: row.test_mrr), float(agreement))
