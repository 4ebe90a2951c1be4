"""Which hidden state is the right embedding: every layer, pooling and norm from one forward pass for each prompt.

One block is one prompt at one resolution. All N names and swatches go through the model once, all states are pooled in
every way, and each way becomes one row of figures. The pairs are cut into two halves: one chooses, the other judges,
and centring takes its means from the half that is not judged.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import RidgeCV

from embedder import Embedder, EmbedInput, Options
from embedder.forward.device import to_device
from embedder.forward.model import PackedModel
from embedder.forward.packing import pack, plan
from embedder.forward.pooling import average
from embedder.options import Layer
from embedder.poolings import POOLINGS
from embedder.prepare.sequence import Sequence
from qwen3_vl_embed.evaluation import FloatArray
from qwen3_vl_embed.evaluation.colours import Palette, png, swatch
from qwen3_vl_embed.evaluation.retrieval import retrieval
from qwen3_vl_embed.evaluation.space import unit

SEED = 0
PENALTIES = np.logspace(-3, 5, 9)


@dataclass(frozen=True)
class Block:
    """One prompt at one resolution (the server's own bounds when None)."""

    prompt: str
    max_pixels: int | None = None

    def options(self) -> Options:
        return Options(prompt=self.prompt, max_pixels=self.max_pixels)


@dataclass(frozen=True)
class Row:
    """One recipe's figures. `choose_*` are of the half that recommendations are chosen by, `test_*` of the other."""

    prompt: str
    max_pixels: int | None
    layer: Layer
    pooling: str
    final_norm: bool
    center: bool
    probe: float  # leave-one-out R² of CIELAB, mean of texts and images
    choose_mrr: float  # mean reciprocal rank, mean of both directions
    test_mrr: float
    test_recall_1: float
    test_matched: float  # mean cosine distances
    test_unmatched: float

    def options(self) -> dict[str, Any]:
        """The options of a request that gives these vectors."""
        given = {"prompt": self.prompt, "pooling": self.pooling, "layer": self.layer, "final_norm": self.final_norm}
        given |= {"max_pixels": self.max_pixels} if self.max_pixels else {}
        return given | ({"center": True} if self.center else {})


def blocks(prompts: list[str], resolutions: list[int | None]) -> list[Block]:
    return [Block(prompt, max_pixels) for prompt in prompts for max_pixels in resolutions]


def sweep(
    embedder: Embedder, palette: Palette, todo: list[Block], file: Path, advance: Callable[[int], None]
) -> list[Row]:
    """Fill in what `file` (JSON lines, one for each row) does not hold yet, block by block; returns all rows of `todo`.

    `advance` is called with the number of inputs that have gone through the model.
    """
    done = load(file)
    for block in todo:
        if any((row.prompt, row.max_pixels) == (block.prompt, block.max_pixels) for row in done):
            advance(2 * len(palette))
            continue
        rows = evaluate(embedder, palette, block, advance)
        with open(file, "a", opener=without_links) as out:
            out.writelines(json.dumps(asdict(row)) + "\n" for row in rows)
        done += rows
    wanted = {(block.prompt, block.max_pixels) for block in todo}
    return [row for row in done if (row.prompt, row.max_pixels) in wanted]


def without_links(path: str, flags: int) -> int:
    """An `opener` for `open`: a link at the file's own place may be somebody else's. Raises OSError."""
    return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def load(file: Path) -> list[Row]:
    """The rows of a file; none if there is none yet."""
    return [Row(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []


def evaluate(embedder: Embedder, palette: Palette, block: Block, advance: Callable[[int], None]) -> list[Row]:
    """All rows of one block."""
    options = block.options()
    texts = vectors(embedder, [EmbedInput(text=name, options=options) for name in palette.names], advance)
    images = vectors(embedder, [EmbedInput(image=png(swatch(rgb)), options=options) for rgb in palette.rgb], advance)
    rows = []
    for way, text in texts.items():
        layer, pooling, final_norm = way
        probe = (readable(text, palette.lab) + readable(images[way], palette.lab)) / 2
        for center in (False, True):
            found = figures(text, images[way], palette.lab, center)
            rows.append(
                Row(block.prompt, block.max_pixels, layer, pooling, final_norm, center=center, probe=probe, **found)
            )
    return rows


Way = tuple[Layer, str, bool]


def vectors(embedder: Embedder, inputs: list[EmbedInput], advance: Callable[[int], None]) -> dict[Way, FloatArray]:
    """Every layer, pooling and norm of every input: (N, D) each, from one forward pass for each input."""
    prepared = [embedder.prepare(item).sequence for item in inputs]
    found: dict[Way, FloatArray] = {}
    for batch in plan(dict(enumerate(prepared)), embedder.batch_tokens):
        for way, rows in every_way(embedder.model, [prepared[i] for i in batch]).items():
            found.setdefault(way, np.empty((len(inputs), rows.shape[1]), dtype=np.float32))[batch] = rows
        advance(len(batch))
    return found


def every_way(model: PackedModel, sequences: list[Sequence]) -> dict[Way, FloatArray]:
    """One forward pass, every layer and pooling, with the final norm or not: float32 (N, D) each."""
    layers: list[Layer] = [*range(model.layers + 1), "attn"]
    packed = pack(sequences, model.device)
    poolings = [name for name, each in POOLINGS.items() if not each.append]  # with a token more it is another pass
    pooled = {pooling: packed.indices([each.pooled(pooling) for each in sequences]) for pooling in poolings}
    rows = [np.concatenate(each) for each in pooled.values()]
    states = model.hidden(packed, layers, to_device(np.concatenate(rows), model.device))
    found = {}
    for layer in layers:
        parts = states[layer].split(list(map(len, rows)))
        for (pooling, indices), chosen in zip(pooled.items(), parts, strict=True):
            for final_norm in (True, False):
                norm, weights = model.final_norm if final_norm else None, POOLINGS[pooling].weights
                mean = average(chosen, [weights(len(each)) for each in indices], norm)
                found[layer, pooling, final_norm] = mean.cpu().numpy()
    return found


def figures(text: FloatArray, image: FloatArray, lab: FloatArray, center: bool) -> dict[str, float]:
    """Both halves' figures; each half's candidates are its own, its means (when centred) the other's."""
    halves = np.array_split(np.random.default_rng(SEED).permutation(len(lab)), 2)
    choosing, testing = (
        retrieval(
            unit(text)[judged] - center * unit(text)[other].mean(axis=0),
            unit(image)[judged] - center * unit(image)[other].mean(axis=0),
            ks=(1,),
        )
        for judged, other in (halves, halves[::-1])
    )
    return {
        "choose_mrr": choosing.mrr,
        "test_mrr": testing.mrr,
        "test_recall_1": (testing.text_to_image[1] + testing.image_to_text[1]) / 2,
        "test_matched": testing.matched,
        "test_unmatched": testing.unmatched,
    }


def readable(rows: FloatArray, lab: FloatArray) -> float:
    """Leave-one-out R² of a ridge regression to CIELAB; 0 is guessing the mean colour, a constant vector gets 0."""
    scaled = rows.astype(np.float64) - rows.mean(axis=0)
    scaled /= max(float(np.abs(scaled).max()), 1e-12)
    probe = RidgeCV(PENALTIES, store_cv_results=True).fit(scaled, lab)  # one decomposition serves all penalties
    error = probe.cv_results_.mean(axis=0)  # (3, penalties), squared
    return float((1 - error.min(axis=1) / lab.var(axis=0)).mean())


def ranking(rows: list[Row]) -> list[Row]:
    """Best first, by what may be chosen by: the choosing half's MRR, then the probe."""
    return sorted(rows, key=lambda row: (round(row.choose_mrr, 3), row.probe), reverse=True)


def recommended(rows: list[Row]) -> Iterator[tuple[str, Row]]:
    """The best row without a calibration, and the best of all if that needs one."""
    best = ranking(rows)
    plain = next(row for row in best if not row.center)
    yield "best", plain
    if best[0].center:
        yield "best with a calibration", best[0]
