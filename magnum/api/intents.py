"""From an intent that the conductor wrote to what stands: the object's hosts are asked to make it so, and waited for.

Handlers of every kind call ``carry_out`` after the conductor's create, update,
act or delete. What a host cannot do in time, or at all while it is away, goes on
without the client: the intent is in the database, and the backend converges.

``Watch`` hears every committed event of the deployment and wakes whoever waits
for an object, or follows ``/v1/events``.
"""

import asyncio
import collections
import collections.abc
import contextlib
import time
from typing import TYPE_CHECKING, Any

import msgspec
import structlog

from magnum import context as contexts
from magnum import errors, faults, objects
from magnum.objects import base
from magnum.rpc import base as rpc
from magnum.rpc import conductor as conductor_rpc

if TYPE_CHECKING:
    from magnum.api import app

LOG = structlog.get_logger(__name__)

EVERY = "every project"
LOOK_AGAIN = 2.0
"""Seconds after which a waiter looks by itself, since a broadcast may be lost."""


def of_project(project_id: str) -> str:
    """Return the key by which a project is watched."""
    return f"project:{project_id}"


class Waiter(asyncio.Event):
    """Is set whenever something happens to what is waited for; ``deleted``: that was its end."""

    deleted = False


class Watch:
    """Wakes those that wait, on every committed event that concerns them."""

    def __init__(self) -> None:
        self._waiting: dict[str, set[Waiter]] = collections.defaultdict(set)
        self._decode = msgspec.msgpack.Decoder(list[base.Event]).decode

    async def start(self, transport: rpc.Transport) -> None:
        await transport.subscribe(conductor_rpc.EVENTS, self._heard)

    async def _heard(self, body: bytes) -> None:
        for event in self._decode(body):
            for key in (event.uuid, of_project(event.project_id), EVERY):
                for waiter in self._waiting.get(key, ()):
                    waiter.deleted = waiter.deleted or (key == event.uuid and event.step == "deleted")
                    waiter.set()

    @contextlib.contextmanager
    def on(self, key: str) -> collections.abc.Iterator[Waiter]:
        """Give what is set whenever something happens to ``key``: a uuid, ``of_project`` or ``EVERY``."""
        waiter = Waiter()
        self._waiting[key].add(waiter)
        try:
            yield waiter
        finally:
            self._waiting[key].discard(waiter)
            if not self._waiting[key]:
                del self._waiting[key]


def settled(item: base.Object) -> bool:
    """Return whether no change of ``item`` is in progress."""
    return item.operation is None


async def hosts_of(api: "app.Api", context: contexts.Context, item: base.Object) -> list[str]:
    """Return the hosts that have to act for ``item``."""
    if objects.kind_of(item).spread != "members":
        return [item.host] if item.host else []
    hosts = set(item.state.hosts)  # type: ignore[attr-defined]
    if isinstance(item, objects.bay.Bay):
        return sorted(hosts | set(item.spec.members))
    bay: Any = await api.conductor.get(context, "bay", item.bay_uuid or "")
    return sorted(hosts | set(bay.spec.members))


async def carry_out(
    api: "app.Api", context: contexts.Context, item: objects.AnyObject, wait: float | None
) -> objects.AnyObject | None:
    """Return ``item`` as it stands once it is settled or the wait is over; None once nothing is left of it.

    ``wait``: seconds, None for ``[api] wait``; then a host that is away is not waited for. The intent is written, so
    a conductor that is away by now fails nothing: ``item`` is returned as it was last seen.
    """
    if settled(item):
        return None if item.deleting else item
    patient = wait is not None
    until = time.monotonic() + (api.conf.api.wait if wait is None else wait)
    # the wait may be longer than a request's usual time
    context = msgspec.structs.replace(context, deadline=until + api.conf.api.call_timeout)
    faults.point("api-after-intent")
    with api.watch.on(item.uuid) as woken:
        current: objects.AnyObject | None = item
        try:
            hosts = await hosts_of(api, context, item)
        except errors.AWAY as error:
            LOG.warning("left to convergence", uuid=item.uuid, reason=str(error))
            return item
        except errors.NotFound:
            return None
        reached, told = await _ask(api, context, item, hosts, until)
        faults.point("api-before-answer")
        if told is not None and (stands := _as_told(item, told)) is not None:
            return stands
        while True:
            if woken.deleted:
                return None
            woken.clear()
            try:
                current = await _current(api, context, item)
            except errors.AWAY as error:
                LOG.warning("answered as last seen", uuid=item.uuid, reason=str(error))
                return current
            if current is None or settled(current):
                return current
            left = until - time.monotonic()
            if left <= 0 or not (reached or patient):
                return current
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, LOOK_AGAIN)):
                    await woken.wait()


def _as_told(item: objects.AnyObject, told: objects.AnyObject) -> objects.AnyObject | None:
    """Return ``item`` as it was settled by the report of its only host, which passes on what the conductor answered it.

    None if that does not say, and the conductor is to be asked. Nothing is taken from a host but what it reports of its
    own object anyway.
    """
    if objects.kind_of(item).spread != "one" or type(told) is not type(item) or item.deleting:
        return None
    if (told.uuid, told.generation, told.deleting) != (item.uuid, item.generation, False) or not settled(told):
        return None
    return msgspec.structs.replace(
        item, status=told.status, status_reason=told.status_reason, state=told.state, updated_at=told.updated_at,
        observed_generation=item.generation, operation=None, operation_deadline=None,
    )  # fmt: skip


async def _current(api: "app.Api", context: contexts.Context, item: objects.AnyObject) -> objects.AnyObject | None:
    try:
        return await api.conductor.get(context, objects.kind_of(item).name, item.uuid)
    except errors.NotFound:
        return None


async def _ask(
    api: "app.Api", context: contexts.Context, item: objects.AnyObject, hosts: list[str], until: float
) -> tuple[bool, objects.AnyObject | None]:
    """Ask ``hosts`` to apply ``item`` and wait for them until then.

    Return whether every one was reached, and if there is but one, what it passes on.
    """
    told: objects.AnyObject | None = None

    async def one(host: str) -> bool:
        nonlocal told
        seconds = until - time.monotonic()
        if seconds <= 0:
            await api.backend(host).kick(context, [item.uuid])
            return True
        try:
            told = await api.backend(host).apply(context.within(seconds), item)
        except errors.DeadlineExceeded:
            return True
        except errors.MagnumError as error:
            # the intent stands; the backend takes it up by itself
            LOG.warning("left to convergence", host=host, uuid=item.uuid, reason=str(error))
            return not isinstance(error, errors.Unavailable)
        return True

    reached = all(await asyncio.gather(*(one(host) for host in hosts)))
    return reached, told if len(hosts) == 1 else None
