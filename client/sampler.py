"""Metrics that are read off from time to time, so that no request pays for them: what is there now, and the cache's.

Every second, for the other workers' sake, and whenever this one is asked.
"""

import asyncio

import psutil

from client.http.body import Intake
from client.telemetry import metrics
from client.triton.admission import Admission
from client.triton.cache import VectorCache
from client.triton.readiness import Readiness

SECONDS = 1.0


class Sampler:
    """Of one adapter's state."""

    def __init__(self, readiness: Readiness, cache: VectorCache, admission: Admission, intake: Intake) -> None:
        self._readiness, self._cache, self._admission, self._intake = readiness, cache, admission, intake
        self._process = psutil.Process()
        self._hits = self._misses = 0  # that were told already

    def sample(self) -> None:
        """Bring the metrics up to date."""
        metrics.MODEL_UP.set(self._readiness.answers)
        metrics.RECIPES_DIFFER.set(self._readiness.refusal is not None)
        metrics.IN_FLIGHT.set(self._admission.pending)
        metrics.ROOM.set(self._admission.room)
        metrics.HELD_BYTES.set(self._intake.held)
        metrics.OPEN_FILES.set(self._process.num_fds())
        metrics.CACHE_BYTES.set(self._cache.bytes)
        metrics.CACHE_HITS.inc(self._cache.hits - self._hits)
        metrics.CACHE_MISSES.inc(self._cache.misses - self._misses)
        self._hits, self._misses = self._cache.hits, self._cache.misses

    async def keep_sampling(self) -> None:
        """For ever."""
        while True:
            self.sample()
            await asyncio.sleep(SECONDS)
