"""What Prometheus is told: every figure of the adapter, by name.

One set of instruments for the process. With several workers prometheus_client keeps their values in files of a common
folder, and whichever worker is asked adds them up. Labels have few values, whatever callers send.
"""

import os
from pathlib import Path

import psutil
from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
    multiprocess,
)

from client.errors import TOLD

MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4
FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # prometheus_client reads it once, when it is imported
_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_ITEMS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

# Why a request got no vectors, by the status that it got instead.
REASONS = {told.status: told.code for told in TOLD.values()} | {
    404: "not_found",
    405: "method_not_allowed",
    499: "client_gone",
}

disable_created_metrics()  # one more series for each, which no query of ours reads
registry = CollectorRegistry()
REQUESTS = Counter(
    "adapter_requests",
    "Requests answered, by endpoint, status, and why not with what was asked for.",
    ("endpoint", "status", "reason"),
    registry=registry,
)
DURATION = Histogram(
    "adapter_request_seconds",
    "From the head of a request to its answer.",
    ("endpoint",),
    registry=registry,
    buckets=_SECONDS,
)
STAGE = Histogram(
    "adapter_stage_seconds",
    "Of a request's slowest item: in Triton's queue, decoding and tokenising, in the forward pass.",
    ("stage",),
    registry=registry,
    buckets=_SECONDS,
)
ITEMS = Histogram("adapter_request_items", "Items of an embedding request.", registry=registry, buckets=_ITEMS)
BYTES = Counter("adapter_request_bytes", "Bytes of embedding requests' bodies.", registry=registry)
CACHE_HITS = Counter("adapter_cache_hits", "Items answered from the vector cache.", registry=registry)
CACHE_MISSES = Counter("adapter_cache_misses", "Items that were not in the vector cache.", registry=registry)


def _gauge(name: str, text: str, workers: str = "livesum") -> Gauge:
    return Gauge(name, text, registry=registry, multiprocess_mode=workers)  # type: ignore[arg-type]


CACHE_BYTES = _gauge("adapter_cache_bytes", "Bytes of the vector cache.")
IN_FLIGHT = _gauge("adapter_items_in_flight", "Items that are waiting or at Triton.")
ROOM = _gauge("adapter_items_room", "Items that may be in flight: fewer while so many would miss the deadline.")
HELD_BYTES = _gauge("adapter_held_bytes", "Bytes of the bodies that are being read or worked on.")
OPEN_FILES = _gauge("adapter_open_files", "Open files of the workers: one a connection, and some twenty of their own.")
RECIPES_DIFFER = _gauge("adapter_recipes_differ", "1 while one of several Tritons is refused.", "livemax")
MODEL_UP = _gauge("adapter_model_up", "1 while embeddings come back, in every worker.", "livemin")

_requests: dict[tuple[str, int], Counter] = {}
_durations: dict[str, Histogram] = {}
_stages = {stage: STAGE.labels(stage) for stage in ("queue", "preprocess", "forward")}


def answered(endpoint: str, status: int, seconds: float) -> None:
    """A request got its answer. `endpoint` is one of few: a path that callers make up is not."""
    if (requests := _requests.get((endpoint, status))) is None:
        labels = endpoint, str(status), REASONS.get(status, "none")
        requests = _requests[endpoint, status] = REQUESTS.labels(*labels)
        _durations.setdefault(endpoint, DURATION.labels(endpoint))
    requests.inc()
    _durations[endpoint].observe(seconds)


def embedded(items: int, body_bytes: int, stages_ms: dict[str, float]) -> None:
    """A request got its vectors; where all came from the cache, they went through no stage."""
    ITEMS.observe(items)
    BYTES.inc(body_bytes)
    if stages_ms["forward"]:
        for stage, took in stages_ms.items():
            _stages[stage].observe(took / 1e3)


def exposition() -> bytes:
    """The metrics of all workers, in Prometheus' text format."""
    if FOLDER not in os.environ:
        return generate_latest(registry)
    together = CollectorRegistry()
    multiprocess.MultiProcessCollector(together)
    return generate_latest(together)


def forget_the_dead() -> None:
    """Of processes that are gone what they counted stays, what they held is no more."""
    if FOLDER in os.environ:
        pids = {int(file.stem.rpartition("_")[2]) for file in Path(os.environ[FOLDER]).glob("gauge_live*.db")}
        for pid in pids.difference(psutil.pids()):
            multiprocess.mark_process_dead(pid)
