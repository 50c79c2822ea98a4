"""What the conductor does to the database, in the vocabulary's words.

A ``Store`` runs functions in short transactions and repeats those that met
another one (deadlock, serialization, a taken key). Within one, a
``Transaction`` reads and writes objects of any kind; everything a tenant could
ask for goes through ``_visible``, the one place where the project's filter is
put. Rows of the log are written last, under a lock of the revision's counter, so
revisions are in the order of commits and no gap is filled later.

Who calls: ``conductor``.
"""

import asyncio
import collections.abc
import contextlib
import datetime
import functools
import random
from typing import Any, TypeVar

import msgspec
import sqlalchemy as sa
import structlog
from sqlalchemy.ext import asyncio as sa_asyncio

from magnum import context as contexts
from magnum import errors, metrics, objects
from magnum.db import tables
from magnum.objects import base, host

LOG = structlog.get_logger(__name__)

ATTEMPTS = 30
"""Tries of a transaction that keeps meeting others."""
DRIVERS = {
    "postgresql": "postgresql+asyncpg", "postgres": "postgresql+asyncpg", "mysql": "mysql+asyncmy",
    "mariadb": "mysql+asyncmy", "sqlite": "sqlite+aiosqlite",
}  # fmt: skip
UNKNOWN = "Unknown"

T = TypeVar("T")

_encode = msgspec.json.encode
_FIELDS = tuple(f for f in base.Object.__struct_fields__)
_SPECS = {name: msgspec.json.Decoder(kind.spec).decode for name, kind in objects.KINDS.items()}
_STATES = {name: msgspec.json.Decoder(kind.state).decode for name, kind in objects.KINDS.items()}
_FACTS = msgspec.json.Decoder(host.Facts).decode
_EVENT = tuple(f for f in base.Event.__struct_fields__)

_SHARED = {tables.KINDS[name] for name, kind in objects.KINDS.items() if "public" in kind.spec.__struct_fields__}
"""The tables of what its owner may make public."""
_DOWN = sa.select(tables.HOSTS.c.name).where(tables.HOSTS.c.status == "down")


class Record(msgspec.Struct, kw_only=True):
    """An object as its row has it, with what the row alone knows.

    ``lost``: its host is down. ``action``: of the operation in progress or last.
    """

    item: Any
    seq: int = 0
    lost: bool = False
    action: str = ""

    def shown(self) -> Any:
        """Return the object as readers see it: what is on a host that is down is of unknown status."""
        if not self.lost or self.item.deleting:
            return self.item
        return msgspec.structs.replace(
            self.item, status=UNKNOWN, status_reason=f"host {self.item.host} is down; last seen {self.item.status}"
        )


class Share(base.Placement, kw_only=True):
    """A placement as its row has it."""

    uuid: str
    kind: str
    seq: int = 0
    deleting: bool = False


class Usage(msgspec.Struct, kw_only=True):
    """What is placed on a host, or taken by a project: number of objects, cores, bytes, nodes."""

    count: int = 0
    cpus: float = 0.0
    memory: int = 0
    nodes: int = 0


class Count(msgspec.Struct, kw_only=True):
    """What a transaction that holds a project's lock counted: its own limits, and resource → what is taken, once asked for."""

    limits: dict[str, int]
    used: dict[str, float] | None = None


def connect(url: str, *, pool_size: int = 10, max_overflow: int = 20) -> sa_asyncio.AsyncEngine:
    """Return an engine for ``url`` (``postgresql://``, ``mysql://``, ``sqlite:///``); nothing is opened yet.

    Raises Invalid for any other.
    """
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise errors.Invalid("is no database URL", field="connection") from None
    name = parsed.drivername.partition("+")[0]
    if name not in DRIVERS:
        raise errors.Invalid(f"{name}:// is no database here; postgresql, mysql and sqlite are", field="connection")
    parsed = parsed.set(drivername=DRIVERS[name])
    if name == "sqlite":
        engine = sa_asyncio.create_async_engine(parsed, pool_size=pool_size, max_overflow=max_overflow)
        sa.event.listen(engine.sync_engine, "connect", _prepare_sqlite)
        sa.event.listen(engine.sync_engine, "begin", _begin_sqlite)
        return engine
    options: dict[str, Any] = {"pool_size": pool_size, "max_overflow": max_overflow, "pool_recycle": 3600}
    return sa_asyncio.create_async_engine(parsed, isolation_level="READ COMMITTED", **options)


def _prepare_sqlite(connection: Any, record: Any) -> None:
    # the driver is not to begin transactions by itself: _begin_sqlite says which kind
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "busy_timeout=20000", "synchronous=FULL", "cache_size=-8000"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("magnum_writes", True)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _cause(error: sa.exc.DBAPIError) -> tuple[str, int]:
    """Return the driver's (SQLSTATE, number) as far as it has them."""
    original: Any = error.orig
    number = original.args[0] if original is not None and original.args else 0
    return str(getattr(original, "sqlstate", "") or ""), number if isinstance(number, int) else 0


def met_another(error: sa.exc.DBAPIError) -> bool:
    """Return whether the transaction is worth repeating: it lost against another one."""
    state, number = _cause(error)
    if isinstance(error, sa.exc.IntegrityError):
        return True
    return (
        state in ("40001", "40P01", "55P03") or number in (1213, 1205, 1020) or "database is locked" in str(error.orig)
    )


