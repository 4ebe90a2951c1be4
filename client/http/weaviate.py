"""POST /vectorize: what Weaviate's multi2vec-clip asks of its inference container."""

from pydantic import BaseModel, Field
from starlette.responses import Response

from client.errors import InvalidInput, TooLarge
from client.http.answers import Done, in_json, json_answer, numbers
from client.http.contents import listed, of_image, of_text
from client.http.schemas import Asked, Context, ListOf, OptionsRequest


class WeaviateRequest(OptionsRequest):
    """The body of POST /vectorize: texts, images, or both; each gets a vector of its own."""

    texts: ListOf[str] | None = Field(None, description="Texts.")
    images: ListOf[str] | None = Field(None, description="Images in base64.")

    def asked(self, context: Context) -> Asked:
        """What to embed, and how the answer is written.

        Raises:
            InvalidInput, TooLarge: an item or a field, by its name.
        """
        texts, images = self.texts or [], self.images or []
        if not texts and not images:
            raise InvalidInput('Send "texts", "images" or both.', "texts")
        if len(texts) + len(images) > context.max_items:
            raise TooLarge(f"{len(texts) + len(images)} texts and images: send at most {context.max_items} at once.")
        options = self.chosen()
        items = [
            content.item(options)
            for name, values, read in (("texts", texts, of_text), ("images", images, of_image))
            if values
            for content in listed(values, name, context.max_items, read)
        ]

        def answer(done: Done) -> Response:
            vectors = in_json(numbers(items, done), "float")
            return json_answer({"textVectors": vectors[: len(texts)], "imageVectors": vectors[len(texts) :]}, done)

        return Asked(items, None, answer)


class WeaviateResponse(BaseModel):
    """The vectors, in order. Documentation only: orjson writes the answers."""

    textVectors: list[list[float]]
    imageVectors: list[list[float]]


class WeaviateErrorResponse(BaseModel):
    """The body of every error at this path."""

    error: str
    type: str
    param: str | None
    code: str
