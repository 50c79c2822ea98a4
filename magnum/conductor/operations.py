"""Changes in progress: taken back or tried again by who asked for them, ended by the clock, asked after when nobody reports.

Called by ``conductor.server``, and by ``rounds`` each second.
"""

import asyncio
import collections
import collections.abc
import datetime
from typing import Any

from magnum import context as contexts
from magnum import errors, objects
from magnum.conductor import changes
from magnum.db import store, tables
from magnum.objects import base

NUDGE_AFTER = 5.0
"""Seconds that an operation may go unreported before its hosts are nudged; the api that asked them may have died."""
NUDGE_AGAIN = 10.0

Kick = collections.abc.Callable[[contexts.Context, str, list[str]], collections.abc.Awaitable[None]]
"""Tells a host, by its name, to look at objects, by their uuids."""


class Operations:
    """Of all objects. ``settle`` is that of ``rpc.conductor``."""

    def __init__(self, store: store.Store, changes: changes.Changes, kick: Kick) -> None:
        self._store = store
        self._changes = changes
        self._kick = kick
        self._nudged: dict[str, float] = {}

    async def settle(self, context: contexts.Context, request_id: str, verb: str) -> objects.AnyObject:
        if verb not in ("cancel", "retry"):
            raise errors.NotFound(f"an operation has no {verb!r}")

        async def work(tx: store.Transaction) -> objects.AnyObject:
            rows = await tx.events_of(tables.LOG.c.request_id == request_id, limit=1)
            if not rows:
                raise errors.NotFound(f"there is no operation {request_id!r}")
            kind = objects.kind(rows[0].object_kind)
            record = await tx.by_uuid(kind, rows[0].uuid, lock="write")
            if record is None:
                raise errors.Conflict(f"nothing is left of the {kind.name} {rows[0].uuid}")
            item = record.item
            if verb == "cancel":
                await self._cancel(tx, kind, record, request_id)
            else:
                await self._retry(tx, kind, record, request_id)
            return item  # type: ignore[no-any-return]

        return await self._store.write(context, work)

    async def _cancel(self, tx: store.Transaction, kind: base.Kind, record: store.Record, request_id: str) -> None:
        item = record.item
        if item.operation != request_id:
            raise errors.Conflict("the operation has ended", status=item.status)
        if item.deleting:
            raise errors.Conflict("a delete cannot be taken back", status=item.status)
        self._changes.end(tx, record, "cancelled", was=item.status)
        if record.action == "create":
            await self._changes.doom(tx, kind, record)
            return
        await tx.save(kind, record)
        await self._changes.nudge(tx, kind, item)

    async def _retry(self, tx: store.Transaction, kind: base.Kind, record: store.Record, request_id: str) -> None:
        item = record.item
        if item.operation is not None:
            raise errors.Conflict("a change is in progress", status=item.status)
        steps = await tx.events_of(tables.LOG.c.uuid == item.uuid, tables.LOG.c.action != "", newest=True, limit=1)
        if not steps or steps[0].step not in ("failed", "expired", "cancelled"):
            raise errors.Conflict("its last change did not fail", status=item.status)
        if steps[0].request_id != request_id:
            raise errors.Conflict(f"another change came after it: {steps[0].request_id}", status=item.status)
        action = record.action
        await self._changes.intend(tx, kind, record, "delete" if item.deleting else action)
        await self._changes.nudge(tx, kind, item)

    async def find_late(self) -> None:
        """End operations past their deadline, and nudge the hosts of those that nobody reports on."""
        context = contexts.service()

        async def look(tx: store.Transaction) -> tuple[dict[str, Any], dict[str, Any]]:
            now = base.now()
            return await tx.late(now), await tx.stuck(now - datetime.timedelta(seconds=NUDGE_AFTER))

        late, stuck = await self._store.read(context, look)
        for uuid, (name, _) in late.items():
            await self._expire(context, objects.kind(name), uuid)
        now = asyncio.get_running_loop().time()
        self._nudged = {uuid: at for uuid, at in self._nudged.items() if now - at < NUDGE_AGAIN}
        todo = {uuid: where for uuid, where in stuck.items() if uuid not in late and uuid not in self._nudged}
        if not todo:
            return
        self._nudged |= dict.fromkeys(todo, now)

        async def shares(tx: store.Transaction) -> dict[str, list[store.Share]]:
            return await tx.shares([uuid for uuid, (kind, _) in todo.items() if objects.kind(kind).spread == "members"])

        found = await self._store.read(context, shares)
        kicks: dict[str, list[str]] = collections.defaultdict(list)
        for uuid, (_, name) in todo.items():
            for machine in [name] if name else [share.host for share in found.get(uuid, [])]:
                kicks[machine].append(uuid)
        for machine, uuids in kicks.items():
            await self._kick(context, machine, uuids)

    async def _expire(self, context: contexts.Context, kind: base.Kind, uuid: str) -> None:
        async def work(tx: store.Transaction) -> None:
            record = await tx.by_uuid(kind, uuid, lock="write")
            if record is None or record.item.operation_deadline is None:
                return
            item = record.item
            if item.operation_deadline > base.now():
                return
            was = item.status
            reason = f"{record.action or 'the change'} did not end in time"
            if record.lost:
                reason += f": host {item.host} is down"
            elif item.status_reason:
                reason += f": {item.status_reason}"
            item.status, item.status_reason = kind.failure_of(was), reason
            self._changes.end(tx, record, "expired", was=was, reason=reason)
            await tx.save(kind, record)

        await self._store.write(context, work)
