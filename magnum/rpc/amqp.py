"""Carries calls over RabbitMQ. See ``docs/decisions/rpc.md`` for why it is so.

* A topic is a queue of its own name, reached by the default exchange: nobody can
  bind another queue to that name. A shared one is durable and outlives its servers;
  one with a single server is exclusive, so it goes with its server's connection and
  a call to it comes back at once (``mandatory``).
* Answers come by direct reply-to. Calls are confirmed by the broker; all
  messages are transient, since none is wanted after its caller's deadline.
* ``message_id`` names a call for all its deliveries; ``type`` is the method;
  ``user_id`` is the sender's user, which the broker takes from no one else; headers
  are the context's and, below ``magnum-``, the transport's own.
* Broadcasts go by the direct exchange ``magnum.broadcast`` to a queue of each
  subscriber's own.

aiormq tells of a lost connection in many ways: its own errors, the system's,
bare ``Exception`` and cancellation. ``_translated`` makes all of them ``_Lost``.

Who calls: ``transports``.
"""

import asyncio
import collections
import collections.abc
import contextlib
import itertools
import random
import secrets
import time
import typing
import urllib.parse
from typing import Any

import aiormq
import aiormq.abc
import aiormq.exceptions
import msgspec
import structlog

from magnum import errors
from magnum.rpc import base, local

LOG = structlog.get_logger(__name__)

BROADCAST = "magnum.broadcast"
REPLY_TO = "amq.rabbitmq.reply-to"
HEARTBEAT = 10
"""Seconds; the broker takes a silent program for dead after two of them."""
CONNECT_SECONDS = 5.0
SEND_SECONDS = 5.0
"""How long the broker, or the way to it, may take no more frames before the connection counts as lost."""
PATIENCE = 15.0
"""Seconds after the broker was lost for which calls wait for it; later ones fail at once."""
SETTLE_SECONDS = 5.0
"""Seconds after a reconnection in which a topic that nobody serves may only not be back yet."""
RETRY_MIN, RETRY_MAX = 0.1, 5.0
MAX_BODY = 64 * 1024 * 1024
"""Bytes of a message at most; the broker's own limit (``max_message_size``) is 128 MiB, from 4.0 on 16 MiB."""
REMEMBERED = 1000
"""Answers kept that could not be sent, for the call's next delivery."""
_TIMEOUT, _VERSION, _REPEAT_SAFE = "magnum-timeout-ms", "magnum-version", "magnum-repeat-safe"

_Properties = aiormq.spec.Basic.Properties


class _Lost(Exception):
    """The connection or channel failed under an operation."""


@contextlib.contextmanager
def _translated() -> collections.abc.Iterator[None]:
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise _Lost("closed") from None
    except (errors.MagnumError, aiormq.exceptions.DeliveryError):
        raise
    except Exception as error:
        raise _Lost(f"{type(error).__name__}: {error}".removesuffix(": ")) from error


@contextlib.asynccontextmanager
async def _sending(channel: aiormq.abc.AbstractChannel) -> collections.abc.AsyncIterator[None]:
    """Bound a publish. aiormq's queue of frames takes no more once the connection that empties it has gone: a put waits
    for ever. Raises _Lost."""
    with _translated():
        if channel.is_closed:
            raise _Lost("closed")
        async with asyncio.timeout(SEND_SECONDS):
            yield


def addresses(url: str) -> list[str]:
    """Return one URL a broker, as aiormq takes them, of ``amqp[s]://user:password@host[:port][,…]/vhost?…``.

    A host without user and password has the first one's. Of the query ``cafile``,
    ``certfile``, ``keyfile`` and ``heartbeat`` (seconds) are taken. Raises Invalid.
    """
    parsed = urllib.parse.urlsplit(url)
    default_port = 5671 if parsed.scheme == "amqps" else 5672
    vhost = urllib.parse.quote(urllib.parse.unquote(parsed.path[1:]) or "/", safe="")
    query = dict(urllib.parse.parse_qsl(parsed.query))
    if unknown := set(query) - {"cafile", "certfile", "keyfile", "heartbeat"}:
        raise errors.Invalid(f"has no {', '.join(sorted(unknown))}", field="transport_url")
    query.setdefault("heartbeat", str(HEARTBEAT))
    found = []
    login = ""
    for place in parsed.netloc.split(","):
        own, _, host = place.rpartition("@")
        login = login or own or "guest:guest"
        try:
            one = urllib.parse.urlsplit(f"//{host}")
            name, port = one.hostname, one.port or default_port
        except ValueError as error:
            raise errors.Invalid(str(error), field="transport_url") from None
        if not name:
            raise errors.Invalid("names no host", field="transport_url")
        name = f"[{name}]" if ":" in name else name
        found.append(f"{parsed.scheme}://{own or login}@{name}:{port}/{vhost}?{urllib.parse.urlencode(query)}")
    return found


