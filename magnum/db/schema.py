"""Brings a database to this version's tables, and says which it has.

Called by ``magnum-manage db``, by ``magnum-standalone`` at its start, and by the
conductor, which waits until the database is as it needs it.
"""

import asyncio
import collections.abc
import pathlib
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext import asyncio as sa_asyncio

from magnum.db import store

HEAD = "0001"
"""The revision that this version of Magnum works with."""

ATTEMPTS = 20
"""Times that a change of the tables is tried while programs' transactions are in its way."""
LOCK_SECONDS = 3
"""How long a change waits for a table on PostgreSQL: all who come after it wait as long."""
AGAIN_SECONDS = 0.5

_FOLDER = pathlib.Path(__file__).parent / "migrations"


async def version(engine: sa_asyncio.AsyncEngine) -> str | None:
    """Return the database's revision, None if it has no tables of Magnum. Raises SQLAlchemy's errors if it is away."""
    async with engine.connect() as connection:
        return await connection.run_sync(_version)


def _version(connection: sa.Connection) -> str | None:
    if not sa.inspect(connection).has_table("alembic_version"):
        return None
    found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar()
    return str(found) if found is not None else None


async def upgrade(engine: sa_asyncio.AsyncEngine) -> str:
    """Bring the database to ``HEAD``, which is returned. Nothing is done, and alembic not even loaded, if it is there."""
    if await version(engine) != HEAD:
        await change(engine, _upgrade)
    return HEAD


async def change(engine: sa_asyncio.AsyncEngine, work: collections.abc.Callable[[sa.Connection], None]) -> None:
    """Run ``work``, which changes tables, in one transaction, while programs use them.

    Where their locks are in its way it is undone and tried again; MariaDB, which cannot undo such a change, has it wait
    and gives way to no program. Raises SQLAlchemy's errors.
    """
    undoes = engine.dialect.name != "mysql"
    for left in reversed(range(ATTEMPTS if undoes else 1)):
        try:
            async with engine.begin() as connection:
                if engine.dialect.name == "postgresql":
                    await connection.execute(sa.text(f"SET LOCAL lock_timeout = '{LOCK_SECONDS}s'"))
                await connection.run_sync(work)
            return
        except sa.exc.DBAPIError as error:
            if not left or not store.met_another(error):
                raise
        await asyncio.sleep(AGAIN_SECONDS)


def _configuration(connection: sa.Connection) -> Any:
    # alembic takes a good part of a second to load, and a start needs it only when there is something to migrate
    from alembic import config

    configuration = config.Config()
    configuration.set_main_option("script_location", str(_FOLDER))
    configuration.attributes["connection"] = connection
    return configuration


def _upgrade(connection: sa.Connection) -> None:
    from alembic import command

    command.upgrade(_configuration(connection), "head")


async def differences(engine: sa_asyncio.AsyncEngine) -> list[str]:
    """Return how the database differs from this version's tables, one line each; empty if it does not."""
    async with engine.connect() as connection:
        return await connection.run_sync(_differences)


def _differences(connection: sa.Connection) -> list[str]:
    from alembic import autogenerate
    from alembic.runtime import migration

    from magnum.db import tables

    context = migration.MigrationContext.configure(connection)
    return [str(difference) for difference in autogenerate.compare_metadata(context, tables.METADATA)]
