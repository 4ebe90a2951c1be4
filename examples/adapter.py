"""Embed words and an image through the HTTP adapter: python examples/adapter.py [http://localhost:8001]"""

import sys
from pathlib import Path

from qwen3_vl_embed import Client

with Client(sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8001") as client:
    words = client.embed_text(["red", "blue"])  # NumPy, float32 (2, D): a list gives a row for each
    swatch = client.embed_image(Path(__file__).with_name("red.png"))  # (D,): one gives one

print("shapes", words.shape, swatch.shape)
red, blue = words @ swatch  # cosines: all vectors have length 1
print(f"cosine(red, red.png) = {red:.3f}, cosine(blue, red.png) = {blue:.3f}")
