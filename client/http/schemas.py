"""The JSON bodies: what is accepted, field by field, and what the answers look like in /openapi.json.

Types are strict (true is not 1, "64" is not 64) and unknown fields are refused. A misspelt option must not give a
plausible vector of another kind. An option that is null is the server's default, as if it was not sent. Limits that
only the model has, such as the largest number of dimensions, the model refuses.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, ValidationInfo, WithJsonSchema
from starlette.responses import Response

from client.errors import InvalidInput
from client.http.answers import JSON, Done, Form, answer
from client.http.contents import Content, of_text
from client.http.images import decode_image
from client.http.options import ImageOptions, TextOptions
from client.items import EmbedInput


def _check_strings(value: object, info: ValidationInfo[dict[str, int]]) -> str | list[str]:
    name, max_items = info.field_name, info.context["max_items"]
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise InvalidInput(f'"{name}" must be a string or a list of strings.', name)
    if not 1 <= len(value) <= max_items:
        raise InvalidInput(f'"{name}" holds {len(value)} items: send between 1 and {max_items} in one request.', name)
    for index, item in enumerate(value):
        if not isinstance(item, str):
            raise InvalidInput(
                f'"{name}" must hold strings only, no token ids, nested lists or null.', f"{name}[{index}]"
            )
    return value


_STRING = {"type": "string", "minLength": 1}
_CHECK = PlainValidator(_check_strings)
# maxItems is a setting: `openapi.py` adds it.
_SCHEMA = WithJsonSchema({"anyOf": [_STRING, {"type": "array", "items": _STRING, "minItems": 1}]})
T = TypeVar("T")
ListOf = Annotated[list[T], Field(fail_fast=True)]  # of one that is wrong in a million places pydantic keeps the first
Strings = Annotated[str | list[str], _CHECK, _SCHEMA]
MaybeStrings = Annotated[str | list[str] | None, _CHECK, _SCHEMA]  # may be absent, but not null


@dataclass(frozen=True, slots=True)
class Context:
    """What a request is read with: the server's limit, the Accept header's choice, and the model, where it is known."""

    max_items: int
    media_type: str = JSON
    model: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request asks for: these items, of this model where it names one, answered so."""

    items: list[EmbedInput]
    model: str | None
    answer: Callable[[Done], Response]


class _Request(TextOptions):
    """How a body is read."""

    model_config = ConfigDict(strict=True, extra="forbid")

    @classmethod
    def parse(cls, body: dict[str, Any], max_items: int) -> Self:
        """Validate a JSON object.

        Raises:
            InvalidInput: the first thing that is wrong with it; `param` names the field or the item.
        """
        if len(body) > len(cls.model_fields):  # pydantic would keep an error of each
            raise _unknown(next(name for name in body if name not in cls.model_fields), cls)
        try:
            return cls.model_validate(body, context={"max_items": max_items})
        except ValidationError as error:
            raise _first(error, cls) from None

    def chosen(self, **others: str) -> dict[str, Any]:
        """The model's options that were sent; `others`: the other names that some of them have.

        Raises:
            InvalidInput: one is sent by both names.
        """
        sent = {name: getattr(self, name) for name in self.model_fields_set & _OPTIONS}
        sent |= {name: self.one_of(name, other) for name, other in others.items()}
        return {name: value for name, value in sent.items() if value is not None}

    def one_of(self, *names: str) -> Any:
        """The value of a field that has several names; None where it is not sent.

        Raises:
            InvalidInput: it is sent twice.
        """
        sent = {name: value for name in names if (value := getattr(self, name)) is not None}
        if len(sent) > 1:
            quoted = " and ".join(f'"{name}"' for name in sent)
            raise InvalidInput(f"{quoted} are names of one field: send one of them.", list(sent)[1])
        return next(iter(sent.values()), None)


class _Answered(BaseModel):
    """Who answers, and how the vectors are written: no options of the model."""

    model: str | None = Field(
        None, description="The model that must answer: another one than is served here is refused."
    )

    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="In JSON: lists of numbers (default), or base64 of a vector's little-endian numbers."
    )
    dtype: Literal["float32", "float16"] | None = Field(
        None, description="The numbers' precision in every form of the answer; float32 is the default, and exact."
    )

    def source(self) -> tuple[str, str | list[str]]:
        """The field that was sent, and its value: a list will be answered with a list."""
        raise NotImplementedError

    def items(self) -> list[EmbedInput]:
        """One item for each text or image."""
        raise NotImplementedError

    def asked(self, context: Context) -> Asked:
        """All of it.

        Raises:
            InvalidInput: an item, or base64 in an answer that is not JSON.
        """
        items, is_list = self.items(), isinstance(self.source()[1], list)
        if self.encoding_format == "base64" and context.media_type != JSON:
            raise InvalidInput(f'"encoding_format" is for JSON: leave it out, or accept {JSON}.', "encoding_format")
        form = Form(is_list, context.media_type, self.encoding_format or "float", self.dtype or "float32")
        return Asked(items, self.model, lambda done: answer(items, done, form))


