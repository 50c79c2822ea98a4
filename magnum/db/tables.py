"""The tables: one a kind of object, all alike, and a few beside them.

Read by ``store`` and by the migrations' test; nothing else knows SQL. Columns
are those of ``objects.base.Object``; ``spec`` and ``state`` are JSON text. What
must be searched, summed or kept unique is copied out of the spec into columns
of its own (``owner_uuid``, ``public``, ``cpus``, ``memory``, ``nodes``), so no table
needs anything that another has not.
"""

import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql
from sqlalchemy.ext import compiler

from magnum import objects
from magnum.objects import base

METADATA = sa.MetaData()

_MYSQL: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}
"""Names are compared by code point, as the other two databases do here."""


def text(length: int) -> sa.types.TypeEngine[str]:
    """Return the type of a short text, ordered by code point on every database."""
    return sa.String(length).with_variant(postgresql.VARCHAR(length, collation="C"), "postgresql")


class _Naive(sa.types.TypeDecorator[datetime.datetime]):
    """A time where the database knows no zones: UTC goes in, aware UTC comes out, to the microsecond."""

    impl = sa.DateTime
    cache_ok = True

    def load_dialect_impl(self, dialect: sa.Dialect) -> sa.types.TypeEngine[Any]:
        if dialect.name == "mysql":
            return dialect.type_descriptor(mysql.DATETIME(fsp=6))
        return dialect.type_descriptor(sa.DateTime())

    def process_bind_param(self, value: datetime.datetime | None, dialect: sa.Dialect) -> datetime.datetime | None:
        return value.astimezone(datetime.UTC).replace(tzinfo=None) if value is not None else None

    def process_result_value(self, value: datetime.datetime | None, dialect: sa.Dialect) -> datetime.datetime | None:
        return value.replace(tzinfo=datetime.UTC) if value is not None else None


TIME = sa.DateTime(timezone=True).with_variant(_Naive(), "sqlite", "mysql")
LONG = sa.Text().with_variant(mysql.MEDIUMTEXT(), "mysql")
"""A manifest may have 256 KiB, which is more than MySQL's TEXT holds."""
BIG = sa.BigInteger()


class clock(sa.sql.expression.FunctionElement[datetime.datetime]):
    """The database's own time, so that conductors whose clocks differ agree on who is late."""

    type = TIME
    inherit_cache = True


@compiler.compiles(clock)
def _clock(element: clock, compiler: Any, **kwargs: Any) -> str:
    return "clock_timestamp()"


@compiler.compiles(clock, "mysql")
def _clock_mysql(element: clock, compiler: Any, **kwargs: Any) -> str:
    return "utc_timestamp(6)"


@compiler.compiles(clock, "sqlite")
def _clock_sqlite(element: clock, compiler: Any, **kwargs: Any) -> str:
    return "strftime('%Y-%m-%d %H:%M:%f000', 'now')"


def _kind(kind: base.Kind) -> sa.Table:
    name = kind.plural
    indexes: list[Any] = [
        sa.Index(f"ix_{name}_page", "project_id", "created_at", "uuid"),
        sa.Index(f"ix_{name}_bay_name", "bay_uuid", "name", unique=kind.unique_in_bay),
        *(sa.Index(f"ix_{name}_{c}", c) for c in ("name", "host", "status", "owner_uuid", "operation")),
        sa.Index(f"ix_{name}_deadline", "operation_deadline"),
    ]
    return sa.Table(
        name, METADATA,
        sa.Column("uuid", text(36), primary_key=True),
        sa.Column("project_id", text(255), nullable=False),
        sa.Column("user_id", text(255), nullable=False),
        sa.Column("name", text(255), nullable=False),
        sa.Column("bay_uuid", text(36)),
        sa.Column("host", text(255)),
        sa.Column("status", text(64), nullable=False),
        sa.Column("status_reason", LONG),
        sa.Column("generation", BIG, nullable=False),
        sa.Column("observed_generation", BIG, nullable=False),
        sa.Column("deleting", sa.Boolean, nullable=False),
        sa.Column("operation", text(255)),
        sa.Column("operation_deadline", TIME),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME),
        sa.Column("spec", LONG, nullable=False),
        sa.Column("state", LONG, nullable=False),
        sa.Column("observed_seq", BIG, nullable=False),
        sa.Column("action", text(64), nullable=False),
        sa.Column("owner_uuid", text(36)),
        sa.Column("public", sa.Boolean, nullable=False),
        sa.Column("cpus", sa.Double, nullable=False),
        sa.Column("memory", BIG, nullable=False),
        sa.Column("nodes", sa.Integer, nullable=False),
        *indexes, **_MYSQL,
    )  # fmt: skip


