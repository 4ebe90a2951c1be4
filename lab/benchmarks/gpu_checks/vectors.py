"""Checks 3 and 4: the same vectors as a CPU's, and as transformers' at the 4B's real widths."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from transformers import AutoProcessor, PreTrainedModel

from embedder import Embedder, EmbedderConfig, EmbedInput, Options
from embedder.forward.model import PackedModel
from embedder.parity import least_cosine
from lab.benchmarks import chat, checkpoints, contenders, inputs
from lab.benchmarks.gpu_checks.bench import MINI, Bench
from lab.benchmarks.gpu_checks.figures import Figure, right, told
from lab.benchmarks.subject import vectors

LEAST = {"float32": 0.99999, "bfloat16": 0.999}
OPTIONS: dict[str, Options] = {
    "defaults": Options(),
    "pooling mean": Options(pooling="mean"),
    "pooling eos": Options(pooling="eos"),
    "layer 0": Options(layer=0),
    "layer 2": Options(layer=2),
    "layer attn": Options(layer="attn"),
    "no final norm": Options(final_norm=False),
    "a prefix": Options(prompt="embedding"),
    "an instruction": Options(instruction="Name the colour of what is shown, in one word."),
}


def against_a_cpu(bench: Bench) -> Iterator[Figure]:
    """Check 3: a checkpoint on disk, loaded twice; the reference computes one input at a time, in float32, on a CPU."""
    with TemporaryDirectory() as folder:
        configuration = checkpoints.outline(MINI, Path(folder), bench.sizes.pixels)
        checkpoints.drawn(configuration, torch.float32, "cpu").save_pretrained(folder)
        reference = Embedder.load(EmbedderConfig(checkpoint=folder, device="cpu", prompt="eol"))
        texts = ["red", "very dark teal", "a longer sentence, with punctuation!\nand more", "ночь 夜", inputs.text(20)]
        pictures = [*(inputs.picture(side, seed) for seed, side in enumerate(bench.sizes.sides)), inputs.swatch(3)]
        batch = [EmbedInput(text=text) for text in texts] + [EmbedInput(image=picture) for picture in pictures]
        batch.append(EmbedInput(text="what is this?", image=pictures[0]))
        alone = {
            name: np.concatenate([vectors(reference, [item]) for item in _with(batch, options)])
            for name, options in OPTIONS.items()
        }
        for dtype, least in LEAST.items():
            settings = {"checkpoint": folder, "device": bench.device, "dtype": dtype, "prompt": "eol"}
            ours = Embedder.load(EmbedderConfig.model_validate(settings))
            for name, options in OPTIONS.items():
                found = vectors(ours, _with(batch, options))
                yield right(f"{dtype}, {name}: least cosine", least_cosine(found, alone[name]), least=least)
            found = vectors(ours, batch[::-1])[::-1]
            yield right(f"{dtype}, in reverse: least cosine", least_cosine(found, alone["defaults"]), least=least)
            ours.batch_tokens = 1
            found = vectors(ours, batch)
            yield right(f"{dtype}, a budget of 1: least cosine", least_cosine(found, alone["defaults"]), least=least)


def _with(batch: list[EmbedInput], options: Options) -> list[EmbedInput]:
    return [EmbedInput(item.text, item.image, options) for item in batch]


def against_transformers(bench: Bench) -> Iterator[Figure]:
    """Check 4: the same weights through transformers in bfloat16 and float32, and through ours; one model at a time."""
    bench.release()
    texts = [inputs.text(words, start) for start, words in enumerate((1, 1, 1, 2, 4, 16, 60, 160))]
    pictures = [inputs.picture(side, seed) for seed, side in enumerate(2 * bench.sizes.sides)]
    batch = [EmbedInput(text=text) for text in texts] + [EmbedInput(image=picture) for picture in pictures]
    model = bench.drawn(torch.bfloat16)
    rounded = _theirs(bench, model, batch)
    model = model.float()  # the very weights, in float32
    exact = _theirs(bench, model, batch)
    ours = vectors(bench.embedder_of(PackedModel.of(model, bench.checkpoint.processor.image_processor)), batch)
    yield right("ours and transformers', float32: least cosine", least_cosine(ours, exact), least=LEAST["float32"])
    del model
    bench.release()
    model = PackedModel.of(bench.drawn(torch.bfloat16), bench.checkpoint.processor.image_processor)
    ours = vectors(bench.embedder_of(model), batch)
    theirs = least_cosine(rounded, exact)
    yield told("transformers' bfloat16 and its float32: least cosine", theirs)
    yield right(
        "our bfloat16 and that float32: least cosine", least_cosine(ours, exact), least=max(0.99, theirs - 1e-3)
    )
    apart = least_cosine(exact[:1].repeat(len(exact) - 1, axis=0), exact[1:])
    yield told("two different inputs, the same float32: least cosine", apart, expected="far below the others")
    del model
    bench.release()


@torch.inference_mode()
def _theirs(bench: Bench, model: PreTrainedModel, batch: list[EmbedInput]) -> np.ndarray:
    """transformers' own forward pass, processor and chat template, one input at a time: (N, D)."""
    processor = AutoProcessor.from_pretrained(bench.checkpoint.folder)
    rows = []
    for item in batch:
        given = contenders.rendered(processor, [chat.conversation(item.text, item.image)], bench.device)
        rows.append(contenders.unit(model(**given, use_cache=False).last_hidden_state[0, -1:]))
    return np.concatenate(rows)
