"""Embed with the clients that resolve together; run in their own environment by `tests/test_clients.py`."""

import asyncio
import base64
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asked import Given, Got, main


def data_url(file: str) -> str:
    return "data:image/png;base64," + base64.b64encode(Path(file).read_bytes()).decode()


def openai_sync(given: Given) -> Got:
    from openai import OpenAI

    client = OpenAI(base_url=f"{given['url']}/v1", api_key=given["key"])
    texts = client.embeddings.create(model=given["model"], input=given["texts"])  # base64 on the wire
    numbers = client.embeddings.create(model=given["model"], input=given["texts"], encoding_format="float")
    images = client.embeddings.create(model=given["model"], input=[data_url(file) for file in given["images"]])
    assert texts.usage.total_tokens == numbers.usage.total_tokens > 0
    assert [each.id for each in client.models.list()][:1] == [given["model"]]
    apart = [
        abs(a - b)
        for one, other in zip(texts.data, numbers.data, strict=True)
        for a, b in zip(one.embedding, other.embedding, strict=True)
    ]
    assert max(apart) < 1e-7
    return {"texts": [each.embedding for each in texts.data], "images": [each.embedding for each in images.data]}


def openai_async(given: Given) -> Got:
    from openai import AsyncOpenAI

    async def embed() -> Got:
        async with AsyncOpenAI(base_url=f"{given['url']}/v1", api_key=given["key"]) as client:

            async def one(value: str) -> list[float]:
                return (await client.embeddings.create(model=given["model"], input=value)).data[0].embedding

            return {
                "texts": await asyncio.gather(*map(one, given["texts"])),
                "images": await asyncio.gather(*(one(data_url(file)) for file in given["images"])),
            }

    return asyncio.run(embed())


def openai_messages(given: Given) -> Got:
    """vLLM's form, through the SDK's own `post`."""
    from openai import OpenAI
    from openai.types import CreateEmbeddingResponse

    client = OpenAI(base_url=f"{given['url']}/v1", api_key=given["key"])

    def one(part: dict) -> list[float]:
        messages = [{"role": "user", "content": [part]}]
        body = {"messages": messages, "model": given["model"], "encoding_format": "float"}
        return client.post("/embeddings", body=body, cast_to=CreateEmbeddingResponse).data[0].embedding

    return {
        "texts": [one({"type": "text", "text": text}) for text in given["texts"]],
        "images": [one({"type": "image_url", "image_url": {"url": data_url(file)}}) for file in given["images"]],
    }


def langchain(given: Given) -> Got:
    from langchain_openai import OpenAIEmbeddings

    told = {"model": given["model"], "base_url": f"{given['url']}/v1", "api_key": given["key"]}
    embeddings = OpenAIEmbeddings(**told, check_embedding_ctx_length=False)
    many = embeddings.embed_documents([f"shade {index}" for index in range(1001)])  # 1,000 in one request
    assert len(many) == 1001
    refused = ""
    try:
        OpenAIEmbeddings(**told, max_retries=0).embed_query("red")  # its default: OpenAI's token ids
    except Exception as error:
        refused = str(error)
    return {
        "texts": embeddings.embed_documents(given["texts"]),
        "queries": [embeddings.embed_query(text) for text in given["texts"]],
        "refused": refused,
    }


def langchain_images(given: Given) -> Got:
    from langchain_images import ImageEmbeddings  # examples/

    embeddings = ImageEmbeddings(model=given["model"], base_url=f"{given['url']}/v1", api_key=given["key"])
    return {"texts": embeddings.embed_documents(given["texts"]), "images": embeddings.embed_image(given["images"])}


def litellm_openai(given: Given) -> Got:
    return {"texts": _litellm(given, "openai/", "/v1", given["texts"])}


def litellm_hosted_vllm(given: Given) -> Got:
    return {"texts": _litellm(given, "hosted_vllm/", "/v1", given["texts"])}


def litellm_jina(given: Given) -> Got:
    images = [data_url(file) for file in given["images"]]
    both = _litellm(given, "jina_ai/", "/v1/embeddings", [*given["texts"], *images])
    return {"texts": both[: len(given["texts"])], "images": both[len(given["texts"]) :]}


