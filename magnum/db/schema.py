"""Brings a database to this version's tables, and says which it has.

Called by ``magnum-manage db``, by ``magnum-standalone`` at its start, and by the
conductor, which waits until the database is as it needs it.
"""

import pathlib
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext import asyncio as sa_asyncio

HEAD = "0001"
"""The revision that this version of Magnum works with."""

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
        async with engine.begin() as connection:
            await connection.run_sync(_upgrade)
    return HEAD


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