def _ours(error: Exception) -> errors.MagnumError:
    if isinstance(error, sa.exc.DBAPIError):
        state, number = _cause(error)
        if state == "42P01" or number == 1146 or "no such table" in str(error.orig):
            return errors.Unavailable("the database lacks this version's tables: run magnum-manage db upgrade")
        if met_another(error):
            return errors.Conflict("others keep changing the same; try again")
    # without the SQL and its values, which are not the asker's business
    words = str(getattr(error, "orig", None) or error).splitlines() or [type(error).__name__]
    return errors.Unavailable(f"the database does not answer: {words[0]}")


class Store:
    """The database. ``committed`` is called with each transaction that wrote, after its commit."""

    def __init__(
        self, engine: sa_asyncio.AsyncEngine, committed: collections.abc.Callable[["Transaction"], None] | None = None
    ) -> None:
        self.engine = engine
        self.dialect = engine.dialect.name
        self._committed = committed
        # SQLite has one writer; queueing here is fair and does not poll as its own lock does
        self._turn: contextlib.AbstractAsyncContextManager[Any] = (
            asyncio.Lock() if self.dialect == "sqlite" else contextlib.nullcontext()
        )
        # a reader needs no transaction on PostgreSQL, which saves two trips
        self._reader = engine.execution_options(
            **({"isolation_level": "AUTOCOMMIT"} if self.dialect == "postgresql" else {"magnum_writes": False})
        )
        self._writes: set[asyncio.Task[Any]] = set()

    async def close(self) -> None:
        """Finish the transactions in hand and disconnect."""
        if self._writes:
            await asyncio.wait(self._writes)
        await self.engine.dispose()

    async def read(
        self, context: contexts.Context, work: collections.abc.Callable[["Transaction"], collections.abc.Awaitable[T]]
    ) -> T:
        """Return what ``work`` reads. Raises Unavailable."""
        with metrics.timed(metrics.TRANSACTIONS, "read"):
            return await self._read(context, work)

    async def _read(
        self, context: contexts.Context, work: collections.abc.Callable[["Transaction"], collections.abc.Awaitable[T]]
    ) -> T:
        for attempt in range(2):
            try:
                async with self._reader.connect() as connection:
                    return await work(Transaction(context, connection))
            except sa.exc.DBAPIError as error:
                if error.connection_invalidated and not attempt:
                    continue
                raise _ours(error) from error
            except (sa.exc.TimeoutError, OSError) as error:
                raise _ours(error) from error
        raise AssertionError("unreachable")

    async def write(
        self, context: contexts.Context, work: collections.abc.Callable[["Transaction"], collections.abc.Awaitable[T]]
    ) -> T:
        """Return what ``work`` does in one transaction; it may run several times. Raises Unavailable, Conflict.

        The caller may go away: what was begun is finished all the same.
        """
        task = asyncio.ensure_future(self._write(context, work))
        self._writes.add(task)
        task.add_done_callback(self._written)
        with metrics.timed(metrics.TRANSACTIONS, "write"):
            return await asyncio.shield(task)

    def _written(self, task: asyncio.Task[Any]) -> None:
        self._writes.discard(task)
        if not task.cancelled():
            task.exception()

    async def _write(
        self, context: contexts.Context, work: collections.abc.Callable[["Transaction"], collections.abc.Awaitable[T]]
    ) -> T:
        for attempt in range(ATTEMPTS):
            committing = False
            try:
                async with self._turn, self.engine.connect() as connection, connection.begin() as transaction:
                    tx = Transaction(context, connection)
                    result = await work(tx)
                    await tx.write_log()
                    committing = True
                    await transaction.commit()
                if self._committed is not None:
                    self._committed(tx)
                return result
            except sa.exc.DBAPIError as error:
                # a connection lost at the commit leaves open whether it happened: the caller has to look
                again = met_another(error) or (error.connection_invalidated and not committing and attempt < 2)
                if not again or attempt == ATTEMPTS - 1:
                    raise _ours(error) from error
                metrics.REPEATS.inc()
                await asyncio.sleep(random.uniform(0, min(0.005 * 2**attempt, 0.5)))  # noqa: S311
            except (sa.exc.TimeoutError, OSError) as error:
                raise _ours(error) from error
        raise AssertionError("unreachable")


