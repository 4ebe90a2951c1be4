"""POST /v1/embeddings: OpenAI's schema, with what vLLM, NIM, Jina, Elastic and SGLang let `input` and `messages` hold.

Fields of theirs that change no vector are accepted by name, whatever else is unknown is refused.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, WithJsonSchema
from starlette.responses import Response

from client.errors import InvalidInput
from client.http.answers import Done, in_json, json_answer, numbers
from client.http.contents import Content, contents, listed, of_conversation
from client.http.purposes import Purpose
from client.http.schemas import Asked, Context, ListOf, OptionsRequest
from client.items import Embedding

_STRING = {"type": "string", "minLength": 1}
_OBJECT = {"type": "object", "minProperties": 1}
_LIST = {"type": "array", "minItems": 1}
# The benchmark takes its batch size from the first array.
_INPUT = [_STRING, {**_LIST, "items": _STRING}, _OBJECT, {**_LIST, "items": {"anyOf": [_STRING, _OBJECT, _LIST]}}]
_MESSAGES = [{**_LIST, "items": _OBJECT}, {**_LIST, "items": {**_LIST, "items": _OBJECT}}]
Input = Annotated[Any, WithJsonSchema({"anyOf": _INPUT})]
Messages = Annotated[Any, WithJsonSchema({"anyOf": _MESSAGES})]
FORMATS = Literal["float", "base64"]


class Harmless(BaseModel):
    """Fields of such requests that change no vector here, with the values of which that is true."""

    user: Any = Field(None, description="Not read.")
    stream: Literal[False] | None = Field(None, description="A vector comes whole.")
    stream_options: None = None
    max_tokens: int | None = Field(None, description="Not read: nothing is generated.")
    max_completion_tokens: int | None = Field(None, description="Not read: nothing is generated.")
    truncate: Literal["NONE", "START", "END"] | bool | None = Field(None, description="Nothing is ever cut.")
    truncation: bool | None = Field(None, description="The same.")
    truncation_side: Literal["left", "right"] | None = Field(None, description="The same.")
    add_special_tokens: bool | None = Field(None, description="Not read: the recipe says what stands around a text.")
    add_generation_prompt: Literal[True] | None = Field(None, description="The recipe has it.")
    embed_dtype: Literal["float32"] | None = None
    endianness: Literal["native", "little"] | None = None
    use_activation: Literal[True] | None = None
    padding: Literal["do_not_pad"] | None = None
    late_chunking: Literal[False] | None = None
    return_multivector: Literal[False] | None = None
    priority: Literal[0] | None = None
    request_id: str | None = Field(None, description="Not read: the header x-request-id is.")
    chat_template: None = None
    chat_template_kwargs: None = None
    mm_processor_kwargs: None = None
    media_io_kwargs: None = None
    cache_salt: None = None


class OpenAIRequest(OptionsRequest, Harmless):
    """The body of POST /v1/embeddings: one of `input` and `messages`."""

    input: Input = Field(
        None,
        description="A text or a list of texts; a data: URL is an image, also behind a text. Or {text}, {image}, both, "
        "{content: [parts]}, or what `messages` may hold.",
    )
    messages: Messages = Field(None, description="One conversation, or a list of conversations: one vector of each.")
    continue_final_message: bool | None = Field(
        None, description="With an empty assistant turn: the generation prompt."
    )
    model: str | None = Field(None, description="The model that must answer; another one is refused.")
    encoding_format: FORMATS | None = Field(None, description="Numbers (default), or base64 of little-endian float32.")
    embedding_type: FORMATS | None = Field(None, description="Another name for it.")
    encoding_type: FORMATS | None = Field(None, description="Another name for it.")
    output_dtype: FORMATS | None = Field(None, description="Another name for it.")
    dtype: Literal["float32", "float16"] | None = Field(None, description="Precision of the numbers; not of base64.")
    output_dimension: int | None = Field(None, ge=8, description="Another name for `dimensions`.")
    normalized: bool | None = Field(None, description="Another name for `normalize`.")
    input_type: str | None = Field(
        None, description="What for: the checkpoint's own prompt, where it has one for that."
    )
    task: str | None = Field(None, description="Another name for it.")
    modality: str | ListOf[str] | None = Field(
        None,
        description="`text`, `image` or `text_image`, of all or of each: an input that is read as another is refused.",
    )
    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, description="Nothing is ever cut: with more tokens than that it is an error. -1: no limit."
    )

    def asked(self, context: Context) -> Asked:
        """What to embed, and how the answer is written.

        Raises:
            InvalidInput, TooLarge: an item or a field, by its name.
        """
        form = self.one_of("encoding_format", "embedding_type", "encoding_type", "output_dtype") or "float"
        if form == "base64" and self.dtype == "float16":
            raise InvalidInput('"dtype" float16 in base64 would be read as float32: leave one of them out.', "dtype")
        purpose = Purpose(
            self.one_of("input_type", "task"), context.model, "input_type" if self.task is None else "task"
        )
        options = purpose.over(self.chosen(dimensions="output_dimension", normalize="normalized"))
        contents = self._contents(context.max_items)
        self._check_modality(contents)
        items = [content.item(options) for content in contents]

        def answer(done: Done) -> Response:
            self._check_length(done.embeddings)
            purpose.check(done.embeddings[0].model)
            vectors = in_json(numbers(items, done, self.dtype), form)
            body = {
                "object": "list",
                "data": [{"object": "embedding", "index": i, "embedding": value} for i, value in enumerate(vectors)],
                "model": done.model,
                "usage": {"prompt_tokens": done.tokens, "total_tokens": done.tokens},
            }
            return json_answer(body, done)

        return Asked(items, self.model, answer)

    def _contents(self, max_items: int) -> list[Content]:
        continued = bool(self.continue_final_message)
        if (self.input is None) == (self.messages is None):
            raise InvalidInput('Send exactly one of "input" and "messages".', "input")
        if self.messages is None:
            return contents(self.input, "input", max_items, continued)
        if isinstance(self.messages, list) and self.messages and not isinstance(self.messages[0], dict):
            return listed(
                self.messages, "messages", max_items, lambda turns, name: of_conversation(turns, name, continued)
            )
        return [of_conversation(self.messages, "messages", continued)]

    def _check_modality(self, contents: list[Content]) -> None:
        told = self.modality if isinstance(self.modality, list) else [self.modality] * len(contents)
        if len(told) != len(contents):
            raise InvalidInput(f'"modality" names {len(told)} of {len(contents)} inputs: send one each.', "modality")
        for content, said in zip(contents, told, strict=True):
            read = "_".join(name for name, part in (("text", content.text), ("image", content.image)) if part)
            if said not in (None, read):
                raise InvalidInput(
                    f'"modality" is "{said[:64]}", and this input is read as {read}: an image is a data: URL.',
                    content.param,
                )

    def _check_length(self, embeddings: list[Embedding]) -> None:
        most = self.truncate_prompt_tokens
        longest = max(embedding.tokens for embedding in embeddings)
        if most is not None and 0 <= most < longest:
            raise InvalidInput(
                f"An input has {longest} tokens with its prompt, and nothing is cut here: send a shorter one, or leave "
                "truncate_prompt_tokens out.",
                "truncate_prompt_tokens",
            )


class OpenAIEmbedding(BaseModel):
    """One vector."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class OpenAIUsage(BaseModel):
    """Tokens, prompts included."""

    prompt_tokens: int
    total_tokens: int


class OpenAIResponse(BaseModel):
    """A vector for each item, in order. Documentation only: orjson writes the answers."""

    object: Literal["list"]
    data: list[OpenAIEmbedding]
    model: str
    usage: OpenAIUsage
