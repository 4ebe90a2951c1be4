"""LangChain's OpenAIEmbeddings, with images: python examples/langchain_images.py [http://localhost:8001]"""

import base64
import sys
from pathlib import Path

from langchain_openai import OpenAIEmbeddings


class ImageEmbeddings(OpenAIEmbeddings):
    """Texts as ever, and files of images by `embed_image`, which LangChain's multimodal vector stores call."""

    check_embedding_ctx_length: bool = False  # the server takes texts, and not the token ids of OpenAI's models

    def embed_image(self, uris: list[str]) -> list[list[float]]:
        """One vector for each file, of length 1, in the space of the texts."""
        return self.embed_documents([data_url(uri) for uri in uris])


def data_url(path: str) -> str:
    content = base64.b64encode(Path(path).read_bytes()).decode()
    return f"data:image/png;base64,{content}"  # what it really is, its bytes tell


if __name__ == "__main__":
    url = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8001"
    embeddings = ImageEmbeddings(model="qwen3-vl-color-tiny", base_url=f"{url}/v1", api_key="none")
    word = embeddings.embed_query("red")
    (swatch,) = embeddings.embed_image([str(Path(__file__).with_name("red.png"))])
    print(f"cosine(red, red.png) = {sum(a * b for a, b in zip(word, swatch, strict=True)):.3f}")
