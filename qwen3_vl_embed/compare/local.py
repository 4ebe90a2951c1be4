"""Who is compared in this process: our embedder, transformers written plainly, sentence-transformers. Needs torch."""

import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson
import torch
from PIL import Image, ImageOps
from transformers import AutoModel

from embedder import Embedder, EmbedderConfig, EmbedInput, Options
from embedder.checkpoint import Checkpoint, load_tokenizer, open_checkpoint
from embedder.embedder import Embedding
from embedder.forward.device import usable
from embedder.published import published
from qwen3_vl_embed.compare.inputs import Input
from qwen3_vl_embed.compare.sides import Got, Vector


class Ours:
    """Our embedder; `fields` are the options of every input. Raises EmbedError for one that is none."""

    def __init__(self, embedder: Embedder, fields: Mapping[str, Any]) -> None:
        self.name = f"embedder:{embedder.checkpoint.name}"
        self._embedder, self._options = embedder, Options.parse(orjson.dumps(fields))

    @classmethod
    def load(cls, folder: str, fields: Mapping[str, Any]) -> "Ours":
        return cls(Embedder.load(EmbedderConfig(checkpoint=folder)), fields)

    def vectors(self, inputs: Sequence[Input], together: bool) -> list[Got]:
        items = [EmbedInput(item.text, item.image, self._options) for item in inputs]
        batches = [items] if together else [[item] for item in items]
        answers = [answer for batch in batches for answer in self._embedder.embed_each(batch)]
        return [answer.vector if isinstance(answer, Embedding) else str(answer) for answer in answers]


class Transformers:
    """The checkpoint's own prompt in transformers' own classes, one input at a time: the last token's last state.

    Nothing of ours but the words of the prompt.
    """

    def __init__(self, folder: str) -> None:
        self.name = f"transformers:{folder}"
        checkpoint = open_checkpoint(folder)
        tokenizer = load_tokenizer(checkpoint)
        own = published(checkpoint, str(tokenizer.chat_template), None)
        self._prompt, self._processor = own.prompts[own.name], checkpoint.processor
        self._model = transformers_model(checkpoint)

    def vectors(self, inputs: Sequence[Input], together: bool) -> list[Got]:
        return [self._vector(item) for item in inputs]

    @torch.inference_mode()  # type: ignore[untyped-decorator]
    def _vector(self, item: Input) -> Vector:
        turn = {"text": self._prompt.text, "image": self._prompt.image, "both": self._prompt.both}[item.kind]
        pieces = filter(None, re.split(r"(\{image\})", turn.replace("{text}", item.text or "")))
        content = [{"type": "image"} if piece == "{image}" else {"type": "text", "text": piece} for piece in pieces]
        chat: list[dict[str, Any]] = [{"role": "user", "content": content}]
        if self._prompt.system:
            chat.insert(0, {"role": "system", "content": [{"type": "text", "text": self._prompt.system}]})
        text = self._processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=self._prompt.generation)
        images = [upright(item.image)] if item.image is not None else None
        processed = self._processor(text=[text], images=images, return_tensors="pt").to(self._model.device)
        states = self._model(**processed, use_cache=False).last_hidden_state  # (1, T, D)
        vector: Vector = states[0, -1].float().cpu().numpy()
        return vector / np.linalg.norm(vector)


class SentenceTransformers:
    """`SentenceTransformer(folder).encode`, as its users call it.

    Raises:
        ModuleNotFoundError: it is not installed.
    """

    def __init__(self, folder: str) -> None:
        from sentence_transformers import SentenceTransformer

        self.name = f"sentence-transformers:{folder}"
        checkpoint = open_checkpoint(folder)
        device, dtype = usable(EmbedderConfig(checkpoint=folder), checkpoint.dtype)
        self._model = SentenceTransformer(
            str(checkpoint.folder), device=device, model_kwargs={"dtype": getattr(torch, dtype)}
        )

    def vectors(self, inputs: Sequence[Input], together: bool) -> list[Got]:
        got: list[Got] = []
        for kind in dict.fromkeys(item.kind for item in inputs):
            items = [self._item(item) for item in inputs if item.kind == kind]
            try:
                got += list(
                    self._model.encode(items, batch_size=len(items) if together else 1, show_progress_bar=False)
                )
            except Exception as error:  # a library of many libraries
                got += [f"{type(error).__name__}: {error}"] * len(items)
        return got

    def _item(self, item: Input) -> Any:
        image = upright(item.image) if item.image is not None else None
        return item.text if image is None else image if item.text is None else {"image": image, "text": item.text}


def transformers_model(checkpoint: Checkpoint) -> Any:
    """Its `Qwen3VLModel` (or MoE twin) as transformers itself loads it, on our device and in our dtype."""
    device, dtype = usable(EmbedderConfig(checkpoint=checkpoint.name), checkpoint.dtype)
    return AutoModel.from_pretrained(checkpoint.folder, dtype=getattr(torch, dtype)).to(device).eval()


def upright(file: bytes, turned: bool = True, background: str | None = "white") -> Image.Image:
    """RGB as a viewer shows it, by Pillow: `turned` as EXIF says, transparency on the background, or dropped."""
    image = Image.open(io.BytesIO(file))
    image = ImageOps.exif_transpose(image) if turned else image
    if background and image.has_transparency_data:
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, background), layer)
    return image.convert("RGB")
