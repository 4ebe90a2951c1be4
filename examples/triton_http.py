"""Ask Triton's HTTP endpoint itself, without the adapter: python examples/triton_http.py [localhost:8010]"""

import sys
from pathlib import Path

import numpy as np
import tritonclient.http as triton

client = triton.InferenceServerClient(sys.argv[1] if len(sys.argv) > 1 else "localhost:8010")


def embed(text: bytes = b"", image: bytes = b"", options: bytes = b"") -> np.ndarray:
    """Always all three inputs, empty when unused: Triton batches only requests that look alike."""
    inputs = []
    for name, content in {"text": text, "image": image, "options": options}.items():
        inputs.append(triton.InferInput(name, [1, 1], "BYTES"))
        inputs[-1].set_data_from_numpy(np.array([[content]], dtype=np.object_))
    return client.infer("qwen3_vl_embed", inputs).as_numpy("embedding")[0]


word = embed(text=b"red")
swatch = embed(image=Path(__file__).with_name("red.png").read_bytes(), options=b'{"pooling": "last"}')
print("shapes", word.shape, swatch.shape)
print(f"cosine(red, red.png) = {word @ swatch:.3f}")
