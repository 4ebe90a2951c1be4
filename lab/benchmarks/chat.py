"""Our default prompt in transformers' own words: what a peer must say so that its vectors are ours.

Spelled out here rather than imported: a peer that used our renderer would be no check of it.
"""

from io import BytesIO

from PIL import Image

from embedder import EmbedInput

AFTER_TEXT = "\nSummary above sentence in one word:"
AFTER_IMAGE = "\nSummary above image in one word:"

Message = dict[str, object]


def conversation(text: str | None = None, image: bytes | None = None) -> list[Message]:
    """One user turn that holds the content, then the request to summarise it."""
    if image is not None:
        pixels = Image.open(BytesIO(image)).convert("RGB")
        content = [{"type": "image", "image": pixels}, {"type": "text", "text": AFTER_IMAGE}]
    else:
        content = [{"type": "text", "text": f"{text}{AFTER_TEXT}"}]
    return [{"role": "user", "content": content}]


def conversations(batch: list[EmbedInput]) -> list[list[Message]]:
    return [conversation(item.text, item.image) for item in batch]
