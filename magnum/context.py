"""Who asks, for which project, under which request id, until when.

Made by the api for every request, by the backend for its own reports; carried
by every RPC in its headers and by every log line.
"""

import contextvars
import time
import uuid

import msgspec


class Context(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The asker.

    ``deadline`` is a reading of ``time.monotonic()`` of *this* process; the
    transports send what is left of it, so clocks need not agree.
    ``all_projects`` widens reads and writes to every project; the api sets it
    only after policy allowed it.
    """

    request_id: str
    global_id: str = ""
    """The request id that another service of the cloud gave, when it asks on behalf of a request of its own."""
    user_id: str = ""
    project_id: str = ""
    domain_id: str = ""
    user_name: str = ""
    project_name: str = ""
    roles: tuple[str, ...] = ()
    system_scope: str = ""
    is_admin: bool = False
    all_projects: bool = False
    host: str = ""
    """Set by a backend that calls: the host it speaks for."""
    deadline: float | None = None

    def remaining(self) -> float | None:
        """Return the seconds left (may be negative), or None without a deadline."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    def within(self, seconds: float) -> "Context":
        """Return this context with a deadline at most ``seconds`` from now."""
        end = time.monotonic() + seconds
        if self.deadline is not None:
            end = min(end, self.deadline)
        return msgspec.structs.replace(self, deadline=end)


def new_request_id() -> str:
    """Return a fresh request id in OpenStack's form, ``req-<uuid>``."""
    return f"req-{uuid.uuid4()}"


def service(host: str = "", request_id: str | None = None) -> Context:
    """Return the context in which a program of Magnum acts for itself, seeing every project."""
    return Context(request_id=request_id or new_request_id(), is_admin=True, all_projects=True, host=host)


current: contextvars.ContextVar[Context | None] = contextvars.ContextVar("magnum_context", default=None)
"""The context being served; logs read it."""