class Transaction:
    """What one transaction sees and writes. ``events`` and ``kicks`` (host → uuids) are for after the commit.

    ``context``: in whose name; it may change between two objects. ``counted``: project → what ``quotas`` counted of it.
    """

    def __init__(self, context: contexts.Context, connection: sa_asyncio.AsyncConnection) -> None:
        self.context = context
        self.connection = connection
        self.events: list[base.Event] = []
        self.kicks: dict[str, set[str]] = {}
        self.counted: dict[str, Count] = {}

    # objects

    def _visible(self, table: sa.Table, *, lock: str | None = None) -> sa.ColumnElement[bool]:
        return _visible(table, self.context.project_id, self.context.all_projects, lock)

    async def records(
        self, kind: base.Kind, *where: Any, lock: str | None = None, order: Any = None, limit: int | None = None
    ) -> list[Record]:
        """Return the visible objects of ``kind`` for which ``where`` (on ``tables.KINDS``) holds.

        ``lock``: ``write`` or ``share`` keeps their rows until the commit;
        ``free`` does so with those that nobody holds, and leaves out the rest.
        """
        table = tables.KINDS[kind.name]
        statement = _select(table).where(self._visible(table, lock=lock), *where)
        if order is not None:
            statement = statement.order_by(*order)
        if limit is not None:
            statement = statement.limit(limit)
        return [_record(kind, row) for row in await self.connection.execute(_locked(statement, lock))]

    async def find(self, kind: base.Kind, ident: str, bay: str | None = None, *, lock: str | None = None) -> Record:
        """Return the visible object that ``ident`` (uuid or name) means, within a bay if one is given (a uuid).

        Raises NotFound, Ambiguous.
        """
        found = await self._named(kind, "uuid" if base.is_uuid(ident) else "name", ident, bay, lock)
        if not found:
            raise errors.NotFound(f"there is no {kind.name} {ident!r}")
        if len(found) > 1:
            uuids = [r.item.uuid for r in found]
            raise errors.Ambiguous(
                f"{len(found)} {kind.plural} have the name {ident!r}: {', '.join(uuids)}", uuids=uuids
            )
        return found[0]

    async def by_uuid(self, kind: base.Kind, uuid: str, *, lock: str | None = None) -> Record | None:
        """Return the visible object of that uuid, or None."""
        found = await self._named(kind, "uuid", uuid, None, lock)
        return found[0] if found else None

    async def held(self, kind: base.Kind, uuids: collections.abc.Collection[str]) -> dict[str, Record]:
        """Return uuid → visible object of those of ``uuids`` that are there, kept until the commit."""
        if not uuids:
            return {}
        statement = _held(tables.KINDS[kind.name], self.context.all_projects)
        values = {"uuids": list(uuids), "project": self.context.project_id}
        found = [_record(kind, row) for row in await self.connection.execute(statement, values)]
        return {record.item.uuid: record for record in found}

    async def _named(self, kind: base.Kind, column: str, ident: str, bay: str | None, lock: str | None) -> list[Record]:
        statement = _named(tables.KINDS[kind.name], column, bay is not None, self.context.all_projects, lock)
        values = {"ident": ident, "project": self.context.project_id, "bay": bay}
        return [_record(kind, row) for row in await self.connection.execute(statement, values)]

    async def page(self, kind: base.Kind, query: base.Query) -> tuple[list[Any], bool]:
        """Return a page as readers see it, and whether more follows. ``query.bay`` is a uuid. Two statements at most.

        Raises Invalid.
        """
        table = tables.KINDS[kind.name]
        if query.sort_key not in base.Query.SORT_KEYS:
            raise errors.Invalid(f"must be one of {', '.join(base.Query.SORT_KEYS)}", field="sort_key")
        if query.sort_dir not in ("asc", "desc"):
            raise errors.Invalid("must be asc or desc", field="sort_dir")
        if query.limit < 1:
            raise errors.Invalid("must be at least 1", field="limit")
        for name in query.filters:
            if name not in FILTERS and name not in kind.filters:
                raise errors.Invalid(f"a list of {kind.plural} has no such filter", field=name)
        statement = _page(
            table, query.sort_key, query.sort_dir, query.bay is not None, tuple(query.filters), self.context.all_projects
        )  # fmt: skip
        if query.marker is not None:
            statement = statement.where(await self._after(kind, query, _sort_key(table, query.sort_key)))
        values = {"project": self.context.project_id, "bay": query.bay, "most": query.limit + 1}
        values |= {f"filter_{name}": value for name, value in query.filters.items()}
        found = [_record(kind, row).shown() for row in await self.connection.execute(statement, values)]
        return found[: query.limit], len(found) > query.limit

    async def _after(self, kind: base.Kind, query: base.Query, key: Any) -> Any:
        table = tables.KINDS[kind.name]
        marker = query.marker or ""
        same = table.c.uuid == marker if base.is_uuid(marker) else table.c.name == marker
        found = (await self.connection.execute(sa.select(key, table.c.uuid).where(self._visible(table), same))).all()
        if len(found) != 1:
            raise errors.Invalid(f"{marker!r} is not on the list", field="marker")
        value, uuid = found[0]
        if query.sort_dir == "asc":
            return sa.or_(key > value, sa.and_(key == value, table.c.uuid > uuid))
        return sa.or_(key < value, sa.and_(key == value, table.c.uuid < uuid))

    async def insert(self, kind: base.Kind, record: Record) -> None:
        """Write a new object, and claim what it alone may hold of its host."""
        record.item.created_at = record.item.created_at or base.now()
        await self.connection.execute(_insert(tables.KINDS[kind.name]), _values(kind, record))
        for protocol, port in kind.demand(record.item.spec).ports if record.item.host else ():
            await self.claim(f"port:{record.item.host}", f"{protocol}/{port}", record.item.uuid)

    async def save(self, kind: base.Kind, *records: Record) -> None:
        """Write objects that were read with ``lock="write"``."""
        for record in records:
            record.item.updated_at = base.now()
        rows = [_values(kind, record) | {"of_uuid": record.item.uuid} for record in records]
        if rows:
            await self.connection.execute(_update(tables.KINDS[kind.name]), rows)

    async def saw(self, kind: base.Kind, records: collections.abc.Iterable[Record]) -> None:
        """Keep the sequences of reports that changed nothing else."""
        rows = [{"of_uuid": record.item.uuid, "observed_seq": record.seq} for record in records]
        if rows:
            await self.connection.execute(_update(tables.KINDS[kind.name]), rows)

    async def drop(self, kind: base.Kind, uuid: str) -> None:
        """Remove an object with all that hangs on its uuid."""
        # what was counted is less now
        self.counted.clear()
        hangs = (tables.CLAIMS, tables.PLACEMENTS) if kind.spread == "members" else (tables.CLAIMS,)
        for table in (tables.KINDS[kind.name], *hangs):
            await self.connection.execute(_drop(table), {"of_uuid": uuid})

    async def known(self, uuids: collections.abc.Collection[str]) -> dict[str, tuple[str, str | None]]:
        """Return uuid → (kind, host) of those of ``uuids`` that any project has, of whatever kind."""
        return await self._everywhere(lambda t: t.c.uuid.in_(uuids))

    async def of_operation(self, request_id: str) -> dict[str, tuple[str, str | None]]:
        """Return uuid → (kind, host) of the visible objects that a request's operation is in progress on."""
        return await self._everywhere(lambda t: sa.and_(t.c.operation == request_id, self._visible(t, lock="write")))

    async def stuck(self, before: datetime.datetime) -> dict[str, tuple[str, str | None]]:
        """Return uuid → (kind, host) of objects whose operation nobody has reported on since ``before``."""
        return await self._everywhere(
            lambda t: sa.and_(t.c.operation.is_not(None), sa.func.coalesce(t.c.updated_at, t.c.created_at) < before)
        )

    async def late(self, at: datetime.datetime) -> dict[str, tuple[str, str | None]]:
        """Return uuid → (kind, host) of objects whose operation should have ended before ``at``."""
        return await self._everywhere(lambda t: t.c.operation_deadline < at)

    async def _everywhere(self, where: collections.abc.Callable[[sa.Table], Any]) -> dict[str, tuple[str, str | None]]:
        parts = [sa.select(sa.literal(n), t.c.uuid, t.c.host).where(where(t)) for n, t in tables.KINDS.items()]
        return {u: (k, h) for k, u, h in await self.connection.execute(sa.union_all(*parts))}

    async def count(self, kind: base.Kind, *where: Any) -> int:
        """Return how many objects of ``kind``, of any project, ``where`` holds for."""
        statement = sa.select(sa.func.count()).select_from(tables.KINDS[kind.name]).where(*where)
        return int((await self.connection.execute(statement)).scalar_one())

    async def counts(self) -> tuple[dict[tuple[str, str], int], dict[str, int], dict[str, int]]:
        """Return how much there is of all projects: (kind, status) → objects, kind → changes in progress, status → hosts."""
        parts = [
            sa.select(sa.literal(name), t.c.status, sa.func.count(), sa.func.count(t.c.operation)).group_by(t.c.status)
            for name, t in tables.KINDS.items()
        ]  # fmt: skip
        found, busy = {}, dict.fromkeys(tables.KINDS, 0)
        for kind, status, number, operations in await self.connection.execute(sa.union_all(*parts)):
            found[kind, status] = number
            busy[kind] += operations
        table = tables.HOSTS
        rows = await self.connection.execute(sa.select(table.c.status, sa.func.count()).group_by(table.c.status))
        return found, busy, {row.status: row[1] for row in rows}

    async def oldest_operation(self) -> datetime.datetime | None:
        """Return when the change was last touched that has been in progress for longest, None if there is none."""
        times = [
            sa.select(sa.func.min(sa.func.coalesce(t.c.updated_at, t.c.created_at)).label("at"))
            .where(t.c.operation.is_not(None))
            for t in tables.KINDS.values()
        ]  # fmt: skip
        rows = [row.at for row in await self.connection.execute(sa.union_all(*times)) if row.at is not None]
        return min(rows, default=None)

    # shares of hosts

    async def shares(self, uuids: collections.abc.Collection[str], *, lock: bool = False) -> dict[str, list[Share]]:
        """Return the placements of objects, by uuid, in order of hosts."""
        found: dict[str, list[Share]] = {uuid: [] for uuid in uuids}
        for row in await self.connection.execute(_SHARES_HELD if lock else _SHARES, {"uuids": list(uuids)}):
            found[row.uuid].append(_share(row))
        return found

    async def place(self, kind: base.Kind, uuid: str, names: collections.abc.Iterable[str]) -> None:
        """Give an object a share of each of the hosts ``names``."""
        rows = [
            {"uuid": uuid, "host": name, "kind": kind.name, "generation": 0, "status": "", "reason": None,
             "state": "{}", "observed_seq": 0, "deleting": False}
            for name in names
        ]  # fmt: skip
        if rows:
            await self.connection.execute(sa.insert(tables.PLACEMENTS), rows)

    async def save_share(self, share: Share) -> None:
        table = tables.PLACEMENTS
        await self.connection.execute(
            sa.update(table)
            .where(table.c.uuid == share.uuid, table.c.host == share.host)
            .values(
                generation=share.generation, status=share.status, reason=share.reason,
                state=_encode(share.state).decode(), observed_seq=share.seq, deleting=share.deleting,
            )
        )  # fmt: skip

    async def drop_share(self, share: Share) -> None:
        table = tables.PLACEMENTS
        await self.connection.execute(sa.delete(table).where(table.c.uuid == share.uuid, table.c.host == share.host))

    async def on_host(self, name: str, uuids: collections.abc.Collection[str] | None = None) -> list[Record]:
        """Return every object (of ``uuids``) that lives, or has a share, on a host; a share that is to go reads as deleting."""
        found: list[Record] = []
        table = tables.PLACEMENTS
        which = sa.select(table).where(table.c.host == name)
        if uuids is not None:
            which = which.where(table.c.uuid.in_(uuids))
        shares = [_share(r) for r in await self.connection.execute(which)]
        going = {s.uuid for s in shares if s.deleting}
        for kind in objects.KINDS.values():
            objects_table = tables.KINDS[kind.name]
            here = objects_table.c.host == name
            if kind.spread == "members":
                here = sa.or_(here, objects_table.c.uuid.in_([s.uuid for s in shares if s.kind == kind.name]))
            if uuids is not None:
                here = sa.and_(here, objects_table.c.uuid.in_(uuids))
            found += await self.records(kind, here)
        for record in found:
            record.item.deleting = record.item.deleting or record.item.uuid in going
        return found

    # claims

    async def claim(self, scope: str, value: str, uuid: str) -> None:
        """Take ``value`` of ``scope`` for an object; taken meanwhile by another, the transaction is repeated."""
        await self.connection.execute(sa.insert(tables.CLAIMS).values(scope=scope, value=value, uuid=uuid))

    async def claims(self, scopes: collections.abc.Collection[str]) -> dict[str, dict[str, str]]:
        """Return scope → value → uuid of what is taken."""
        table = tables.CLAIMS
        found: dict[str, dict[str, str]] = {scope: {} for scope in scopes}
        for row in await self.connection.execute(sa.select(table).where(table.c.scope.in_(scopes))):
            found[row.scope][row.value] = row.uuid
        return found

    async def release(self, uuid: str, scope: str, value: str) -> None:
        table = tables.CLAIMS
        await self.connection.execute(
            sa.delete(table).where(table.c.scope == scope, table.c.value == value, table.c.uuid == uuid)
        )

    # hosts and programs

    async def now(self) -> datetime.datetime:
        """Return the database's time."""
        value: datetime.datetime = (await self.connection.execute(sa.select(tables.clock()))).scalar_one()
        return value

    async def hosts(self, *where: Any, lock: bool = False) -> list[host.Host]:
        """Return hosts, in order of names."""
        statement = sa.select(tables.HOSTS).where(*where).order_by(tables.HOSTS.c.name)
        rows = await self.connection.execute(statement.with_for_update() if lock else statement)
        return [_host(row) for row in rows]

    async def hosts_named(self, names: collections.abc.Collection[str], *, lock: bool = False) -> dict[str, host.Host]:
        """Return name → host of those of ``names`` that are known, held in order of names if ``lock``."""
        rows = await self.connection.execute(_HOSTS_HELD if lock else _HOSTS, {"names": list(names)})
        return {row.name: _host(row) for row in rows}

    async def save_host(self, machine: host.Host, *, down: bool = False) -> None:
        """Write a host, new or known, as just seen (``down``: as just found missing)."""
        table = tables.HOSTS
        machine.updated_at = base.now()
        values = _told(machine)
        values |= {"down_at": tables.clock()} if down else {"last_seen_at": tables.clock()}
        if machine.created_at is None:
            machine.created_at = machine.updated_at
            values |= {"uuid": machine.uuid, "name": machine.name, "created_at": machine.created_at}
            await self.connection.execute(sa.insert(table).values(values))
        else:
            await self.connection.execute(sa.update(table).where(table.c.name == machine.name).values(values))

    async def silent(self, seconds: float) -> list[host.Host]:
        """Return the hosts that are up but were not seen for so long; their rows stay held."""
        since = await self.now() - datetime.timedelta(seconds=seconds)
        return await self.hosts(tables.HOSTS.c.status == "up", tables.HOSTS.c.last_seen_at < since, lock=True)

    async def gone_for(self, seconds: float) -> set[str]:
        """Return the names of hosts that have been down for longer than that."""
        since = await self.now() - datetime.timedelta(seconds=seconds)
        table = tables.HOSTS
        rows = await self.connection.execute(
            sa.select(table.c.name).where(table.c.status == "down", table.c.down_at < since)
        )
        return {row.name for row in rows}

    async def saw_hosts(self, machines: list[host.Host]) -> None:
        """Write hosts whose rows are held, as just seen."""
        for machine in machines:
            machine.updated_at = base.now()
        if machines:
            await self.connection.execute(
                _SAW_HOST, [_told(machine) | {"of_name": machine.name} for machine in machines]
            )

    async def saw_programs(self, seen: set[tuple[str, str]]) -> None:
        """Keep a sign of life of programs: (binary, host)."""
        table = tables.PROGRAMS
        for binary in sorted({binary for binary, _ in seen}):
            machines = [machine for name, machine in seen if name == binary]
            values = {"of_binary": binary, "names": machines, "at": base.now()}
            if (await self.connection.execute(_SAW_PROGRAMS, values)).rowcount == len(machines):
                continue
            rows = await self.connection.execute(
                sa.select(table.c.host).where(table.c.binary == binary, table.c.host.in_(machines))
            )
            for machine in sorted(set(machines) - {row.host for row in rows}):
                await self.connection.execute(
                    sa.insert(table).values(
                        host=machine, binary=binary, report_count=1, disabled=False, last_seen_at=tables.clock(),
                        created_at=base.now(),
                    )
                )  # fmt: skip

    async def programs(self, alive: float) -> list[host.Program]:
        """Return every program that ever beat; ``up`` if it did within ``alive`` seconds."""
        since = await self.now() - datetime.timedelta(seconds=alive)
        table = tables.PROGRAMS
        return [
            host.Program(
                id=row.id, host=row.host, binary=row.binary, report_count=row.report_count, disabled=row.disabled,
                disabled_reason=row.disabled_reason, last_seen_up=row.last_seen_at, created_at=row.created_at,
                updated_at=row.updated_at,
                state="up" if row.last_seen_at is not None and row.last_seen_at >= since else "down",
            )
            for row in await self.connection.execute(sa.select(table).order_by(table.c.id))
        ]  # fmt: skip

    async def placed(self, names: collections.abc.Collection[str]) -> dict[str, Usage]:
        """Return what is placed on hosts: objects that live on one host, bays' shares in ``nodes``."""
        found = {name: Usage() for name in names}
        for name, count, cpus, memory, nodes in await self.connection.execute(_PLACED, {"names": list(names)}):
            usage = found[name]
            usage.count += count
            usage.cpus += float(cpus)
            usage.memory += int(memory)
            usage.nodes += nodes
        return found

    # quotas

    async def lock_project(self, project: str) -> None:
        """Hold what a project's quota is counted under until the commit."""
        if (await self.connection.execute(_PROJECT, {"project": project})).first() is None:
            # two that insert at once: one waits, fails on the key and is repeated
            await self.connection.execute(_insert(tables.PROJECTS), {"project_id": project})

    async def limits(self, project: str) -> dict[str, int]:
        """Return the project's own limits, by resource."""
        rows = await self.connection.execute(_LIMITS, {"project": project})
        return {row.resource: row.hard_limit for row in rows}

    async def all_limits(self) -> dict[str, dict[str, int]]:
        """Return project → resource → limit, of the projects that have limits of their own."""
        table = tables.QUOTAS
        found: dict[str, dict[str, int]] = {}
        rows = await self.connection.execute(sa.select(table.c.project_id, table.c.resource, table.c.hard_limit))
        for row in rows:
            found.setdefault(row.project_id, {})[row.resource] = row.hard_limit
        return found

    async def set_limits(self, project: str, limits: dict[str, int | None]) -> None:
        """Give a project limits of its own; None takes one back."""
        table = tables.QUOTAS
        for resource, limit in limits.items():
            mine = sa.and_(table.c.project_id == project, table.c.resource == resource)
            if limit is None:
                await self.connection.execute(sa.delete(table).where(mine))
                continue
            values = {"hard_limit": limit, "updated_at": base.now()}
            if not (await self.connection.execute(sa.update(table).where(mine).values(values))).rowcount:
                await self.connection.execute(
                    sa.insert(table).values(
                        project_id=project, resource=resource, hard_limit=limit, created_at=base.now()
                    )
                )

    async def taken(self, project: str) -> dict[str, Usage]:
        """Return kind → what the project's objects take."""
        return {
            name: Usage(count=count, cpus=float(cpus), memory=int(memory), nodes=int(nodes))
            for name, count, cpus, memory, nodes in await self.connection.execute(_TAKEN, {"project": project})
        }

    # the log

    def note(
        self,
        kind: base.Kind,
        item: Any,
        step: str,
        *,
        action: str = "",
        was: str = "",
        status: str | None = None,
        reason: str | None = None,
        request_id: str | None = None,
    ) -> None:
        """Add a row to the log; it is written with the transaction. ``status``: by default the object's own."""
        self.events.append(
            base.Event(
                revision=0, at=base.now(), project_id=item.project_id, object_kind=kind.name, uuid=item.uuid,
                name=item.name, bay_uuid=item.bay_uuid, host=item.host, generation=item.generation, action=action,
                step=step, from_status=was, to_status=item.status if status is None else status, reason=reason,
                user_id=self.context.user_id, request_id=self.context.request_id if request_id is None else request_id,
            )
        )  # fmt: skip

    def note_host(self, machine: host.Host, was: str) -> None:
        """Add a row to the log about a host, which is no project's."""
        self.events.append(
            base.Event(
                revision=0, at=base.now(), project_id="", object_kind="host", uuid=machine.uuid, name=machine.name,
                host=machine.name, step="observed", from_status=was, to_status=machine.status,
                reason=machine.status_reason, request_id=self.context.request_id,
            )
        )  # fmt: skip

    async def write_log(self) -> None:
        """Take revisions and write the rows; the last thing before the commit."""
        if not self.events:
            return
        number = len(self.events)
        if self.connection.dialect.name == "mysql":
            await self.connection.execute(_COUNT, {"number": number})
            last = await self.latest()
        else:
            last = int((await self.connection.execute(_COUNTED, {"number": number})).scalar_one())
        for offset, event in enumerate(self.events):
            event.revision = last - number + 1 + offset
        await self.connection.execute(_insert(tables.LOG), [msgspec.structs.asdict(e) for e in self.events])

    async def events_of(self, *where: Any, after: int = 0, limit: int = 1000, newest: bool = False) -> list[base.Event]:
        """Return visible rows of the log above revision ``after``, oldest first (``newest``: the other way)."""
        table = tables.LOG
        order = table.c.revision.desc() if newest else table.c.revision
        statement = sa.select(*(table.c[name] for name in _EVENT)).where(table.c.revision > after, *where)
        if not self.context.all_projects:
            statement = statement.where(table.c.project_id == self.context.project_id)
        rows = await self.connection.execute(statement.order_by(order).limit(limit))
        return [base.Event(**row._mapping) for row in rows]

    async def latest(self) -> int:
        """Return the highest revision of the log."""
        return int((await self.connection.execute(_LATEST)).scalar_one())

    async def logged(self, uuids: collections.abc.Collection[str]) -> set[str]:
        """Return those of ``uuids`` that the log knows."""
        rows = await self.connection.execute(_LOGGED, {"uuids": list(uuids)})
        return {row.uuid for row in rows}

    async def asked(self, kind: base.Kind, action: str) -> bool:
        """Return whether the request in hand has had ``action`` on an object of ``kind`` accepted before."""
        table = tables.LOG
        mine = (
            table.c.request_id == self.context.request_id, table.c.object_kind == kind.name,
            table.c.action == action, table.c.step == "accepted",
        )  # fmt: skip
        return bool(await self.events_of(*mine, limit=1))

    async def trim_log(self, before: datetime.datetime, limit: int = 1000) -> int:
        """Drop up to ``limit`` rows older than ``before``; return how many."""
        table = tables.LOG
        old = sa.select(table.c.revision).where(table.c.at < before).order_by(table.c.revision).limit(limit)
        revisions = [row.revision for row in await self.connection.execute(old)]
        if revisions:
            await self.connection.execute(sa.delete(table).where(table.c.revision.in_(revisions)))
        return len(revisions)