def litellm_cohere(given: Given) -> Got:
    images = [
        _litellm(given, "cohere/", "/v2/embed", [data_url(file)], input_type="image")[0] for file in given["images"]
    ]
    return {"texts": _litellm(given, "cohere/", "/v2/embed", given["texts"]), "images": images}


def _litellm(given: Given, provider: str, path: str, values: list[str], **more: str) -> list[list[float]]:
    import litellm

    model = provider + given["model"]
    base = given["url"] + path
    answer = litellm.embedding(model=model, input=values, api_base=base, api_key=given["key"], **more)
    return [each["embedding"] for each in answer.data]


def haystack_openai(given: Given) -> Got:
    from haystack import Document
    from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
    from haystack.utils import Secret

    told = {"model": given["model"], "api_base_url": f"{given['url']}/v1", "api_key": Secret.from_token(given["key"])}
    embedder = OpenAITextEmbedder(**told)
    documents = OpenAIDocumentEmbedder(**told, progress_bar=False).run(
        [Document(content=text) for text in given["texts"]]
    )
    return {
        "texts": [embedder.run(text)["embedding"] for text in given["texts"]],
        "documents": [document.embedding for document in documents["documents"]],
    }


def _images_by_haystack(given: Given, embedder: Any) -> list[list[float]]:
    from haystack import Document

    documents = [Document(content="", meta={"file_path": file}) for file in given["images"]]
    return [list(document.embedding) for document in embedder.run(documents)["documents"]]


def haystack_cohere(given: Given) -> Got:
    from haystack.utils import Secret
    from haystack_integrations.components.embedders.cohere import CohereDocumentImageEmbedder, CohereTextEmbedder

    told = {"model": given["model"], "api_base_url": given["url"], "api_key": Secret.from_token(given["key"])}
    embedder = CohereTextEmbedder(**told)
    return {
        "texts": [embedder.run(text)["embedding"] for text in given["texts"]],
        "images": _images_by_haystack(given, CohereDocumentImageEmbedder(**told, progress_bar=False)),
    }


def haystack_jina(given: Given) -> Got:
    from haystack.utils import Secret
    from haystack_integrations.components.embedders.jina import JinaDocumentImageEmbedder, JinaTextEmbedder

    base = f"{given['url']}/v1/embeddings"
    told = {"model": given["model"], "base_url": base, "api_key": Secret.from_token(given["key"])}
    embedder = JinaTextEmbedder(**told)
    return {
        "texts": [embedder.run(text)["embedding"] for text in given["texts"]],
        "images": _images_by_haystack(given, JinaDocumentImageEmbedder(**told)),
    }


def cohere(given: Given) -> Got:
    from cohere import ClientV2

    client = ClientV2(given["key"], base_url=given["url"])
    told = {"model": given["model"], "embedding_types": ["float"]}
    images = [data_url(file) for file in given["images"]]
    parts = [{"content": [{"type": "image_url", "image_url": {"url": url}}]} for url in images]
    texts = client.embed(**told, texts=given["texts"], input_type="search_document")
    assert texts.meta.billed_units.input_tokens > 0
    return {
        "texts": texts.embeddings.float_,
        "images": client.embed(**told, images=images, input_type="image").embeddings.float_,
        "parts": client.embed(**told, inputs=parts, input_type="image").embeddings.float_,
    }


CLIENTS: dict[str, Callable[[Given], Got]] = {
    "openai": openai_sync,
    "openai-async": openai_async,
    "openai-messages": openai_messages,
    "langchain": langchain,
    "langchain-images": langchain_images,
    "litellm-openai": litellm_openai,
    "litellm-hosted_vllm": litellm_hosted_vllm,
    "litellm-jina_ai": litellm_jina,
    "litellm-cohere": litellm_cohere,
    "haystack-openai": haystack_openai,
    "haystack-cohere": haystack_cohere,
    "haystack-jina": haystack_jina,
    "cohere": cohere,
}


if __name__ == "__main__":
    main(CLIENTS)
