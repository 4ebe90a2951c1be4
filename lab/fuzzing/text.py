"""Texts, prompts and options through the renderer, in process.

    python -m lab.fuzzing.text --inputs 50000 --seed 1
    python -m lab.fuzzing.text --minutes 2 --checkpoint Qwen/Qwen3-VL-4B-Instruct

Every text becomes a sequence or a sentence. A sequence has no more control tokens than the same prompt has around
"red", whatever was written: special tokens of the tokenizer, our own slots, template syntax, marks that melt into
their neighbours, every block of Unicode, half surrogate pairs, a megabyte of emoji.
"""

import json
import re
from collections import Counter
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Annotated

import numpy as np
import typer
from rich.progress import track

from embedder import EmbedderConfig, EmbedInput, Options
from embedder.checkpoint import load_tokenizer, open_checkpoint
from embedder.prepare.preparer import Prepared, Preparer
from embedder.prepare.prompts import PROMPTS
from embedder.prepare.renderer import Renderer
from embedder.published import published
from lab.fuzzing.findings import Findings, console

TINY = Path(__file__).parents[2] / "checkpoints" / "qwen3-vl-color-tiny"
SYNTAX = (
    "{content}",
    "{text}",
    "{image}",
    "{{ 7 * 7 }}",
    "{% raw %}",
    "\ue000text\ue000",
    "\ue000system\ue000",
    "\ue0000\ue000",
)
MARKS = (
    "\u0301",
    "\u0323",
    "\u1161",
    "\u11a8",
    "\u200d",
    "\u200b",
    "\ufe0f",
    "\u202e",
    "\0",
    "\r\n",
    "\ud83d",
    "\udca9",
)
WORDS = ("red", "e", "\u1100", "가", "'s", "  ", "\n", "1", "أ", "ไ", "👩‍👩‍👧", "🏳️‍🌈", "ﬁ", "ⅷ", "Å")
MOST_PIECES = 12
SLOTS = re.compile(r"\{(content|text|image)\}")  # a template holds one of them; others are refused before anything
app = typer.Typer(add_completion=False, rich_markup_mode=None)


class Texts:
    """Draws texts, templates and options; the checkpoint's own special tokens are among the pieces."""

    def __init__(self, special: list[str], random: np.random.Generator) -> None:
        self.random = random
        self.kinds = (special, SYNTAX, MARKS, WORDS)

    def text(self) -> str:
        if self.random.random() < 0.001:  # a megabyte, or as many tokens as are just too many
            return self._piece() * int(self.random.choice((5_000, 10_000, 2**18)))
        return "".join(self._piece() for _ in range(int(self.random.integers(1, MOST_PIECES))))

    def options(self) -> dict:
        drawn: dict = {"pooling": str(self.random.choice(("last", "mean", "eos")))}
        if self.random.random() < 0.7:
            template = SLOTS.sub("", self.text()[:40]) + "{content}" + SLOTS.sub("", self.text()[:40])
            drawn["prompt"] = str(self.random.choice([*PROMPTS, template]))
        if self.random.random() < 0.5:
            drawn["instruction"] = self.text()[:200]
        return drawn

    def _piece(self) -> str:
        kind = int(self.random.integers(len(self.kinds) + 2))
        if kind >= len(self.kinds):  # anything of Unicode; the first planes hold most of what combines
            return chr(int(self.random.integers(0x110000 if kind > len(self.kinds) else 0x3000)))
        return self.kinds[kind][self.random.integers(len(self.kinds[kind]))]


class Subject:
    """A checkpoint's renderer, and how many control tokens each frame has by itself."""

    def __init__(self, checkpoint: str) -> None:
        config = EmbedderConfig(checkpoint=checkpoint)
        opened = open_checkpoint(checkpoint)
        tokenizer = load_tokenizer(opened)
        self.special = {str(token): i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        own = published(opened, str(tokenizer.chat_template), config.prompt)
        config = config.model_copy(update={"prompt": own.name})
        self.preparer = Preparer(config, opened, own, Renderer(tokenizer, config.max_text_tokens))

    def run(self, text: str, options: dict) -> None:
        """Prepare it, and see that neither it nor the options brought a control token."""
        parsed = Options.parse(json.dumps(options).encode())
        prepared = self.preparer.prepare(EmbedInput(text=text, options=parsed))
        plain = {name: "red" for name in options if name == "instruction"}
        if "prompt" in options:
            plain["prompt"] = options["prompt"] if options["prompt"] in PROMPTS else "red {content} red"
        frame = Options.parse(json.dumps(options | plain).encode())
        expected = self.preparer.prepare(EmbedInput(text="red", options=frame))
        assert self._controls(prepared) == self._controls(expected), "control tokens"
        (start, stop), *more = prepared.sequence.tokens.content
        assert 0 <= start < stop <= len(prepared.sequence.tokens.ids), "an empty span"
        assert not more, "two spans"

    def _controls(self, prepared: Prepared) -> Counter:
        control = set(self.special.values())
        return Counter(token for token in prepared.sequence.tokens.ids.tolist() if token in control)


@app.command(epilog="Example: python -m lab.fuzzing.text --inputs 50000 --seed 1")
def main(
    inputs: Annotated[int, typer.Option(help="how many texts to try")] = 50_000,
    seed: Annotated[int, typer.Option(help="the same seed gives the same texts")] = 0,
    minutes: Annotated[float, typer.Option(help="stop after so long all the same")] = 30.0,
    checkpoint: Annotated[str, typer.Option(help="a folder or a hub id")] = str(TINY),
    findings: Annotated[Path, typer.Option(help="where texts without a documented outcome are kept")] = Path(
        "findings"
    ),
) -> None:
    """Try texts with prompts and instructions; the last line is what came of it, as JSON."""
    subject, random = Subject(checkpoint), np.random.default_rng(seed)
    texts, result = Texts(sorted(subject.special), random), Findings("text", seed, findings)
    until = monotonic() + minutes * 60
    for token in subject.special:
        result.judge(token.encode(), partial(subject.run, token, {}))
    for _ in track(range(inputs), "text", console=console, transient=True):
        text, options = texts.text(), texts.options()
        content = json.dumps({"text": text, "options": options}).encode()
        result.judge(content, partial(subject.run, text, options))
        if monotonic() > until:
            break
    result.report(special_tokens=len(subject.special))


if __name__ == "__main__":
    app()
