"""Embed a word and an image through the HTTP adapter: python examples/adapter.py [http://localhost:8001]"""

import base64
import sys
from pathlib import Path

import httpx
import numpy as np

adapter = httpx.Client(base_url=sys.argv[1] if len(sys.argv) > 1 else "http://localhost:8001", timeout=60)
image = base64.b64encode(Path(__file__).with_name("red.png").read_bytes()).decode()


def embed(path: str, body: dict) -> np.ndarray:
    return np.array(adapter.post(path, json=body).raise_for_status().json()["embedding"], dtype=np.float32)


words = embed("/txt/embed", {"input": ["red", "blue"]})  # (2, D): a list gives a list
swatch = embed("/img/embed", {"input": image})  # (D,): a string gives one vector
print("shapes", words.shape, swatch.shape)
red, blue = words @ swatch  # cosines: all vectors have length 1
print(f"cosine(red, red.png) = {red:.3f}, cosine(blue, red.png) = {blue:.3f}")
