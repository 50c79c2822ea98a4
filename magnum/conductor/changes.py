"""What every change of an object writes, whoever it is that changes it: a tenant, a controller, a host's report or the clock.

Each method is a part of a transaction that its caller has begun: an object is joined to what it hangs on, counted,
written as a new generation, its operation begun and ended, the log told, and the backends that are to hear of it noted.

Called by ``conductor.server``, ``reports``, ``operations`` and ``replication``.
"""

import datetime
from typing import Any

from oslo_config import cfg

from magnum import errors, faults, metrics, objects
from magnum.conductor import quotas, scheduler, services, takeover
from magnum.db import store, tables
from magnum.objects import base, bay

USABLE = ("CREATE_COMPLETE", "UPDATE_IN_PROGRESS", "UPDATE_COMPLETE", "UPDATE_FAILED")
"""Statuses of a bay in which things may be made in it."""


class Changes:
    """See the module."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._conf = conf

    async def admit(self, tx: store.Transaction, kind: base.Kind, new: Any) -> None:
        """Make ``new`` the asker's, ready to be written. Raises QuotaExceeded and what ``_join`` does."""
        new.project_id, new.user_id = tx.context.project_id, tx.context.user_id
        await self._join(tx, kind, new)
        await quotas.check(tx, self._conf, new.project_id, kind, new.spec)

    async def _join(self, tx: store.Transaction, kind: base.Kind, new: Any) -> None:
        """Join ``new`` to what it hangs on and choose its hosts. Raises NotFound, Conflict, NoHostFits."""
        if isinstance(new, bay.Bay):
            model = (await tx.find(objects.KINDS["baymodel"], new.spec.baymodel_id, lock="share")).item
            new.spec = bay.inherit(new.spec, model)
            new.spec.cluster, new.spec.certificates = None, 1
            if new.spec.engine == "kubernetes":
                new.spec.cluster, new.spec.members = await takeover.choose(tx, new.spec)
            else:
                new.spec.members = await scheduler.members(tx, new.spec)
            new.spec.overlay = bay.spans(new.spec)
            return
        if not kind.in_bay:
            return
        where = (await tx.find(objects.KINDS["bay"], new.bay_uuid or "", lock="share")).item
        if where.project_id != tx.context.project_id:
            raise errors.NotFound(f"there is no bay {new.bay_uuid!r}")
        if where.deleting or where.status not in USABLE:
            raise errors.Conflict(
                f"bay {where.name} is {where.status}; it takes {kind.plural} once it is CREATE_COMPLETE",
                status=where.status,
            )
        if where.spec.engine == "docker" and bay.spans(where.spec) and not services.stands(self._conf, where):
            raise errors.Conflict(
                f"bay {where.name} is {where.status}: its network is being made anew over several hosts",
                status=where.status,
            )
        new.bay_uuid = where.uuid
        if kind.check is not None:
            kind.check(new.spec, where.spec.engine)
        if kind.check_in is not None:
            kind.check_in(new.spec, where.spec)
        if kind.unique_in_bay:
            table = tables.KINDS[kind.name]
            if await tx.count(kind, table.c.bay_uuid == where.uuid, table.c.name == new.name):
                raise errors.Conflict(f"bay {where.name} has a {kind.name} {new.name!r} already", field="name")
        if kind.spread == "one" or (kind.spread == "none" and where.spec.cluster is not None):
            new.host = await scheduler.place(tx, kind, new, where)

    async def insert(self, tx: store.Transaction, kind: base.Kind, new: Any) -> Any:
        """Write a new object and its shares; what needs no host is settled at once."""
        new.status, new.status_reason = kind.asked.get("create", kind.initial), None
        new.generation, new.observed_generation, new.deleting = 1, 0, False
        record = store.Record(item=new, action="create")
        members = await self._members(tx, kind, new)
        if new.host or members or kind.name == "rc":
            self._begin(tx, record)
        else:
            new.observed_generation = new.generation
        if kind.name == "service":
            await services.claim(tx, self._conf, new)
        await tx.insert(kind, record)
        await tx.place(kind, new.uuid, members)
        tx.note(kind, new, "accepted", action="create")
        if new.operation is None:
            tx.note(kind, new, "completed", action="create", was=new.status)
        return new

    async def make(self, tx: store.Transaction, new: Any) -> Any:
        """Write a new object in the name of the transaction's project, and have its host told. For controllers.

        Raises QuotaExceeded, NoHostFits, Conflict.
        """
        kind = objects.kind_of(new)
        await self.admit(tx, kind, new)
        await self.insert(tx, kind, new)
        await self.nudge(tx, kind, new)

    async def _members(self, tx: store.Transaction, kind: base.Kind, item: Any) -> list[str]:
        if kind.spread != "members":
            return []
        if isinstance(item, bay.Bay):
            return item.spec.members
        where = await tx.by_uuid(objects.KINDS["bay"], item.bay_uuid)
        return where.item.spec.members if where is not None else []

    async def hold(
        self, tx: store.Transaction, kind: base.Kind, ident: str, where: str | None, doing: str
    ) -> store.Record:
        """Return a record held for a change. Raises NotFound, Ambiguous, Conflict."""
        record = await tx.find(kind, ident, await self.bay_uuid(tx, where), lock="write")
        if record.item.deleting and doing != "delete":
            raise errors.Conflict(f"cannot {doing} a {kind.name} that is being deleted", status=record.item.status)
        if base.is_foreign(record.item):
            controller = getattr(record.item.spec, "controller", None)
            if doing != "delete" and controller is not None:
                raise errors.Conflict(f"cannot {doing} it: it is as the template of its controller {controller} says")
            if controller is None:
                raise errors.Conflict(f"cannot {doing} it: Magnum did not make it; whoever made it in the cluster can")
        return record

    async def engine(self, tx: store.Transaction, item: Any) -> str:
        """Return the name of the engine that an object is on, empty if it is on none."""
        where = item if isinstance(item, bay.Bay) else None
        if where is None and item.bay_uuid is not None:
            record = await tx.by_uuid(objects.KINDS["bay"], item.bay_uuid)
            where = record.item if record is not None else None
        return where.spec.engine if where is not None else ""

    async def bay_uuid(self, tx: store.Transaction, ident: str | None) -> str | None:
        """Return the uuid of the bay that ``ident`` means. Raises NotFound, Ambiguous."""
        if ident is None:
            return None
        return (await tx.find(objects.KINDS["bay"], ident)).item.uuid  # type: ignore[no-any-return]

    async def intend(self, tx: store.Transaction, kind: base.Kind, record: store.Record, action: str) -> None:
        """Write a changed spec as a new generation; what has no host is settled at once."""
        item = record.item
        was = item.status
        item.generation += 1
        held = item.host or kind.spread == "members" or kind.name == "rc"
        if held:
            self._begin(tx, record)
            item.status, item.status_reason = kind.asked.get(action, item.status), None
        else:
            item.observed_generation = item.generation
        record.action = action
        await tx.save(kind, record)
        tx.note(kind, item, "accepted", action=action, was=was)
        if not held:
            tx.note(kind, item, "completed", action=action, was=item.status)

    async def empty(self, tx: store.Transaction, where: bay.Bay) -> None:
        """Ask for the end of everything in a bay, controllers first, so that they make nothing new."""
        for kind in sorted(objects.KINDS.values(), key=lambda k: k.spread != "none"):
            if kind.in_bay:
                table = tables.KINDS[kind.name]
                for record in await tx.records(kind, table.c.bay_uuid == where.uuid, lock="write"):
                    if base.is_foreign(record.item):
                        # it ends with the namespace
                        await self.bury(tx, kind, record.item)
                    elif not record.item.deleting:
                        await self.doom(tx, kind, record)

    async def doom(self, tx: store.Transaction, kind: base.Kind, record: store.Record, *, nudged: bool = True) -> None:
        """Write that an object is to end; without a host it has ended.

        ``nudged``: its hosts are told after the commit, since no api asks them to act for it.
        """
        item = record.item
        was = item.status
        item.deleting = True
        item.generation += 1
        self._begin(tx, record)
        item.status, item.status_reason = kind.asked.get("delete", item.status), None
        record.action = "delete"
        shares = (await tx.shares([item.uuid]))[item.uuid] if kind.spread == "members" else []
        tx.note(kind, item, "accepted", action="delete", was=was)
        if not item.host and not shares:
            await self.bury(tx, kind, item)
            return
        await tx.save(kind, record)
        for name in ([item.host] if item.host else [share.host for share in shares]) if nudged else ():
            tx.kicks.setdefault(name, set()).add(item.uuid)

    async def bury(self, tx: store.Transaction, kind: base.Kind, item: Any) -> None:
        """Drop an object of which nothing is left, and its bay if that waited for it alone."""
        await tx.drop(kind, item.uuid)
        self.end(tx, store.Record(item=item, action="delete"), "deleted", was=item.status, status="Deleted")
        if item.bay_uuid is None:
            return
        where = await tx.by_uuid(objects.KINDS["bay"], item.bay_uuid)
        if where is None or not where.item.deleting:
            return
        for share in (await tx.shares([where.item.uuid]))[where.item.uuid]:
            tx.kicks.setdefault(share.host, set()).add(where.item.uuid)

    async def nudge(self, tx: store.Transaction, kind: base.Kind, item: Any) -> None:
        """Have the backends of an object told of it after the commit."""
        names = [item.host] if item.host else []
        if kind.spread == "members":
            names = [share.host for share in (await tx.shares([item.uuid]))[item.uuid]]
        for name in names:
            tx.kicks.setdefault(name, set()).add(item.uuid)

    def _begin(self, tx: store.Transaction, record: store.Record) -> None:
        """Make the request in hand the object's operation."""
        item = record.item
        faults.point("conductor-before-intent")
        kind = objects.kind_of(item)
        if item.operation is not None and item.operation != tx.context.request_id:
            tx.note(
                kind, item, "cancelled", action=record.action, was=item.status, request_id=item.operation,
                reason=f"superseded by {tx.context.request_id}",
            )  # fmt: skip
        item.operation = tx.context.request_id
        item.operation_deadline = base.now() + datetime.timedelta(seconds=self._seconds(kind, item))

    def _seconds(self, kind: base.Kind, item: Any) -> float:
        """Return how long a change of ``item`` may last."""
        seconds = kind.timeout(item.spec) if kind.timeout is not None else None
        return float(seconds or self._conf.conductor.operation_timeout)

    def end(
        self, tx: store.Transaction, record: store.Record, step: str, *, was: str, reason: str | None = None,
        status: str | None = None,
    ) -> None:  # fmt: skip
        """End the change in progress of an object: the log has ``step`` for it, and nothing is in progress any more."""
        item, kind = record.item, objects.kind_of(record.item)
        if item.operation is not None and item.operation_deadline is not None:
            took = self._seconds(kind, item) - (item.operation_deadline - base.now()).total_seconds()
            outcome = "completed" if step == "deleted" else step
            metrics.OPERATIONS.labels(kind.name, record.action, outcome).observe(max(took, 0))
        tx.note(
            kind, item, step, action=record.action, was=was, status=status, reason=reason, request_id=item.operation
        )
        item.operation, item.operation_deadline = None, None

    def observe(
        self, tx: store.Transaction, kind: base.Kind, record: store.Record, status: str, reason: str | None,
        state: Any, *, pending: bool, generation: int,
    ) -> bool:  # fmt: skip
        """Take what was seen of an object, and end its operation if the engine has caught up; return whether it changed."""
        item = record.item
        was, said, before = item.status, item.status_reason, item.state
        if pending or item.deleting:
            # the word for work in progress is the request's, not the engine's
            status = was if (was in kind.pending or not status) and not kind.is_failure(status) else status
        item.status, item.status_reason, item.state = status, reason, state
        ended = not pending and item.operation is not None and (not item.deleting or kind.is_failure(status))
        caught_up = not pending and item.observed_generation != generation
        if not (ended or caught_up) and (was, said, before) == (status, reason, state):
            return False
        if not pending:
            item.observed_generation = generation
        if ended:
            self.end(tx, record, "failed" if kind.is_failure(status) else "completed", was=was, reason=reason)
        elif was != status or said != reason or _ready(before) != _ready(state):
            tx.note(kind, item, "observed", action=record.action if item.operation else "", was=was, reason=reason,
                    request_id=item.operation or tx.context.request_id)  # fmt: skip
        return True


def _ready(state: Any) -> Any:
    """Return what of a state, beside the status, others act on."""
    return getattr(state, "ready", None), getattr(state, "pod_ip", None), getattr(state, "ready_replicas", None)