FILTERS = ("uuid", "name", "status", "host", "bay_uuid", "user_id", "project_id", "owner_uuid")
"""What any list may be filtered by."""


# Statements that are asked for often are made once: to make one, and its key in SQLAlchemy's cache of compiled ones,
# takes longer than to execute it.


def _visible(table: sa.Table, project: Any, everyone: bool, lock: str | None) -> sa.ColumnElement[bool]:
    """Return the filter that keeps ``project`` to what is its own; what is public may be read by all."""
    if everyone:
        return sa.true()
    own = table.c.project_id == project
    # only where it may be so: with an alternative, a page is not read in the order of the index
    return sa.or_(own, table.c.public.is_(True)) if table in _SHARED and lock != "write" else own


def _locked(statement: sa.Select[Any], lock: str | None) -> sa.Select[Any]:
    return statement.with_for_update(read=lock == "share", skip_locked=lock == "free") if lock else statement


MOST_NAMED = 51
"""Objects of one name that are told of, and one."""


@functools.cache
def _named(table: sa.Table, column: str, in_bay: bool, everyone: bool, lock: str | None) -> sa.Select[Any]:
    """Return the statement for what has ``ident`` in ``column``; parameters: ident, project, bay."""
    where = [_visible(table, sa.bindparam("project"), everyone, lock), table.c[column] == sa.bindparam("ident")]
    if in_bay:
        where.append(table.c.bay_uuid == sa.bindparam("bay"))
    return _locked(_select(table).where(*where).order_by(table.c.created_at, table.c.uuid).limit(MOST_NAMED), lock)


