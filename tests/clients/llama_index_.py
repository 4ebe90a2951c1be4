"""Embed with LlamaIndex, whose Cohere package wants an older SDK; run in its own environment, as `sdks.py` is."""

from asked import Given, Got, main


def openai_like(given: Given) -> Got:
    from llama_index.embeddings.openai_like import OpenAILikeEmbedding

    told = {"model_name": given["model"], "api_base": f"{given['url']}/v1", "api_key": given["key"]}
    embedding = OpenAILikeEmbedding(**told)
    return {
        "texts": embedding.get_text_embedding_batch(given["texts"]),
        "queries": [embedding.get_query_embedding(text) for text in given["texts"]],
    }


def cohere(given: Given) -> Got:
    from llama_index.embeddings.cohere import CohereEmbedding

    # It knows Cohere's names only: the server has this one as an alias.
    told = {"model_name": given["alias"], "base_url": given["url"], "api_key": given["key"]}
    texts = CohereEmbedding(**told, input_type="search_document").get_text_embedding_batch(given["texts"])
    images = CohereEmbedding(**told)
    return {"texts": texts, "images": [images.get_image_embedding(file) for file in given["images"]]}


def images(given: Given) -> Got:
    from llama_index_images import ImageEmbedding  # examples/

    embedding = ImageEmbedding(model_name=given["model"], api_base=f"{given['url']}/v1", api_key=given["key"])
    return {
        "texts": embedding.get_text_embedding_batch(given["texts"]),
        "images": [embedding.get_image_embedding(file) for file in given["images"]],
    }


if __name__ == "__main__":
    main({"llama-index openai-like": openai_like, "llama-index images": images, "llama-index cohere": cohere})
