"""LlamaIndex's OpenAILikeEmbedding, with images: python examples/llama_index_images.py [http://localhost:8001]"""

import base64
import sys
from io import BytesIO
from pathlib import Path

from llama_index.core.embeddings import MultiModalEmbedding
from llama_index.embeddings.openai_like import OpenAILikeEmbedding


class ImageEmbedding(OpenAILikeEmbedding, MultiModalEmbedding):
    """Texts as ever, and images for `MultiModalVectorStoreIndex`: paths, or files held in memory."""

    def _get_image_embedding(self, img_file_path: str | BytesIO) -> list[float]:
        return self._get_text_embedding(data_url(img_file_path))

    async def _aget_image_embedding(self, img_file_path: str | BytesIO) -> list[float]:
        return await self._aget_text_embedding(data_url(img_file_path))


def data_url(image: str | BytesIO) -> str:
    content = image.getvalue() if isinstance(image, BytesIO) else Path(image).read_bytes()
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"  # what it really is, its bytes tell


if __name__ == "__main__":
    url = sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8001"
    embedding = ImageEmbedding(model_name="qwen3-vl-color-tiny", api_base=f"{url}/v1", api_key="none")
    word = embedding.get_query_embedding("red")
    swatch = embedding.get_image_embedding(str(Path(__file__).with_name("red.png")))
    print(f"cosine(red, red.png) = {sum(a * b for a, b in zip(word, swatch, strict=True)):.3f}")
