"""What no api over AMQP and SQL can be faster than: a bare call that is answered by one statement's result.

``python -m benchmarks.floor AMQP-URL DATABASE-URL QUEUE`` answers until it is ended; ``Floor`` starts it and asks.
No HTTP, no checks, no policy: a list is one SELECT and the ready bytes of its answer, a change one INSERT that is committed.
"""

import asyncio
import contextlib
import subprocess
import sys
import uuid

import aiormq
import aiormq.abc
import asyncpg
import uvloop

PROJECT = "default"
STATEMENTS = {
    "list": f"SELECT * FROM containers WHERE project_id = '{PROJECT}' ORDER BY created_at, uuid LIMIT 101",
    "get": "SELECT * FROM containers WHERE uuid = $1 AND project_id = $2",
    "create": "INSERT INTO floor (uuid, body) VALUES ($1, $2)",
}
REPLY_TO = "amq.rabbitmq.reply-to"


async def _answer(url: str, database: str, queue: str) -> None:
    pool = await asyncpg.create_pool(database, min_size=10, max_size=10)
    async with pool.acquire() as connection:
        await connection.execute("CREATE TABLE IF NOT EXISTS floor (uuid varchar(36) PRIMARY KEY, body text)")
    channel = await (await aiormq.connect(url)).channel()
    await channel.queue_declare(queue, exclusive=True)
    await channel.basic_qos(prefetch_count=64)

    async def one(message: aiormq.abc.DeliveredMessage) -> None:
        properties = message.header.properties
        what, _, body = message.body.partition(b" ")
        async with pool.acquire() as connection:
            if what == b"list":
                await connection.fetch(STATEMENTS["list"])
            elif what == b"get":
                ident, _, body = body.partition(b" ")
                await connection.fetch(STATEMENTS["get"], ident.decode(), PROJECT)
            else:
                await connection.execute(STATEMENTS["create"], str(uuid.uuid4()), body.decode())
        await channel.basic_publish(
            body, routing_key=properties.reply_to or "", wait=False,
            properties=aiormq.spec.Basic.Properties(correlation_id=properties.correlation_id, delivery_mode=1),
        )  # fmt: skip
        await channel.basic_ack(message.delivery_tag or 0, wait=False)

    await channel.basic_consume(queue, one)
    print("ready", flush=True)
    await asyncio.Event().wait()


class Floor:
    """Asks the program; an async context."""

    def __init__(self, url: str, database: str) -> None:
        self._url, self._database = url, database
        self._queue = f"floor-{uuid.uuid4().hex[:8]}"
        self._waiting: dict[str, asyncio.Future[bytes]] = {}

    async def __aenter__(self) -> "Floor":
        argv = [sys.executable, "-m", "benchmarks.floor", self._url, self._database, self._queue]
        self.process = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        assert await self.process.stdout.readline() == b"ready\n"
        self._connection = await aiormq.connect(self._url)
        self._channel = await self._connection.channel()
        await self._channel.basic_consume(REPLY_TO, self._answered, no_ack=True)
        return self

    async def __aexit__(self, *error: object) -> None:
        with contextlib.suppress(Exception):
            await self._connection.close()
        self.process.terminate()
        await self.process.wait()

    async def _answered(self, message: aiormq.abc.DeliveredMessage) -> None:
        self._waiting.pop(message.header.properties.correlation_id or "").set_result(message.body)

    async def ask(self, words: bytes) -> bytes:
        """Return the answer to ``list BODY``, ``get UUID BODY`` or ``create BODY``, which is BODY."""
        ident = uuid.uuid4().hex
        answer = self._waiting[ident] = asyncio.get_running_loop().create_future()
        await self._channel.basic_publish(
            words, routing_key=self._queue, wait=False,
            properties=aiormq.spec.Basic.Properties(reply_to=REPLY_TO, correlation_id=ident, delivery_mode=1),
        )  # fmt: skip
        return await answer


if __name__ == "__main__":
    uvloop.run(_answer(*sys.argv[1:]))
