"""Traces, received by an OTLP receiver of our own: a span a request, in the caller's trace, handed on to Triton."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from threading import Thread

import grpc
import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.conftest import running
from tests.in_process import adapter
from tests.waits import until

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CALLER = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
MARK = "xyzzymarker"


class Receiver:
    """Takes what an OTLP exporter sends over HTTP."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        bodies = self.bodies

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1/traces"

    def spans(self) -> list[Span]:
        """The adapter's, which come as protobuf."""
        requests = [ExportTraceServiceRequest.FromString(body) for body in self.bodies if not body.startswith(b"{")]
        resources = [resource for request in requests for resource in request.resource_spans]
        return [span for resource in resources for scope in resource.scope_spans for span in scope.spans]

    def triton_spans(self) -> list[dict]:
        """Triton's, which come as JSON."""
        requests = [json.loads(body) for body in self.bodies if body.startswith(b"{")]
        resources = [resource for request in requests for resource in request["resourceSpans"]]
        return [span for resource in resources for scope in resource["scopeSpans"] for span in scope["spans"]]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    Thread(target=receiver.server.serve_forever, args=(0.01,), daemon=True).start()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


def attributes(span: Span) -> dict[str, object]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in span.attributes}


async def test_each_request_is_a_span_of_its_callers_trace(stack, receiver):
    async with adapter(stack.triton_grpc, traces_url=receiver.url, api_key="good") as http:
        headers = {"authorization": "Bearer good", "x-request-id": "abc-1"}
        await http.post("/txt/embed", json={"input": MARK}, headers=CALLER | headers)
        await http.get(f"/not/there?q={MARK}", headers={"authorization": f"Bearer {MARK}", "x-other": MARK})
    embedded, refused = receiver.spans()
    assert (embedded.name, refused.name) == ("POST /txt/embed", "GET other")
    assert (embedded.trace_id.hex(), embedded.parent_span_id.hex()) == (TRACE, PARENT)
    assert (refused.parent_span_id, embedded.kind) == (b"", Span.SPAN_KIND_SERVER)
    assert attributes(embedded) == {
        "http.request.method": "POST",
        "http.route": "/txt/embed",
        "http.response.status_code": 200,
        "request.id": "abc-1",
    }
    assert attributes(refused)["http.response.status_code"] == 401
    assert MARK.encode() not in b"".join(receiver.bodies)


class Recorder(service_pb2_grpc.GRPCInferenceServiceServicer):
    """In Triton's place: notes what came along with each request, and fails it."""

    def __init__(self) -> None:
        self.seen: list[dict[str, str]] = []

    async def ModelInfer(self, request: service_pb2.ModelInferRequest, context: grpc.aio.ServicerContext) -> None:
        self.seen.append({"id": request.id, **dict(context.invocation_metadata())})
        await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "recorded")


@pytest.fixture
async def triton():
    server, recorder = grpc.aio.server(), Recorder()
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(recorder, server)
    recorder.url = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield recorder
    await server.stop(0)


async def ask(http, triton, **headers: str) -> list[dict[str, str]]:
    """What reached Triton for two items; the adapter counts as up, though no probe was answered."""
    http.app.state.readiness._up.set()
    http.app.state.readiness._answered_at = time.monotonic()
    await http.post("/txt/embed", json={"input": ["a", "b"]}, headers={"x-request-id": "abc-1", **headers})
    return [one for one in triton.seen if one["id"] == "abc-1"]


async def test_tritons_spans_are_children_of_the_requests(triton, receiver):
    async with adapter(triton.url, traces_url=receiver.url) as http:
        seen = await ask(http, triton, **CALLER)
    (span,) = receiver.spans()
    assert {one["traceparent"] for one in seen} == {f"00-{TRACE}-{span.span_id.hex()}-01"}


@pytest.mark.faults
def test_one_setting_puts_tritons_spans_below_the_adapters(receiver):
    with running(ADAPTER_TRACES_URL=receiver.url) as traced:
        numbers = count()

        def told() -> bool:  # Triton sends a span once: one that is lost on a busy machine does not come again
            text = f"{MARK} {next(numbers)}"  # another one each time: what the adapter remembers does not reach Triton
            httpx.post(f"{traced.adapter_url}/txt/embed", json={"input": text}, headers=CALLER).raise_for_status()
            return {"InferRequest", "compute"} <= {span["name"] for span in _of_trace(receiver)}

        until(told)
        ours = _of_trace(receiver)
    adapters = {span.span_id.hex() for span in receiver.spans() if span.trace_id.hex() == TRACE}
    assert {span["parentSpanId"] for span in ours if span["name"] == "InferRequest"} <= adapters
    assert not any(MARK.encode() in body for body in receiver.bodies)


def _of_trace(receiver: Receiver) -> list[dict]:
    return [span for span in receiver.triton_spans() if span["traceId"] == TRACE]


async def test_without_a_receiver_there_are_no_traces_and_the_request_id_goes_along_all_the_same(triton):
    async with adapter(triton.url) as http:
        seen = await ask(http, triton, **CALLER)
    assert seen
    assert not any("traceparent" in one for one in seen)


def test_what_traces_need_is_not_imported_without_them():
    code = "import sys, client.server, client.app; print([n for n in sys.modules if n.startswith('opentelemetry.sdk')])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