KINDS: dict[str, sa.Table] = {name: _kind(kind) for name, kind in objects.KINDS.items()}

PLACEMENTS = sa.Table(
    "placements", METADATA,
    sa.Column("uuid", text(36), primary_key=True),
    sa.Column("host", text(255), primary_key=True),
    sa.Column("kind", text(64), nullable=False),
    sa.Column("generation", BIG, nullable=False),
    sa.Column("status", text(64), nullable=False),
    sa.Column("reason", LONG),
    sa.Column("state", LONG, nullable=False),
    sa.Column("observed_seq", BIG, nullable=False),
    sa.Column("deleting", sa.Boolean, nullable=False),
    sa.Index("ix_placements_host", "host"), **_MYSQL,
)  # fmt: skip
"""A host's share of an object that lives on several."""

CLAIMS = sa.Table(
    "claims", METADATA,
    sa.Column("scope", text(255), primary_key=True),
    sa.Column("value", text(128), primary_key=True),
    sa.Column("uuid", text(36), nullable=False),
    sa.Index("ix_claims_uuid", "uuid"), **_MYSQL,
)  # fmt: skip
"""What only one object may hold: a port of a host, a virtual address. The primary key makes it exact."""

HOSTS = sa.Table(
    "hosts", METADATA,
    sa.Column("uuid", text(36), primary_key=True),
    sa.Column("name", text(255), nullable=False, unique=True),
    sa.Column("status", text(64), nullable=False),
    sa.Column("status_reason", LONG),
    sa.Column("disabled", sa.Boolean, nullable=False),
    sa.Column("epoch", BIG, nullable=False),
    sa.Column("facts", LONG, nullable=False),
    sa.Column("last_seen_at", TIME),
    sa.Column("down_at", TIME),
    sa.Column("created_at", TIME, nullable=False),
    sa.Column("updated_at", TIME), **_MYSQL,
)  # fmt: skip

PROGRAMS = sa.Table(
    "programs", METADATA,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("host", text(255), nullable=False),
    sa.Column("binary", text(64), nullable=False),
    sa.Column("report_count", BIG, nullable=False),
    sa.Column("disabled", sa.Boolean, nullable=False),
    sa.Column("disabled_reason", LONG),
    sa.Column("last_seen_at", TIME),
    sa.Column("created_at", TIME, nullable=False),
    sa.Column("updated_at", TIME),
    sa.UniqueConstraint("host", "binary", name="uq_programs_host_binary"), **_MYSQL,
)  # fmt: skip

LOG = sa.Table(
    "log", METADATA,
    sa.Column("revision", BIG, primary_key=True, autoincrement=False),
    sa.Column("at", TIME, nullable=False),
    sa.Column("project_id", text(255), nullable=False),
    sa.Column("object_kind", text(64), nullable=False),
    sa.Column("uuid", text(36), nullable=False),
    sa.Column("name", text(255), nullable=False),
    sa.Column("bay_uuid", text(36)),
    sa.Column("host", text(255)),
    sa.Column("generation", BIG, nullable=False),
    sa.Column("action", text(64), nullable=False),
    sa.Column("step", text(64), nullable=False),
    sa.Column("from_status", text(64), nullable=False),
    sa.Column("to_status", text(64), nullable=False),
    sa.Column("reason", LONG),
    sa.Column("user_id", text(255), nullable=False),
    sa.Column("request_id", text(255), nullable=False),
    sa.Index("ix_log_project", "project_id", "revision"),
    sa.Index("ix_log_uuid", "uuid", "revision"),
    sa.Index("ix_log_request", "request_id", "revision"),
    sa.Index("ix_log_at", "at"), **_MYSQL,
)  # fmt: skip
"""Append-only: rows are never changed, only dropped when they are old."""

COUNTERS = sa.Table(
    "counters", METADATA,
    sa.Column("name", text(64), primary_key=True),
    sa.Column("value", BIG, nullable=False), **_MYSQL,
)  # fmt: skip

PROJECTS = sa.Table(
    "projects", METADATA,
    sa.Column("project_id", text(255), primary_key=True), **_MYSQL,
)  # fmt: skip
"""A row a project, locked while its quota is counted and what it counts is written."""

QUOTAS = sa.Table(
    "quotas", METADATA,
    sa.Column("project_id", text(255), primary_key=True),
    sa.Column("resource", text(64), primary_key=True),
    sa.Column("hard_limit", BIG, nullable=False),
    sa.Column("created_at", TIME, nullable=False),
    sa.Column("updated_at", TIME), **_MYSQL,
)  # fmt: skip
"""Limits of a project that differ from the configuration's."""
