"""What backends tell of the objects on their hosts, and what they ask about them.

A host is believed for what is its own alone. Reports that come at once are taken in one transaction, in the order
they came. Called by ``conductor.server``.
"""

from typing import Any

import msgspec

from magnum import context as contexts
from magnum import errors, faults, objects
from magnum.conductor import changes, together
from magnum.db import store, tables
from magnum.objects import base, bay


class _Batch:
    """Reports that are taken together: the ``records`` that they are of, held, and what is to be written of which.

    ``changed``: all; ``seen``: that they were, and are as they were. Each is uuid → record.
    """

    def __init__(self) -> None:
        self.records: dict[str, store.Record] = {}
        self.changed: dict[str, store.Record] = {}
        self.seen: dict[str, store.Record] = {}

    def forget(self, uuid: str) -> None:
        """Leave out what is no more."""
        for known in (self.records, self.changed, self.seen):
            known.pop(uuid, None)


class Reports:
    """Of all hosts. The methods are those of ``rpc.conductor``."""

    def __init__(self, store: store.Store, changes: changes.Changes) -> None:
        self._store = store
        self._changes = changes
        self._together: together.Together[
            None, tuple[contexts.Context, list[base.Report]], list[objects.AnyObject | None]
        ] = together.Together(self._report, lambda asked: len(asked[1]))

    async def report(self, context: contexts.Context, reports: list[base.Report]) -> list[objects.AnyObject | None]:
        return await self._together.do(None, (context, reports))

    async def _report(
        self, asked: list[tuple[contexts.Context, list[base.Report]]]
    ) -> list[list[objects.AnyObject | None] | errors.MagnumError]:
        async def work(tx: store.Transaction) -> list[list[objects.AnyObject | None] | errors.MagnumError]:
            answers: list[list[objects.AnyObject | None] | errors.MagnumError] = []
            batch = _Batch()
            # all that is written to is held, kind by kind and in order, before anything is taken
            for kind in objects.KINDS.values():
                uuids = {report.uuid for _, reports in asked for report in reports if report.kind == kind.name}
                batch.records |= await tx.held(kind, uuids)
            for context, reports in asked:
                tx.context = context
                answers.append([await self._take(tx, batch, context.host, report) for report in reports])
            for kind in objects.KINDS.values():
                await tx.saw(kind, [r for r in batch.seen.values() if objects.kind_of(r.item) is kind])
                await tx.save(kind, *(r for r in batch.changed.values() if objects.kind_of(r.item) is kind))
            return answers

        return await self._store.write(asked[0][0], work)

    async def _take(self, tx: store.Transaction, batch: _Batch, name: str, report: base.Report) -> Any:
        """Take what host ``name`` reports; return the object as it then is to it."""
        faults.point("conductor-before-report")
        kind = objects.kind(report.kind)
        record = batch.records.get(report.uuid)
        if record is None or objects.kind_of(record.item) is not kind:
            return None
        if kind.spread == "members":
            return await self._take_share(tx, batch, record, name, report)
        item = record.item
        if item.host != name:
            return None
        if report.sequence <= record.seq or report.generation < item.generation:
            return item
        record.seq = report.sequence
        if report.gone and (item.deleting or base.is_foreign(item)):
            await self._changes.bury(tx, kind, item)
            batch.forget(item.uuid)
            return None
        state = msgspec.convert(report.state, kind.state)
        if isinstance(state, (objects.container.ContainerState, objects.pod.PodState)) and not state.deaths:
            # what a look does not tell of is not forgotten
            state.deaths = item.state.deaths
        status, reason = report.status, report.reason
        if report.gone:
            status, reason = kind.failed, report.reason or "it is gone from the engine"
        changed = self._changes.observe(
            tx, kind, record, status, reason, state, pending=report.pending, generation=report.generation
        )
        (batch.changed if changed else batch.seen)[item.uuid] = record
        return item

    async def _take_share(
        self, tx: store.Transaction, batch: _Batch, record: store.Record, name: str, report: base.Report
    ) -> Any:
        item, kind = record.item, objects.kind_of(record.item)
        shares = (await tx.shares([item.uuid], lock=True))[item.uuid]
        share = next((s for s in shares if s.host == name), None)
        if share is None:
            return None
        if report.sequence <= share.seq or report.generation < item.generation:
            return _share_of(item, share)
        if report.gone:
            await tx.drop_share(share)
            shares.remove(share)
            if not shares and (item.deleting or base.is_foreign(item)):
                await self._changes.bury(tx, kind, item)
                batch.forget(item.uuid)
                return None
        else:
            share.seq, share.status, share.reason, share.state = (
                report.sequence, report.status, report.reason, report.state
            )  # fmt: skip
            if not report.pending:
                share.generation = report.generation
            await tx.save_share(share)
        assert kind.combine is not None
        # one that is on its way out tells nothing of the whole
        told: list[base.Placement] = [s for s in shares if item.deleting or not s.deleting]
        status, reason, state = kind.combine(item, told)
        pending = status in kind.pending
        if self._changes.observe(tx, kind, record, status, reason, state, pending=pending, generation=item.generation):
            batch.changed[item.uuid] = record
        return None if report.gone else _share_of(item, share)

    async def found(self, context: contexts.Context, items: list[objects.AnyObject]) -> list[objects.AnyObject]:
        async def work(tx: store.Transaction) -> list[objects.AnyObject]:
            bays: dict[str, Any] = {}
            known = []
            for item in sorted(items, key=lambda each: each.uuid):
                where = item.bay_uuid or ""
                if where not in bays:
                    record = await tx.by_uuid(objects.KINDS["bay"], where, lock="share")
                    bays[where] = record.item if record is not None else None
                written = await self._meet(tx, context.host, bays[where], item)
                if written is not None:
                    known.append(written)
            return known

        return await self._store.write(context, work)

    async def _meet(self, tx: store.Transaction, name: str, where: bay.Bay | None, item: Any) -> Any:
        """Write what another made in a bay; return it as it is known, None if it is not to be."""
        kind = objects.kind_of(item)
        if where is None or where.deleting or where.spec.cluster is None or name not in where.spec.members:
            return None
        if kind.name not in ("pod", "service", "rc"):
            return None
        there = await tx.by_uuid(kind, item.uuid)
        if there is not None:
            return there.item if there.item.bay_uuid == where.uuid else None
        table = tables.KINDS[kind.name]
        if await tx.count(kind, table.c.bay_uuid == where.uuid, table.c.name == item.name):
            return None
        item.spec.foreign = True
        item.project_id, item.user_id, item.deleting, item.operation = where.project_id, "", False, None
        item.host = name if kind.spread != "members" else None
        item.generation = item.observed_generation = 1
        await tx.insert(kind, store.Record(item=item))
        if kind.spread == "members":
            await tx.place(kind, item.uuid, [name])
        tx.note(kind, item, "observed", reason="made in the cluster by another")
        return item

    async def wanted(self, context: contexts.Context, uuids: list[str] | None = None) -> list[objects.AnyObject]:
        async def work(tx: store.Transaction) -> list[objects.AnyObject]:
            return [record.item for record in await tx.on_host(context.host, uuids)]

        return await self._store.read(context, work)

    async def judge(self, context: contexts.Context, uuids: list[str]) -> dict[str, str]:
        async def work(tx: store.Transaction) -> dict[str, str]:
            here = {record.item.uuid for record in await tx.on_host(context.host, uuids)}
            asked = [uuid for uuid in uuids if uuid not in here]
            known = await tx.known(asked) if asked else {}
            logged = await tx.logged([uuid for uuid in asked if uuid not in known]) if asked else set()
            return {uuid: "moved" if uuid in known else "deleted" if uuid in logged else "unknown" for uuid in asked}

        return await self._store.read(context, work)


def _share_of(item: Any, share: store.Share) -> Any:
    """Return ``item`` as the host of ``share`` is to see it."""
    return msgspec.structs.replace(item, deleting=item.deleting or share.deleting)
