"""What an engine is: the seam between a backend and Docker, Kubernetes or the fake.

An engine has one driver for each kind of object that it serves. A driver makes
the engine as one object wants it, idempotently: every engine object bears the
object's uuid (labels below, and in its name), is adopted before it is remade,
and is removed only by that uuid. Drivers know nothing of the conductor; the
backend reports what they return.

Who calls: ``backend.server`` for the api's calls, ``backend.observe`` for the loop.
"""

import abc
import collections.abc
import contextlib
from typing import Any, ClassVar

import msgspec

from magnum import errors
from magnum.objects import base, host

LABEL = "org.openstack.magnum."
DEPLOYMENT = LABEL + "deployment"
UUID = LABEL + "uuid"
PROJECT = LABEL + "project"
BAY = LABEL + "bay"
KIND = LABEL + "kind"
MEMO = LABEL + "memo"
"""What an object's owner wanted when it was made (``objects.host.remember``); no part of what tells it from others."""


class Outcome(msgspec.Struct, kw_only=True):
    """What the engine shows of an object after (or instead of) acting. ``state``: the kind's State as builtins.

    ``pending``: the engine is still at work. ``gone``: nothing of it is left.
    ``retry_after``: seconds until another try is worth while (a pull that failed), None if none is owed.
    """

    status: str = ""
    reason: str | None = None
    state: dict[str, Any] = {}
    pending: bool = False
    gone: bool = False
    retry_after: float | None = None


class Seen(host.Orphan, kw_only=True, frozen=True):
    """An engine object that bears our deployment's label; an orphan, if nobody knows of it."""


class Notice(msgspec.Struct, kw_only=True, frozen=True):
    """Something changed at the engine for an object of ours. An empty uuid: anything may have (a gap in the watch)."""

    kind: str = ""
    uuid: str = ""


class Overtaken(Exception):
    """What was being made is no longer wanted so; raised where waiting on would hold up the newer wish for long."""


class Progress(abc.ABC):
    """How a driver tells of a long wait within ``apply``, and learns that it has become pointless."""

    @abc.abstractmethod
    async def __call__(self, outcome: Outcome) -> None:
        """Tell what is pending (a pull's progress); the backend reports it, not more often than it wants."""

    @abc.abstractmethod
    async def overtaken(self) -> None:
        """Return once the object has changed or is to be deleted; whoever sees it may raise Overtaken."""


class Session(abc.ABC):
    """An open exec or attach (or a log being followed): bytes both ways."""

    @abc.abstractmethod
    def read(self) -> collections.abc.AsyncIterator[tuple[int, bytes]]:
        """Yield (channel, bytes): 1 is stdout (all of a tty), 2 is stderr; ends with the stream."""

    @abc.abstractmethod
    async def write(self, data: bytes) -> None:
        """Give bytes to stdin; empty closes it."""

    @abc.abstractmethod
    async def resize(self, width: int, height: int) -> None:
        """Tell the terminal's size in characters."""

    @abc.abstractmethod
    async def exit_code(self) -> int | None:
        """Return how it ended, None where that is not known (logs, attach to what still runs)."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Give up the engine's side. Idempotent."""


class Logs(Session):
    """A log, read to its end or followed; ``source`` gives the (channel, bytes) of it."""

    def __init__(
        self, source: contextlib.AbstractAsyncContextManager[collections.abc.AsyncIterator[tuple[int, bytes]]]
    ) -> None:
        self._stack = contextlib.AsyncExitStack()
        self._source = source
        self._frames: Any = None

    async def open(self) -> "Logs":
        """Ask the engine, so that its refusal comes now. Raises NotFound, Conflict, EngineError."""
        self._frames = await self._stack.enter_async_context(self._source)
        return self

    async def read(self) -> collections.abc.AsyncIterator[tuple[int, bytes]]:
        async for frame in self._frames:
            yield frame

    async def write(self, data: bytes) -> None:
        raise errors.NotSupported("a log takes no input")

    async def resize(self, width: int, height: int) -> None:
        raise errors.NotSupported("a log has no size")

    async def exit_code(self) -> int | None:
        return None

    async def close(self) -> None:
        await self._stack.aclose()


