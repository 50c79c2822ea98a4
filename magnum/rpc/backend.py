"""What a backend can be asked by the api and the conductor. Addressed by host name."""

import msgspec

from magnum import context, objects
from magnum.rpc import base as rpc

TOPIC = "backend"
"""A backend listens on ``backend.<host>``."""


class StreamAsked(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A stream that the api's client waits for, and where the backend is to dial.

    ``verb``: ``logs``, ``attach`` or ``exec``. ``member`` names a pod's container.
    Logs: ``follow``, ``tail`` (lines, None for all), ``since`` (Unix seconds),
    ``timestamps``, ``previous``. Exec: ``command``; ``tty``, ``stdin`` for exec
    and attach; ``user``, ``workdir`` for exec.
    """

    verb: str
    url: str
    ticket: str
    member: str | None = None
    follow: bool = False
    tail: int | None = None
    since: float | None = None
    timestamps: bool = False
    previous: bool = False
    command: list[str] = []
    tty: bool = False
    stdin: bool = False
    user: str | None = None
    workdir: str | None = None


class Backend(rpc.Interface):
    @rpc.call(repeat_safe=True)
    async def apply(self, context: context.Context, item: objects.AnyObject) -> objects.AnyObject | None:
        """Make the engine as ``item`` wants it, report, return the object as the conductor then has it.

        None: it is gone. Work that outlives the deadline goes on; then
        DeadlineExceeded is raised here and the report comes all the same.
        An engine's refusal is no error here: the object's status says it.
        """
        raise NotImplementedError

    @rpc.cast()
    async def kick(self, context: context.Context, uuids: list[str]) -> None:
        """Something changed for these objects: ask the conductor and converge. May be lost; a slow timer covers."""
        raise NotImplementedError

    @rpc.call(repeat_safe=True)
    async def stream(self, context: context.Context, item: objects.AnyObject, asked: StreamAsked) -> None:
        """Open the stream on the engine, dial the api, return; frames then flow (see ``rpc.streams``).

        Raises Conflict (not running), NotSupported, NotFound (member), EngineError.
        """
        raise NotImplementedError

    @rpc.call(repeat_safe=True)
    async def stats(self, context: context.Context, item: objects.AnyObject) -> dict[str, object]:
        """Return use of resources now: cpu_percent, memory_bytes, memory_limit_bytes, network and block I/O in bytes."""
        raise NotImplementedError

    @rpc.call(repeat_safe=True)
    async def top(self, context: context.Context, item: objects.AnyObject) -> dict[str, object]:
        """Return ``{"titles": [...], "processes": [[...]]}``."""
        raise NotImplementedError

    @rpc.call(repeat_safe=True)
    async def certificate(self, context: context.Context, item: objects.AnyObject, csr: str | None) -> str:
        """Return the certificate, PEM, of a bay's authority, or one that it signed for ``csr`` (PEM) of the asker.

        Raises Invalid (field ``csr``), NotSupported, EngineError, Unavailable.
        """
        raise NotImplementedError

    @rpc.call(repeat_safe=True)
    async def ping(self, context: context.Context) -> dict[str, str]:
        """Return ``{engine: "ok" | reason}``."""
        raise NotImplementedError
