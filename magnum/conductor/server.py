"""The conductor: the same few verbs for every kind, each one short transaction.

It writes what is asked for (``changes``), takes what backends tell (``reports``, ``hosts``), looks after changes in
progress (``operations``) and what nobody asks for (``rounds``), and tells of what it committed (``news``). Any number
of conductors may run: rows are locked, not memories.

Who calls: ``cmd``; the api and the backends by RPC.
"""

import asyncio

import msgspec
import sqlalchemy.exc
import structlog
from oslo_config import cfg

from magnum import context as contexts
from magnum import errors, objects
from magnum.conductor import (
    causes,
    changes,
    hosts,
    news,
    operations,
    patches,
    quotas,
    replication,
    reports,
    rounds,
    scheduler,
    services,
    takeover,
    together,
)
from magnum.db import schema, store, tables
from magnum.objects import base, bay, explanation, host
from magnum.rpc import base as rpc
from magnum.rpc import conductor as conductor_rpc
from magnum.rpc import senders

LOG = structlog.get_logger(__name__)


class Server(conductor_rpc.Conductor):
    """One conductor. ``start`` returns at once; calls are taken as soon as the database is as this version needs it."""

    def __init__(self, conf: cfg.ConfigOpts, transport: rpc.Transport) -> None:
        self.conf = conf
        self.transport = transport
        engine = store.connect(
            conf.database.connection, pool_size=conf.database.pool_size, max_overflow=conf.database.max_overflow
        )
        self._news = news.News(transport)
        self.store = store.Store(engine, self._news.committed)
        self.ready = asyncio.Event()
        self._changes = changes.Changes(conf)
        self._reports = reports.Reports(self.store, self._changes)
        self._hosts = hosts.Hosts(conf, self.store, self._news.wake)
        self._operations = operations.Operations(self.store, self._changes, self._news.kick)
        self._rounds = rounds.Rounds(conf, self.store, self._changes, self._hosts, self._operations, self._news)
        self._creates: together.Together[
            tuple[object, ...], tuple[contexts.Context, objects.AnyObject], objects.AnyObject
        ] = together.Together(self._create)
        self._tasks: list[asyncio.Task[None]] = []

    # life

    async def start(self) -> None:
        """Begin; see the class."""
        self._tasks = [asyncio.create_task(each) for each in (self._serve(), self._news.tell())]

    async def close(self) -> None:
        """Finish the calls in hand, tell what was committed, disconnect from the database."""
        if self.ready.is_set():
            await self.transport.stop_serving()
        for task in self._tasks[2:] or self._tasks[:1]:
            task.cancel()
        await self._news.told()
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
        self._tasks += [asyncio.create_task(each) for each in (self._rounds.sweep(), self._rounds.control())]

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
                    await self._changes.admit(tx, kind, new)
                except errors.MagnumError as error:
                    # nothing of it is written yet
                    answers.append(error)
                    continue
                known.add(item.uuid)
                answers.append(await self._changes.insert(tx, kind, new))
            return answers

        return await self.store.write(asked[0][0], work)

    async def _made(self, tx: store.Transaction, kind: base.Kind, uuid: str) -> objects.AnyObject:
        """Return what was made before as it is by now. Raises NotFound."""
        there = await tx.by_uuid(kind, uuid)
        if there is None:
            raise errors.NotFound(f"the {kind.name} {uuid} was deleted meanwhile")
        return there.shown()  # type: ignore[no-any-return]

    async def get(self, context: contexts.Context, kind: str, ident: str, bay: str | None = None) -> objects.AnyObject:
        async def work(tx: store.Transaction) -> objects.AnyObject:
            where = await self._changes.bay_uuid(tx, bay)
            return (await tx.find(objects.kind(kind), ident, where)).shown()  # type: ignore[no-any-return]

        return await self.store.read(context, work)

    async def explain(
        self, context: contexts.Context, kind: str, ident: str, bay: str | None = None
    ) -> explanation.Explanation:
        async def work(tx: store.Transaction) -> explanation.Explanation:
            record = await tx.find(objects.kind(kind), ident, await self._changes.bay_uuid(tx, bay))
            return await causes.explain(tx, record)

        return await self.store.read(context, work)

    async def page(self, context: contexts.Context, kind: str, query: base.Query) -> conductor_rpc.Page:
        async def work(tx: store.Transaction) -> conductor_rpc.Page:
            asked = msgspec.structs.replace(query, bay=await self._changes.bay_uuid(tx, query.bay))
            items, more = await tx.page(objects.kind(kind), asked)
            return conductor_rpc.Page(items=items, more=more)

        return await self.store.read(context, work)

    async def update(
        self, context: contexts.Context, kind: str, ident: str, bay: str | None, patch: list[dict[str, object]]
    ) -> objects.AnyObject:
        known = objects.kind(kind)

        async def work(tx: store.Transaction) -> objects.AnyObject:
            record = await self._changes.hold(tx, known, ident, bay, "update")
            item = record.item
            name, spec = patches.patched(known, item, patch)
            if known.check is not None and spec != item.spec:
                engine = await self._changes.engine(tx, item)
                if engine == "kubernetes" and known.name == "container":
                    raise errors.NotSupported("Kubernetes changes nothing of a container that it has: make another")
                known.check(spec, engine)
            if known.check_in is not None and item.bay_uuid:
                known.check_in(spec, (await tx.find(objects.KINDS["bay"], item.bay_uuid)).item.spec)
            await quotas.check(tx, self.conf, item.project_id, known, spec, item.spec)
            if known.name == "bay":
                spec = await self._resized(tx, item, spec)
            if known.name == "service":
                item.spec, before = spec, item.spec
                await services.claim(tx, self.conf, item, before)
                spec = item.spec
            item.name, item.spec = name, spec
            await self._changes.intend(tx, known, record, "update")
            return item  # type: ignore[no-any-return]

        return await self.store.write(context, work)

    async def _resized(self, tx: store.Transaction, item: bay.Bay, spec: bay.BaySpec) -> bay.BaySpec:
        """Return ``spec`` with the members that it is to have. Raises NoHostFits, Conflict."""
        if item.spec.cluster is None:
            return await scheduler.resize(tx, item, spec)
        await takeover.resize(tx, item, spec)
        return spec

    async def act(
        self, context: contexts.Context, kind: str, ident: str, bay: str | None, action: str
    ) -> objects.AnyObject:
        known = objects.kind(kind)

        async def work(tx: store.Transaction) -> objects.AnyObject:
            record = await self._changes.hold(tx, known, ident, bay, action)
            if known.act is None:
                raise errors.NotFound(f"a {known.name} has no action {action!r}")
            if record.lost:
                raise errors.Conflict(f"cannot {action}: host {record.item.host} is down", status=store.UNKNOWN)
            known.act(record.item, action, await self._changes.engine(tx, record.item))
            await self._changes.intend(tx, known, record, action)
            return record.item  # type: ignore[no-any-return]

        return await self.store.write(context, work)

    async def delete(
        self, context: contexts.Context, kind: str, ident: str, bay: str | None = None, keep: bool = False
    ) -> objects.AnyObject | None:
        known = objects.kind(kind)

        async def work(tx: store.Transaction) -> objects.AnyObject | None:
            try:
                record = await self._changes.hold(tx, known, ident, bay, "delete")
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
                await self._changes.empty(tx, item)
            if known.name == "rc" and item.host is not None:
                item.spec.keep_pods = keep
            elif known.name == "rc":
                await replication.release(tx, item, keep, self._changes.doom)
            await self._changes.doom(tx, known, record, nudged=False)
            return item  # type: ignore[no-any-return]

        return await self.store.write(context, work)

    async def settle(self, context: contexts.Context, request_id: str, verb: str) -> objects.AnyObject:
        return await self._operations.settle(context, request_id, verb)

    # what backends tell

    async def report(self, context: contexts.Context, reports: list[base.Report]) -> list[objects.AnyObject | None]:
        return await self._reports.report(context, reports)

    async def found(self, context: contexts.Context, items: list[objects.AnyObject]) -> list[objects.AnyObject]:
        return await self._reports.found(context, items)

    async def wanted(self, context: contexts.Context, uuids: list[str] | None = None) -> list[objects.AnyObject]:
        return await self._reports.wanted(context, uuids)

    async def judge(self, context: contexts.Context, uuids: list[str]) -> dict[str, str]:
        return await self._reports.judge(context, uuids)

    async def beat(self, context: contexts.Context, beat: host.Beat) -> int:
        return await self._hosts.beat(context, beat)

    # what there is

    async def hosts(self, context: contexts.Context, ident: str | None = None) -> list[host.Host]:
        return await self._hosts.machines(context, ident)

    async def programs(self, context: contexts.Context) -> list[host.Program]:
        return await self._hosts.programs(context)

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