class Driver(abc.ABC):
    """Makes objects of one kind so. Calls for one object never overlap; those of different ones do."""

    @abc.abstractmethod
    async def apply(self, item: Any, progress: Progress) -> Outcome:
        """Make the engine as ``item`` wants it and return what then shows.

        What the engine refuses is an Outcome with the kind's failed status and
        its words, not an exception. Raises Unavailable if the engine is away,
        Overtaken as ``progress`` says.
        """

    @abc.abstractmethod
    async def observe(self, item: Any) -> Outcome:
        """Return what shows, changing nothing. Raises Unavailable if the engine is away."""

    @abc.abstractmethod
    async def remove(self, uuid: str, item: Any | None) -> Outcome:
        """Remove everything that bears ``uuid``; ``item`` is None where only the label is known.

        Returns an Outcome with ``gone`` set, or one that names what is left.
        """

    async def leave(self, uuid: str) -> Outcome:
        """Remove this host's part of what lives on elsewhere; what several hosts share stays. Returns as ``remove``."""
        return await self.remove(uuid, None)

    async def stream(self, item: Any, asked: Any) -> Session:
        """Open logs, attach or exec (an ``rpc.backend.StreamAsked``-shaped request). Raises NotSupported, Conflict, NotFound."""
        raise errors.NotSupported(f"a {type(item).__name__} has no {asked.verb} on this engine")

    async def certificate(self, item: Any, csr: str | None, user: str) -> str:
        """Return a certificate, PEM: that of the authority, or one for a request (PEM) of ``user``. Raises Invalid."""
        raise errors.NotSupported(f"a {type(item).__name__} has no certificates on this engine")

    async def stats(self, item: Any) -> dict[str, Any]:
        raise errors.NotSupported("this engine shows no statistics of it")

    async def top(self, item: Any) -> dict[str, Any]:
        raise errors.NotSupported("this engine shows no processes of it")


class Engine(abc.ABC):
    """One engine of a machine. ``drivers``: kind → Driver."""

    name: ClassVar[str]
    shared: ClassVar[bool] = False
    """Whether several backends may have the same: what one of them keeps is then no stranger to the others."""
    drivers: dict[str, Driver]

    @abc.abstractmethod
    async def start(self) -> None:
        """Prepare; returns at once if the engine is away and goes on trying when asked."""

    @abc.abstractmethod
    async def close(self) -> None: ...

    @abc.abstractmethod
    async def facts(self) -> dict[str, Any]:
        """Return ``objects.host.Facts`` fields that the engine knows: engines, cpus, memory, disk, containers.

        Raises Unavailable if it does not answer.
        """

    @abc.abstractmethod
    async def seen(self) -> list[Seen]:
        """Return everything that bears our deployment's label."""

    def others(self) -> list[tuple[str, str]]:
        """Return (kind, uuid) of what others made in our bays and is to be shown. Raises Unavailable."""
        return []

    def other(self, kind: str, uuid: str) -> Any | None:
        """Return one of ``others`` as an object of ours, None if there is none."""
        return None

    @abc.abstractmethod
    def watch(self) -> collections.abc.AsyncIterator[Notice]:
        """Yield changes as they happen; reconnects by itself, yielding an empty Notice after a gap."""


def memo(item: base.Object) -> dict[str, str]:
    """Return the label that an object can be adopted by."""
    return {MEMO: host.remember(item)}


def labels(deployment: str, item: base.Object, kind: str) -> dict[str, str]:
    """Return the labels that every engine object made for ``item`` bears."""
    return {
        DEPLOYMENT: deployment, UUID: item.uuid, PROJECT: item.project_id, KIND: kind,
        BAY: item.bay_uuid or item.uuid,
    }  # fmt: skip
