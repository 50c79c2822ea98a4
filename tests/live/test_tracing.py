"""One request as one trace, from the client's own span to the engine, at a collector that speaks OTLP over HTTP."""

import contextlib
import gzip
import http.server
import threading

import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2

from testbed import base
from tests.deployment import Deployment, until
from tests.live import conftest

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """Keeps what is exported to it: (service, span)."""

    def __init__(self):
        self.spans = []
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    raw = gzip.decompress(raw)
                for resource in trace_service_pb2.ExportTraceServiceRequest.FromString(raw).resource_spans:
                    about = {each.key: each.value.string_value for each in resource.resource.attributes}
                    collector.spans += [
                        (about["service.name"], span) for scope in resource.scope_spans for span in scope.spans
                    ]
                self.send_response(200)
                self.end_headers()

            def log_message(self, *args):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def collector():
    found = Collector()
    yield found
    found.server.shutdown()
    found.server.server_close()


@pytest.fixture
def traced(docker_hosts, tmp_path_factory, collector):
    conftest.servers()
    more = {"tracing": {"endpoint": collector.url}}
    name = f"traced-{base.TAG}"
    yield from conftest.running(Deployment(name, tmp_path_factory.mktemp("traced"), docker_hosts[:1], more))


def test_a_request_is_one_trace_through_all_programs(traced, collector, docker_hosts):
    assert traced.request("POST", "/v1/baymodels", {"name": "m"})[0] == 201
    assert traced.request("POST", "/v1/bays?wait=60", {"name": "b", "baymodel_id": "m"})[0] == 201
    body = {"name": "c", "bay_uuid": "b", "image": docker_hosts[0].image, "command": ["sleep", "600"], "start": True,
            "stop_timeout": 0}  # fmt: skip
    status, made = traced.request("POST", "/v1/containers?wait=60", body, {"traceparent": f"00-{TRACE}-{PARENT}-01"})
    assert (status, made["status"]) == (201, "Running"), made
    wanted = {
        ("magnum-api", "POST /v1/containers"), ("magnum-api", "call create"), ("magnum-conductor", "serve create"),
        ("magnum-api", "call apply"), ("magnum-backend", "serve apply"), ("magnum-backend", "docker apply container"),
    }  # fmt: skip

    def mine():
        return [(service, span) for service, span in collector.spans if span.trace_id.hex() == TRACE]

    until(lambda: {(service, span.name) for service, span in mine()} >= wanted)
    spans = {span.span_id.hex(): (service, span) for service, span in mine()}
    names = {(service, span.name): span for service, span in spans.values()}
    assert names["magnum-api", "POST /v1/containers"].parent_span_id.hex() == PARENT

    def above(span):
        found = []
        with contextlib.suppress(KeyError):
            while True:
                _, span = spans[span.parent_span_id.hex()]
                found.append(span.name)
        return found

    # what the engine did hangs on the call that asked for it, and that on the request
    assert above(names["magnum-backend", "docker apply container"])[-3:] == [
        "serve apply", "call apply", "POST /v1/containers"
    ]  # fmt: skip
    assert above(names["magnum-conductor", "serve create"]) == ["call create", "POST /v1/containers"]
    assert traced.request("DELETE", "/v1/bays/b?wait=60")[0] == 204
