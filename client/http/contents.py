"""What a text, an image, or both look like in other people's schemas, and where in its text an image stands.

An item may be a string, an object of a text and an image, a list of typed parts, or a conversation. All of them become
`Content`; what no vector could stand for is refused with a sentence of its own.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Any

import orjson

from client.errors import InvalidInput, TooLarge
from client.http.images import decode_image, pixels, text_pixels
from client.items import EmbedInput

Part = str | bytes  # a text, or an image's file
MAX_OPTIONS_BYTES = 16 * 1024  # bytes, which go along with each item of a list; the model's own bound

# Where vLLM's callers write an image's place into the text beside it, in `messages`.
MARK = "<|vision_start|><|image_pad|><|vision_end|>"
# How one begins. Without a second colon, or each of a million would be looked for in a hundred letters behind it.
DATA_URL = re.compile(r"data:([a-z]{1,20}/[^,:\s]{0,100})?;base64,", re.IGNORECASE)
ONE_IMAGE = "More than one image in one vector is not supported (single images are served): send each as its own item."
TOKEN_IDS = (
    "Token ids are not taken: they are those of another model's tokenizer. Send the texts themselves; LangChain's "
    "OpenAIEmbeddings does with check_embedding_ctx_length=False."
)
ITEM_KEYS = "an item is a string, or an object with text, image or both, or with content"


@dataclass(frozen=True, slots=True)
class Content:
    """What one vector is of. `at`: characters of the text before the image, -1 for all; `param`: its name in errors."""

    param: str
    text: str = ""
    image: bytes = b""
    at: int = 0
    instruction: str | None = None

    def item(self, options: dict[str, Any]) -> EmbedInput:
        """The same for the model, with the options of the whole request.

        Raises:
            InvalidInput: the request's instruction and a system turn are two, or the options are too long.
        """
        own: dict[str, Any] = {"image_at": self.at} if self.at else {}
        if self.instruction is not None:
            if "instruction" in options:
                raise InvalidInput('A system turn is the instruction: leave "instruction" out.', self.param)
            own["instruction"] = self.instruction
        sent = options | own
        text = self.text.encode()
        cost = max(pixels(self.image), options.get("min_pixels", 0)) if self.image else 0
        cost += text_pixels(len(text))
        packed = orjson.dumps(sent, option=orjson.OPT_SORT_KEYS) if sent else b""
        if len(packed) > MAX_OPTIONS_BYTES:
            raise InvalidInput(f"options: {len(packed)} bytes; at most {MAX_OPTIONS_BYTES} are allowed.", self.param)
        return EmbedInput(text, self.image, packed, self.param, cost)


def contents(value: Any, name: str, max_items: int, continued: bool = False) -> list[Content]:
    """Whatever `input` may hold: an item, a conversation, or a list of them.

    `continued`: a conversation ends with an empty assistant turn, which is the generation prompt.

    Raises:
        InvalidInput, TooLarge: what cannot be one; `param` names the item.
    """
    if not isinstance(value, list):
        return [of_item(value, name)]
    if value and all(isinstance(turn, dict) and "role" in turn for turn in value):
        return [of_conversation(value, name, continued)]
    return listed(value, name, max_items, lambda item, param: of_item(item, param, continued))


def listed(value: Any, name: str, max_items: int, read: Callable[[Any, str], Content]) -> list[Content]:
    """Each item of a list by `read`, which gets it and its name.

    Raises:
        InvalidInput, TooLarge: no list, an empty one, too long a one, or an item's own error.
    """
    if not isinstance(value, list):
        raise InvalidInput(f'"{name}" must be a list.', name)
    if not value:
        raise InvalidInput(f'"{name}" is an empty list: send at least one item.', name)
    if any(isinstance(item, int | float) for item in value):
        raise InvalidInput(TOKEN_IDS, name)
    if len(value) > max_items:
        raise TooLarge(f'"{name}" holds {len(value)} items: send at most {max_items} in one request.', name)
    return [read(item, f"{name}[{index}]") for index, item in enumerate(value)]


def of_item(value: Any, param: str, continued: bool = False) -> Content:
    """A string, an object of a text and an image, typed parts in `content`, or a conversation.

    Raises:
        InvalidInput: none of them.
    """
    if isinstance(value, str):
        return of_string(value, param)
    if isinstance(value, list):
        if value and isinstance(value[0], int | float):
            raise InvalidInput(TOKEN_IDS, param)
        return of_conversation(value, param, continued)
    if not isinstance(value, dict):
        raise InvalidInput(f"{_named(value)} is no item: {ITEM_KEYS}.", param)
    if "type" in value:
        return of_parts([value], param)
    sent = {key: each for key, each in value.items() if each is not None}
    if "content" in sent and len(sent) == 1:
        return of_parts(sent["content"], param)
    if not sent or sent.keys() - {"text", "image", "bytes"}:
        raise InvalidInput(f"An item with {_keys(value)} is unknown: {ITEM_KEYS}.", param)
    image = [_image(sent[key], param) for key in ("image", "bytes") if key in sent]  # LlamaIndex says `bytes` to Jina
    text = [_text(sent["text"], param)] if "text" in sent else []
    return _content([*image, *text], param)


def of_string(value: str, param: str) -> Content:
    """A text; or an image, where a `data:` URL is the whole string or its last word, behind the text and one space."""
    whole = value.rstrip()
    start = 0 if whole[:5] == "DATA:" else whole.rfind("data:")  # ":" is not in base64's alphabet
    alone = start == 0 or (start > 0 and whole[start - 1].isspace())
    if not alone or not DATA_URL.match(whole, start) or len(whole[start:].split(None, 1)) > 1:
        return of_text(value, param)
    words = whole[: max(0, start - 1)]
    if ";base64," in words and DATA_URL.search(words, 0, 2**20):  # a text of more is too long for the model
        raise InvalidInput(ONE_IMAGE, param)
    image = decode_image(whole[start:], param)
    return Content(param, words, image, -1) if words.strip() else Content(param, image=image)


def of_text(value: Any, param: str) -> Content:
    """A string that is a text, whatever it looks like."""
    return Content(param, _text(value, param))


def of_image(value: Any, param: str) -> Content:
    """A string that is an image: base64, or a `data:` URL."""
    return Content(param, image=_image(value, param))


def of_parts(value: Any, param: str, marked: bool = False) -> Content:
    """A string, one typed part, or a list of these in the order in which the model reads them.

    `marked`: beside an image, `MARK` in the text is its place, not characters.

    Raises:
        InvalidInput: there is none, one of another kind, or more than one image.
    """
    if isinstance(value, str):
        return of_text(value, param)
    parts = [value] if isinstance(value, dict) else value
    if not isinstance(parts, list):
        raise InvalidInput('"content" must be a string or a list of parts.', param)
    if not parts:
        raise InvalidInput('"content" is empty: send a text part, an image part, or both.', param)
    return _content([_part(part, param) for part in parts], param, marked)


def of_conversation(turns: Any, param: str, continued: bool) -> Content:
    """A system turn, which is the instruction, or none; a user turn; an empty assistant turn if that is `continued`.

    Raises:
        InvalidInput: another turn, or in another order.
    """
    if not isinstance(turns, list) or not all(isinstance(turn, dict) and "role" in turn for turn in turns):
        raise InvalidInput("A conversation is a list of turns, each with role and content.", param)
    for turn in turns:
        if unknown := sorted(key for key in turn.keys() - {"role", "content"} if turn[key] is not None):
            raise InvalidInput(f"A turn with {_keys(unknown)} is unknown: it has role and content.", param)
    roles = [turn["role"] for turn in turns]
    rest = roles[1:] if roles[:1] == ["system"] else roles
    if rest[-1:] == ["assistant"]:
        if not continued or turns[-1].get("content") not in ("", [], None, [{"type": "text", "text": ""}]):
            raise InvalidInput(
                "An assistant turn is the generation prompt: it must be the last one, empty, and with "
                "continue_final_message true.",
                param,
            )
        rest = rest[:-1]
    elif continued:
        raise InvalidInput("continue_final_message wants an empty assistant turn at the end.", param)
    if rest != ["user"]:
        raise InvalidInput(
            "A vector is of one user turn, with a system turn before it (the instruction) or none; these are "
            f"{', '.join(map(_named, roles[:8])) or 'none'}.",
            param,
        )
    user = of_parts(turns[roles.index("user")].get("content"), param, marked=True)
    if roles[0] != "system":
        return user
    system = of_parts(turns[0].get("content"), param)
    if system.image:
        raise InvalidInput("A system turn is the instruction: it holds text, no image.", param)
    return Content(param, user.text, user.image, user.at, system.text)


def _content(parts: list[Part], param: str, marked: bool = False) -> Content:
    images = [part for part in parts if isinstance(part, bytes)]
    texts = [part for part in parts if isinstance(part, str)]
    if not images:
        return Content(param, "".join(texts))
    if len(images) > 1:
        raise InvalidInput(ONE_IMAGE, param)
    place = parts.index(images[0])
    before, after = "".join(texts[:place]), "".join(texts[place:])
    if marked and (marks := sum(text.count(MARK) for text in texts)):
        if marks > 1:
            raise InvalidInput(f"The text names the image's place {marks} times ({MARK}): once is enough.", param)
        before, _, after = "".join(texts).partition(MARK)
    text = before + after
    return Content(param, text, images[0], 0 if not before else len(before) if after else -1)


def _part(part: Any, param: str) -> Part:
    """One typed part: OpenAI's, Elastic's, Jina's and Voyage's names for a text and an image."""
    kind = part.get("type") if isinstance(part, dict) else None
    sent = {key: value for key, value in part.items() if value is not None} if isinstance(part, dict) else {}
    if kind in ("text", "input_text"):
        return _text(_only(sent, ("text", "value"), {"format": "text"}, param), param)
    if kind in ("image_url", "input_image"):
        value = _only(sent, ("image_url",), {"detail": "auto"}, param)
        return _image(_only(value, ("url",), {"detail": "auto"}, param) if isinstance(value, dict) else value, param)
    if kind == "image_base64":
        value = _only(sent, ("image_base64",), {}, param)
        known = {"mime_type": value.get("mime_type")} if isinstance(value, dict) else {}
        return _image(_only(value, ("base64",), known, param) if isinstance(value, dict) else value, param)
    if kind == "image":
        return _image(_only(sent, ("value", "image"), {"format": "base64"}, param), param)
    raise InvalidInput(f"A part of type {_named(kind)} is not served: a part is a text or an image (image_url).", param)


def _only(part: dict[str, Any], names: tuple[str, ...], known: dict[str, Any], param: str) -> Any:
    """The value under one of these names, beside which nothing stands but what is `known` to change nothing."""
    rest = {key: value for key, value in part.items() if key not in names and key != "type" and value is not None}
    found = [part[name] for name in names if name in part]
    for key in rest.keys() & known.keys():
        if rest[key] != known[key]:
            raise InvalidInput(f'"{key}" of a part may be "{known[key]}" and nothing else: leave it out.', param)
    if len(found) != 1 or rest.keys() - known.keys():
        raise InvalidInput(f"A part with {_keys(part)} is unknown: beside type it has {names[0]}.", param)
    return found[0]


def _text(value: Any, param: str) -> str:
    if not isinstance(value, str):
        raise InvalidInput(f"A text must be a string, not {_named(value)}.", param)
    if not value:  # on the wire to the model, empty means that there is no text
        raise InvalidInput("The text is empty: send at least one character.", param)
    return value


def _image(value: Any, param: str) -> bytes:
    if not isinstance(value, str):
        raise InvalidInput(f"An image must be a string of base64 or a data: URL, not {_named(value)}.", param)
    return decode_image(value, param)


def _keys(names: Iterable[str]) -> str:
    return ", ".join(map(_quoted, islice(names, 8))) or "nothing"


def _quoted(key: str) -> str:
    return f'"{key[:64]}"'


def _named(value: Any) -> str:
    return _quoted(value) if isinstance(value, str) else type(value).__name__.replace("NoneType", "null")
