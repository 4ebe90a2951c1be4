"""Before anybody asks: passes that come again are captured, and it is measured what inputs take.

Those who wait for this model (the adapter, the watchdog) cannot know whether a text takes it a millisecond or half a
minute. The model says so itself, in the description that goes with every answer.
"""

from collections.abc import Iterable, Iterator, Sequence
from io import BytesIO
from math import isqrt
from time import perf_counter
from typing import TYPE_CHECKING

from PIL import Image

from .forward import buckets
from .inputs import EmbedInput

if TYPE_CHECKING:
    from .embedder import Embedder

WORTH_SECONDS = 0.1  # capturing saves the calls, tens of milliseconds at most: nothing of a pass that takes longer
WORDS = 16  # on a CPU texts up to so many tokens are captured; the benchmark's longest name has ten
CAPTURING_SECONDS, CAPTURING_SECONDS_ON_A_GPU = 5, 60
TOGETHER = 4  # two where that takes seconds: the start waits for it
REPEATED_SECONDS = 1  # what takes less is measured again, up to three times
SWATCH, LARGE = (244, 244), (1024, 1024)  # pixels: the benchmark's, and what images are brought to by default


def warm_up(embedder: "Embedder") -> dict[str, float]:
    """Seconds that a pass of N texts and M images, all short and small, takes at best: `pass` + N `text` + M `image`.

    Raises:
        EmbedError: the model fails on a text or an image of our own.
        CaptureFailed: this process is of no use any more; see `replay.py`.
    """
    text, image = EmbedInput(text="red"), EmbedInput(image=picture(fitting(embedder, SWATCH)))
    on_gpu = embedder.model.device.type == "cuda"
    if on_gpu:
        embedder.embed(full_pass(embedder))  # takes the memory that passes will need, and finds out whether it is there
    embedder.embed([text])  # the first pass of all is a cold one
    lone = quickest(embedder, [text])
    if lone < WORTH_SECONDS:
        if on_gpu:
            capture(embedder, of_every_bucket(embedder, text, image), CAPTURING_SECONDS_ON_A_GPU)
        else:
            most = min(WORDS, embedder.config.max_text_tokens)
            words = (EmbedInput(text=" ".join(["a"] * count)) for count in range(1, most + 1))
            capture(embedder, ([item] for item in (image, *words)), CAPTURING_SECONDS)
        lone = quickest(embedder, [text])
    together = TOGETHER if lone < REPEATED_SECONDS else 2
    another = max(0.0, (quickest(embedder, [text] * together) - lone) / (together - 1))
    whole = max(0.0, lone - another)
    return {"pass": whole, "text": another, "image": max(0.0, quickest(embedder, [image]) - whole)}


def full_pass(embedder: "Embedder") -> list[EmbedInput]:
    """As many large images as one pass may hold."""
    large = EmbedInput(image=picture(fitting(embedder, LARGE)))
    return [large] * max(1, embedder.batch_tokens // len(embedder.prepare(large).sequence))


def of_every_bucket(embedder: "Embedder", text: EmbedInput, image: EmbedInput) -> Iterator[list[EmbedInput]]:
    """A batch for each bucket of small images and of texts, the largest first: the others find room in its memory."""

    def tokens(words: int) -> int:
        sequence = embedder.prepare(EmbedInput(text=" ".join(["red"] * words))).sequence
        return len(sequence) - len(sequence.prefix)

    for count in reversed(buckets.IMAGES):
        yield [image] * count
    one = tokens(1)
    for size in reversed(buckets.TEXTS):
        if count := size // max(one, buckets.FEWEST[buckets.SHORT]):
            yield [text] * count
    for size in reversed(buckets.TEXTS):
        if buckets.SHORT < size <= min(buckets.LONG, embedder.config.max_text_tokens):
            each = (tokens(65) - one) / 64
            yield [EmbedInput(text=" ".join(["red"] * int((size - one) / each)))]


def capture(embedder: "Embedder", batches: Iterable[list[EmbedInput]], seconds: float) -> None:
    """The passes of these; not all of them where that would hold up the start for longer than so many seconds."""
    until = perf_counter() + seconds
    with embedder.model.capturing():
        for batch in batches:
            if perf_counter() < until:
                embedder.embed(batch)


def quickest(embedder: "Embedder", items: Sequence[EmbedInput]) -> float:
    """The least seconds that they took."""
    took: list[float] = []
    while len(took) < 3 and sum(took) < REPEATED_SECONDS:
        started = perf_counter()
        embedder.embed(items)
        took.append(perf_counter() - started)
    return min(took)


def fitting(embedder: "Embedder", size: tuple[int, int]) -> tuple[int, int]:
    """A width and a height in pixels, no larger than the settings allow an image to be."""
    side = isqrt(embedder.config.max_image_pixels)
    return min(size[0], side), min(size[1], side)


def picture(size: tuple[int, int]) -> bytes:
    """A PNG of that width and height."""
    return png(Image.new("RGB", size, "red"))


def png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