def _place(url: str) -> str:
    return urllib.parse.urlsplit(url).netloc.rpartition("@")[2]


def _user(url: str) -> str:
    return urllib.parse.unquote(urllib.parse.urlsplit(url).username or "")


def _properties(message: base.Message, user: str, ident: str, reply_to: str | None, left: float | None) -> _Properties:
    headers: dict[str, Any] = {**message.headers, _VERSION: message.version, _REPEAT_SAFE: message.repeat_safe}
    expiration = None
    if left is not None:
        milliseconds = max(1, int(left * 1000))
        headers[_TIMEOUT] = milliseconds
        expiration = str(milliseconds)
    return _Properties(
        content_type="application/msgpack", delivery_mode=1, message_type=message.method, message_id=ident,
        correlation_id=ident, reply_to=reply_to, expiration=expiration, user_id=user, headers=headers,
    )  # fmt: skip


def _message(delivered: aiormq.abc.DeliveredMessage) -> base.Message:
    properties = delivered.header.properties
    headers: dict[str, Any] = dict(properties.headers or {})
    milliseconds = headers.pop(_TIMEOUT, None)
    fields = {
        "method": properties.message_type,
        "body": delivered.body,
        "timeout": None if milliseconds is None else milliseconds / 1000,
        "version": headers.pop(_VERSION, base.VERSION),
        "repeat_safe": headers.pop(_REPEAT_SAFE, False),
        "sender": properties.user_id or "",
        "headers": headers,
    }
    return msgspec.convert(fields, base.Message)


def _fits(body: bytes) -> bytes:
    if len(body) > MAX_BODY:
        raise errors.TooLarge(f"a message of {len(body)} bytes is more than the {MAX_BODY} that a broker is given")
    return body


async def _channel(connection: aiormq.abc.AbstractConnection, *, confirms: bool = False) -> aiormq.Channel:
    return typing.cast(aiormq.Channel, await connection.channel(publisher_confirms=confirms))


