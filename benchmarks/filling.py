"""Containers by the thousand, written into the database as tenants' would be, without an engine's."""

import asyncpg


async def fill(database: str, count: int, projects: int = 1, hosts: list[str] | None = None) -> list[str]:
    """Copy the one container of a deployment ``count`` times, by turns into projects ``p0``, ``p1`` … and onto ``hosts``.

    Names are ``n0``, ``n1`` …; statuses Running and, every tenth of a project's, Stopped. Returns their uuids, in that order.
    """
    connection = await asyncpg.connect(database)
    columns = [row["column_name"] for row in await connection.fetch(
        "SELECT column_name FROM information_schema.columns WHERE table_name = 'containers' AND table_schema = 'public'"
    )]  # fmt: skip
    new = {
        "uuid": "gen_random_uuid()::text", "name": "'n' || n", "project_id": "'p' || n % $2::int",
        "host": "($3::text[])[1 + n % array_length($3::text[], 1)]",
        "status": "CASE WHEN n / $2::int % 10 = 9 THEN 'Stopped' ELSE 'Running' END",
        "created_at": "created_at + n * interval '1 millisecond'",
        "generation": "1", "observed_generation": "1", "observed_seq": "1", "operation": "NULL", "operation_deadline": "NULL",
    }  # fmt: skip
    values = ", ".join(new.get(column, column) for column in columns)
    await connection.execute(
        f"INSERT INTO containers ({', '.join(columns)}) SELECT {values} FROM (SELECT * FROM containers LIMIT 1) AS one, "
        "generate_series(0, $1::int - 1) AS n",
        count, projects, hosts or ["another"],
    )  # fmt: skip
    await connection.execute("ANALYZE containers")
    rows = await connection.fetch(
        "SELECT uuid FROM containers WHERE project_id LIKE 'p%' ORDER BY substr(name, 2)::int"
    )
    await connection.close()
    return [row["uuid"] for row in rows]


async def empty(database: str) -> None:
    """Take away what ``fill`` wrote."""
    connection = await asyncpg.connect(database)
    await connection.execute("DELETE FROM containers WHERE project_id LIKE 'p%'")
    await connection.close()
