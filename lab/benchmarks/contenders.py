"""Who is compared: the same checkpoint folder behind one method, `embed`, from files and strings to unit vectors.

`dtype` is what they compute in; `auto`, everyone's own default, is for transformers what the weights are stored in.
"""

from importlib.util import find_spec
from typing import Protocol

import numpy as np
import torch
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration, Qwen3VLModel

from embedder import EmbedInput
from lab.benchmarks import subject
from lab.benchmarks.chat import Message, conversation, conversations


class Contender(Protocol):
    """One way to get vectors of the same inputs."""

    name: str

    def __init__(self, folder: str, device: str, dtype: str) -> None: ...

    def embed(self, batch: list[EmbedInput]) -> np.ndarray:
        """Unit vectors, float32 (N, D)."""
        ...


def unit(rows: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(rows.float(), dim=-1).cpu().numpy()


def rendered(processor: AutoProcessor, chats: list[list[Message]], device: str) -> dict[str, torch.Tensor]:
    """Model inputs of some conversations, padded on the right when there are several."""
    inputs = processor.apply_chat_template(
        chats,
        tokenize=True,
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs={"padding": len(chats) > 1},
    )
    return inputs.to(device)


class OneByOne:
    """What one would write first: the full model with its head, all hidden states, one input at a time."""

    name = "transformers, one at a time"

    def __init__(self, folder: str, device: str, dtype: str) -> None:
        self.device = device
        self.processor = AutoProcessor.from_pretrained(folder)
        self.model = Qwen3VLForConditionalGeneration.from_pretrained(folder, dtype=dtype).to(device).eval()

    @torch.inference_mode()
    def one(self, text: str | None = None, image: bytes | None = None) -> np.ndarray:
        """(D,)"""
        inputs = rendered(self.processor, [conversation(text, image)], self.device)
        return unit(self.model(**inputs, output_hidden_states=True).hidden_states[-1][0, -1])

    def embed(self, batch: list[EmbedInput]) -> np.ndarray:
        return np.stack([self.one(item.text, item.image) for item in batch])


class Padded:
    """transformers as well as it goes by itself: no head, no cache, the whole batch in one padded call."""

    name = "transformers, padded batch"

    def __init__(self, folder: str, device: str, dtype: str) -> None:
        self.device = device
        self.processor = AutoProcessor.from_pretrained(folder)
        self.processor.tokenizer.padding_side = "right"
        self.model = Qwen3VLModel.from_pretrained(folder, dtype=dtype).to(device).eval()

    @torch.inference_mode()
    def embed(self, batch: list[EmbedInput]) -> np.ndarray:
        inputs = rendered(self.processor, conversations(batch), self.device)
        hidden = self.model(**inputs, use_cache=False).last_hidden_state  # (N, longest, D)
        last = inputs["attention_mask"].sum(dim=1) - 1
        return unit(hidden[torch.arange(len(batch), device=self.device), last])


class SentenceTransformers:
    """`SentenceTransformer.encode` over the same folder: Transformer, last-token Pooling, Normalize."""

    name = "sentence-transformers"

    def __init__(self, folder: str, device: str, dtype: str) -> None:
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

        processing = {"chat_template": {"add_generation_prompt": True}, "text": {"truncation": False}}
        transformer = Transformer(folder, model_kwargs={"dtype": dtype}, processing_kwargs=processing)
        pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="lasttoken")
        self.model = SentenceTransformer(modules=[transformer, pooling, Normalize()], device=device)

    def embed(self, batch: list[EmbedInput]) -> np.ndarray:
        return self.model.encode(conversations(batch), batch_size=len(batch), show_progress_bar=False)


class Ours:
    """This project's embedder."""

    name = "this project"

    def __init__(self, folder: str, device: str, dtype: str) -> None:
        self.embedder = subject.load(folder, device, dtype)

    def embed(self, batch: list[EmbedInput]) -> np.ndarray:
        return subject.vectors(self.embedder, batch)


def present() -> list[type[Contender]]:
    """Everyone that is installed, ours first."""
    rest = [SentenceTransformers] if find_spec("sentence_transformers") else []
    return [Ours, *rest, Padded, OneByOne]
