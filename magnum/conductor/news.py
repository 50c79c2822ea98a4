"""What is told after a commit: the rows of the log to everyone who listens, and to backends what they are to look at.

In the order of commits. What is lost here the listeners' own looks make good. Called by ``conductor.server``.
"""

import asyncio
import contextlib

import msgspec
import structlog

from magnum import context as contexts
from magnum import errors, faults
from magnum.db import store
from magnum.rpc import backend as backend_rpc
from magnum.rpc import base as rpc
from magnum.rpc import conductor as conductor_rpc

LOG = structlog.get_logger(__name__)

AT_ONCE = 100
"""Events that are told of in one message at most."""
CLOSING = 5.0
"""Seconds that are left to tell of what was committed, when a conductor ends."""

_encode = msgspec.msgpack.Encoder().encode


class News:
    """One conductor's, and which bays' controllers are to look for what it did."""

    def __init__(self, transport: rpc.Transport) -> None:
        self._transport = transport
        self._backends: dict[str, backend_rpc.Backend] = {}
        self._untold: asyncio.Queue[store.Transaction] = asyncio.Queue()
        self._dirty: set[str] = set()
        self._woken = asyncio.Event()

    def committed(self, tx: store.Transaction) -> None:
        """Have it told what ``tx`` did."""
        if not (tx.events or tx.kicks):
            return
        steps = {event.step for event in tx.events}
        if "accepted" in steps:
            faults.point("conductor-after-intent")
        elif steps & {"completed", "deleted"}:
            faults.point("conductor-after-report")
        self._untold.put_nowait(tx)
        for event in tx.events:
            if event.object_kind == "host":
                self.wake()
            elif event.object_kind in ("pod", "rc", "service") and event.bay_uuid:
                self.wake(event.bay_uuid)

    def wake(self, bay: str = "") -> None:
        """Have the controllers look at the bay with this uuid, or at all."""
        self._dirty.add(bay)
        self._woken.set()

    async def woken(self) -> set[str]:
        """Wait for a bay that is to be looked at; return all that are, an empty string for every one."""
        await self._woken.wait()
        self._woken.clear()
        bays, self._dirty = self._dirty, set()
        return bays

    @property
    def waiting(self) -> int:
        """How many commits wait to be told of."""
        return self._untold.qsize()

    async def kick(self, context: contexts.Context, host: str, uuids: list[str]) -> None:
        """Tell the backend of a host to look at objects. Raises Unavailable."""
        if host not in self._backends:
            self._backends[host] = rpc.client(backend_rpc.Backend, self._transport, f"{backend_rpc.TOPIC}.{host}")
        await self._backends[host].kick(context, uuids)

    async def tell(self) -> None:
        """Tell, until cancelled."""
        while True:
            tx = await self._untold.get()
            try:
                for start in range(0, len(tx.events), AT_ONCE):
                    await self._transport.broadcast(conductor_rpc.EVENTS, _encode(tx.events[start : start + AT_ONCE]))
                for name, uuids in tx.kicks.items():
                    await self.kick(contexts.service(request_id=tx.context.request_id), name, sorted(uuids))
            except errors.MagnumError as error:
                LOG.debug("not told", reason=str(error))
            finally:
                self._untold.task_done()

    async def told(self) -> None:
        """Wait until all is told, ``CLOSING`` seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSING):
                await self._untold.join()
