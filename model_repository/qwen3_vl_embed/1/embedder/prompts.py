"""The one renderer: a text or an image becomes a token sequence, both ending in the same tokens. Knows no pixels.

The checkpoint's own chat template draws the frame around the content. What a caller wrote is tokenized without any
added token, so `<|im_end|>` in it is ten characters of text and never a control token.
"""

import json
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from embedder.checkpoint import IMAGE_TOKEN
from embedder.errors import InvalidInput


@dataclass(frozen=True)
class Prompt:
    """What stands around the content in the user turn, and the system turn if there is one."""

    after_text: str = ""
    after_image: str = ""
    system: str | None = None


PROMPTS = {
    # E5-V (arXiv 2407.12580, table 6: 9.2 -> 61.9 without training), within the chat template's generation prompt.
    "eol": Prompt("\nSummary above sentence in one word:", "\nSummary above image in one word:"),
    # Qwen3-VL-Embedding, src/models/qwen3_vl_embedding.py: the instruction is the system turn, the content is bare.
    "embedding": Prompt(system="Represent the user's input."),
}
TEXT_SLOT, SYSTEM_SLOT = "\ue000text\ue000", "\ue000system\ue000"  # private use: no template holds them
LONGEST_TOKEN = 128  # characters; no token of Qwen's vocabulary holds more (it is 128 spaces)


@dataclass(frozen=True)
class Tokens:
    """One rendered sequence. `ids`: int64 (T,); `content`: the half-open range of the caller's own tokens in it."""

    ids: np.ndarray
    content: tuple[int, int]


class Renderer:
    """Renders with one checkpoint's tokenizer and chat template. Safe to call from several threads."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, prompt: str, max_text_tokens: int) -> None:
        self.prompt = PROMPTS[prompt]
        self.max_text_tokens = max_text_tokens
        self._tokenizer = tokenizer
        self._special = tokenizer.get_added_vocab()
        self._split = re.compile("(" + "|".join(map(re.escape, sorted(self._special, key=len, reverse=True))) + ")")
        self._plain = _without_added_tokens(tokenizer)
        self._frame = lru_cache(maxsize=256)(self._render_frame)

    def text(self, text: str, instruction: str | None) -> Tokens:
        """Raises InvalidInput for an empty text and for one above `max_text_tokens` tokens."""
        if not text.strip():
            raise InvalidInput("the text is empty")
        if len(text) > LONGEST_TOKEN * self.max_text_tokens:
            raise InvalidInput(f"the text is longer than {self.max_text_tokens} tokens; nothing is truncated here")
        tokens = self._fill(self._frame("text", self._system(instruction)), text, 0)
        length = tokens.content[1] - tokens.content[0]
        if length > self.max_text_tokens:
            raise InvalidInput(f"the text has {length} tokens; at most {self.max_text_tokens} are allowed")
        return tokens

    def image(self, image_tokens: int, instruction: str | None) -> Tokens:
        """The sequence around an image of `image_tokens` tokens; its content range is these tokens."""
        return self._fill(self._frame("image", self._system(instruction)), "", image_tokens)

    def _system(self, instruction: str | None) -> str | None:
        return self.prompt.system if instruction is None else instruction or None

    def _render_frame(self, kind: str, system: str | None) -> list[int | str]:
        """The chat template around a slot: special tokens as ids, everything between them as text."""
        content = [{"type": "text", "text": TEXT_SLOT + self.prompt.after_text}]
        if kind == "image":
            content = [{"type": "image"}, {"type": "text", "text": self.prompt.after_image}]
        messages = [{"role": "user", "content": content}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": SYSTEM_SLOT}]})
        drawn = self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        parts = [self._special.get(part, part) for part in self._split.split(drawn) if part]
        fill = (lambda part: part.replace(SYSTEM_SLOT, system)) if system is not None else (lambda part: part)
        return [part if isinstance(part, int) else fill(part) for part in parts]

    def _fill(self, frame: list[int | str], text: str, image_tokens: int) -> Tokens:
        ids: list[int] = []
        content = (0, 0)
        for part in frame:
            if isinstance(part, int):
                is_image = part == self._special[IMAGE_TOKEN]
                content = (len(ids), len(ids) + image_tokens) if is_image else content
                ids += [part] * (image_tokens if is_image else 1)
            else:
                before, slot, after = part.partition(TEXT_SLOT)
                encoding = self._plain.encode(before + text + after if slot else part, add_special_tokens=False)
                if slot:
                    start, stop = _covering(encoding.offsets, len(before), len(before) + len(text))
                    content = (len(ids) + start, len(ids) + stop)
                ids += encoding.ids
        return Tokens(np.array(ids, dtype=np.int64), content)


def _covering(offsets: list[tuple[int, int]], start: int, stop: int) -> tuple[int, int]:
    """The range of tokens that hold any character of [start, stop)."""
    inside = [i for i, (first, last) in enumerate(offsets) if first < stop and last > start]
    return inside[0], inside[-1] + 1


def _without_added_tokens(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The same BPE without added tokens: nothing that it encodes can become a control token."""
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    definition |= {"added_tokens": [], "post_processor": None, "truncation": None, "padding": None}
    return Tokenizer.from_str(json.dumps(definition))
