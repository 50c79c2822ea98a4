"""Traces: from a client's request over every call between programs to what an engine did. Off unless it is configured.

W3C Trace Context (``traceparent``) comes in with HTTP requests, and goes between programs in the headers of calls.
Spans go to an OpenTelemetry collector over OTLP/HTTP. Needs the extra ``tracing``; without ``[tracing] endpoint`` nothing
of it is imported, and a span costs one comparison.
"""

import collections.abc
import contextlib
from typing import Any

from oslo_config import cfg

from magnum import errors

_tracer: Any = None
_provider: Any = None

NOTHING: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()


def setup(conf: cfg.ConfigOpts, program: str) -> None:
    """Begin to trace, if the configuration says where to. Raises Invalid if what that needs is not installed."""
    global _tracer, _provider
    if not conf.tracing.endpoint:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http import trace_exporter
        from opentelemetry.sdk import resources, trace
        from opentelemetry.sdk.trace import export, sampling
    except ImportError as error:
        raise errors.Invalid(f"tracing needs magnum[tracing]: {error}", field="[tracing] endpoint") from None
    about = {"service.name": program, "service.namespace": conf.deployment, "host.name": conf.host}
    _provider = trace.TracerProvider(
        resource=resources.Resource.create(about),
        sampler=sampling.ParentBased(sampling.TraceIdRatioBased(conf.tracing.ratio)),
    )
    endpoint = conf.tracing.endpoint.rstrip("/") + "/v1/traces"
    _provider.add_span_processor(export.BatchSpanProcessor(trace_exporter.OTLPSpanExporter(endpoint=endpoint)))
    _tracer = _provider.get_tracer("magnum")


def close() -> None:
    """Send what waits."""
    if _provider is not None:
        _provider.shutdown()


def span(name: str, carrier: collections.abc.Mapping[str, str] | None = None, *, kind: str = "internal",
         **attributes: Any) -> contextlib.AbstractContextManager[Any]:  # fmt: skip
    """Return a span around a block: of what ``carrier`` (headers) came from, else of the span that is open.

    ``kind``: internal, server or client. ``attributes``: their names with ``__`` for a dot; None is left out.
    """
    if _tracer is None:
        return NOTHING
    from opentelemetry import propagate, trace

    parent = propagate.extract(carrier) if carrier is not None else None
    given = {key.replace("__", "."): value for key, value in attributes.items() if value is not None}
    kinds = {"server": trace.SpanKind.SERVER, "client": trace.SpanKind.CLIENT}
    found: contextlib.AbstractContextManager[Any] = _tracer.start_as_current_span(
        name, context=parent, kind=kinds.get(kind, trace.SpanKind.INTERNAL), attributes=given
    )
    return found


def inject(headers: dict[str, str]) -> dict[str, str]:
    """Put the open span into ``headers``, which are returned."""
    if _tracer is not None:
        from opentelemetry import propagate

        propagate.inject(headers)
    return headers


def carrier() -> dict[str, str] | None:
    """Return the open span for work that goes on by itself, None if nothing is traced."""
    return inject({}) if _tracer is not None else None
