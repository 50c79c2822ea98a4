"""Run by alembic: migrates over the connection that ``db.schema`` hands in."""

from alembic import context

from magnum.db import tables

connection = context.config.attributes["connection"]
# SQLite cannot alter a table's columns in place; batch mode copies the table
context.configure(connection=connection, target_metadata=tables.METADATA, render_as_batch=True)
with context.begin_transaction():
    context.run_migrations()
