"""The first tables."""

from typing import Any

import sqlalchemy as sa
from alembic import op

from magnum.db import tables

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

MYSQL: dict[str, Any] = {"mysql_engine": "InnoDB", "mysql_charset": "utf8mb4", "mysql_collate": "utf8mb4_bin"}
TIME, LONG, text = tables.TIME, tables.LONG, tables.text


def _kind(name: str, *, unique_in_bay: bool) -> None:
    op.create_table(
        name,
        sa.Column("uuid", text(36), primary_key=True),
        sa.Column("project_id", text(255), nullable=False),
        sa.Column("user_id", text(255), nullable=False),
        sa.Column("name", text(255), nullable=False),
        sa.Column("bay_uuid", text(36)),
        sa.Column("host", text(255)),
        sa.Column("status", text(64), nullable=False),
        sa.Column("status_reason", LONG),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("observed_generation", sa.BigInteger, nullable=False),
        sa.Column("deleting", sa.Boolean, nullable=False),
        sa.Column("operation", text(255)),
        sa.Column("operation_deadline", TIME),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME),
        sa.Column("spec", LONG, nullable=False),
        sa.Column("state", LONG, nullable=False),
        sa.Column("observed_seq", sa.BigInteger, nullable=False),
        sa.Column("action", text(64), nullable=False),
        sa.Column("owner_uuid", text(36)),
        sa.Column("public", sa.Boolean, nullable=False),
        sa.Column("cpus", sa.Double, nullable=False),
        sa.Column("memory", sa.BigInteger, nullable=False),
        sa.Column("nodes", sa.Integer, nullable=False),
        **MYSQL,
    )
    op.create_index(f"ix_{name}_page", name, ["project_id", "created_at", "uuid"])
    op.create_index(f"ix_{name}_bay_name", name, ["bay_uuid", "name"], unique=unique_in_bay)
    for column in ("name", "host", "status", "owner_uuid", "operation"):
        op.create_index(f"ix_{name}_{column}", name, [column])
    op.create_index(f"ix_{name}_deadline", name, ["operation_deadline"])


def upgrade() -> None:
    for name in ("baymodels", "bays", "containers"):
        _kind(name, unique_in_bay=False)
    for name in ("pods", "services", "rcs"):
        _kind(name, unique_in_bay=True)
    op.create_table(
        "placements",
        sa.Column("uuid", text(36), primary_key=True),
        sa.Column("host", text(255), primary_key=True),
        sa.Column("kind", text(64), nullable=False),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("status", text(64), nullable=False),
        sa.Column("reason", LONG),
        sa.Column("state", LONG, nullable=False),
        sa.Column("observed_seq", sa.BigInteger, nullable=False),
        sa.Column("deleting", sa.Boolean, nullable=False),
        **MYSQL,
    )
    op.create_index("ix_placements_host", "placements", ["host"])
    op.create_table(
        "claims",
        sa.Column("scope", text(255), primary_key=True),
        sa.Column("value", text(128), primary_key=True),
        sa.Column("uuid", text(36), nullable=False),
        **MYSQL,
    )
    op.create_index("ix_claims_uuid", "claims", ["uuid"])
    op.create_table(
        "hosts",
        sa.Column("uuid", text(36), primary_key=True),
        sa.Column("name", text(255), nullable=False, unique=True),
        sa.Column("status", text(64), nullable=False),
        sa.Column("status_reason", LONG),
        sa.Column("disabled", sa.Boolean, nullable=False),
        sa.Column("epoch", sa.BigInteger, nullable=False),
        sa.Column("facts", LONG, nullable=False),
        sa.Column("last_seen_at", TIME),
        sa.Column("down_at", TIME),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME),
        **MYSQL,
    )
    op.create_table(
        "programs",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=True),
        sa.Column("host", text(255), nullable=False),
        sa.Column("binary", text(64), nullable=False),
        sa.Column("report_count", sa.BigInteger, nullable=False),
        sa.Column("disabled", sa.Boolean, nullable=False),
        sa.Column("disabled_reason", LONG),
        sa.Column("last_seen_at", TIME),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME),
        sa.UniqueConstraint("host", "binary", name="uq_programs_host_binary"),
        **MYSQL,
    )
    op.create_table(
        "log",
        sa.Column("revision", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("at", TIME, nullable=False),
        sa.Column("project_id", text(255), nullable=False),
        sa.Column("object_kind", text(64), nullable=False),
        sa.Column("uuid", text(36), nullable=False),
        sa.Column("name", text(255), nullable=False),
        sa.Column("bay_uuid", text(36)),
        sa.Column("host", text(255)),
        sa.Column("generation", sa.BigInteger, nullable=False),
        sa.Column("action", text(64), nullable=False),
        sa.Column("step", text(64), nullable=False),
        sa.Column("from_status", text(64), nullable=False),
        sa.Column("to_status", text(64), nullable=False),
        sa.Column("reason", LONG),
        sa.Column("user_id", text(255), nullable=False),
        sa.Column("request_id", text(255), nullable=False),
        **MYSQL,
    )
    op.create_index("ix_log_project", "log", ["project_id", "revision"])
    op.create_index("ix_log_uuid", "log", ["uuid", "revision"])
    op.create_index("ix_log_request", "log", ["request_id", "revision"])
    op.create_index("ix_log_at", "log", ["at"])
    counters = op.create_table(
        "counters",
        sa.Column("name", text(64), primary_key=True),
        sa.Column("value", sa.BigInteger, nullable=False),
        **MYSQL,
    )
    op.bulk_insert(counters, [{"name": "revision", "value": 0}])
    op.create_table("projects", sa.Column("project_id", text(255), primary_key=True), **MYSQL)
    op.create_table(
        "quotas",
        sa.Column("project_id", text(255), primary_key=True),
        sa.Column("resource", text(64), primary_key=True),
        sa.Column("hard_limit", sa.BigInteger, nullable=False),
        sa.Column("created_at", TIME, nullable=False),
        sa.Column("updated_at", TIME),
        **MYSQL,
    )
