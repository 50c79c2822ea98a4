"""Every error that Magnum raises on purpose: one tree.

    MagnumError
    ├── Invalid              400  the request is wrong; ``field`` says where
    ├── Unauthenticated      401
    ├── Forbidden            403
    │   └── QuotaExceeded    403
    ├── NotFound             404
    ├── MethodNotAllowed     405
    ├── NotAcceptable        406  no such API version
    ├── TooSlow              408  the request's body did not arrive in time
    ├── Conflict             409
    │   ├── Ambiguous        409  a name that several objects share
    │   ├── NotSupported     409  the engine has no such verb
    │   └── NoHostFits       409
    ├── TooLarge             413
    ├── UnsupportedMedia     415
    ├── TooMany              429
    ├── EngineError          502  Docker or Kubernetes refused; its own words
    ├── Unavailable          503
    │   └── HostUnreachable  503  no backend listens for that host
    └── DeadlineExceeded     504

Errors cross program borders as ``Wire`` structs: a stable ``code``, never a
pickle. Foreign errors become these in ``clients/`` and these become HTTP
answers in ``api/app.py``; nothing between the two needs an ``except``.
"""

from typing import Any

import msgspec


class Wire(msgspec.Struct, omit_defaults=True):
    """What crosses a program border of an error."""

    code: str
    detail: str
    field: str | None = None
    data: dict[str, Any] = {}


class MagnumError(Exception):
    """Base of all. ``detail`` is a sentence for the person who asked.

    ``field`` names the part of the request that is at fault, as a path
    (``spec.containers[0].image``). ``data`` is JSON-able and travels along.
    """

    status = 500
    code = "internal-error"
    title = "Internal Server Error"

    def __init__(self, detail: str = "", *, field: str | None = None, **data: Any) -> None:
        super().__init__(detail)
        self.detail = detail or self.title
        self.field = field
        self.data = data

    def __str__(self) -> str:
        return f"{self.field}: {self.detail}" if self.field else self.detail


class Invalid(MagnumError):
    status, code, title = 400, "invalid", "Bad Request"


class Unauthenticated(MagnumError):
    status, code, title = 401, "unauthenticated", "Unauthorized"


class Forbidden(MagnumError):
    status, code, title = 403, "forbidden", "Forbidden"


class QuotaExceeded(Forbidden):
    code, title = "quota-exceeded", "Quota Exceeded"


class NotFound(MagnumError):
    status, code, title = 404, "not-found", "Not Found"


class MethodNotAllowed(MagnumError):
    status, code, title = 405, "method-not-allowed", "Method Not Allowed"


class TooSlow(MagnumError):
    status, code, title = 408, "request-timeout", "Request Timeout"


class NotAcceptable(MagnumError):
    status, code, title = 406, "not-acceptable", "Not Acceptable"


class Conflict(MagnumError):
    status, code, title = 409, "conflict", "Conflict"


class Ambiguous(Conflict):
    code, title = "ambiguous", "Ambiguous Name"


class NotSupported(Conflict):
    code, title = "not-supported", "Not Supported"


class NoHostFits(Conflict):
    code, title = "no-host-fits", "No Host Fits"


class TooLarge(MagnumError):
    status, code, title = 413, "too-large", "Payload Too Large"


class UnsupportedMedia(MagnumError):
    status, code, title = 415, "unsupported-media-type", "Unsupported Media Type"


class TooMany(MagnumError):
    status, code, title = 429, "too-many-requests", "Too Many Requests"


class EngineError(MagnumError):
    status, code, title = 502, "engine-error", "Engine Error"


class Unavailable(MagnumError):
    status, code, title = 503, "unavailable", "Service Unavailable"


class HostUnreachable(Unavailable):
    code, title = "host-unreachable", "Host Unreachable"


class DeadlineExceeded(MagnumError):
    status, code, title = 504, "deadline-exceeded", "Deadline Exceeded"


AWAY = (Unavailable, DeadlineExceeded)
"""What says that the far side is not there now: what was asked may be asked again."""


def _tree(cls: type[MagnumError]) -> dict[str, type[MagnumError]]:
    found = {cls.code: cls}
    for child in cls.__subclasses__():
        found.update(_tree(child))
    return found


BY_CODE: dict[str, type[MagnumError]] = _tree(MagnumError)


def to_wire(error: MagnumError) -> Wire:
    """Return what is sent to the other program for ``error``."""
    return Wire(code=error.code, detail=error.detail, field=error.field, data=error.data)


def from_wire(wire: Wire) -> MagnumError:
    """Return the error that ``wire`` stands for; an unknown code (a newer peer's) is a MagnumError."""
    return BY_CODE.get(wire.code, MagnumError)(wire.detail, field=wire.field, **wire.data)
