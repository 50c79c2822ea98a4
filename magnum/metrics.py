"""What a program counts of itself, for Prometheus. Every program may add to it; ``/metrics`` of the api shows its own.

Several api workers share one set through prometheus-client's multiprocess
files: ``cmd.api`` names their folder in the environment before this module is
first imported, since prometheus-client chooses by it at import.
"""

import os

import prometheus_client
from prometheus_client import multiprocess

REQUESTS = prometheus_client.Counter(
    "magnum_api_requests", "Requests answered.", ["method", "route", "status"]
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

CONTENT_TYPE = prometheus_client.CONTENT_TYPE_LATEST


def render() -> bytes:
    """Return everything counted, in Prometheus' text format (of all workers, where there are several)."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return prometheus_client.generate_latest()
    registry = prometheus_client.CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return prometheus_client.generate_latest(registry)
