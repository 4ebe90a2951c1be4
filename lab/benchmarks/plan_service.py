"""The service that one would write instead of this project: FastAPI around transformers.

    python -m lab.benchmarks.plan_service --checkpoint tiny --port 8021

Written as well as that plan allows: one process, the model loaded once, one request after the other. The handlers are
coroutines and do not yield, so there is no thread to hop to and no lock to take. The full model runs, with head and
`output_hidden_states=True`. The answer is the last token of the last hidden state, L2-normalised, as a list of numbers.
Paths and schema are ours, one input a request, and so are the prompt and therefore the vectors.
"""

import base64
import os
from typing import Annotated

import typer
from fastapi import FastAPI
from pydantic import BaseModel

from lab.benchmarks import checkpoints
from lab.benchmarks.contenders import OneByOne
from lab.benchmarks.results import CheckpointOption, DeviceOption


class Body(BaseModel):
    input: str


class Answer(BaseModel):
    embedding: list[float]


def create_app(folder: str, device: str) -> FastAPI:
    """The application; the model is loaded before it is returned."""
    app = FastAPI()
    model = OneByOne(folder, device, checkpoints.dtype(folder, device))

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/txt/embed")
    async def embed_text(body: Body) -> Answer:
        return Answer(embedding=model.one(text=body.input).tolist())

    @app.post("/img/embed")
    async def embed_image(body: Body) -> Answer:
        return Answer(embedding=model.one(image=base64.b64decode(body.input.rpartition(",")[2])).tolist())

    return app


def main(
    checkpoint: CheckpointOption = "tiny",
    device: DeviceOption = "cpu",
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 8021,
) -> None:
    """Serve until it is stopped. Example: python -m lab.benchmarks.plan_service --port 8021"""
    import uvicorn  # in requirements/dev.txt alone: nothing that is served runs in it

    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    uvicorn.run(create_app(str(checkpoints.folder(checkpoint, device)), device), port=port, log_level="warning")


if __name__ == "__main__":
    typer.run(main)
