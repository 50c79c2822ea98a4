"""The conductor: the same few verbs for every kind, each one short transaction.

It writes what is asked for, chooses hosts, takes reports and tells what is. After
a commit it broadcasts the rows of the log and nudges the backends concerned. Two
loops run beside the calls: the sweep finds hosts gone silent and operations past
their deadline; the controllers keep replication controllers and services in line
with their pods. Any number of conductors may run: rows are locked, not memories.

Who calls: ``cmd``; the api and the backends by RPC.
"""

import asyncio
import collections
import contextlib
import datetime
from typing import Any

import jsonpatch
import jsonpointer
import msgspec
import sqlalchemy.exc
import structlog
from oslo_config import cfg

from magnum import context as contexts
from magnum import errors, faults, metrics, objects
from magnum.conductor import causes, quotas, replication, scheduler, services, takeover, together
from magnum.db import schema, store, tables
from magnum.objects import base, bay, explanation, host
from magnum.rpc import backend as backend_rpc
from magnum.rpc import base as rpc
from magnum.rpc import conductor as conductor_rpc
from magnum.rpc import senders

LOG = structlog.get_logger(__name__)

USABLE = ("CREATE_COMPLETE", "UPDATE_IN_PROGRESS", "UPDATE_COMPLETE", "UPDATE_FAILED")
"""Statuses of a bay in which things may be made in it."""
NUDGE_AFTER = 5.0
"""Seconds that an operation may go unreported before its hosts are nudged; the api that asked them may have died."""
NUDGE_AGAIN = 10.0
ROUND = 5.0
"""Seconds between two looks at every bay's controllers, in case another conductor died over one."""
TRIM_EVERY = 600.0
COUNT_EVERY = 5.0
"""Seconds between two counts of what there is, for the metrics."""

_encode = msgspec.msgpack.Encoder().encode


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


