"""Triton glue: requests -> embedder -> responses. The only file that imports Triton's module.

Every request carries the same three inputs (`config.pbtxt`), because Triton batches only requests with equal inputs.
A request may hold several rows; it gets all its vectors, or one error that names the row. Other requests of the batch
never notice.
"""

import gc
import json
import locale
import os
import sys
import traceback
from contextlib import suppress
from io import TextIOWrapper
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import NoReturn

import numpy as np
import triton_python_backend_utils as pb_utils
from numpy.typing import NDArray

from embedder import (
    Abandoned,
    Answer,
    CaptureFailed,
    Embedder,
    EmbedderConfig,
    Embedding,
    EmbedError,
    EmbedInput,
    InvalidInput,
    Options,
    Rendering,
    Result,
)
from embedder.config import PREFIX
from embedder.embedder import COUNTS
from embedder.errors import CAPTURE_FAILED, LOST
from embedder.pipeline import Pipeline, Request
from embedder.prepare.encoded import HEAD, SENT_AS_TEXT, image_file, is_image

INPUTS = ("text", "image", "options")
BUSY_SECONDS, BUSY_PASSES = 300, 10  # that a pass may take, as the watchdog's, which sees whether any instance answers
PASS_TOKENS = 1024  # of a pass of large images on a CPU: larger ones are hardly faster, and what is small waits for one


class Figures(Thread):
    """The embedder's counts among Triton's metrics. Each change costs a round trip: made here, once a second.

    Several instances add to the same ones. And where no pass goes on, this ends the process: nobody else sees one GPU
    that hangs while others answer.
    """

    def __init__(self, embedder: Embedder) -> None:
        super().__init__(name="figures", daemon=True)
        self._embedder, self._counts = embedder, embedder.counts
        self._told, self._closing = dict.fromkeys(COUNTS, 0), Event()
        took = embedder.info["warm_up"]
        longest = took["pass"] + took["batch"] * max(took["text"], took["image"])
        self._patience = max(BUSY_SECONDS, BUSY_PASSES * longest)
        self._families = {
            name: pb_utils.MetricFamily(f"qwen3_vl_embed_{name}_total", text, pb_utils.MetricFamily.COUNTER)
            for name, text in COUNTS.items()
        }
        self._metrics = {name: family.Metric(labels={}) for name, family in self._families.items()}
        self.start()

    def run(self) -> None:
        while not self._closing.wait(1):
            for name, metric in self._metrics.items():
                if more := self._counts[name] - self._told[name]:
                    metric.increment(more)
                    self._told[name] += more
            if self._embedder.stuck_seconds > self._patience:
                end(f"no pass has gone on for {self._patience:.0f} s: ending", LOST)

    def close(self) -> None:
        self._closing.set()
        self.join()