@functools.cache
def _page(
    table: sa.Table, sort_key: str, sort_dir: str, in_bay: bool, filters: tuple[str, ...], everyone: bool
) -> sa.Select[Any]:
    """Return the statement for the first page of a list; parameters: project, bay, most, ``filter_`` and a name."""
    where = [_visible(table, sa.bindparam("project"), everyone, None)]
    if in_bay:
        where.append(table.c.bay_uuid == sa.bindparam("bay"))
    for name in filters:
        column = _shown_status(table) if name == "status" else table.c[name]
        where.append(column == sa.bindparam(f"filter_{name}"))
    key = _sort_key(table, sort_key)
    order = (key, table.c.uuid) if sort_dir == "asc" else (key.desc(), table.c.uuid.desc())
    return _select(table).where(*where).order_by(*order).limit(sa.bindparam("most", type_=sa.Integer))


@functools.cache
def _held(table: sa.Table, everyone: bool) -> sa.Select[Any]:
    """Return the statement that holds rows, in order; parameters: uuids, project."""
    own = _visible(table, sa.bindparam("project"), everyone, "write")
    named = table.c.uuid.in_(sa.bindparam("uuids", expanding=True))
    return _locked(_select(table).where(own, named).order_by(table.c.uuid), "write")


@functools.cache
def _drop(table: sa.Table) -> sa.Delete:
    """Return the statement that removes what ``of_uuid`` has in a table."""
    return sa.delete(table).where(table.c.uuid == sa.bindparam("of_uuid"))


