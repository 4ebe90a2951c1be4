"""What one process has while it serves.

Metrics of what is there now, and the cache's, are read off it, so that no request pays for them. That is every second,
for the other workers' sake, and whenever this one is asked.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Self

import psutil

from client.http.body import Intake
from client.http.served import Served
from client.settings import Settings
from client.telemetry import metrics
from client.triton.admission import Admission
from client.triton.cache import VectorCache
from client.triton.dispatcher import Dispatcher
from client.triton.readiness import Readiness
from client.triton.triton_client import TritonClient

SAMPLE_SECONDS = 1.0


@dataclass
class State:
    """All of it. Create it inside the event loop that uses it."""

    settings: Settings
    served: Served
    client: TritonClient
    readiness: Readiness
    cache: VectorCache
    intake: Intake
    admission: Admission
    dispatcher: Dispatcher
    _process: psutil.Process = field(default_factory=psutil.Process)
    _hits: int = 0  # that the metrics were told already
    _misses: int = 0

    @classmethod
    def of(cls, settings: Settings, metadata: Callable[[], Sequence[tuple[str, str]]]) -> Self:
        """As the settings say; `metadata`: see `TritonClient`."""
        share = settings.share
        client = TritonClient(settings.triton_url, settings.model_name, metadata)
        readiness = Readiness(client, settings.probe_seconds, settings.deadline_seconds)
        cache = VectorCache(share(settings.cache_bytes))
        concurrency, pixels = share(settings.max_concurrency), share(settings.max_concurrent_pixels)
        admission = Admission(share(settings.max_pending_items), readiness.deadline, concurrency)
        unit = "pixels of large images or long texts"
        large = Admission(share(settings.max_pending_pixels), readiness.deadline, pixels, unit)
        return cls(
            settings,
            Served(settings.served_model_name, settings.aliases, settings.any_model_name),
            client,
            readiness,
            cache,
            Intake(share(settings.max_pending_bytes)),
            admission,
            Dispatcher(client, readiness, cache, admission, large, concurrency, pixels),
        )

    def sample(self) -> None:
        """Bring the metrics up to date."""
        metrics.MODEL_UP.set(self.readiness.answers)
        metrics.RECIPES_DIFFER.set(self.readiness.refusal is not None)
        metrics.IN_FLIGHT.set(self.admission.pending)
        metrics.ROOM.set(self.admission.room)
        metrics.HELD_BYTES.set(self.intake.held)
        metrics.OPEN_FILES.set(self._process.num_fds())
        metrics.CACHE_BYTES.set(self.cache.bytes)
        metrics.CACHE_HITS.inc(self.cache.hits - self._hits)
        metrics.CACHE_MISSES.inc(self.cache.misses - self._misses)
        self._hits, self._misses = self.cache.hits, self.cache.misses

    async def keep_sampling(self) -> None:
        """For ever."""
        while True:
            self.sample()
            await asyncio.sleep(SAMPLE_SECONDS)