class TritonPythonModel:
    """One instance: one process, one device, one checkpoint."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the checkpoint of the `EMBED_*` settings; a sentence in Triton's log says why, if that fails."""
        keep_private()
        read_utf8()
        model_config = json.loads(args["model_config"])
        # Of this model alone, where several stand side by side, before the environment's.
        own = {name: each["string_value"] for name, each in model_config.get("parameters", {}).items()}
        os.environ |= {name: value for name, value in own.items() if name.startswith(PREFIX)}
        try:
            config = EmbedderConfig.from_environment()
            if args["model_instance_kind"] == "GPU":  # one instance on each
                gpus = sum(len(group["gpus"]) for group in model_config["instance_group"])
                config = config.on_gpu(int(args["model_instance_device_id"]), gpus)
            self.embedder = load(config)
        except CaptureFailed as failure:
            end_without_graphs(failure)
        except (EmbedError, ValueError) as error:
            sentence = str(error).encode("utf-8", "surrogateescape").decode(errors="replace")  # names of files
            raise pb_utils.TritonModelException(sentence) from error
        batch = model_config["max_batch_size"]
        self.embedder.info["warm_up"]["batch"] = batch
        capacity = 2 * batch  # one that is computed, and the next, which is prepared
        self.pipeline = Pipeline(self.embedder, capacity, None if self.embedder.pipelined else PASS_TOKENS)
        self.figures = Figures(self.embedder)
        self._id, self._described = bytes.fromhex(self.embedder.info["id"]), json.dumps(self.embedder.info).encode()
        gc.freeze()  # the model's hundred thousand objects stay: no collection has to go through them again
        pb_utils.Logger.log_info(
            "embedding with {checkpoint}: {dimension} dimensions, {dtype} on {device}, weights: {weights}, attention: "
            "{attention}, prompt: {prompt}, pooling: {recipe[pooling]}".format(**self.embedder.info)
        )

    def execute(self, requests: list["pb_utils.InferenceRequest"]) -> list["pb_utils.InferenceResponse | None"] | None:
        """One response for each request: in order at the end, or None for those that the pipeline answers when ready.

        On a CPU these are the requests with a large image: nobody else waits until it is decoded.
        """
        if self.embedder.pipelined:
            for request in requests:
                self._submit(request, read_rows(request))
            return None
        at_once: dict[int, list[EmbedInput | EmbedError]] = {}
        for index, request in enumerate(requests):
            # Triton hands over what is cancelled in its queue all the same; a lone request came without waiting.
            given_up = len(requests) > 1 and request.is_cancelled()
            rows: list[EmbedInput | EmbedError] = [Abandoned()] if given_up else read_rows(request)
            if self.pipeline.large(rows):
                self._submit(request, rows)
            else:
                at_once[index] = rows
        responses = dict(zip(at_once, self._respond_together(list(at_once.values())), strict=True))
        return [responses.get(index) for index in range(len(requests))]

    def finalize(self) -> None:
        """Answer what is under way."""
        self.figures.close()
        self.pipeline.close()

    def _submit(self, request: "pb_utils.InferenceRequest", rows: list[EmbedInput | EmbedError]) -> None:
        sender = request.get_response_sender()

        def reply(answers: list[Answer]) -> None:
            sender.send(self._respond(answers), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

        self.pipeline.submit(Request(rows, reply, sender.is_cancelled))

    def _respond_together(self, requests: list[list[EmbedInput | EmbedError]]) -> list["pb_utils.InferenceResponse"]:
        try:
            answers = iter(self.embedder.embed_each([row for request in requests for row in request]))
        except BaseException:
            # A lost GPU, or a fault of ours: it would be the same for every later request.
            end(traceback.format_exc(), LOST)
        return [self._respond([next(answers) for _ in request]) for request in requests]

    def _respond(self, answers: list[Answer]) -> "pb_utils.InferenceResponse":
        rows: list[Result] = []
        for index, answer in enumerate(answers):
            if isinstance(answer, EmbedError):
                return failure(answer, f"row {index}: " if len(answers) > 1 else "")
            rows.append(answer)
        vectors = [row.vector for row in rows if isinstance(row, Embedding)]
        if len(set(map(len, vectors))) > 1 or len(vectors) not in (0, len(rows)):
            return failure(
                InvalidInput("options.dimensions, render and describe must be the same in all rows of one request"), ""
            )
        columns = {  # each (rows, …), as in config.pbtxt; of a caller's own list of outputs the stub sends these alone
            "tokens": np.array([[row.tokens] for row in rows], np.int32),
            "model": bytes_of([self._id] * len(rows)),
            "recipe": bytes_of([bytes.fromhex(row.recipe.id) for row in rows]),
            "timings": np.array([[row.preprocess_ms, row.forward_ms] for row in rows], np.float32),
            "batch_items": np.array([[row.batch_items] for row in rows], np.int32),
            "warnings": np.array([[row.warnings] for row in rows], np.uint32),
        }
        if vectors:
            columns["embedding"] = np.stack(vectors)
        else:
            shown = (
                json.dumps(row.sequence).encode() if isinstance(row, Rendering) else self._described for row in rows
            )
            columns["json"] = bytes_of(list(shown))
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, column) for name, column in columns.items()])


def bytes_of(rows: list[bytes]) -> NDArray[np.uint8]:
    """(rows, longest) uint8; what is shorter ends in spaces, which JSON ignores."""
    longest = max(map(len, rows))
    return np.frombuffer(b"".join(row.ljust(longest) for row in rows), np.uint8).reshape(len(rows), longest)


