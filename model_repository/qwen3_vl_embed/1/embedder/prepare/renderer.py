"""The one renderer: text, image or both become a token sequence, all ending in the same tokens.

The checkpoint's own chat template draws the frame around the content. What a caller wrote (text, instruction, template)
is tokenized without control tokens, so `<|im_end|>` in it is ten characters of text. Control tokens are those that the
tokenizer calls special; words that a fine-tune added are tokens in anybody's text, as in transformers.
"""

import json
import re
from dataclasses import dataclass, replace
from itertools import accumulate, product

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer
from transformers import PreTrainedTokenizerBase

from ..checkpoint import IMAGE_TOKEN, line
from ..errors import InvalidInput, UnsupportedCheckpoint
from ..poolings import Span
from .bounded import comes_to_an_end
from .encoded import SENT_AS_TEXT, is_image
from .pixels import LONG_TEXT
from .prompts import Prompt

IMAGE = f"<|vision_start|>{IMAGE_TOKEN}<|vision_end|>"  # as the chat template draws one
TURN_END = "<|im_end|>"
SLOT = "\ue000"  # private use: no template holds it
TEXT_SLOT, REST_SLOT, SYSTEM_SLOT = (f"{SLOT}{name}{SLOT}" for name in ("text", "rest", "system"))
_SURROGATE = re.compile("[\ud800-\udfff]")

DRAW_SECONDS, DRAW_BYTES = 5, 2**30  # of CPU and memory, for all frames together; honest ones take milliseconds
FRAMES = 256  # that are remembered
PIECE = 2**14  # characters of a long text that are cut into tokens at once
BOTH = "{image}{text}"
TWICE = "{text}{text}"
CONTENTS = ("{text}", "{image}", BOTH, "{text}{image}", "{text}{image}{text}", TWICE, "{text}a{text}")

Frame = list[list[int] | tuple[str, ...]]  # token ids, and the words around texts: before, (between,) after


@dataclass(frozen=True)
class Tokens:
    """One rendered sequence.

    `ids`: int64 (T,); `content`: the caller's own tokens, of the text and of the image; `prefix`: how many tokens stand
    before them whatever they are.
    """

    ids: NDArray[np.int64]
    content: tuple[Span, ...]
    image: Span | None = None
    prefix: int = 0


