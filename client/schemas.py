"""The JSON bodies: what is accepted, field by field, and what the answers look like in /openapi.json.

Types are strict (true is not 1, "64" is not 64) and unknown fields are refused: a misspelt option must not give a
plausible vector of another kind. An option that is null is the server's default, as if it was not sent. Knows nothing
of limits that only the model knows, such as the largest number of dimensions.
"""

from typing import Annotated, Any, Literal, Self

import orjson
from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError, ValidationInfo, WithJsonSchema

from client.errors import InvalidInput
from client.images import decode_image
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
Strings = Annotated[str | list[str], _CHECK, _SCHEMA]
MaybeStrings = Annotated[str | list[str] | None, _CHECK, _SCHEMA]  # may be absent, but not null


class _Request(BaseModel):
    """The options that texts and images share."""

    model_config = ConfigDict(strict=True, extra="forbid")

    pooling: Literal["last", "mean"] | None = Field(None, description="Which hidden states make the vector.")
    normalize: bool | None = Field(None, description="Scale the vector to length 1.")
    dimensions: int | None = Field(None, ge=8, description="Keep the first dimensions only; at most the model's own.")
    instruction: str | None = Field(None, description="What the vector is for; becomes the system turn of the prompt.")

    @classmethod
    def parse(cls, body: dict[str, Any], max_items: int) -> Self:
        """Validate a JSON object.

        Raises:
            InvalidInput: the first thing that is wrong with it; `param` names the field or the item.
        """
        try:
            return cls.model_validate(body, context={"max_items": max_items})
        except ValidationError as error:
            raise _first(error, cls) from None

    def options(self) -> bytes:
        """The options that were sent, as canonical JSON; empty when there were none."""
        names = sorted(self.model_fields_set - {"input", "content"})
        sent = {name: value for name in names if (value := getattr(self, name)) is not None}
        return orjson.dumps(sent) if sent else b""


class TextRequest(_Request):
    """The body of POST /txt/embed."""

    input: Strings = Field(description="One text, or a list of texts.")

    def is_list(self) -> bool:
        return isinstance(self.input, list)

    def items(self) -> list[EmbedInput]:
        """One item for each text.

        Raises:
            InvalidInput: a text is empty.
        """
        options = self.options()
        return [EmbedInput("text", _encode(text, name), options, name) for name, text in _named("input", self.input)]


class ImageRequest(_Request):
    """The body of POST /img/embed: exactly one of `input` and `content`."""

    input: MaybeStrings = Field(
        None, description="One base64-encoded image, or a list; bare or as data:image/…;base64,… ."
    )
    content: MaybeStrings = Field(None, description="Another name for `input`.")
    min_pixels: int | None = Field(None, ge=1, description="Scale smaller images up to this many pixels.")
    max_pixels: int | None = Field(None, ge=1, description="Scale larger images down to this many pixels.")

    def _source(self) -> tuple[str, str | list[str]]:
        sent = [
            (name, value) for name, value in (("input", self.input), ("content", self.content)) if value is not None
        ]
        if len(sent) != 1:
            raise InvalidInput('Send the image in exactly one of "input" and "content".', "input")
        return sent[0]

    def is_list(self) -> bool:
        return isinstance(self._source()[1], list)

    def items(self) -> list[EmbedInput]:
        """One item for each image.

        Raises:
            InvalidInput: not exactly one of the two fields, or an image is not base64.
        """
        options = self.options()
        return [
            EmbedInput("image", decode_image(image, name), options, name) for name, image in _named(*self._source())
        ]


def _named(field: str, value: str | list[str]) -> list[tuple[str, str]]:
    """Each string with what an error calls it: `input`, or `input[7]` in a list."""
    if isinstance(value, str):
        return [(field, value)]
    return [(f"{field}[{index}]", item) for index, item in enumerate(value)]


def _encode(text: str, param: str) -> bytes:
    if not text:  # on the wire to the model, empty means that there is no text
        raise InvalidInput("The text is empty: send at least one character.", param)
    return text.encode()


def _first(error: ValidationError, model: type[BaseModel]) -> InvalidInput:
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    name = str(problem["loc"][0])[:64]
    if problem["type"] == "extra_forbidden":
        return InvalidInput(f'Unknown field "{name}": the fields are {", ".join(model.model_fields)}.', name)
    if problem["type"] == "missing":
        return InvalidInput(f'The field "{name}" is missing.', name)
    return InvalidInput(f'"{name}" is wrong: {problem["msg"]}.', name)


class EmbeddingResponse(BaseModel):
    """One vector for a string, a list of vectors for a list. Documentation only: orjson writes the answers."""

    embedding: list[float] | list[list[float]]


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str = Field(description="A sentence that says what to do.")
    type: str
    param: str | None = Field(description='The field or item at fault, as "input[7]".')
    code: str


class ErrorResponse(BaseModel):
    """The body of every error."""

    error: ErrorDetail