def load(config: EmbedderConfig) -> Embedder:
    """Ready for its first request; the log says how far it is, since both may take minutes.

    Raises:
        EmbedError: it cannot be loaded, or fails on its first inputs.
    """
    started = monotonic()
    pb_utils.Logger.log_info(f"reading the weights of {config.checkpoint}")
    embedder = Embedder.load(config)
    read = monotonic()
    pb_utils.Logger.log_info(f"read {embedder.model.bytes / 1e9:.2g} GB in {read - started:.1f} s; warming up")
    if (least := embedder.info.get("weights_cosine")) is not None:
        pb_utils.Logger.log_info(f"weights as 8-bit floats: our own inputs' vectors keep cosine {least} and more")
    embedder.warm_up()
    pb_utils.Logger.log_info(
        "warmed up in {:.1f} s: at best a pass takes {pass:.2g} s, {text:.2g} s more for each short text and "
        "{image:.2g} s more for each small image".format(monotonic() - read, **embedder.info["warm_up"])
    )
    return embedder


def end_without_graphs(failure: CaptureFailed) -> NoReturn:
    """End this process, and leave word to the watchdog, which starts Triton once more without graphs."""
    if note := os.environ.get("WATCHDOG_NOTE"):
        Path(note).touch()
    end(f"{failure}: ending; EMBED_GRAPHS=false does without", CAPTURE_FAILED)


def end(reason: str, status: int) -> NoReturn:
    """End this process. Triton's log would not pass on its last words: another process writes it, a moment later."""
    print(reason, file=sys.stderr, flush=True)
    os._exit(status)


def keep_private() -> None:
    """Close the shared memory that brings requests here to other users, before the first one comes.

    The backend makes it readable for all (boost sets the mode itself, so no umask helps). It grows in place, and
    keeps the mode then.
    """
    mapped = {line.split(maxsplit=5)[-1] for line in Path("/proc/self/maps").read_bytes().splitlines()}
    for path in mapped:
        if path.startswith(b"/dev/shm/") and not path.endswith(b" (deleted)"):
            os.chmod(path, 0o600)


def read_utf8() -> None:
    """What is read without a word about its encoding, and printed: the stub's Python takes ASCII whatever it is told.

    (It is embedded with PyConfig_InitIsolatedConfig, which sets no locale and ignores PYTHONUTF8. The names of files
    stay ASCII: `embedder/paths.py`.)
    """
    with suppress(locale.Error):
        locale.setlocale(locale.LC_CTYPE, "C.UTF-8")
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")


def read_rows(request: "pb_utils.InferenceRequest") -> list[EmbedInput | EmbedError]:
    """The rows of one request, each an input or the reason why it is none."""
    tensors = [pb_utils.get_input_tensor_by_name(request, name) for name in INPUTS]
    if any(tensor is None for tensor in tensors):  # Triton counts inputs and does not check their names
        return [InvalidInput(f"send all of {', '.join(INPUTS)}, empty when unused")]
    # Of the request, or a field beside the inputs of /generate. Others are Triton's own, or nobody's.
    if misplaced := Options.model_fields.keys() & json.loads(request.parameters() or "{}"):
        names = ", ".join(sorted(misplaced))
        return [InvalidInput(f'parameters are not read: send {names} in the input "options", a JSON object')]
    columns = [tensor.as_numpy().reshape(-1) for tensor in tensors]  # (rows,) of bytes
    return [read_row(*row) for row in zip(*columns, strict=True)]


def read_row(text: bytes, image: bytes, options: bytes) -> EmbedInput | EmbedError:
    """Empty bytes mean unused; a request without an image is a text, even an empty one (which is refused as such)."""
    try:
        parsed = Options.parse(options)
        file = image_file(image) if image else None
        if file is not None and not text:
            return EmbedInput(image=file, options=parsed)
        return EmbedInput(text=text.decode("utf-8"), image=file, options=parsed)
    except UnicodeDecodeError:
        letters = text[:HEAD].decode("latin-1")
        return InvalidInput(SENT_AS_TEXT if is_image(letters) else "the text is not valid UTF-8")
    except EmbedError as error:
        return error


def failure(error: EmbedError, where: str) -> "pb_utils.InferenceResponse":
    """That request's own error; a fault of ours is logged with its cause, without anybody's text or image."""
    if isinstance(error, Abandoned):
        return pb_utils.InferenceResponse(error=pb_utils.TritonError("cancelled", pb_utils.TritonError.CANCELLED))
    code = pb_utils.TritonError.INVALID_ARG
    if not isinstance(error, InvalidInput):
        code = pb_utils.TritonError.INTERNAL
        pb_utils.Logger.log_error("".join(traceback.format_exception(error)))
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"{where}{error}", code))