class Renderer:
    """Renders with one checkpoint's tokenizer and chat template. Safe to call from several threads.

    Raises:
        UnsupportedCheckpoint: the template has no end. jinja's sandbox bounds what it reaches, not how long it runs.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, max_text_tokens: int) -> None:
        self.max_text_tokens = max_text_tokens
        self._tokenizer = tokenizer
        added = tokenizer.added_tokens_decoder
        self._special = {str(token): number for number, token in added.items() if token.special}
        self._split = re.compile("(" + "|".join(map(re.escape, sorted(self._special, key=len, reverse=True))) + ")")
        self._plain = _without_control_tokens(tokenizer)
        self._head, self._tail = _added_around(tokenizer)
        self._frames: dict[tuple[Prompt, str, str | None, str | None], Frame] = {}
        if not comes_to_an_end(self._draw_every_shape, DRAW_SECONDS, DRAW_BYTES):
            raise UnsupportedCheckpoint(
                f"{tokenizer.name_or_path}: its chat template has no end: it takes over {DRAW_SECONDS} s of CPU time "
                f"or {DRAW_BYTES >> 20} MiB of memory to draw a word; mend chat_template, or use another checkpoint"
            )

    def render(
        self,
        prompt: Prompt,
        system: str | None,
        text: str | None,
        image_tokens: int = 0,
        close: str | None = None,
        image_at: int = 0,
    ) -> Tokens:
        """A text, an image of `image_tokens` tokens, or both; `close` is a special token to end with.

        Of both, the image stands before the text's character `image_at`, or from the end: -1 is after the last one.

        Raises:
            InvalidInput: a text that is blank, an image, above `max_text_tokens` tokens or shorter than `image_at`, or
                a system turn that the prompt has not.
        """
        if text is not None:
            self._check_text(text)
        if image_tokens and prompt.repeats:
            raise InvalidInput("options.prompt: it says its text twice, for texts alone: ask for images with another")
        if not image_tokens:
            turn, texts = prompt.text, [text or ""] * (2 if prompt.repeats else 1)
        elif text is None:
            turn, texts = prompt.image, []
        else:
            place = image_at if image_at >= 0 else len(text) + 1 + image_at
            if not 0 <= place <= len(text):
                raise InvalidInput(
                    f"options.image_at: 0 (before this text) … {len(text)} (after it), or -1 (after it) and below"
                )
            texts = [part for part in (text[:place], text[place:]) if part]
            content = BOTH if not place else "{text}{image}" if place == len(text) else "{text}{image}{text}"
            turn = prompt.both.replace(BOTH, content)
        tokens = self._fill(self._frame(prompt, turn, system, close), texts, image_tokens)
        if prompt.repeats:
            tokens = replace(tokens, content=tokens.content[1:])
        length = sum(stop - start for start, stop in tokens.content) - image_tokens
        if length > self.max_text_tokens:
            raise InvalidInput(f"the text has {length} tokens; at most {self.max_text_tokens} are allowed")
        return tokens

    def decode(self, ids: NDArray[np.int64]) -> str:
        """The string that `ids` stand for, special tokens included."""
        return str(self._tokenizer.decode(ids))

    def _check_text(self, text: str) -> None:
        if is_image(text):
            raise InvalidInput(SENT_AS_TEXT)
        if not text.strip():
            raise InvalidInput("the text is blank: send at least one visible character")
        if _SURROGATE.search(text):
            raise InvalidInput("the text has half of a surrogate pair, which is no character: send valid Unicode")
        if len(text) > LONG_TEXT and self._far_too_long(text):
            raise InvalidInput(f"the text has too many tokens; at most {self.max_text_tokens} are allowed")

    def _far_too_long(self, text: str) -> bool:
        """Whether its beginning alone has more tokens than are allowed: millions would take seconds and gigabytes.

        Each cut costs some tokens more; never twice as many.
        """
        pieces = (text[start : start + PIECE] for start in range(0, len(text), PIECE))
        lengths = accumulate(len(self._encode(piece)) for piece in pieces)
        return any(length > 2 * self.max_text_tokens for length in lengths)

    def _encode(self, text: str) -> Encoding:
        """Without holding the GIL, as `encode` does."""
        (encoding,) = self._plain.encode_batch([text], add_special_tokens=False)
        return encoding

    def _frame(self, prompt: Prompt, turn: str, system: str | None, close: str | None) -> Frame:
        """The chat template around the content's slots in a user turn: ids, but for the words around each text."""
        key = (prompt, turn, system, close)
        if (known := self._frames.get(key)) is not None:
            return known
        slots = _slots(turn)
        words = slots | {SYSTEM_SLOT: system or ""}
        drawn = self._draw(prompt, list(slots), system)
        content = {IMAGE: "image", TEXT_SLOT: "text", REST_SLOT: "text"}
        wanted = [IMAGE_TOKEN if slot == IMAGE else slot for slot in slots if slot in content]
        once = all(drawn.count(slot) == 1 for slot in [*wanted, *([SYSTEM_SLOT] if system is not None else [])])
        if not once or sorted(wanted, key=drawn.index) != wanted:
            given = ", ".join(content[slot] for slot in slots if slot in content)
            raise InvalidInput(
                f"this checkpoint's chat template does not draw what it is given ({given}"
                f"{' with an instruction' if system is not None else ''}) {'in its order' if once else 'exactly once'}"
            )
        parts: Frame = []
        for part in filter(None, self._split.split(drawn + (close or ""))):
            if part in self._special:
                parts.append([self._special[part]])
                continue
            # With the caller's words. In one pass, and once: a word that holds another's slot is only words.
            around = tuple(
                re.sub(f"{SLOT}[^{SLOT}]+{SLOT}", lambda found: words.get(found[0], found[0]), piece)
                for piece in re.split(f"{TEXT_SLOT}|{REST_SLOT}", part)
            )
            parts.append(around if around[1:] else self._plain.encode(around[0], add_special_tokens=False).ids)
        if len(self._frames) >= FRAMES:
            self._frames.clear()
        frame = [part for part in (self._head, *parts, self._tail) if part]
        self._frames[key] = frame
        return frame

    def _draw_every_shape(self) -> None:
        """Every shape that the template will be given: with and without words around the content, system turn and
        generation prompt.

        Raises MemoryError. What else it raises is told to the caller who asks for that shape.
        """
        words: tuple[list[str], ...] = ([], ["a"])
        shapes = product(words, CONTENTS, words, (None, "a"), (True, False))
        for before, content, after, system, generation in shapes:
            try:
                self._draw(Prompt(generation=generation), [*before, *_slots(content), *after], system)
            except MemoryError:
                raise
            except Exception:
                continue

    def _draw(self, prompt: Prompt, slots: list[str], system: str | None) -> str:
        if not prompt.chat:
            if system is not None:
                raise InvalidInput("options.instruction: this prompt has no system turn")
            return "".join(slots) + TURN_END
        parts = [{"type": "image"} if slot == IMAGE else {"type": "text", "text": slot} for slot in slots]
        messages = [{"role": "user", "content": parts}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": [{"type": "text", "text": SYSTEM_SLOT}]})
        try:
            return str(
                self._tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=prompt.generation)
            )
        except MemoryError:
            raise
        except Exception as error:  # a template is a program of the checkpoint's: it may raise anything
            turns = "a system turn and a user turn" if system is not None else "a user turn"
            raise InvalidInput(f"this checkpoint's chat template does not draw {turns}: {line(error)}") from None

    def _fill(self, frame: Frame, texts: list[str], image_tokens: int) -> Tokens:
        parts = iter(texts)
        ids: list[int] = []
        content: list[Span] = []
        image: Span | None = None
        prefix = 0
        for part in frame:
            if isinstance(part, tuple):
                whole, spans = part[0], []
                for after in part[1:]:
                    text = next(parts)
                    spans.append((len(whole), len(whole) + len(text)))
                    whole += text + after
                encoding = self._encode(whole)
                covered = [_covering(encoding.offsets, *span) for span in spans]
                content += [(len(ids) + start, len(ids) + stop) for start, stop in covered]
                ids += encoding.ids
            elif part == [self._special[IMAGE_TOKEN]]:
                image = (len(ids), len(ids) + image_tokens)
                content.append(image)
                ids += part * image_tokens
            else:
                ids += part
                prefix = prefix if content else len(ids)
        return Tokens(np.array(ids, dtype=np.int64), tuple(content), image, prefix)


