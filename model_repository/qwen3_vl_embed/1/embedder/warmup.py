"""Before anybody asks: passes that come again are captured, and it is measured what inputs take.

Those who wait for this model (the adapter, the watchdog) cannot know whether a text takes it a millisecond or half a
minute. The model says so itself, in the description that goes with every answer.
"""

from collections.abc import Sequence
from io import BytesIO
from time import perf_counter
from typing import TYPE_CHECKING

from PIL import Image

from .inputs import EmbedInput

if TYPE_CHECKING:
    from .embedder import Embedder

WORTH_SECONDS = 0.1  # capturing saves the calls, tens of milliseconds at most: nothing of a pass that takes longer
WORDS = 16  # texts up to so many tokens are captured; the benchmark's longest name has ten
CAPTURING_SECONDS = 5
TOGETHER = 4
REPEATED_SECONDS = 1  # what takes less is measured again, up to three times


def warm_up(embedder: "Embedder") -> dict[str, float]:
    """Seconds that a pass of N texts and M images, all short and small, takes at best: `pass` + N `text` + M `image`.

    Raises:
        EmbedError: the model fails on a text or an image of our own.
    """
    text, image = EmbedInput(text="red"), EmbedInput(image=swatch())
    embedder.embed([text])  # the first pass of all is a cold one
    lone = quickest(embedder, [text])
    if lone < WORTH_SECONDS:
        capture(embedder, [image, *(EmbedInput(text=" ".join(["a"] * words)) for words in range(1, WORDS + 1))])
        lone = quickest(embedder, [text])
    another = max(0.0, (quickest(embedder, [text] * TOGETHER) - lone) / (TOGETHER - 1))
    whole = max(0.0, lone - another)
    return {"pass": whole, "text": another, "image": max(0.0, quickest(embedder, [image]) - whole)}


def capture(embedder: "Embedder", items: Sequence[EmbedInput]) -> None:
    """The passes of these, each alone; not all of them where that would hold up the start."""
    until = perf_counter() + CAPTURING_SECONDS
    with embedder.model.capturing():
        for item in items:
            if perf_counter() < until:
                embedder.embed([item])


def quickest(embedder: "Embedder", items: Sequence[EmbedInput]) -> float:
    """The least seconds that they took."""
    took: list[float] = []
    while len(took) < 3 and sum(took) < REPEATED_SECONDS:
        started = perf_counter()
        embedder.embed(items)
        took.append(perf_counter() - started)
    return min(took)


def swatch() -> bytes:
    """A PNG of the benchmark's size."""
    file = BytesIO()
    Image.new("RGB", (244, 244), "red").save(file, "PNG")
    return file.getvalue()