class Server(conductor_rpc.Conductor):
    """One conductor. ``start`` returns at once; calls are taken as soon as the database is as this version needs it."""

    def __init__(self, conf: cfg.ConfigOpts, transport: rpc.Transport) -> None:
        self.conf = conf
        self.transport = transport
        engine = store.connect(
            conf.database.connection, pool_size=conf.database.pool_size, max_overflow=conf.database.max_overflow
        )
        self.store = store.Store(engine, self._committed)
        self.ready = asyncio.Event()
        self._creates: together.Together[
            tuple[object, ...], tuple[contexts.Context, objects.AnyObject], objects.AnyObject
        ] = together.Together(self._create)
        self._reports: together.Together[
            None, tuple[contexts.Context, list[base.Report]], list[objects.AnyObject | None]
        ] = together.Together(self._report, lambda asked: len(asked[1]))
        self._beats: together.Together[None, tuple[contexts.Context, host.Beat], int] = together.Together(self._beat)
        self._news: asyncio.Queue[store.Transaction] = asyncio.Queue()
        self._dirty: set[str] = set()
        self._woken = asyncio.Event()
        self._nudged: dict[str, float] = {}
        self._backends: dict[str, backend_rpc.Backend] = {}
        self._tasks: list[asyncio.Task[None]] = []

    # life

    async def start(self) -> None:
        """Begin; see the class."""
        self._tasks = [asyncio.create_task(each) for each in (self._serve(), self._tell())]

    async def close(self) -> None:
        """Finish the calls in hand, tell what was committed, disconnect from the database."""
        if self.ready.is_set():
            await self.transport.stop_serving()
        for task in self._tasks[2:] or self._tasks[:1]:
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(5):
                await self._news.join()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.store.close()

    async def _serve(self) -> None:
        said = ""
        while True:
            try:
                found = await schema.version(self.store.engine)
                if found == schema.HEAD:
                    break
                reason = f"the database has revision {found}, {schema.HEAD} is needed: run magnum-manage db upgrade"
            except (sqlalchemy.exc.SQLAlchemyError, OSError) as error:
                reason = str(getattr(error, "orig", None) or error).splitlines()[0]
            if reason != said:
                LOG.warning("waiting for the database", reason=reason)
                said = reason
            await asyncio.sleep(0.5)
        admit = senders.Senders(self.conf.host_user).to_conductor
        await self.transport.serve(conductor_rpc.TOPIC, rpc.handler(conductor_rpc.Conductor, self, admit), shared=True)
        self.ready.set()
        LOG.info("serving", database=self.store.dialect)
        self._tasks += [asyncio.create_task(each) for each in (self._sweep(), self._control())]

    # after a commit

    def _committed(self, tx: store.Transaction) -> None:
        if not (tx.events or tx.kicks):
            return
        steps = {event.step for event in tx.events}
        if "accepted" in steps:
            faults.point("conductor-after-intent")
        elif steps & {"completed", "deleted"}:
            faults.point("conductor-after-report")
        self._news.put_nowait(tx)
        for event in tx.events:
            if event.object_kind == "host":
                self._dirty.add("")
            elif event.object_kind in ("pod", "rc", "service") and event.bay_uuid:
                self._dirty.add(event.bay_uuid)
        if self._dirty:
            self._woken.set()

    def _backend(self, name: str) -> backend_rpc.Backend:
        if name not in self._backends:
            self._backends[name] = rpc.client(backend_rpc.Backend, self.transport, f"{backend_rpc.TOPIC}.{name}")
        return self._backends[name]

    async def _tell(self) -> None:
        """Broadcast, in the order of commits, and nudge; what is lost here the listeners' own looks make good."""
        while True:
            tx = await self._news.get()
            try:
                for event in tx.events:
                    await self.transport.broadcast(conductor_rpc.EVENTS, _encode(event))
                for name, uuids in tx.kicks.items():
                    await self._backend(name).kick(contexts.service(request_id=tx.context.request_id), sorted(uuids))
            except errors.MagnumError as error:
                LOG.debug("not told", reason=str(error))
            finally:
                self._news.task_done()

    # objects

    async def create(self, context: contexts.Context, item: objects.AnyObject) -> objects.AnyObject:
        kind = objects.kind_of(item)
        if not context.project_id:
            raise errors.Forbidden("only a project can own something, and you are scoped to none")

        demand = kind.demand(item.spec)
        # what goes together locks the same rows in the same order: of one bay, and all of it counted at its hosts or none
        key = (context.project_id, kind.name, item.bay_uuid, bool(demand.memory or demand.cpus))
        return await self._creates.do(key, (context, item))

    async def _create(
        self, asked: list[tuple[contexts.Context, objects.AnyObject]]
    ) -> list[objects.AnyObject | errors.MagnumError]:
        async def work(tx: store.Transaction) -> list[objects.AnyObject | errors.MagnumError]:
            # what was ever made is in the log
            known = await tx.logged([item.uuid for _, item in asked])
            answers: list[objects.AnyObject | errors.MagnumError] = []
            for context, item in asked:
                tx.context, kind = context, objects.kind_of(item)
                try:
                    if item.uuid in known:
                        answers.append(await self._made(tx, kind, item.uuid))
                        continue
                    new = msgspec.convert(msgspec.to_builtins(item), type(item))
                    await self._admit(tx, kind, new)
                except errors.MagnumError as error:
                    # nothing of it is written yet
                    answers.append(error)
                    continue
                known.add(item.uuid)
                answers.append(await self._insert(tx, kind, new))
            return answers

        return await self.store.write(asked[0][0], work)

    async def _made(self, tx: store.Transaction, kind: base.Kind, uuid: str) -> Any:
        """Return what was made before as it is by now. Raises NotFound."""
        there = await tx.by_uuid(kind, uuid)
        if there is None:
            raise errors.NotFound(f"the {kind.name} {uuid} was deleted meanwhile")
        return there.shown()

    async def _admit(self, tx: store.Transaction, kind: base.Kind, new: Any) -> None:
        """Make ``new`` the asker's, ready to be written. Raises QuotaExceeded and what ``_join`` does."""
        new.project_id, new.user_id = tx.context.project_id, tx.context.user_id
        await self._join(tx, kind, new)
        await quotas.check(tx, self.conf, new.project_id, kind, new.spec)

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
        if where.spec.engine == "docker" and bay.spans(where.spec) and not services.stands(self.conf, where):
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

    async def _insert(self, tx: store.Transaction, kind: base.Kind, new: Any) -> Any:
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
            await services.claim(tx, self.conf, new)
        await tx.insert(kind, record)
        await tx.place(kind, new.uuid, members)
        tx.note(kind, new, "accepted", action="create")
        if new.operation is None:
            tx.note(kind, new, "completed", action="create", was=new.status)
        return new

    async def _members(self, tx: store.Transaction, kind: base.Kind, item: Any) -> list[str]:
        if kind.spread != "members":
            return []
        if isinstance(item, bay.Bay):
            return item.spec.members
        where = await tx.by_uuid(objects.KINDS["bay"], item.bay_uuid)
        return where.item.spec.members if where is not None else []

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
        return float(seconds or self.conf.conductor.operation_timeout)

    def _ended(self, kind: base.Kind, record: store.Record, outcome: str) -> None:
        """Count a change that has ended."""
        item = record.item
        if item.operation is not None and item.operation_deadline is not None:
            took = self._seconds(kind, item) - (item.operation_deadline - base.now()).total_seconds()
            metrics.OPERATIONS.labels(kind.name, record.action, outcome).observe(max(took, 0))

    async def get(self, context: contexts.Context, kind: str, ident: str, bay: str | None = None) -> objects.AnyObject:
        async def work(tx: store.Transaction) -> objects.AnyObject:
            where = await self._bay(tx, bay)
            return (await tx.find(_kind(kind), ident, where)).shown()  # type: ignore[no-any-return]

        return await self.store.read(context, work)

    async def explain(
        self, context: contexts.Context, kind: str, ident: str, bay: str | None = None
    ) -> explanation.Explanation:
        async def work(tx: store.Transaction) -> explanation.Explanation:
            record = await tx.find(_kind(kind), ident, await self._bay(tx, bay))
            return await causes.explain(tx, record)

        return await self.store.read(context, work)

    async def _bay(self, tx: store.Transaction, ident: str | None) -> str | None:
        """Return the uuid of the bay that ``ident`` means. Raises NotFound, Ambiguous."""
        if ident is None:
            return None
        return (await tx.find(objects.KINDS["bay"], ident)).item.uuid  # type: ignore[no-any-return]

    async def page(self, context: contexts.Context, kind: str, query: base.Query) -> conductor_rpc.Page:
        async def work(tx: store.Transaction) -> conductor_rpc.Page:
            asked = msgspec.structs.replace(query, bay=await self._bay(tx, query.bay))
            items, more = await tx.page(_kind(kind), asked)
            return conductor_rpc.Page(items=items, more=more)

        return await self.store.read(context, work)

    async def _hold(
        self, tx: store.Transaction, kind: base.Kind, ident: str, where: str | None, doing: str
    ) -> store.Record:
        """Return a record held for a change. Raises NotFound, Ambiguous, Conflict."""
        record = await tx.find(kind, ident, await self._bay(tx, where), lock="write")
        if record.item.deleting and doing != "delete":
            raise errors.Conflict(f"cannot {doing} a {kind.name} that is being deleted", status=record.item.status)
        if base.is_foreign(record.item):
            controller = getattr(record.item.spec, "controller", None)
            if doing != "delete" and controller is not None:
                raise errors.Conflict(f"cannot {doing} it: it is as the template of its controller {controller} says")
            if controller is None:
                raise errors.Conflict(f"cannot {doing} it: Magnum did not make it; whoever made it in the cluster can")
        return record

    async def _engine(self, tx: store.Transaction, item: Any) -> str:
        """Return the name of the engine that an object is on, empty if it is on none."""
        where = item if isinstance(item, bay.Bay) else None
        if where is None and item.bay_uuid is not None:
            record = await tx.by_uuid(objects.KINDS["bay"], item.bay_uuid)
            where = record.item if record is not None else None
        return where.spec.engine if where is not None else ""

    async def update(
        self, context: contexts.Context, kind: str, ident: str, bay: str | None, patch: list[dict[str, object]]
    ) -> objects.AnyObject:
        known = _kind(kind)

        async def work(tx: store.Transaction) -> objects.AnyObject:
            record = await self._hold(tx, known, ident, bay, "update")
            item = record.item
            name, spec = patched(known, item, patch)
            if known.check is not None and spec != item.spec:
                engine = await self._engine(tx, item)
                if engine == "kubernetes" and known.name == "container":
                    raise errors.NotSupported("Kubernetes changes nothing of a container that it has: make another")
                known.check(spec, engine)
            if known.check_in is not None and item.bay_uuid:
                known.check_in(spec, (await tx.find(objects.KINDS["bay"], item.bay_uuid)).item.spec)
            await quotas.check(tx, self.conf, item.project_id, known, spec, item.spec)
            if known.name == "bay":
                spec = await self._resize(tx, item, spec)
            if known.name == "service":
                item.spec, before = spec, item.spec
                await services.claim(tx, self.conf, item, before)
                spec = item.spec
            item.name, item.spec = name, spec
            await self._intend(tx, known, record, "update")
            return item  # type: ignore[no-any-return]

        return await self.store.write(context, work)

    async def _resize(self, tx: store.Transaction, item: bay.Bay, spec: bay.BaySpec) -> bay.BaySpec:
        """Return ``spec`` with the members that its number of nodes needs. Raises NoHostFits, Conflict (none is empty)."""
        kind = objects.KINDS["bay"]
        if item.spec.cluster is not None:
            await takeover.resize(tx, item, spec)
            return spec
        before = set(item.spec.members)
        wanted = scheduler.nodes(spec)
        if wanted < len(before):
            busy: collections.Counter[str] = collections.Counter()
            for other in objects.KINDS.values():
                if other.spread == "one":
                    table = tables.KINDS[other.name]
                    for record in await tx.records(other, table.c.bay_uuid == item.uuid):
                        busy[record.item.host] += 1
            # what the owner named goes first, and first of all
            named = [name for name in spec.leave_first if name in before]
            if taken := [f"{name} ({busy[name]})" for name in named if busy[name]]:
                raise errors.Conflict(f"there is something on {', '.join(taken)}", field="nodes_to_remove")
            empty = named + [n for n in reversed(item.spec.members) if not busy[n] and n not in named]
            going = empty[: len(before) - wanted]
            if len(going) < len(before) - wanted:
                full = ", ".join(f"{name} ({busy[name]})" for name in item.spec.members if busy[name])
                raise errors.Conflict(
                    f"{len(before) - wanted} hosts would have to go and only {len(empty)} run nothing of this bay; "
                    f"on others there is something: {full}",
                    field="node_count",
                )
            left = [name for name in item.spec.members if name not in going]
            spec = msgspec.structs.replace(spec, members=left, leave_first=[])
        else:
            members = await scheduler.members(tx, spec)
            if len(members) > 1 and not bay.spans(item.spec):
                await self._must_be_empty(tx, item)
            spec = msgspec.structs.replace(spec, members=members, leave_first=[])
        spec.overlay = bay.spans(item.spec) or bay.spans(spec)
        after = set(spec.members)
        spread = [(kind, item.uuid)]
        for other in objects.KINDS.values():
            if other.spread == "members" and other.in_bay:
                table = tables.KINDS[other.name]
                for record in await tx.records(other, table.c.bay_uuid == item.uuid, lock="write"):
                    spread.append((other, record.item.uuid))
        for other, uuid in spread:
            there = {share.host: share for share in (await tx.shares([uuid], lock=True))[uuid]}
            await tx.place(other, uuid, sorted(after - set(there)))
            for name, share in there.items():
                if share.deleting != (name not in after):
                    share.deleting = name not in after
                    await tx.save_share(share)
            for name in before | after:
                tx.kicks.setdefault(name, set()).add(uuid)
        return spec

    async def _must_be_empty(self, tx: store.Transaction, item: bay.Bay) -> None:
        """Raise Conflict if anything of ``item`` would lose the network that its only host made for it."""
        there = {}
        for kind in objects.KINDS.values():
            if kind.in_bay and (count := await tx.count(kind, tables.KINDS[kind.name].c.bay_uuid == item.uuid)):
                there[kind.plural] = count
        if there:
            raise errors.Conflict(
                f"bay {item.name} is on one host, and what is in it is on that host's own bridge: "
                + ", ".join(f"{count} {plural}" for plural, count in there.items())
                + "; only an empty bay can grow from one host to several",
                field="node_count",
            )

    async def act(
        self, context: contexts.Context, kind: str, ident: str, bay: str | None, action: str
    ) -> objects.AnyObject:
        known = _kind(kind)

        async def work(tx: store.Transaction) -> objects.AnyObject:
            record = await self._hold(tx, known, ident, bay, action)
            if known.act is None:
                raise errors.NotFound(f"a {known.name} has no action {action!r}")
            if record.lost:
                raise errors.Conflict(f"cannot {action}: host {record.item.host} is down", status=store.UNKNOWN)
            known.act(record.item, action, await self._engine(tx, record.item))
            await self._intend(tx, known, record, action)
            return record.item  # type: ignore[no-any-return]

        return await self.store.write(context, work)

    async def _intend(self, tx: store.Transaction, kind: base.Kind, record: store.Record, action: str) -> None:
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

    async def delete(
        self, context: contexts.Context, kind: str, ident: str, bay: str | None = None, keep: bool = False
    ) -> objects.AnyObject | None:
        known = _kind(kind)

        async def work(tx: store.Transaction) -> objects.AnyObject | None:
            try:
                record = await self._hold(tx, known, ident, bay, "delete")
            except errors.NotFound:
                if await tx.asked(known, "delete"):
                    # this is the call's second coming, and the first has done its work
                    return None
                raise
            item = record.item
            if item.deleting:
                return item  # type: ignore[no-any-return]
            if known.name == "baymodel":
                table = tables.KINDS["bay"]
                users = await tx.count(objects.KINDS["bay"], table.c.owner_uuid == item.uuid)
                if users:
                    raise errors.Conflict(f"{users} bays are made from bay model {item.name}")
            if known.name == "bay":
                await self._empty(tx, item)
            if known.name == "rc" and item.host is not None:
                item.spec.keep_pods = keep
            elif known.name == "rc":
                await replication.release(tx, item, keep, self.doom)
            await self.doom(tx, known, record)
            return item  # type: ignore[no-any-return]

        return await self.store.write(context, work)

    async def _empty(self, tx: store.Transaction, where: bay.Bay) -> None:
        """Ask for the end of everything in a bay, controllers first, so that they make nothing new."""
        for kind in sorted(objects.KINDS.values(), key=lambda k: k.spread != "none"):
            if kind.in_bay:
                table = tables.KINDS[kind.name]
                for record in await tx.records(kind, table.c.bay_uuid == where.uuid, lock="write"):
                    if base.is_foreign(record.item):
                        # it ends with the namespace
                        await self._bury(tx, kind, record.item)
                    elif not record.item.deleting:
                        await self.doom(tx, kind, record)

    async def doom(self, tx: store.Transaction, kind: base.Kind, record: store.Record) -> None:
        """Write that an object is to end; without a host it has ended."""
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
            await self._bury(tx, kind, item)
            return
        await tx.save(kind, record)
        for name in [item.host] if item.host else [share.host for share in shares]:
            tx.kicks.setdefault(name, set()).add(item.uuid)

    async def _bury(self, tx: store.Transaction, kind: base.Kind, item: Any) -> None:
        """Drop an object of which nothing is left, and its bay if that waited for it alone."""
        await tx.drop(kind, item.uuid)
        self._ended(kind, store.Record(item=item, action="delete"), "completed")
        tx.note(kind, item, "deleted", action="delete", was=item.status, status="Deleted", request_id=item.operation)
        item.operation, item.operation_deadline = None, None
        if item.bay_uuid is None:
            return
        where = await tx.by_uuid(objects.KINDS["bay"], item.bay_uuid)
        if where is None or not where.item.deleting:
            return
        for share in (await tx.shares([where.item.uuid]))[where.item.uuid]:
            tx.kicks.setdefault(share.host, set()).add(where.item.uuid)

    async def admit(self, tx: store.Transaction, new: Any) -> Any:
        """Write a new object in the name of the transaction's project, and have its host told. For controllers.

        Raises QuotaExceeded, NoHostFits, Conflict.
        """
        kind = objects.kind_of(new)
        await self._admit(tx, kind, new)
        await self._insert(tx, kind, new)
        await self._nudge(tx, kind, new)

    async def note_controller(
        self, tx: store.Transaction, record: store.Record, replicas: int, ready: int, trouble: str
    ) -> None:
        """Write how many pods a controller has, and that it has those it is to have."""
        item = record.item
        state = msgspec.structs.replace(item.state, replicas=replicas, ready_replicas=ready)
        short = replicas != item.spec.replicas
        reason = trouble or None
        kind = objects.KINDS["rc"]
        if self._observe(tx, kind, record, "Active", reason, state, pending=short, generation=item.generation):
            await tx.save(kind, record)

    # reports

    async def report(self, context: contexts.Context, reports: list[base.Report]) -> list[objects.AnyObject | None]:
        return await self._reports.do(None, (context, reports))

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

        return await self.store.write(asked[0][0], work)

    async def _take(self, tx: store.Transaction, batch: _Batch, name: str, report: base.Report) -> Any:
        """Take what host ``name`` reports; return the object as it then is to it."""
        faults.point("conductor-before-report")
        kind = _kind(report.kind)
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
            await self._bury(tx, kind, item)
            batch.forget(item.uuid)
            return None
        state = msgspec.convert(report.state, kind.state)
        if isinstance(state, (objects.container.ContainerState, objects.pod.PodState)) and not state.deaths:
            # what a look does not tell of is not forgotten
            state.deaths = item.state.deaths
        status, reason = report.status, report.reason
        if report.gone:
            status, reason = kind.failed, report.reason or "it is gone from the engine"
        changed = self._observe(
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
                await self._bury(tx, kind, item)
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
        if self._observe(tx, kind, record, status, reason, state, pending=pending, generation=item.generation):
            batch.changed[item.uuid] = record
        return None if report.gone else _share_of(item, share)

    def _observe(
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
            step = "failed" if kind.is_failure(status) else "completed"
            self._ended(kind, record, step)
            tx.note(kind, item, step, action=record.action, was=was, reason=reason, request_id=item.operation)
            item.operation, item.operation_deadline = None, None
        elif was != status or said != reason or _ready(before) != _ready(state):
            tx.note(kind, item, "observed", action=record.action if item.operation else "", was=was, reason=reason,
                    request_id=item.operation or tx.context.request_id)  # fmt: skip
        return True

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

        return await self.store.write(context, work)

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
            found = [record.item for record in await tx.on_host(context.host)]
            return found if uuids is None else [item for item in found if item.uuid in uuids]

        return await self.store.read(context, work)

    async def judge(self, context: contexts.Context, uuids: list[str]) -> dict[str, str]:
        async def work(tx: store.Transaction) -> dict[str, str]:
            here = {record.item.uuid for record in await tx.on_host(context.host)}
            asked = [uuid for uuid in uuids if uuid not in here]
            known = await tx.known(asked) if asked else {}
            logged = await tx.logged([uuid for uuid in asked if uuid not in known]) if asked else set()
            return {uuid: "moved" if uuid in known else "deleted" if uuid in logged else "unknown" for uuid in asked}

        return await self.store.read(context, work)

    # hosts and programs

    async def beat(self, context: contexts.Context, beat: host.Beat) -> int:
        if context.host != beat.host:
            raise errors.Forbidden(f"host {context.host!r} is not {beat.host!r}")

        return await self._beats.do(None, (context, beat))

    async def _beat(self, asked: list[tuple[contexts.Context, host.Beat]]) -> list[int | errors.MagnumError]:
        async def work(tx: store.Transaction) -> list[int | errors.MagnumError]:
            names = {beat.host for _, beat in asked if beat.facts is not None}
            known = {m.name: m for m in await tx.hosts(tables.HOSTS.c.name.in_(names), lock=True)} if names else {}
            answers: list[int | errors.MagnumError] = []
            seen: dict[str, host.Host] = {}
            for context, beat in asked:
                tx.context = context
                answers.append(await self._saw(tx, beat, known, seen))
            await tx.saw_hosts(list(seen.values()))
            await tx.saw_programs({(beat.binary, beat.host) for _, beat in asked})
            return answers

        return await self.store.write(asked[0][0], work)

    async def _saw(
        self, tx: store.Transaction, beat: host.Beat, known: dict[str, host.Host], seen: dict[str, host.Host]
    ) -> int:
        """Take what a host tells of itself; return its epoch. ``seen``: the known ones that are to be written."""
        if beat.facts is None:
            # a program that is no host
            return 0
        machine = known.get(beat.host) or host.Host(uuid=base.new_uuid(), name=beat.host, status="")
        was = machine.status
        if not beat.epoch:
            machine.epoch += 1
        elif beat.epoch > machine.epoch:
            # only a database that was restored from an older dump can be behind
            machine.epoch = beat.epoch
        elif beat.epoch != machine.epoch:
            # another backend has taken the name since: it is told so, and changes nothing
            return machine.epoch
        machine.facts = beat.facts
        machine.status_reason = beat.facts.problem
        machine.status = "disabled" if machine.disabled else "up" if beat.facts.engines else "down"
        if machine.created_at is None:
            await tx.save_host(machine)
            known[machine.name] = machine
        else:
            seen[machine.name] = machine
        if was != machine.status:
            if "down" in (was, machine.status):
                await self._tell_of_host(tx, machine, lost=machine.status == "down")
            tx.note_host(machine, was)
        return machine.epoch

    async def _tell_of_host(self, tx: store.Transaction, machine: host.Host, *, lost: bool) -> None:
        """Add to the log what a host that comes or goes means for what lives on it."""
        reason = f"host {machine.name} is down" + (f": {machine.status_reason}" if machine.status_reason else "")
        for kind in objects.KINDS.values():
            if kind.spread != "one":
                continue
            for record in await tx.records(kind, tables.KINDS[kind.name].c.host == machine.name):
                item = record.item
                if not item.deleting:
                    was, now = (item.status, store.UNKNOWN) if lost else (store.UNKNOWN, item.status)
                    tx.note(kind, item, "observed", was=was, status=now, reason=reason if lost else item.status_reason)

    async def hosts(self, context: contexts.Context, ident: str | None = None) -> list[host.Host]:
        async def work(tx: store.Transaction) -> list[host.Host]:
            if ident is None:
                return await tx.hosts()
            column = tables.HOSTS.c.uuid if base.is_uuid(ident) else tables.HOSTS.c.name
            found = await tx.hosts(column == ident)
            if not found:
                raise errors.NotFound(f"there is no host {ident!r}")
            return found

        return await self.store.read(context, work)

    async def programs(self, context: contexts.Context) -> list[host.Program]:
        async def work(tx: store.Transaction) -> list[host.Program]:
            return await tx.programs(self.conf.backend.down_after)

        return await self.store.read(context, work)

    # the log

    async def events(
        self,
        context: contexts.Context,
        after: int = 0,
        limit: int = 1000,
        kind: str | None = None,
        uuid: str | None = None,
        request_id: str | None = None,
    ) -> list[base.Event]:
        columns = tables.LOG.c
        asked = ((columns.object_kind, kind), (columns.uuid, uuid), (columns.request_id, request_id))
        where = [column == value for column, value in asked if value is not None]

        async def work(tx: store.Transaction) -> list[base.Event]:
            return await tx.events_of(*where, after=after, limit=max(1, min(limit, 10_000)))

        return await self.store.read(context, work)

    async def latest(self, context: contexts.Context) -> int:
        async def work(tx: store.Transaction) -> int:
            return await tx.latest()

        return await self.store.read(context, work)

    async def settle(self, context: contexts.Context, request_id: str, verb: str) -> objects.AnyObject:
        if verb not in ("cancel", "retry"):
            raise errors.NotFound(f"an operation has no {verb!r}")

        async def work(tx: store.Transaction) -> objects.AnyObject:
            rows = await tx.events_of(tables.LOG.c.request_id == request_id, limit=1)
            if not rows:
                raise errors.NotFound(f"there is no operation {request_id!r}")
            kind = _kind(rows[0].object_kind)
            record = await tx.by_uuid(kind, rows[0].uuid, lock="write")
            if record is None:
                raise errors.Conflict(f"nothing is left of the {kind.name} {rows[0].uuid}")
            item = record.item
            if verb == "cancel":
                await self._cancel(tx, kind, record, request_id)
            else:
                await self._retry(tx, kind, record, request_id)
            return item  # type: ignore[no-any-return]

        return await self.store.write(context, work)

    async def _cancel(self, tx: store.Transaction, kind: base.Kind, record: store.Record, request_id: str) -> None:
        item = record.item
        if item.operation != request_id:
            raise errors.Conflict("the operation has ended", status=item.status)
        if item.deleting:
            raise errors.Conflict("a delete cannot be taken back", status=item.status)
        tx.note(kind, item, "cancelled", action=record.action, was=item.status, request_id=request_id)
        if record.action == "create":
            item.operation = None
            await self.doom(tx, kind, record)
            return
        item.operation, item.operation_deadline = None, None
        await tx.save(kind, record)
        await self._nudge(tx, kind, item)

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
        await self._intend(tx, kind, record, "delete" if item.deleting else action)
        await self._nudge(tx, kind, item)

    async def _nudge(self, tx: store.Transaction, kind: base.Kind, item: Any) -> None:
        names = [item.host] if item.host else []
        if kind.spread == "members":
            names = [share.host for share in (await tx.shares([item.uuid]))[item.uuid]]
        for name in names:
            tx.kicks.setdefault(name, set()).add(item.uuid)

    async def quotas(self, context: contexts.Context, project: str | None = None) -> list[conductor_rpc.Quota]:
        async def work(tx: store.Transaction) -> list[conductor_rpc.Quota]:
            names = [project] if project is not None else sorted(await tx.all_limits())
            return [await quotas.show(tx, self.conf, name) for name in names]

        return await self.store.read(context, work)

    async def set_quota(
        self, context: contexts.Context, project: str, limits: dict[str, int | None]
    ) -> conductor_rpc.Quota:
        quotas.check_limits(limits)

        async def work(tx: store.Transaction) -> conductor_rpc.Quota:
            await tx.set_limits(project, limits)
            return await quotas.show(tx, self.conf, project)

        return await self.store.write(context, work)

    async def health(self, context: contexts.Context) -> dict[str, str]:
        try:
            await self.latest(context)
        except errors.MagnumError as error:
            return {"database": error.detail}
        return {"database": "ok"}

    # what happens by itself

    async def _sweep(self) -> None:
        trimmed = 0.0
        rounds = 0.0
        counted = 0.0
        clock = asyncio.get_running_loop().time
        while True:
            try:
                await self._beat_itself()
                await self._find_silent()
                await takeover.sweep(self.store)
                await self._find_late()
                if clock() - rounds > ROUND:
                    rounds = clock()
                    self._dirty.add("")
                    self._woken.set()
                if self.conf.metrics_port and clock() - counted > COUNT_EVERY:
                    counted = clock()
                    await self._count()
                if clock() - trimmed > TRIM_EVERY:
                    trimmed = clock()
                    await self._trim()
            except errors.MagnumError as error:
                LOG.warning("sweep failed", reason=str(error))
            except Exception:
                LOG.exception("sweep failed")
            await asyncio.sleep(self.conf.conductor.sweep_interval)

    async def _count(self) -> None:
        async def work(tx: store.Transaction) -> tuple[Any, Any]:
            return await tx.counts(), await tx.oldest_operation()

        (found, busy, machines), oldest = await self.store.read(contexts.service(), work)
        metrics.OBJECTS.clear()
        for (kind, status), number in found.items():
            metrics.OBJECTS.labels(kind, status).set(number)
        for kind, number in busy.items():
            metrics.OPEN.labels(kind).set(number)
        metrics.HOSTS.clear()
        for status, number in machines.items():
            metrics.HOSTS.labels(status).set(number)
        metrics.OLDEST.set(max((base.now() - oldest).total_seconds(), 0) if oldest is not None else 0)
        metrics.NEWS.set(self._news.qsize())

    async def _beat_itself(self) -> None:
        async def work(tx: store.Transaction) -> None:
            await tx.saw_programs({("magnum-conductor", self.conf.host)})

        await self.store.write(contexts.service(), work)

    async def _find_silent(self) -> None:
        async def look(tx: store.Transaction) -> bool:
            return bool(await tx.silent(self.conf.backend.down_after))

        async def work(tx: store.Transaction) -> None:
            for machine in await tx.silent(self.conf.backend.down_after):
                machine.status = "down"
                machine.status_reason = f"no sign of life for {self.conf.backend.down_after:g} s"
                await tx.save_host(machine, down=True)
                await self._tell_of_host(tx, machine, lost=True)
                tx.note_host(machine, "up")
                # whatever hung on it alone is another's now
                self._dirty.add("")
                self._woken.set()

        if await self.store.read(contexts.service(), look):
            await self.store.write(contexts.service(), work)

    async def _find_late(self) -> None:
        """End operations past their deadline, and nudge the hosts of those that nobody reports on."""
        context = contexts.service()

        async def look(tx: store.Transaction) -> tuple[dict[str, Any], dict[str, Any]]:
            now = base.now()
            return await tx.late(now), await tx.stuck(now - datetime.timedelta(seconds=NUDGE_AFTER))

        late, stuck = await self.store.read(context, look)
        for uuid, (name, _) in late.items():
            await self._expire(context, _kind(name), uuid)
        now = asyncio.get_running_loop().time()
        self._nudged = {uuid: at for uuid, at in self._nudged.items() if now - at < NUDGE_AGAIN}
        todo = {uuid: where for uuid, where in stuck.items() if uuid not in late and uuid not in self._nudged}
        if not todo:
            return
        self._nudged |= dict.fromkeys(todo, now)

        async def shares(tx: store.Transaction) -> dict[str, list[store.Share]]:
            return await tx.shares([uuid for uuid, (kind, _) in todo.items() if _kind(kind).spread == "members"])

        found = await self.store.read(context, shares)
        kicks: dict[str, list[str]] = collections.defaultdict(list)
        for uuid, (_, name) in todo.items():
            for machine in [name] if name else [share.host for share in found.get(uuid, [])]:
                kicks[machine].append(uuid)
        for machine, uuids in kicks.items():
            await self._backend(machine).kick(context, uuids)

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
            self._ended(kind, record, "expired")
            tx.note(kind, item, "expired", action=record.action, was=was, reason=reason, request_id=item.operation)
            item.operation, item.operation_deadline = None, None
            await tx.save(kind, record)

        await self.store.write(context, work)

    async def _trim(self) -> None:
        before = base.now() - datetime.timedelta(days=self.conf.conductor.log_days)

        async def work(tx: store.Transaction) -> int:
            return await tx.trim_log(before)

        while await self.store.write(contexts.service(), work):
            pass

    async def _control(self) -> None:
        """Bring controllers and services in line with the pods of every bay in which something happened."""
        self._dirty.add("")
        self._woken.set()
        while True:
            await self._woken.wait()
            self._woken.clear()
            bays, self._dirty = self._dirty, set()
            if "" in bays:
                try:
                    bays = await self._controlled()
                except errors.MagnumError as error:
                    LOG.warning("controllers wait", reason=str(error))
                    continue
            for uuid in sorted(bays):
                try:
                    await replication.reconcile(self.store, self.conf, uuid, self)
                    await services.refresh(self.store, uuid)
                except errors.MagnumError as error:
                    LOG.warning("controllers failed", bay=uuid, reason=str(error))
                except Exception:
                    LOG.exception("controllers failed", bay=uuid)

    async def _controlled(self) -> set[str]:
        """Return the bays that have a controller or a service."""

        async def work(tx: store.Transaction) -> set[str]:
            found: set[str] = set()
            for name in ("rc", "service"):
                found |= {record.item.bay_uuid for record in await tx.records(objects.KINDS[name])}
            return found

        return await self.store.read(contexts.service(), work)


def _kind(name: str) -> base.Kind:
    if name not in objects.KINDS:
        raise errors.NotFound(f"there are no objects of kind {name!r}")
    return objects.KINDS[name]


def _share_of(item: Any, share: store.Share) -> Any:
    """Return ``item`` as the host of ``share`` is to see it."""
    return msgspec.structs.replace(item, deleting=item.deleting or share.deleting)


def _ready(state: Any) -> Any:
    """Return what of a state, beside the status, others act on."""
    return getattr(state, "ready", None), getattr(state, "pod_ip", None), getattr(state, "ready_replicas", None)


def patched(kind: base.Kind, item: Any, patch: list[dict[str, Any]]) -> tuple[str, Any]:
    """Return (name, spec) of ``item`` after a JSON Patch, checked. Raises Invalid naming the field."""
    document = msgspec.to_builtins(item.spec) | {"name": item.name}
    try:
        changed = jsonpatch.JsonPatch(patch).apply(document)
    except jsonpatch.JsonPatchTestFailed as error:
        raise errors.Conflict(f"a test of the patch failed: {str(error)[:200]}") from None
    except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException, TypeError, KeyError) as error:
        words = error.args[0] if error.args else "cannot be applied"
        raise errors.Invalid(f"the patch cannot be applied: {str(words)[:200]}", field=_path(patch)) from None
    if not isinstance(changed, dict):
        raise errors.Invalid("must leave an object", field=_path(patch))
    name = changed.pop("name", None)
    if not isinstance(name, str) or not name:
        raise errors.Invalid("must be a name", field="name")
    if name != item.name and kind.unique_in_bay:
        raise errors.Invalid("cannot be changed", field="name")
    unknown = sorted(set(changed) - set(kind.spec.__struct_fields__))
    if unknown:
        raise errors.Invalid("is not known here", field=unknown[0])
    spec = base.convert(changed, kind.spec)
    for field in kind.chosen:
        if getattr(spec, field) != getattr(item.spec, field):
            raise errors.Invalid("cannot be changed", field=field)
    return name, kind.patch(item, spec) if kind.patch is not None else spec


def _path(patch: list[dict[str, Any]]) -> str | None:
    paths = {str(step.get("path", "")).lstrip("/").replace("/", ".") for step in patch}
    return paths.pop() if len(paths) == 1 else None