def _slots(turn: str) -> dict[str, str]:
    """What the template draws for each piece of a user turn, in its order: slots for words and texts, an image."""
    texts = iter((TEXT_SLOT, REST_SLOT))
    pieces = [piece for piece in re.split(r"(\{text\}|\{image\})", turn) if piece]
    return {
        IMAGE if piece == "{image}" else next(texts) if piece == "{text}" else f"{SLOT}{n}{SLOT}": piece
        for n, piece in enumerate(pieces)
    }


def _covering(offsets: list[Span], start: int, stop: int) -> Span:
    """The range of tokens that hold any character of [start, stop).

    A mark that melts into the letter before it (e + U+0301 are one é) is in the last token before it.
    """
    inside = [i for i, (first, last) in enumerate(offsets) if first < stop and last > start]
    inside = inside or [max((i for i, (first, _) in enumerate(offsets) if first < start), default=0)]
    return inside[0], inside[-1] + 1


def _without_control_tokens(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The same tokenizer, to which control tokens are text: nothing that it encodes can become one."""
    definition = json.loads(tokenizer.backend_tokenizer.to_str())
    definition |= {"post_processor": None, "truncation": None, "padding": None}
    plain = Tokenizer.from_str(json.dumps(definition))
    plain.encode_special_tokens = True
    return plain


def _added_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """What the tokenizer itself puts before and after every sequence: nothing for Qwen3-VL's own."""
    bare, whole = (tokenizer("a", add_special_tokens=added)["input_ids"] for added in (False, True))
    before = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
    return whole[:before], whole[before + len(bare) :]
