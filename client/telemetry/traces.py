"""A span for each request, sent to an OTLP receiver; W3C trace context is taken from callers and handed on to Triton.

Only where the settings name a receiver: otherwise nothing of this is imported, and nothing runs. A span holds method,
endpoint, status and request id, and nothing of a body, a query or a header.
"""

from collections.abc import Sequence

from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from client import __version__

SERVICE = {"service.name": "qwen3-vl-embed-adapter", "service.version": __version__}


class Traces:
    """Where the spans of this process go: to the receiver at `url`, such as http://localhost:4318/v1/traces.

    While it is away, spans are lost. OTEL_* variables (of the sampler, for one) are the SDK's own.
    """

    def __init__(self, url: str) -> None:
        self._provider = TracerProvider(resource=Resource.create(SERVICE), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(url)))
        self.tracer = self._provider.get_tracer("client")

    @staticmethod
    def outgoing() -> Sequence[tuple[str, str]]:
        """The gRPC metadata that makes Triton's spans children of the request's."""
        carrier: dict[str, str] = {}
        propagate.inject(carrier)
        return tuple(carrier.items())

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class Traced:
    """ASGI middleware: the span of a request."""

    def __init__(self, app: ASGIApp, traces: Traces, paths: Sequence[str]) -> None:
        self._app = app
        self._traces = traces
        self._paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        path = scope["path"] if scope["path"] in self._paths else "other"
        about = {"http.request.method": scope["method"], "http.route": path, "request.id": scope["request_id"]}
        with self._traces.tracer.start_as_current_span(
            f"{scope['method']} {path}", propagate.extract(headers), trace.SpanKind.SERVER, about
        ) as span:

            async def send_noting_status(message: Message) -> None:
                if message["type"] == "http.response.start":
                    span.set_attribute("http.response.status_code", message["status"])
                await send(message)

            await self._app(scope, receive, send_noting_status)