@functools.cache
def _insert(table: sa.Table) -> sa.Insert:
    """Return the statement for a new row; parameters: its columns."""
    return sa.insert(table)


@functools.cache
def _update(table: sa.Table) -> sa.Update:
    """Return the statement that changes the row of ``of_uuid``; further parameters: the columns to be set."""
    return sa.update(table).where(table.c.uuid == sa.bindparam("of_uuid"))


_HOSTS = (
    sa.select(tables.HOSTS)
    .where(tables.HOSTS.c.name.in_(sa.bindparam("names", expanding=True)))
    .order_by(tables.HOSTS.c.name)
)
_HOSTS_HELD = _HOSTS.with_for_update()
_SHARES = (
    sa.select(tables.PLACEMENTS)
    .where(tables.PLACEMENTS.c.uuid.in_(sa.bindparam("uuids", expanding=True)))
    .order_by(tables.PLACEMENTS.c.uuid, tables.PLACEMENTS.c.host)
)
_SHARES_HELD = _SHARES.with_for_update()
_PLACED = sa.union_all(
    *(
        sa.select(
            t.c.host, sa.func.count().label("n"), sa.func.sum(t.c.cpus).label("cpus"),
            sa.cast(sa.func.sum(t.c.memory), tables.BIG).label("memory"), sa.literal(0).label("nodes"),
        ).where(t.c.host.in_(sa.bindparam("names", expanding=True))).group_by(t.c.host)
        for name, t in tables.KINDS.items() if objects.KINDS[name].spread == "one"
    ),
    sa.select(
        tables.PLACEMENTS.c.host, sa.literal(0), sa.literal(0.0), sa.cast(sa.literal(0), tables.BIG), sa.func.count()
    )
    .where(tables.PLACEMENTS.c.host.in_(sa.bindparam("names", expanding=True)), tables.PLACEMENTS.c.kind == "bay")
    .group_by(tables.PLACEMENTS.c.host),
)  # fmt: skip
"""What is on the hosts ``names``: host, objects, cores, bytes, shares of bays."""
_PROJECT = (
    sa.select(tables.PROJECTS.c.project_id)
    .where(tables.PROJECTS.c.project_id == sa.bindparam("project"))
    .with_for_update()
)
_LIMITS = sa.select(tables.QUOTAS.c.resource, tables.QUOTAS.c.hard_limit).where(
    tables.QUOTAS.c.project_id == sa.bindparam("project")
)
_TAKEN = sa.union_all(
    *(
        sa.select(
            sa.literal(name), sa.func.count(), sa.func.coalesce(sa.func.sum(t.c.cpus), 0),
            sa.func.coalesce(sa.cast(sa.func.sum(t.c.memory), tables.BIG), 0),
            sa.func.coalesce(sa.cast(sa.func.sum(t.c.nodes), tables.BIG), 0),
        ).where(t.c.project_id == sa.bindparam("project"))
        for name, t in tables.KINDS.items()
    )
)  # fmt: skip
"""What the objects of ``project`` take: kind, objects, cores, bytes, nodes."""
_SAW_HOST = (
    sa.update(tables.HOSTS).where(tables.HOSTS.c.name == sa.bindparam("of_name")).values(last_seen_at=tables.clock())
)
"""Marks a host as seen; further parameters: the columns to be set."""
_SAW_PROGRAMS = (
    sa.update(tables.PROGRAMS)
    .where(
        tables.PROGRAMS.c.binary == sa.bindparam("of_binary"),
        tables.PROGRAMS.c.host.in_(sa.bindparam("names", expanding=True)),
    )
    .values(
        last_seen_at=tables.clock(), report_count=tables.PROGRAMS.c.report_count + 1,
        updated_at=sa.bindparam("at", type_=tables.TIME),
    )
)  # fmt: skip
_COUNT = (
    sa.update(tables.COUNTERS)
    .where(tables.COUNTERS.c.name == "revision")
    .values(value=tables.COUNTERS.c.value + sa.bindparam("number", type_=tables.BIG))
)
_COUNTED = _COUNT.returning(tables.COUNTERS.c.value)
_LATEST = sa.select(tables.COUNTERS.c.value).where(tables.COUNTERS.c.name == "revision")
_LOGGED = sa.select(tables.LOG.c.uuid).where(tables.LOG.c.uuid.in_(sa.bindparam("uuids", expanding=True))).distinct()


