"""Logging of all programs: structlog over the standard library, one line an event.

Each line bears the request id and project of the context being served; secrets
in known places are masked.
"""

import logging
import re
import sys
from typing import Any

import structlog
from oslo_config import cfg

from magnum import context

_SECRET_KEYS = re.compile(r"password|secret|token|auth|credential|kubeconfig|private_key|environment", re.I)
_URL_PASSWORD = re.compile(r"(\w+://[^:/\s@]*:)[^@\s/]+(@)")


def _add_context(logger: Any, name: str, event: Any) -> Any:
    current = context.current.get()
    if current is not None:
        event.setdefault("request_id", current.request_id)
        if current.global_id:
            event.setdefault("global_request_id", current.global_id)
        if current.project_id:
            event.setdefault("project_id", current.project_id)
    return event


def mask(logger: Any, name: str, event: Any) -> Any:
    """Replace what may be secret: values under telling keys, passwords within URLs."""
    for key, value in event.items():
        if _SECRET_KEYS.search(key) and value:
            event[key] = "***"
        elif isinstance(value, str) and "://" in value:
            event[key] = _URL_PASSWORD.sub(r"\1***\2", value)
    return event


def setup(conf: cfg.ConfigOpts, program: str) -> None:
    """Set logging up for a process. Foreign libraries speak up from WARNING on, even with ``debug``."""
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_context,
        structlog.processors.format_exc_info,
        mask,
    ]
    last: Any = (
        structlog.processors.JSONRenderer()
        if conf.log_json
        else structlog.dev.ConsoleRenderer(colors=False, pad_event_to=0)
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared, processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last]
    )
    handler = logging.FileHandler(conf.log_file) if conf.log_file else logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("magnum").setLevel(logging.DEBUG if conf.debug else logging.INFO)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.clear_contextvars()


def hush(logger: str, beginning: str) -> None:
    """Drop what a library's ``logger`` says with these words at the ``beginning``: for what is wrong or moot here."""
    logging.getLogger(logger).addFilter(lambda record: not str(record.msg).startswith(beginning))