class _Link:
    """One connection to a broker, with the channels that calls and one-way messages go by."""

    def __init__(self, connection: aiormq.abc.AbstractConnection, user: str) -> None:
        self.connection = connection
        self.user = user
        self.since = time.monotonic()
        self.calls: aiormq.Channel
        self.sends: aiormq.Channel
        self._waiting: dict[str, asyncio.Future[bytes]] = {}
        self._notices: aiormq.Channel | None = None
        self._broadcasts = False

    async def prepare(self) -> None:
        self.calls = await _channel(self.connection, confirms=True)
        self.sends = await _channel(self.connection)
        await self.calls.basic_consume(REPLY_TO, self._answered, no_ack=True)

    @property
    def alive(self) -> bool:
        return not (self.connection.is_closed or self.calls.is_closed or self.sends.is_closed)

    async def lost(self) -> None:
        """Return when it is of no more use; whoever waits for an answer is then told."""
        await asyncio.wait(
            [self.connection.closing, self.calls.closing, self.sends.closing], return_when=asyncio.FIRST_COMPLETED
        )
        for answer in self._waiting.values():
            if not answer.done():
                answer.set_exception(_Lost("closed"))

    async def close(self) -> None:
        with contextlib.suppress(_Lost, TimeoutError), _translated():
            async with asyncio.timeout(CONNECT_SECONDS):
                await self.connection.close()

    async def _answered(self, delivered: aiormq.abc.DeliveredMessage) -> None:
        answer = self._waiting.get(delivered.header.properties.correlation_id or "")
        if answer is not None and not answer.done():
            answer.set_result(delivered.body)

    async def call(self, topic: str, message: base.Message, ident: str, left: float | None) -> bytes:
        """Send once and return the answer. Raises HostUnreachable, Unavailable (the broker refuses), _Lost."""
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._waiting[ident] = answer
        try:
            async with _sending(self.calls):
                await self.calls.basic_publish(
                    message.body, routing_key=topic, mandatory=True, wait=False,
                    properties=_properties(message, self.user, ident, REPLY_TO, left),
                )  # fmt: skip
            return await answer
        except aiormq.exceptions.PublishError:
            raise base.unreachable(topic) from None
        except aiormq.exceptions.DeliveryError:
            raise errors.Unavailable("the broker refuses messages") from None
        finally:
            del self._waiting[ident]
            answer.cancel()

    async def send(self, topic: str, message: base.Message, ident: str) -> None:
        """Send without knowing whether it arrives. Raises _Lost."""
        properties = _properties(message, self.user, ident, None, message.timeout)
        async with _sending(self.sends):
            await self.sends.basic_publish(message.body, routing_key=topic, wait=False, properties=properties)

    async def broadcast(self, topic: str, body: bytes) -> None:
        """As ``send``, to all subscribers."""
        async with _sending(self.sends):
            if not self._broadcasts:
                # not before it is needed: a host's user may not declare it
                await self.sends.exchange_declare(BROADCAST, exchange_type="direct", durable=True)
                self._broadcasts = True
            await self.sends.basic_publish(
                body, exchange=BROADCAST, routing_key=topic, wait=False, properties=_Properties(delivery_mode=1)
            )

    async def notify(self, exchange: str, topic: str, body: bytes, durable: bool) -> None:
        """Publish on a channel of its own, since a declaration that the broker refuses ends the channel. Raises _Lost."""
        with _translated():
            channel = self._notices
            if channel is None or channel.is_closed:
                channel = self._notices = await _channel(self.connection, confirms=True)
                await channel.exchange_declare(exchange, exchange_type="topic", durable=durable)
                await channel.queue_declare(topic, durable=durable)
                await channel.queue_bind(topic, exchange, topic)
            await channel.basic_publish(
                body, exchange=exchange, routing_key=topic, wait=True,
                properties=_Properties(content_type="application/json", content_encoding="utf-8", delivery_mode=2),
            )  # fmt: skip


class _Consumer:
    """What is taken from a queue across connections. ``problem`` says why nothing is taken now."""

    def __init__(self, topic: str) -> None:
        self.topic = topic
        self.problem = "not connected"
        self.tried = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None

    async def open(self, connection: aiormq.abc.AbstractConnection) -> aiormq.Channel:
        """Begin to take messages; the channel's end is the consumer's."""
        raise NotImplementedError

    def watch(self, channel: aiormq.Channel) -> None:
        """Have the channel end, and so begin anew, when the broker takes the queue away (an operator deletes it)."""

        def cancelled(frame: object) -> None:
            # not awaited: who calls this also reads the answer to it
            self._ending = asyncio.get_running_loop().create_task(channel.close())

        channel.on_consumer_cancel_callbacks.add(cancelled)

    async def stop(self) -> None:
        if self.task is not None:
            self.task.cancel()
            await asyncio.gather(self.task, return_exceptions=True)


