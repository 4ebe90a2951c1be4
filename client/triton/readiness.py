"""Whether a real embedding came back lately, and which model made it.

Every answer to a caller counts. While there are none, a tiny text is sent, which passes by the model's layers. It comes
back at once from a model that needs half a minute for a text, and waits its turn behind what that model computes. That
is the only sign to trust: older Tritons report a dead model as ready.
"""

import asyncio
import logging
import math
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from client.errors import ApiError, DeadlinePassed, Unavailable
from client.items import Embedding, EmbedInput
from client.triton.pace import Shown, deadline, longest, shown
from client.triton.triton_client import TritonClient

logger = logging.getLogger(__name__)

PROBE = EmbedInput(b"ready", options=b'{"center":false,"layer":0}')  # no calibration is for layer 0
PATIENCE_SECONDS = 3.0
RETRY_SECONDS = 0.25  # between probes of a model that is gone: it is noticed at once when it is back
STALE_PROBES = 2  # without an answer for this many probe intervals, it is not ready any more


class Readiness:
    """The state of the model as this process has seen it.

    `generation` counts losses. The sender of a request notes it, and reports with it what came of the request: news
    from before a loss is no news.

    Of several Tritons one that goes is no loss: the others answer. The first answer says which model all of them have
    to serve. It holds until nobody has given it for a while and another one has.
    """

    def __init__(self, client: TritonClient, probe_seconds: float, deadline_seconds: float | None) -> None:
        self._client = client
        self._probe_seconds = probe_seconds
        self.deadline_seconds = deadline_seconds  # None where nothing is set
        self._warm_up: Shown | None = None  # of the model that answered last
        self._up = asyncio.Event()
        self._gone = asyncio.Event()
        self._answered_at: float | None = None  # of time.monotonic(); None until the very first answer
        self._refused_since: float | None = None  # the same, of other models' answers since the last one of ours
        self._refusal, self._refused_at = "", -math.inf  # the last of them
        self._failure = ""  # of the last probe, if it had one: logged once
        self.model: dict[str, Any] | None = None  # None while it is not known which model would answer
        self.generation = 0

    def answered(self, embedding: Embedding, generation: int) -> None:
        """A vector came back for a request that was sent in `generation`.

        Raises:
            Unavailable: of several Tritons this one serves another model than the others.
        """
        if self._client.several and self.model and embedding.model["id"] != self.model["id"]:
            raise self._refused(embedding.model["id"], self.model["id"])
        if generation != self.generation:
            return
        if not self._up.is_set():
            logger.info("model %s answers", embedding.model["id"])
        self.model, self._warm_up = embedding.model, shown(embedding.model)
        self._answered_at, self._refused_since = time.monotonic(), None
        self._gone.clear()
        self._up.set()

    def lost(self, generation: int) -> None:
        """The model could not be reached: whatever answers next may be another one."""
        if generation == self.generation and not (self._client.several and self._client.connected):
            self._lose()

    def _lose(self) -> None:
        if self._up.is_set():
            logger.warning("the model is gone: waiting for it")
        self.generation += 1
        self.model = None
        self._client.forget()
        self._up.clear()
        self._gone.set()

    async def wait(self) -> None:
        """Return at once while the model is there; wait for one that went away, it may be restarting.

        Raises:
            Unavailable: it never was there since this process started.
        """
        if self._answered_at is None:
            raise Unavailable("The model has not started yet: GET /health says 200 when it has.")
        await self._up.wait()

    def deadline(self, items: Iterable[EmbedInput] = ()) -> float:
        """Seconds that a request with these items may take: as set, or as the model's warm-up says."""
        return self.deadline_seconds or deadline(self._warm_up, items)

    def timeout(self, seconds: float) -> DeadlinePassed:
        """What a request is told whose so many seconds are over."""
        if self._up.is_set():
            why = f" {self.refusal}" if self.refusal else ""
            return DeadlinePassed(f"timeout: the request took longer than {seconds:g} s.{why}")
        return DeadlinePassed(
            f"timeout: the model went away and was not back within {seconds:g} s. It may be restarting: "
            "send the request again in a few seconds."
        )

    @property
    def answers(self) -> bool:
        """Whether an embedding came back lately."""
        silent = STALE_PROBES * self._probe_seconds + self._patience
        return self._up.is_set() and self._silent_seconds() <= silent

    @property
    def refusal(self) -> str | None:
        """What is wrong with one of several Tritons, while it was seen in the last twelve probes' time."""
        return self._refusal if time.monotonic() - self._refused_at < 12 * self._probe_seconds else None

    def _refused(self, other: str, ours: str) -> Unavailable:
        """What an answer of the model `other` is told; when nobody gives `ours` any more, that one is lost."""
        refusal = (
            f"One of the Tritons serves another checkpoint or recipe (model {other}) than the first that answered "
            f"(model {ours}), and its vectors are refused: give all of them the same checkpoint and EMBED_ settings."
        )
        if self.refusal != refusal:
            logger.warning("%s", refusal)
        now = time.monotonic()
        self._refusal, self._refused_at = refusal, now
        self._refused_since = self._refused_since or now
        if now - self._refused_since > self._patience:
            self._lose()
            self._refused_since, self._refused_at = None, -math.inf
        return Unavailable(refusal, begun=False)

    @property
    def _patience(self) -> float:
        """Seconds that a probe may take behind two full passes, which nobody lets last beyond the deadline."""
        return max(PATIENCE_SECONDS, min(2 * longest(self._warm_up), self.deadline()) if self._warm_up else 0.0)

    async def check(self) -> None:
        """Ask Triton too.

        Raises:
            Unavailable: the model is not ready; the message says in what way.
        """
        if not self._up.is_set():
            raise Unavailable("The model does not answer: it is starting, restarting or gone.")
        if not self.answers:
            raise Unavailable(f"No embedding has come back for {self._silent_seconds():.0f} s.")
        if not self._client.several and not await self._client.model_ready(PATIENCE_SECONDS):  # any of them would say
            raise Unavailable("Triton says that the model is not ready: its log says why.")

    async def probe(self) -> None:
        """Have one tiny text embedded. A slow answer is not a loss: that shows in `check` when it lasts."""
        generation = self.generation
        failure, level = "", logging.WARNING
        try:
            self.answered(await self._client.embed(PROBE, self._patience, "probe"), generation)
        except ApiError as error:
            failure = str(error)
            if isinstance(error, Unavailable):
                level = logging.INFO  # at every start, and `_lose` has warned
                self.lost(generation)
        if failure not in ("", self._failure):
            logger.log(level, "no embedding from %s: %s", self._client.url, failure)
        self._failure = failure

    async def keep_probing(self) -> None:
        """Probe for ever: rarely while there are answers anyway, often while the model is gone.

        While it is there it is asked what it is, too. Behind a proxy, or as one of several, it may have come back with
        the same id and other limits.
        """
        while True:
            await self._pause()
            if not self._up.is_set() or self._silent_seconds() >= self._probe_seconds:
                await self.probe()
            if self._up.is_set():
                with suppress(ApiError):  # the probes tell
                    await self._client.describe(self._patience)

    async def _pause(self) -> None:
        if not self._up.is_set():
            await asyncio.sleep(RETRY_SECONDS)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(max(self._probe_seconds - self._silent_seconds(), RETRY_SECONDS)):
                await self._gone.wait()

    def _silent_seconds(self) -> float:
        return time.monotonic() - (self._answered_at or 0.0)

    async def keep_watching(self) -> None:
        """For ever: a connection that breaks is a loss, even with no request on it."""
        while True:
            await self._client.disconnected()
            self._lose()
