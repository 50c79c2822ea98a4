"""What a program counts of itself, for Prometheus. Every program may add to it; ``/metrics`` of the api shows its own.

Several api workers share one set through prometheus-client's multiprocess
files: ``cmd.api`` names their folder in the environment before this module is
first imported, since prometheus-client chooses by it at import.
"""

import collections.abc
import contextlib
import os
import time

import prometheus_client
from prometheus_client import multiprocess

from magnum import errors

REQUESTS = prometheus_client.Counter(
    "magnum_api_requests", "Requests answered. route: none where there is nothing, and for what was refused unseen (429, 503).",
    ["method", "route", "status"]
)  # fmt: skip
SECONDS = prometheus_client.Histogram(
    "magnum_api_request_seconds", "Seconds from a request's arrival to the start of its answer.", ["method", "route"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60),
)  # fmt: skip
STREAMS = prometheus_client.Gauge(
    "magnum_api_streams", "Open event, log and WebSocket streams.", multiprocess_mode="livesum"
)
REFUSALS = prometheus_client.Counter(
    "magnum_api_refusals", "Requests refused by policy or for want of authentication.", ["rule"]
)

_SHORT = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_LONG = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)

CALLS = prometheus_client.Histogram(
    "magnum_rpc_call_seconds", "Seconds of a call as the caller saw it. outcome: ok or the error's code.",
    ["method", "outcome"], buckets=_SHORT,
)  # fmt: skip
SERVED = prometheus_client.Histogram(
    "magnum_rpc_served_seconds", "Seconds that serving a call took. outcome: ok or the error's code.",
    ["method", "outcome"], buckets=_SHORT,
)  # fmt: skip
IN_HAND = prometheus_client.Gauge("magnum_rpc_in_hand", "Calls being served now.", multiprocess_mode="livesum")

TRANSACTIONS = prometheus_client.Histogram(
    "magnum_conductor_transaction_seconds", "Seconds of a transaction, repetitions included. kind: read or write.",
    ["kind", "outcome"], buckets=_SHORT,
)  # fmt: skip
REPEATS = prometheus_client.Counter(
    "magnum_conductor_transaction_repeats", "Transactions repeated because they met another."
)
NEWS = prometheus_client.Gauge("magnum_conductor_news_waiting", "Committed transactions not yet broadcast.")
OBJECTS = prometheus_client.Gauge("magnum_objects", "Objects of all projects.", ["kind", "status"])
HOSTS = prometheus_client.Gauge("magnum_hosts", "Hosts.", ["status"])
OPEN = prometheus_client.Gauge("magnum_operations_open", "Changes in progress.", ["kind"])
OLDEST = prometheus_client.Gauge("magnum_operations_oldest_seconds", "Age of the oldest change in progress; 0: none.")
OPERATIONS = prometheus_client.Histogram(
    "magnum_operation_seconds", "Seconds from an accepted change to its end. outcome: completed, failed, expired or cancelled.",
    ["kind", "action", "outcome"], buckets=_LONG,
)  # fmt: skip

ENGINE = prometheus_client.Histogram(
    "magnum_engine_seconds", "Seconds that an engine's driver took. call: apply, observe or remove.",
    ["engine", "kind", "call", "outcome"], buckets=_LONG,
)  # fmt: skip
CONVERGENCE = prometheus_client.Histogram(
    "magnum_backend_convergence_seconds", "Seconds from when a backend heard of a wish to when the engine had it.",
    ["kind"], buckets=_LONG,
)  # fmt: skip
WORKS = prometheus_client.Gauge("magnum_backend_objects", "Objects that the backend keeps.")
ROUNDS = prometheus_client.Gauge("magnum_backend_rounds_in_hand", "Objects being worked on, or waiting to be.")
REPORTS = prometheus_client.Gauge("magnum_backend_reports_waiting", "Reports that the conductor has not taken yet.")
COMPARED = prometheus_client.Gauge(
    "magnum_backend_compared_timestamp_seconds",
    "When everything wanted was last compared with everything there (Unix).",
)

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST


@contextlib.contextmanager
def timed(histogram: prometheus_client.Histogram, *labels: str) -> collections.abc.Iterator[None]:
    """Observe the seconds of a block, with its outcome as the last label: ok, or the code of what it raises."""
    started = time.monotonic()
    outcome = "ok"
    try:
        yield
    except BaseException as error:
        outcome = getattr(error, "code", None) or type(error).__name__
        raise
    finally:
        histogram.labels(*labels, str(outcome)).observe(time.monotonic() - started)


def serve(host: str, port: int) -> None:
    """Answer Prometheus at ``host``:``port`` for a program that serves no HTTP itself. Raises Invalid."""
    try:
        prometheus_client.start_http_server(port, addr=host)
    except OSError as error:
        raise errors.Invalid(f"cannot listen on {host}:{port}: {error.strerror}", field="metrics_port") from None


def render() -> bytes:
    """Return everything counted, in Prometheus' text format (of all workers, where there are several)."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return prometheus_client.generate_latest()
    registry = prometheus_client.CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return prometheus_client.generate_latest(registry)