class _Server(_Consumer):
    """Serves one topic, with as many messages in hand as ``prefetch`` allows."""

    def __init__(self, topic: str, handler: base.Handler, shared: bool, prefetch: int) -> None:
        super().__init__(topic)
        self._handler = handler
        self._shared = shared
        self._prefetch = prefetch
        self._channel: aiormq.Channel | None = None
        self._tag = ""
        self._jobs: set[asyncio.Task[None]] = set()
        self._running: dict[str, asyncio.Task[bytes]] = {}
        self._unsent: collections.OrderedDict[str, bytes] = collections.OrderedDict()

    async def open(self, connection: aiormq.abc.AbstractConnection) -> aiormq.Channel:
        channel = await _channel(connection)
        try:
            await channel.queue_declare(self.topic, durable=self._shared, exclusive=not self._shared)
        except aiormq.exceptions.ChannelLockedResource:
            raise errors.Conflict(f"{self.topic} is served already") from None
        await channel.basic_qos(prefetch_count=self._prefetch)
        self.watch(channel)
        consumed = await channel.basic_consume(self.topic, self._delivered)
        self._channel, self._tag = channel, str(consumed.consumer_tag)
        return channel

    async def _delivered(self, delivered: aiormq.abc.DeliveredMessage) -> None:
        # a task of our own: aiormq cancels this one when its connection goes
        job = asyncio.get_running_loop().create_task(self._take(delivered))
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)

    async def _take(self, delivered: aiormq.abc.DeliveredMessage) -> None:
        try:
            message = _message(delivered)
        except msgspec.ValidationError as error:
            LOG.warning("message dropped, it is not ours", topic=self.topic, reason=str(error))
            await self._settle(delivered, None)
            return
        try:
            answer = await self._answer(delivered, message)
        except asyncio.CancelledError:
            if self._shared:
                with contextlib.suppress(_Lost):
                    async with _sending(delivered.channel):
                        await delivered.channel.basic_nack(delivered.delivery_tag or 0, requeue=True, wait=False)
            else:
                refused = base.unreachable(self.topic) if message.repeat_safe else base.lost(message)
                await self._settle(delivered, base.refusal(refused))
            raise
        if not await self._settle(delivered, answer) and not message.repeat_safe:
            self._unsent[delivered.header.properties.message_id or ""] = answer
            while len(self._unsent) > REMEMBERED:
                self._unsent.popitem(last=False)

    async def _answer(self, delivered: aiormq.abc.DeliveredMessage, message: base.Message) -> bytes:
        """Return the answer; a call that runs already, or has run, is not run again when it is delivered again."""
        ident = delivered.header.properties.message_id or secrets.token_hex(8)
        if (known := self._unsent.pop(ident, None)) is not None:
            return known
        running = self._running.get(ident)
        if running is None:
            if delivered.redelivered and not message.repeat_safe:
                return base.refusal(base.lost(message))
            running = asyncio.get_running_loop().create_task(self._run(message))
            self._running[ident] = running
            running.add_done_callback(lambda task: self._running.pop(ident, None))
        return await asyncio.shield(running)

    async def _run(self, message: base.Message) -> bytes:
        return await self._handler(message)

    async def _settle(self, delivered: aiormq.abc.DeliveredMessage, answer: bytes | None) -> bool:
        """Answer and acknowledge, in this order on one channel; return whether that could be sent."""
        properties = delivered.header.properties
        channel = typing.cast(aiormq.Channel, delivered.channel)
        try:
            async with _sending(channel):
                if properties.reply_to and answer is not None:
                    try:
                        answer = _fits(answer)
                    except errors.TooLarge as error:
                        answer = base.refusal(error)
                    await channel.basic_publish(
                        answer, routing_key=properties.reply_to, wait=False,
                        properties=_Properties(correlation_id=properties.correlation_id, delivery_mode=1),
                    )  # fmt: skip
                await channel.basic_ack(delivered.delivery_tag or 0, wait=False)
        except _Lost:
            return False
        return True

    async def leave(self) -> None:
        """Take nothing new; where nobody else serves, whoever calls learns so at once."""
        await self.stop()
        channel, self._channel = self._channel, None
        if channel is None or channel.is_closed:
            return
        with contextlib.suppress(_Lost, TimeoutError), _translated():
            async with asyncio.timeout(CONNECT_SECONDS):
                await channel.basic_cancel(self._tag)
                while not self._shared:
                    waiting = await channel.basic_get(self.topic)
                    if isinstance(waiting.delivery, aiormq.spec.Basic.GetOk):
                        await self._settle(waiting, base.refusal(base.unreachable(self.topic)))
                    elif await self._gone(channel.connection):
                        break

    async def _gone(self, connection: aiormq.abc.AbstractConnection) -> bool:
        """Remove the queue unless a message came meanwhile; return whether it is gone."""
        # the broker's refusal ends the channel it was asked on, and that of what is in hand must live
        channel = await _channel(connection)
        try:
            await channel.queue_delete(self.topic, if_empty=True)
        except aiormq.exceptions.ChannelPreconditionFailed:
            return False
        await channel.close()
        return True

    async def drain(self) -> None:
        """Return once all in hand are answered."""
        while self._jobs:
            await asyncio.wait(self._jobs)

    async def abandon(self) -> None:
        """Hand back what is in hand."""
        jobs = list(self._jobs)
        for job in jobs:
            job.cancel()
        await asyncio.gather(*jobs, return_exceptions=True)
        running = list(self._running.values())
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


