"""What all objects share, and the registry of kinds.

An object is what its owner wants (``spec``), what the engine was last seen to
do (``state``), and the bookkeeping that joins the two: ``generation`` grows
with each change of the spec, ``observed_generation`` is the one that the
engine has caught up with. No I/O here; api, conductor and backend all speak
this vocabulary, and it is what crosses the wire between them.

A kind is made known by a ``Kind`` entry in ``objects.KINDS``; RPC, store and
conductor are generic over it.
"""

import collections.abc
import datetime
import uuid as _uuid
from typing import Any, ClassVar

import msgspec

from magnum import errors


class Spec(msgspec.Struct, kw_only=True):
    """Base of what an owner wants of an object."""


class State(msgspec.Struct, kw_only=True):
    """Base of what an engine was seen to do."""


class Object(msgspec.Struct, kw_only=True, tag_field="kind"):
    """Base of every stored object. Times are aware, UTC.

    ``status`` is one of the kind's words; ``status_reason`` a sentence, with
    the engine's own words where it has some. ``deleting`` is set once deletion
    is asked for and never cleared. ``operation`` is the request id of the
    change in progress (None when settled) and ``operation_deadline`` when it
    ends at the latest.
    """

    uuid: str
    project_id: str = ""
    user_id: str = ""
    name: str = ""
    bay_uuid: str | None = None
    host: str | None = None
    status: str = ""
    status_reason: str | None = None
    generation: int = 1
    observed_generation: int = 0
    deleting: bool = False
    operation: str | None = None
    operation_deadline: datetime.datetime | None = None
    created_at: datetime.datetime | None = None
    updated_at: datetime.datetime | None = None


class Placement(msgspec.Struct, kw_only=True):
    """One host's share of an object that lives on several (a bay, a service)."""

    host: str
    generation: int = 0
    status: str = ""
    reason: str | None = None
    state: dict[str, Any] = {}


class Demand(msgspec.Struct, kw_only=True, frozen=True):
    """What an object takes of a quota and of its host. ``memory`` in bytes, ``ports``: (protocol, number) of its host."""

    cpus: float = 0.0
    memory: int = 0
    nodes: int = 0
    ports: tuple[tuple[str, int], ...] = ()


def _nothing(spec: Any) -> Demand:
    return Demand()


class Kind(msgspec.Struct, kw_only=True, frozen=True):
    """What the generic parts need to know of a kind of object.

    ``name`` is the wire tag and the table's singular; ``plural`` the table and
    the path in the API. ``spread`` says where it lives: ``none`` (only in the
    database), ``one`` (the host in its ``host`` column) or ``members`` (every
    host of its bay, with a Placement each). ``unique_in_bay``: a name is taken
    once within a bay; otherwise names may repeat. ``filters`` are the columns
    a list may be filtered by beside the common ones.

    ``pending`` are statuses of work in progress; ``asked`` maps an action (or
    ``create``, ``update``, ``delete``) to the pending status that it sets.
    ``act(object, action, engine)`` changes the spec in place for an action, raising
    Conflict when the object's status does not allow it, NotSupported when the engine lacks it. ``patch(object, spec)``
    checks a changed spec against the old object and returns the new spec,
    raising Invalid for a field that may not change. ``combine`` makes the
    whole's (status, reason, state) from its placements. ``check(spec, engine)``
    raises Invalid naming what an engine cannot honour, ``check_in(spec, bay's spec)`` what a bay of that make cannot.

    ``owner`` is the spec's field with the uuid of the object that this one hangs
    on (a bay's model, a pod's controller). ``chosen`` are fields of the spec that
    the conductor sets and nobody may patch. ``demand(spec)`` is what it takes;
    ``timeout(spec)`` the seconds that a change of it may last (None: the
    operator's default). ``failures`` maps a pending status to the one that its
    failure is told by, where that is not ``failed``.
    """

    name: str
    plural: str
    cls: type[Object]
    spec: type[Spec]
    state: type[State]
    spread: str = "none"
    in_bay: bool = False
    unique_in_bay: bool = False
    filters: tuple[str, ...] = ()
    initial: str = "Creating"
    pending: frozenset[str] = frozenset()
    asked: dict[str, str] = {}
    failed: str = "Error"
    failures: dict[str, str] = {}
    owner: str | None = None
    chosen: tuple[str, ...] = ()
    demand: collections.abc.Callable[[Any], Demand] = _nothing
    timeout: collections.abc.Callable[[Any], float | None] | None = None
    act: collections.abc.Callable[[Any, str, str], None] | None = None
    patch: collections.abc.Callable[[Any, Any], Any] | None = None
    check: collections.abc.Callable[[Any, str], Any] | None = None
    check_in: collections.abc.Callable[[Any, Any], None] | None = None
    combine: collections.abc.Callable[[Any, list[Placement]], tuple[str, str | None, Any]] | None = None

    def failure_of(self, status: str) -> str:
        """Return the status that says that the change which ``status`` tells of has failed."""
        return self.failures.get(status, self.failed)

    def is_failure(self, status: str) -> bool:
        """Return whether ``status`` says that a change failed."""
        return status == self.failed or status in self.failures.values()