def _lost(table: sa.Table) -> Any:
    return sa.and_(table.c.host.is_not(None), table.c.host.in_(_DOWN))


def _shown_status(table: sa.Table) -> Any:
    return sa.case((sa.and_(table.c.deleting.is_(False), _lost(table)), UNKNOWN), else_=table.c.status)


def _sort_key(table: sa.Table, name: str) -> Any:
    if name == "status":
        return _shown_status(table)
    if name == "updated_at":
        return sa.func.coalesce(table.c.updated_at, table.c.created_at, type_=tables.TIME)
    return sa.func.coalesce(table.c[name], "") if table.c[name].nullable else table.c[name]


@functools.cache
def _select(table: sa.Table) -> sa.Select[Any]:
    return sa.select(
        *(table.c[name] for name in _FIELDS), table.c.spec, table.c.state, table.c.observed_seq, table.c.action,
        _lost(table).label("lost"),
    )  # fmt: skip


def _record(kind: base.Kind, row: Any) -> Record:
    *common, spec, state, seq, action, lost = row
    item = kind.cls(  # type: ignore[call-arg]
        **dict(zip(_FIELDS, common, strict=True)), spec=_SPECS[kind.name](spec), state=_STATES[kind.name](state)
    )
    return Record(item=item, seq=seq, lost=bool(lost), action=action)