class _Subscriber(_Consumer):
    def __init__(self, topic: str, subscription: local.Subscription) -> None:
        super().__init__(topic)
        self._subscription = subscription

    async def open(self, connection: aiormq.abc.AbstractConnection) -> aiormq.Channel:
        channel = await _channel(connection)
        await channel.exchange_declare(BROADCAST, exchange_type="direct", durable=True)
        declared = await channel.queue_declare("", exclusive=True, auto_delete=True)
        queue = str(declared.queue)
        self.watch(channel)
        await channel.basic_consume(queue, self._delivered, no_ack=True)
        await channel.queue_bind(queue, BROADCAST, self.topic)
        return channel

    async def _delivered(self, delivered: aiormq.abc.DeliveredMessage) -> None:
        self._subscription.put(delivered.body)

    async def stop(self) -> None:
        await super().stop()
        self._subscription.task.cancel()
        await asyncio.gather(self._subscription.task, return_exceptions=True)


class Amqp(base.Transport):
    """See ``base.Transport``. ``url``: see ``addresses``; ``prefetch``: messages in hand at most, of a topic."""

    def __init__(self, url: str, *, name: str = "", prefetch: int = 64) -> None:
        self._addresses = addresses(url)
        self._name = name
        self._prefetch = prefetch
        self._link: _Link | None = None
        self._ready = asyncio.Event()
        self._tried = asyncio.Event()
        self._away_since = time.monotonic()
        self._problem = "not started"
        self._links = 0
        self._token = secrets.token_hex(6)
        self._numbers = itertools.count()
        self._keeper: asyncio.Task[None] | None = None
        self._servers: list[_Server] = []
        self._left: list[_Server] = []
        self._subscribers: list[_Subscriber] = []

    async def start(self) -> None:
        self._away_since = time.monotonic()
        self._problem = "not connected yet"
        self._keeper = asyncio.get_running_loop().create_task(self._keep())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._tried.wait()

    async def _keep(self) -> None:
        """Have a connection, for ever."""
        delay = RETRY_MIN
        for turn in itertools.count():
            address = self._addresses[turn % len(self._addresses)]
            try:
                link = await self._connect(address)
            except (_Lost, TimeoutError) as error:
                problem = f"broker {_place(address)}: {error or 'no answer'}"
                if problem != self._problem:
                    LOG.warning("broker away", reason=problem)
                self._problem = problem
                if (turn + 1) % len(self._addresses) == 0:
                    self._tried.set()
                    await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311
                    delay = min(delay * 2, RETRY_MAX)
                continue
            delay = RETRY_MIN
            self._links += 1
            self._link = link
            self._ready.set()
            self._tried.set()
            LOG.info("connected to broker", address=_place(address))
            try:
                await link.lost()
            finally:
                self._ready.clear()
                self._link = None
                self._away_since = time.monotonic()
                self._problem = f"broker {_place(address)}: connection lost"
                await link.close()
            LOG.warning("broker lost", address=_place(address))

    async def _connect(self, address: str) -> _Link:
        with _translated():
            async with asyncio.timeout(CONNECT_SECONDS):
                connection = await aiormq.connect(
                    f"{address}&name={urllib.parse.quote(self._name)}" if self._name else address
                )
                link = _Link(connection, _user(address))
                try:
                    await link.prepare()
                except BaseException:
                    await link.close()
                    raise
                return link

    async def _linked(self) -> _Link:
        """Return the connection, waiting for it while it has not been away for long. Raises Unavailable."""
        while (link := self._link) is None or not link.alive:
            left = self._away_since + PATIENCE - time.monotonic()
            if self._keeper is None or (link is None and left <= 0):
                raise errors.Unavailable(self._problem)
            if link is not None:
                await asyncio.sleep(0.01)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._ready.wait()
        return link

    async def call(self, topic: str, message: base.Message) -> bytes:
        ident = f"{self._token}.{next(self._numbers)}"
        end = None if message.timeout is None else time.monotonic() + message.timeout
        _fits(message.body)
        failures = 0
        try:
            async with asyncio.timeout(message.timeout):
                while True:
                    link = await self._linked()
                    try:
                        return await link.call(topic, message, ident, None if end is None else end - time.monotonic())
                    except _Lost as error:
                        if not message.repeat_safe:
                            raise base.lost(message) from None
                        failures += 1
                        if link.alive and failures > 3:
                            raise errors.Unavailable(str(error)) from None
                        await asyncio.sleep(RETRY_MIN)
                    except errors.HostUnreachable:
                        # it came back unread, so it may be sent again
                        if self._links == 1 or time.monotonic() - link.since > SETTLE_SECONDS:
                            raise
                        await asyncio.sleep(RETRY_MIN)
        except TimeoutError:
            raise base.expired(topic, message) from None

    async def cast(self, topic: str, message: base.Message) -> None:
        ident = f"{self._token}.{next(self._numbers)}"
        await self._send(topic, message.body, lambda link: link.send(topic, message, ident))

    async def broadcast(self, topic: str, body: bytes) -> None:
        await self._send(topic, body, lambda link: link.broadcast(topic, body))

    async def _send(
        self, topic: str, body: bytes, send: collections.abc.Callable[[_Link], collections.abc.Awaitable[None]]
    ) -> None:
        try:
            _fits(body)
            if self._link is None:
                raise _Lost(self._problem)
            # a broker that blocks its publishers must not hold up whoever may do without
            async with asyncio.timeout(CONNECT_SECONDS):
                await send(self._link)
        except (_Lost, TimeoutError, errors.TooLarge) as error:
            LOG.warning("message dropped", topic=topic, reason=str(error) or "the broker takes none")

    async def notify(self, exchange: str, topic: str, body: bytes, *, durable: bool = False) -> None:
        link = await self._linked()
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await link.notify(exchange, topic, body, durable)
        except (_Lost, aiormq.exceptions.DeliveryError, TimeoutError) as error:
            raise errors.Unavailable(f"notification: {error or 'the broker does not answer'}") from None

    async def serve(self, topic: str, handler: base.Handler, *, shared: bool) -> None:
        server = _Server(topic, handler, shared, self._prefetch)
        self._servers.append(server)
        await self._begin(server)

    async def subscribe(self, topic: str, subscriber: base.Subscriber) -> None:
        consumer = _Subscriber(topic, local.Subscription(topic, subscriber))
        self._subscribers.append(consumer)
        await self._begin(consumer)

    async def _begin(self, consumer: _Consumer) -> None:
        """Start to consume; with a broker at hand, return when that has been tried."""
        consumer.task = asyncio.get_running_loop().create_task(self._attend(consumer))
        if self._link is not None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CONNECT_SECONDS):
                    await consumer.tried.wait()

    async def _attend(self, consumer: _Consumer) -> None:
        """Consume again after each interruption, for ever."""
        delay = RETRY_MIN
        while True:
            await self._ready.wait()
            link = self._link
            if link is None or not link.alive:
                await asyncio.sleep(RETRY_MIN)
                continue
            try:
                with _translated():
                    async with asyncio.timeout(CONNECT_SECONDS):
                        channel = await consumer.open(link.connection)
            except (_Lost, TimeoutError, errors.Conflict) as error:
                problem = f"{consumer.topic}: {error or 'the broker does not answer'}"
                if problem != consumer.problem:
                    LOG.warning("not consuming", topic=consumer.topic, reason=problem)
                consumer.problem = problem
                consumer.tried.set()
                await asyncio.sleep(delay * random.uniform(0.5, 1.0))  # noqa: S311
                delay = min(delay * 2, RETRY_MAX)
                continue
            delay = RETRY_MIN
            consumer.problem = ""
            consumer.tried.set()
            await asyncio.wait([channel.closing])
            consumer.problem = f"{consumer.topic}: interrupted"

    async def _leave(self) -> None:
        leaving, self._servers = self._servers, []
        self._left += leaving
        await asyncio.gather(*(server.leave() for server in leaving))

    async def stop_serving(self) -> None:
        await self._leave()
        await asyncio.gather(*(server.drain() for server in self._left))

    async def close(self) -> None:
        await self._leave()
        await asyncio.gather(*(server.abandon() for server in self._left))
        await asyncio.gather(*(subscriber.stop() for subscriber in self._subscribers))
        self._left, self._subscribers = [], []
        if (keeper := self._keeper) is not None:
            self._keeper = None
            keeper.cancel()
            await asyncio.gather(keeper, return_exceptions=True)
            self._problem = "closed"

    def health(self) -> str:
        if self._link is None:
            return self._problem
        return next((consumer.problem for consumer in self._servers if consumer.problem), "ok")