class _Placed(BaseModel):
    """The option of a text and an image in one vector."""

    image_at: int | None = Field(
        None, description="Where in its text an image stands: characters before it (default 0), or -1: after the text."
    )


_OPTIONS = {*ImageOptions.model_fields, *_Placed.model_fields}


class TextRequest(_Request, _Answered):
    """The body of POST /txt/embed."""

    input: Strings = Field(description="One text, or a list of texts.")

    def source(self) -> tuple[str, str | list[str]]:
        return "input", self.input

    def items(self) -> list[EmbedInput]:
        """One item for each text.

        Raises:
            InvalidInput: a text is empty.
        """
        options = self.chosen()
        return [of_text(text, name).item(options) for name, text in _named(*self.source())]


class ImageRequest(_Placed, ImageOptions, _Request, _Answered):
    """The body of POST /img/embed: exactly one of `input` and `content`."""

    input: MaybeStrings = Field(
        None, description="One base64-encoded image, or a list; bare or as data:image/…;base64,… ."
    )
    content: MaybeStrings = Field(None, description="Another name for `input`.")
    text: MaybeStrings = Field(None, description="A text for each image: one vector of both.")

    def source(self) -> tuple[str, str | list[str]]:
        """Raises InvalidInput: not exactly one of the two fields is sent."""
        sent = [
            (name, value) for name, value in (("input", self.input), ("content", self.content)) if value is not None
        ]
        if len(sent) != 1:
            raise InvalidInput('Send the image in exactly one of "input" and "content".', "input")
        return sent[0]

    def items(self) -> list[EmbedInput]:
        """One item for each image.

        Raises:
            InvalidInput: not exactly one of the two fields, or an image is not base64.
        """
        options, images = self.chosen(), _named(*self.source())
        return [
            Content(name, text, decode_image(image, name)).item(options)
            for (name, image), text in zip(images, self._texts(len(images)), strict=True)
        ]

    def _texts(self, images: int) -> list[str]:
        if self.text is None:
            return [""] * images
        named = _named("text", self.text)
        if isinstance(self.text, list) != isinstance(self.source()[1], list) or len(named) != images:
            raise InvalidInput('Send as many texts in "text" as there are images, in the same form.', "text")
        return [of_text(text, name).text for name, text in named]


class OptionsRequest(ImageOptions, _Request):
    """The options, for schemas of other people's: the place of an image is said by their own means."""


class RenderRequest(_Placed, ImageOptions, _Request):
    """The body of POST /debug/render: a text, an image, or both, and options."""

    text: str | None = None
    image: str | None = Field(None, description="One base64-encoded image, bare or as a data URL.")

    def item(self) -> EmbedInput:
        """What to render.

        Raises:
            InvalidInput: there is neither, the text is empty, or the image is not base64.
        """
        if self.text is None and self.image is None:
            raise InvalidInput('Send "text", "image" or both.', "text")
        text = "" if self.text is None else of_text(self.text, "text").text
        image = b"" if self.image is None else decode_image(self.image, "image")
        return Content("input", text, image).item(self.chosen() | {"render": True})


def _named(field: str, value: str | list[str]) -> list[tuple[str, str]]:
    """Each string with what an error calls it: `input`, or `input[7]` in a list."""
    if isinstance(value, str):
        return [(field, value)]
    return [(f"{field}[{index}]", item) for index, item in enumerate(value)]


def _first(error: ValidationError, model: type[BaseModel]) -> InvalidInput:
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = str(problem["loc"][0])
    if problem["type"] == "extra_forbidden":
        return _unknown(name, model)
    if problem["type"] == "missing":
        return InvalidInput(f'The field "{name}" is missing.', name)
    return InvalidInput(f'"{name}" is wrong: {problem["msg"]}.', name)


def _unknown(name: str, model: type[BaseModel]) -> InvalidInput:
    return InvalidInput(f'Unknown field "{name[:64]}": the fields are {", ".join(model.model_fields)}.', name[:64])


Pair = Annotated[list[int], Field(min_length=2, max_length=2)]


class RenderResponse(BaseModel):
    """What the model sees of one input. Documentation only: orjson writes the answers."""

    recipe: str
    prompt: str = Field(description="The whole sequence as a string, special tokens included.")
    ids: list[int]
    positions: list[list[int]] = Field(description="Time, height and width of each token (M-RoPE).")
    grid: list[int] | None = Field(description="Patches of the image: 1, rows, columns.")
    content: list[Pair] = Field(description="The input's own tokens, as half-open ranges.")
    pooled: list[Pair] = Field(description="The tokens whose states make the vector.")


class EmbeddingResponse(BaseModel):
    """One vector for a string, a list of vectors for a list; strings are base64, when that was asked for.

    Documentation only: orjson writes the answers.
    """

    embedding: list[float] | list[list[float]] | str | list[str]


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str = Field(description="A sentence that says what to do.")
    type: str
    param: str | None = Field(description='The field or item at fault, as "input[7]".')
    code: str


class ErrorResponse(BaseModel):
    """The body of every error."""

    error: ErrorDetail