def _values(kind: base.Kind, record: Record) -> dict[str, Any]:
    item = record.item
    demand = kind.demand(item.spec)
    return {
        **{name: getattr(item, name) for name in _FIELDS},
        "spec": _encode(item.spec).decode(),
        "state": _encode(item.state).decode(),
        "observed_seq": record.seq,
        "action": record.action,
        "owner_uuid": getattr(item.spec, kind.owner) if kind.owner else None,
        "public": bool(getattr(item.spec, "public", False)),
        "cpus": demand.cpus,
        "memory": demand.memory,
        "nodes": demand.nodes,
    }


def _share(row: Any) -> Share:
    return Share(
        uuid=row.uuid, host=row.host, kind=row.kind, generation=row.generation, status=row.status, reason=row.reason,
        state=msgspec.json.decode(row.state), seq=row.observed_seq, deleting=row.deleting,
    )  # fmt: skip


def _told(machine: host.Host) -> dict[str, Any]:
    """Return what changes of a host's row."""
    return {
        "status": machine.status, "status_reason": machine.status_reason, "disabled": machine.disabled,
        "epoch": machine.epoch, "facts": _encode(machine.facts).decode(), "updated_at": machine.updated_at,
    }  # fmt: skip


def _host(row: Any) -> host.Host:
    return host.Host(
        uuid=row.uuid, name=row.name, status=row.status, status_reason=row.status_reason, disabled=row.disabled,
        epoch=row.epoch, facts=_FACTS(row.facts), last_seen_at=row.last_seen_at, created_at=row.created_at,
        updated_at=row.updated_at,
    )  # fmt: skip
