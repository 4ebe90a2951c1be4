"""A server as somebody else would write it: vLLM's schema over http.server, transformers' own classes behind it.

Everything that it does right it can do wrong, one setting at a time. Nothing of ours is in it.

    python -m tests.another_server final_norm=false     # serves until Ctrl-C, for docs/wrong-vectors.md
"""

import base64
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import torch
from PIL import Image, ImageOps
from transformers import AutoProcessor, Qwen3VLForConditionalGeneration

WORDS = {
    "text": "\nSummary above sentence in one word:",
    "image": "\nSummary above image in one word:",
    "both": "\nSummary above image and sentence in one word:",
}


def shown(file: bytes) -> Image.Image:
    image = ImageOps.exif_transpose(Image.open(BytesIO(file)))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


@dataclass(frozen=True)
class Settings:
    """What ours does, unless it is said."""

    words: dict[str, str] | None = None
    system: str | None = None
    generation: bool = True
    text_first: bool = False
    final_norm: bool = True
    layer: int = -1
    pooling: str = "last"
    padding: str = "right"
    open_image: Callable[[bytes], Image.Image] = shown
    resample: Image.Resampling = Image.Resampling.BICUBIC
    areas: tuple[int, int] | None = None
    vector: Callable[[torch.Tensor], torch.Tensor] = lambda rows: rows  # (N, D), at the very end


@dataclass
class Model:
    """A checkpoint folder in transformers."""

    folder: Path

    def __post_init__(self) -> None:
        self.processor = AutoProcessor.from_pretrained(self.folder)
        self.model = Qwen3VLForConditionalGeneration.from_pretrained(self.folder, dtype=torch.float32).eval()
        self.norm = self.model.model.language_model.norm
        self._one_at_a_time = Lock()  # the norm below is a hook for all

    @torch.inference_mode()
    def embed(self, conversations: list[list[dict]], settings: Settings) -> list[list[float]]:
        chats, images = [], []
        for (turn,) in conversations:
            words = next((part["text"] for part in turn["content"] if part["type"] == "text"), None)
            files = [part["image_url"]["url"] for part in turn["content"] if part["type"] == "image_url"]
            kind = "text" if not files else "image" if words is None else "both"
            after = (settings.words or WORDS)[kind]
            text = [{"type": "text", "text": (words or "") + after}] if words or after else []
            images += [settings.open_image(base64.b64decode(url.partition(",")[2])) for url in files]
            content = [{"type": "image"}] * len(files)
            content = text + content if settings.text_first else content + text
            system = [{"role": "system", "content": [{"type": "text", "text": settings.system}]}]
            chats.append([*(system if settings.system else []), {"role": "user", "content": content}])
        drawn = self.processor.apply_chat_template(chats, tokenize=False, add_generation_prompt=settings.generation)
        pixels: dict = {"resample": settings.resample}
        if settings.areas:
            pixels["size"] = dict(zip(("shortest_edge", "longest_edge"), settings.areas, strict=True))
        given = self.processor(
            text=drawn,
            images=images or None,
            return_tensors="pt",
            text_kwargs={"padding": True, "padding_side": settings.padding.split(",")[0]},
            images_kwargs=pixels if images else {},
        )
        with self._one_at_a_time:
            if not settings.final_norm:
                self.model.model.language_model.norm = torch.nn.Identity()
            try:
                states = self.model(**given, output_hidden_states=True).hidden_states[settings.layer]
            finally:
                self.model.model.language_model.norm = self.norm
        if settings.layer != -1:
            states = self.norm(states)
        mask = given["attention_mask"]
        if settings.pooling == "mean":
            rows = (states * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)
        elif settings.padding == "right, last position":
            rows = states[:, -1]
        else:  # right on the right
            rows = states[torch.arange(len(states)), mask.sum(dim=1) - 1]
        return settings.vector(torch.nn.functional.normalize(rows, dim=-1)).tolist()


@contextmanager
def serving(
    embed: Callable[[list[list[dict]]], list[list[float]]],
    keys: set | None = None,
    port: int = 0,
    busy: Iterator[int] | None = None,
) -> Iterator[str]:
    """The address of a server of vLLM's `messages` whose vectors `embed` makes.

    `keys` gets what it is sent, `busy` are the statuses that come first.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if keys is not None:
                keys.add(self.headers["authorization"])
            self._answer(200, {"data": [{"id": "another"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            if busy and (status := next(busy, None)):
                self._answer(status, {"error": {"message": "busy"}})
                return
            messages = body.get("messages")
            if self.path != "/v1/embeddings" or not messages:
                self._answer(400, {"error": {"message": "messages are wanted"}})
                return
            conversations = messages if isinstance(messages[0], list) else [messages]
            try:
                vectors = embed(conversations)
            except Exception as error:
                self._answer(500, {"error": {"message": str(error)}})
                return
            data = [{"index": index, "embedding": vector} for index, vector in enumerate(vectors)]
            self._answer(200, {"data": data[::-1]})  # as openai's SDK allows, in any order

        def _answer(self, status: int, body: dict) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


if __name__ == "__main__":
    given = dict(word.split("=", 1) for word in sys.argv[1:])
    values: dict[str, Any] = {
        name: json.loads(value) if value[0] in "tf-{[" else value for name, value in given.items()
    }
    with serving(
        partial(Model(Path("checkpoints/qwen3-vl-color-tiny")).embed, settings=Settings(**values)), port=8009
    ) as url:
        print(url)
        signal.pause()
