"""Joins the programs of one process: what ``magnum-standalone`` and most tests run on.

Every program has a ``Local`` of its own on a common ``Hub``. Messages cross as
bytes and with the same promises as over a broker, so what works here works
there. Nothing sleeps or polls: a message is handed over when it is sent, or
when a server has a hand free.
"""

import asyncio
import collections
import time
from typing import Any

import msgspec
import structlog

from magnum import errors
from magnum.rpc import base

LOG = structlog.get_logger(__name__)

BACKLOG = 10_000
"""Broadcasts that a slow subscriber may be behind before it loses some."""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(base.Message).decode


class _Delivery:
    """A message under way. ``answer`` is None for a cast."""

    def __init__(self, message: base.Message, answer: asyncio.Future[bytes] | None) -> None:
        self.wire = _encode(message)
        self.answer = answer
        self.redelivered = False
        self.deadline = None if message.timeout is None else time.monotonic() + message.timeout

    def done(self, answer: bytes) -> None:
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(answer)


class _Server:
    """One handler of a topic, with as many messages in hand as its program's prefetch allows."""

    def __init__(self, topic: "_Topic", handler: base.Handler, prefetch: int) -> None:
        self.topic = topic
        self.handler = handler
        self.prefetch = prefetch
        self.held: dict[asyncio.Task[None], _Delivery] = {}

    def take(self, delivery: _Delivery) -> None:
        task = asyncio.get_running_loop().create_task(self._run(delivery))
        self.held[task] = delivery
        task.add_done_callback(self._finished)

    async def _run(self, delivery: _Delivery) -> None:
        message = _decode(delivery.wire)
        if delivery.answer is not None and delivery.answer.done():
            return  # its caller has given up
        if delivery.deadline is not None:
            message.timeout = delivery.deadline - time.monotonic()
            if message.timeout <= 0:
                return
        if delivery.redelivered and not message.repeat_safe:
            delivery.done(base.refusal(base.lost(message)))
            return
        delivery.done(await self.handler(message))

    def _finished(self, task: asyncio.Task[None]) -> None:
        del self.held[task]
        if not task.cancelled() and (error := task.exception()):
            LOG.error("handler failed", topic=self.topic.name, exc_info=error)
        self.topic.pump()


class _Topic:
    def __init__(self, name: str) -> None:
        self.name = name
        self.servers: collections.deque[_Server] = collections.deque()
        self.waiting: collections.deque[_Delivery] = collections.deque()

    def pump(self) -> None:
        """Hand waiting messages to servers with a hand free, in turn; without any server, say so to the callers."""
        while self.waiting and self.servers:
            for _ in range(len(self.servers)):
                self.servers.rotate(-1)
                if len(self.servers[0].held) < self.servers[0].prefetch:
                    break
            else:
                return
            self.servers[0].take(self.waiting.popleft())
        while self.waiting and not self.servers:
            self.waiting.popleft().done(base.refusal(base.unreachable(self.name)))


class Subscription:
    """Calls one subscriber, broadcast after broadcast."""

    def __init__(self, topic: str, subscriber: base.Subscriber) -> None:
        self.topic = topic
        self.subscriber = subscriber
        self.queue: asyncio.Queue[bytes] = asyncio.Queue(BACKLOG)
        self.task = asyncio.get_running_loop().create_task(self._run())

    def put(self, body: bytes) -> None:
        try:
            self.queue.put_nowait(body)
        except asyncio.QueueFull:
            LOG.warning("subscriber too slow, broadcast dropped", topic=self.topic)

    async def _run(self) -> None:
        while True:
            body = await self.queue.get()
            try:
                await self.subscriber(body)
            except Exception:
                LOG.exception("subscriber failed", topic=self.topic)


class Hub:
    """Where the ``Local`` transports of a process meet."""

    def __init__(self) -> None:
        self.topics: dict[str, _Topic] = {}
        self.subscriptions: dict[str, list[Subscription]] = {}


class Local(base.Transport):
    """See ``base.Transport``. Transports with the same ``hub`` reach each other; without one it is its own.

    ``prefetch``: messages in hand at most, of a topic.
    """

    def __init__(self, hub: Hub | None = None, *, name: str = "", prefetch: int = 64) -> None:
        self.hub = hub if hub is not None else Hub()
        self.name = name
        self.prefetch = prefetch
        self._servers: list[_Server] = []
        self._draining: list[_Server] = []
        self._subscriptions: list[Subscription] = []

    async def start(self) -> None:
        """Nothing to connect to."""

    async def serve(self, topic: str, handler: base.Handler, *, shared: bool) -> None:
        place = self.hub.topics.setdefault(topic, _Topic(topic))
        if place.servers and not shared:
            raise errors.Conflict(f"{topic} is served already")
        server = _Server(place, handler, self.prefetch)
        self._servers.append(server)
        place.servers.append(server)
        place.pump()

    def _leave(self) -> None:
        for server in self._servers:
            server.topic.servers.remove(server)
            server.topic.pump()
        self._draining += self._servers
        self._servers = []

    async def stop_serving(self) -> None:
        self._leave()
        tasks = [task for server in self._draining for task in server.held]
        if tasks:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        self._leave()
        tasks: list[asyncio.Task[Any]] = []
        for server in self._draining:
            for task, delivery in reversed(server.held.items()):
                if task.cancel():
                    delivery.redelivered = True
                    server.topic.waiting.appendleft(delivery)
                    tasks.append(task)
            server.topic.pump()
        for subscription in self._subscriptions:
            self.hub.subscriptions[subscription.topic].remove(subscription)
            subscription.task.cancel()
            tasks.append(subscription.task)
        self._draining, self._subscriptions = [], []
        await asyncio.gather(*tasks, return_exceptions=True)

    def _send(self, topic: str, delivery: _Delivery) -> None:
        place = self.hub.topics.get(topic)
        if place is None or not place.servers:
            raise base.unreachable(topic)
        place.waiting.append(delivery)
        place.pump()

    async def call(self, topic: str, message: base.Message) -> bytes:
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(message.timeout):
                self._send(topic, _Delivery(message, answer))
                return await answer
        except TimeoutError:
            raise base.expired(topic, message) from None

    async def cast(self, topic: str, message: base.Message) -> None:
        try:
            self._send(topic, _Delivery(message, None))
        except errors.HostUnreachable:
            LOG.debug("cast dropped, nobody serves", topic=topic, method=message.method)

    async def broadcast(self, topic: str, body: bytes) -> None:
        for subscription in self.hub.subscriptions.get(topic, ()):
            subscription.put(body)

    async def subscribe(self, topic: str, subscriber: base.Subscriber) -> None:
        subscription = Subscription(topic, subscriber)
        self._subscriptions.append(subscription)
        self.hub.subscriptions.setdefault(topic, []).append(subscription)

    def health(self) -> str:
        return "ok"