class Report(msgspec.Struct, kw_only=True):
    """What a backend observed of one object. One write at the conductor.

    ``generation`` is that of the spec it acted on: a report of an older one
    than the database holds is dropped. ``sequence`` grows with each report of
    a host (the epoch that the conductor gave the backend when it registered,
    shifted left by 40 bits, plus a counter), so that a late duplicate cannot
    overwrite a newer one, whatever the clocks say. ``gone``: nothing of the
    object is left on this host. ``pending`` is set while the engine is still at
    work (a pull with its progress in ``reason``).
    """

    kind: str
    uuid: str
    generation: int
    sequence: int
    status: str = ""
    reason: str | None = None
    state: dict[str, Any] = {}
    gone: bool = False
    pending: bool = False


class Event(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One row of the append-only log: an accepted request or an observed change.

    ``step`` is ``accepted`` (an intent was written), ``observed`` (a backend
    saw a change), ``completed``/``failed``/``expired``/``cancelled`` (an
    operation ended) or ``deleted`` (nothing is left). ``revision`` grows in
    commit order without gaps that could later be filled, so a reader resumes
    by it.
    """

    revision: int
    at: datetime.datetime
    project_id: str
    object_kind: str
    uuid: str
    name: str = ""
    bay_uuid: str | None = None
    host: str | None = None
    generation: int = 0
    action: str = ""
    step: str = ""
    from_status: str = ""
    to_status: str = ""
    reason: str | None = None
    user_id: str = ""
    request_id: str = ""


class Query(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a list asks for. ``marker`` is the uuid (or name) of the last object of the page before."""

    bay: str | None = None
    filters: dict[str, str] = {}
    marker: str | None = None
    limit: int = 100
    sort_key: str = "created_at"
    sort_dir: str = "asc"

    SORT_KEYS: ClassVar[tuple[str, ...]] = (
        "uuid", "name", "created_at", "updated_at", "status", "bay_uuid", "host", "project_id", "user_id",
    )  # fmt: skip


def is_foreign(item: Any) -> bool:
    """Return whether others made ``item`` in the cluster: it is shown and never changed."""
    return bool(getattr(item.spec, "foreign", False))


def new_uuid() -> str:
    """Return a new random uuid in its canonical text form."""
    return str(_uuid.uuid4())


def is_uuid(text: str) -> bool:
    """Return whether ``text`` is a uuid in canonical form (lower case, dashes)."""
    try:
        return str(_uuid.UUID(text)) == text
    except ValueError:
        return False


def now() -> datetime.datetime:
    """Return the time, aware, UTC, to the microsecond."""
    return datetime.datetime.now(datetime.UTC)


def to_builtins(value: Any) -> Any:
    """Return ``value`` as what JSON can hold."""
    return msgspec.to_builtins(value)


def convert(data: Any, cls: type[Any], field: str = "") -> Any:
    """Return ``data`` (JSON-able) as a ``cls``.

    Raises Invalid naming the field (below ``field``) and the reason.
    """
    try:
        return msgspec.convert(data, cls)
    except msgspec.ValidationError as error:
        reason, _, path = str(error).partition(" - at `$")
        path = path.rstrip("`").lstrip(".")
        if field and path:
            path = f"{field}{path}" if path.startswith("[") else f"{field}.{path}"
        raise errors.Invalid(reason, field=path or field or None) from None
