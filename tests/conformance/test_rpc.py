"""What every transport does, and what RabbitMQ does beyond it: restarts, lost connections, servers killed."""

import asyncio
import contextlib
import itertools
import signal
import sys
import urllib.parse
import uuid

import pytest

from magnum import context as contexts
from magnum import errors
from magnum.rpc import amqp, base, local, transports
from testbed import base as testbed
from testbed import rabbitmq

LIMIT = 60.0
PRIVATE = "rabbitmq-restarted"


class Desk(base.Interface):
    """What the tests ask for."""

    @base.call(repeat_safe=True)
    async def echo(self, context: contexts.Context, value: bytes, suffix: bytes = b"") -> bytes:
        raise NotImplementedError

    @base.call(repeat_safe=True)
    async def whoami(self, context: contexts.Context) -> dict[str, str]:
        raise NotImplementedError

    @base.call(repeat_safe=True)
    async def refuse(self, context: contexts.Context) -> None:
        raise NotImplementedError

    @base.call(repeat_safe=True)
    async def safe(self, context: contexts.Context, name: str) -> str:
        raise NotImplementedError

    @base.call()
    async def once(self, context: contexts.Context, name: str) -> str:
        raise NotImplementedError

    @base.cast()
    async def tell(self, context: contexts.Context, name: str) -> None:
        raise NotImplementedError


class Clerk(Desk):
    """Serves; ``safe`` and ``once`` go on when ``gate`` is open. ``begun`` and ``ended`` list what ran."""

    def __init__(self, *, opened=True):
        self.begun, self.ended, self.most = [], [], 0
        self.gate = asyncio.Event()
        if opened:
            self.gate.set()

    async def echo(self, context, value, suffix=b""):
        return value + suffix

    async def whoami(self, context):
        left = context.remaining()
        return {**base.pack_context(context), "timed": str(left is not None and 0 < left <= LIMIT)}

    async def refuse(self, context):
        raise errors.QuotaExceeded("no more", field="spec.memory", limit=3)

    async def safe(self, context, name):
        self.begun.append(name)
        self.most = max(self.most, len(self.begun) - len(self.ended))
        await self.gate.wait()
        self.ended.append(name)
        return name

    once = safe

    async def tell(self, context, name):
        self.ended.append(name)


async def until(condition, what="the condition"):
    """Return once ``condition()`` holds."""
    try:
        async with asyncio.timeout(LIMIT):
            while not condition():  # noqa: ASYNC110
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise AssertionError(f"never: {what}") from None


async def waiting(transport, topic, count):
    """Return once ``count`` messages wait for a server; a broker drops those past their deadline a moment after it."""
    if isinstance(transport, amqp.Amqp):
        async with asyncio.timeout(LIMIT):
            while (await transport._link.sends.queue_declare(topic, passive=True)).message_count != count:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


def asker(seconds=LIMIT):
    return contexts.service().within(seconds)


class Bus:
    """Opens transports that reach each other."""

    def __init__(self, make):
        self._make = make
        self._open = []

    async def __call__(self, name="test", prefetch=64):
        transport = self._make(name, prefetch)
        self._open.append(transport)
        await transport.start()
        return transport

    async def server(self, topic, clerk, *, shared=True, name="server", prefetch=64):
        transport = await self(name, prefetch)
        await transport.serve(topic, base.handler(Desk, clerk), shared=shared)
        return transport

    async def client(self, topic):
        return base.client(Desk, await self("client"), topic)

    async def close(self):
        for transport in reversed(self._open):
            await transport.close()


@pytest.fixture(scope="session")
def broker():
    """An own virtual host on the test bed's broker."""
    rabbitmq.install()
    with testbed.lock(testbed.FOLDER / "lock"):
        rabbitmq.up()
    virtual_host = f"rpc-{uuid.uuid4().hex[:8]}"
    yield rabbitmq.vhost(virtual_host)
    rabbitmq.control("delete_vhost", virtual_host)


def _over(url):
    return Bus(lambda name, prefetch: transports.open(url, name=name, prefetch=prefetch))


@pytest.fixture
async def rabbit(broker):
    bus = _over(broker)
    yield bus
    await bus.close()


@pytest.fixture(params=["local", "amqp"])
async def bus(request):
    if request.param == "local":
        hub = local.Hub()
        made = Bus(lambda name, prefetch: local.Local(hub, name=name, prefetch=prefetch))
    else:
        made = _over(request.getfixturevalue("broker"))
    yield made
    await made.close()


@pytest.fixture
def topic():
    return f"t{uuid.uuid4().hex[:8]}"


async def test_values_context_and_errors_cross(bus, topic):
    await bus.server(topic, Clerk())
    desk = await bus.client(topic)
    assert await desk.echo(asker(), b"a") == b"a"
    assert await desk.echo(asker(), b"a", suffix=b"b") == b"ab"
    who = contexts.Context(
        request_id="req-1", global_id="req-0", user_id="u", project_id="p", user_name="Zoë", roles=("member", "reader"),
        system_scope="all", host="h1", is_admin=True, all_projects=True,
    ).within(LIMIT)  # fmt: skip
    assert await desk.whoami(who) == {**base.pack_context(who), "timed": "True"}
    with pytest.raises(errors.QuotaExceeded) as caught:
        await desk.refuse(asker())
    assert (caught.value.detail, caught.value.field, caught.value.data) == ("no more", "spec.memory", {"limit": 3})


async def test_many_calls_at_once_and_large_ones(bus, topic):
    await bus.server(topic, Clerk(), shared=False)
    desk = await bus.client(topic)
    values = [str(number).encode() for number in range(200)]
    assert await asyncio.gather(*(desk.echo(asker(), value) for value in values)) == values
    large = bytes(range(256)) * (8 * 4096)
    assert await desk.echo(asker(), large) == large


async def test_a_topic_that_nobody_serves_is_unreachable_at_once(bus, topic):
    desk = await bus.client(topic)
    with pytest.raises(errors.HostUnreachable):
        await desk.echo(asker(), b"")
    await desk.tell(asker(), "into the void")
    server = await bus.server(topic, Clerk(), shared=False)
    assert await desk.echo(asker(), b"a") == b"a"
    await server.stop_serving()
    with pytest.raises(errors.HostUnreachable):
        await desk.echo(asker(), b"")


async def test_a_call_past_its_deadline_is_not_executed(bus, topic):
    clerk = Clerk(opened=False)
    server = await bus.server(topic, clerk, prefetch=1)
    desk = await bus.client(topic)
    first = asyncio.create_task(desk.safe(asker(), "first"))
    await until(lambda: clerk.begun)
    with pytest.raises(errors.DeadlineExceeded):
        await desk.safe(asker(0.3), "late")
    await waiting(server, topic, 0)
    clerk.gate.set()
    assert await first == "first"
    assert await desk.safe(asker(), "next") == "next"
    assert clerk.begun == ["first", "next"]


async def test_a_slow_server_has_no_more_in_hand_than_its_prefetch(bus, topic):
    clerk = Clerk(opened=False)
    await bus.server(topic, clerk, prefetch=3)
    desk = await bus.client(topic)
    calls = [asyncio.create_task(desk.safe(asker(), str(number))) for number in range(12)]
    await until(lambda: len(clerk.begun) == 3)
    clerk.gate.set()
    assert await asyncio.gather(*calls) == [str(number) for number in range(12)]
    assert clerk.most == 3


async def test_servers_share_a_topic_and_one_that_closes_hands_back(bus, topic):
    going, staying = Clerk(opened=False), Clerk()
    server = await bus.server(topic, going)
    desk = await bus.client(topic)
    safe = asyncio.create_task(desk.safe(asker(), "safe"))
    once = asyncio.create_task(desk.once(asker(), "once"))
    await until(lambda: len(going.begun) == 2)
    await bus.server(topic, staying, name="second")
    await server.close()
    assert await safe == "safe"
    with pytest.raises(errors.Unavailable, match="not known"):
        await once
    assert (going.ended, staying.ended) == ([], ["safe"])


async def test_stop_serving_answers_what_is_in_hand(bus, topic):
    clerk = Clerk(opened=False)
    server = await bus.server(topic, clerk, shared=False)
    desk = await bus.client(topic)
    call = asyncio.create_task(desk.once(asker(), "last"))
    await until(lambda: clerk.begun)
    stopping = asyncio.create_task(server.stop_serving())
    with pytest.raises(errors.HostUnreachable):
        while True:  # until it has left
            await desk.echo(asker(), b"")
    clerk.gate.set()
    await stopping
    assert await call == "last"


async def test_casts_arrive_and_broadcasts_reach_everyone_in_order(bus, topic):
    clerk = Clerk()
    await bus.server(topic, clerk)
    desk = await bus.client(topic)
    await desk.tell(asker(), "told")
    await until(lambda: clerk.ended == ["told"])
    heard = [[], []]
    for each in heard:

        async def hear(body, each=each):
            if body == b"bad":
                raise RuntimeError("a subscriber's failure is its own")
            each.append(body)

        await (await bus()).subscribe(topic, hear)
    sender = await bus()
    sent = [str(number).encode() for number in range(50)]
    for body in [b"bad", *sent]:
        await sender.broadcast(topic, body)
    await until(lambda: heard == [sent, sent])


# RabbitMQ alone


async def test_calls_wait_for_a_shared_topic_whose_server_is_briefly_away(rabbit, topic):
    server = await rabbit.server(topic, Clerk())
    await server.close()
    desk = await rabbit.client(topic)
    with pytest.raises(errors.DeadlineExceeded):
        await desk.once(asker(0.2), "impatient")
    other = await rabbit()
    await waiting(other, topic, 0)
    call = asyncio.create_task(desk.once(asker(), "patient"))
    await waiting(other, topic, 1)
    clerk = Clerk()
    await rabbit.server(topic, clerk)
    assert await call == "patient"
    assert clerk.begun == ["patient"]


async def test_a_topic_of_one_server_has_one(rabbit, topic):
    first = await rabbit.server(topic, Clerk(), shared=False)
    clerk = Clerk()
    second = await rabbit.server(topic, clerk, shared=False)
    assert "served already" in second.health()
    await first.close()
    await until(lambda: second.health() == "ok", "the second takes over")
    assert await (await rabbit.client(topic)).safe(asker(), "a") == "a"
    assert clerk.ended == ["a"]


SERVER = """
import asyncio, sys
import structlog
from magnum.rpc import transports

structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))

async def main():
    async def handle(message):
        print(message.method, flush=True)
        await asyncio.Event().wait()

    transport = transports.open(sys.argv[1], name="killed")
    await transport.start()
    await transport.serve(sys.argv[2], handle, shared=sys.argv[3] == "shared")
    print("serving", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.asynccontextmanager
async def _process(*argv):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVER, *argv, stdout=asyncio.subprocess.PIPE
    )  # fmt: skip
    try:
        assert await process.stdout.readline() == b"serving\n"
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()
        process._transport.close()


async def test_what_a_killed_server_had_in_hand_goes_to_another(rabbit, broker, topic):
    desk = await rabbit.client(topic)
    async with _process(broker, topic, "shared") as process:
        calls = [asyncio.create_task(ask(asker(), "a")) for ask in (desk.safe, desk.once)]
        assert {await process.stdout.readline() for _ in calls} == {b"safe\n", b"once\n"}
    clerk = Clerk()
    await rabbit.server(topic, clerk)
    assert await calls[0] == "a"
    with pytest.raises(errors.Unavailable, match="not known"):
        await calls[1]
    assert clerk.begun == ["a"]


async def test_a_killed_host_is_unreachable_and_its_successor_is_reached(rabbit, broker, topic):
    desk = await rabbit.client(topic)
    async with _process(broker, topic, "alone"):
        pass

    # the broker learns of the death a moment later
    with pytest.raises(errors.HostUnreachable):
        while True:
            with contextlib.suppress(errors.DeadlineExceeded):
                await desk.safe(asker(0.5), "a")
    server = await rabbit.server(topic, Clerk(), shared=False)
    await until(lambda: server.health() == "ok")
    assert await desk.safe(asker(), "a") == "a"


def _interrupt(name):
    """Have the broker end the connection that a transport called ``name`` has."""
    found = rabbitmq.control("list_connections", "pid", "client_properties").splitlines()
    (pid,) = [line.split("\t")[0] for line in found if name in line]
    rabbitmq.control("close_connection", pid, "for a test")


async def test_a_call_delivered_twice_runs_once(rabbit, topic):
    clerk = Clerk(opened=False)
    name = f"interrupted-{topic}"
    server = await rabbit.server(topic, clerk, name=name)
    desk = await rabbit.client(topic)
    call = asyncio.create_task(desk.once(asker(), "a"))
    await until(lambda: clerk.begun)
    before = server._link
    await asyncio.to_thread(_interrupt, name)
    await until(lambda: server.health() == "ok" and server._link is not before, "connected again")
    clerk.gate.set()
    assert await call == "a"
    assert clerk.begun == ["a"]


async def test_tls_and_several_addresses(rabbit, broker, topic):
    facts = testbed.facts("rabbitmq")
    path = urllib.parse.urlsplit(broker).path
    login = f"{facts['user']}:{facts['password']}"
    (dead,) = testbed.free_ports(1)
    url = f"amqps://{login}@127.0.0.1:{dead},localhost:{facts['tls_port']}{path}?cafile={facts['ca']}"
    secure = _over(url)
    try:
        await rabbit.server(topic, Clerk())
        assert await (await secure.client(topic)).echo(asker(), b"a") == b"a"
        stranger = await _over(url.partition("?")[0])()
        await until(lambda: "certificate" in stranger.health().lower())
        with pytest.raises(errors.DeadlineExceeded):
            await base.client(Desk, stranger, topic).echo(asker(0.1), b"a")
        await stranger.close()
    finally:
        await secure.close()


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("amqp://", None),
        ("amqp://h/?speed=9", None),
        ("amqp://h:x/", None),
        ("amqp://h", ["amqp://guest:guest@h:5672/%2F?heartbeat=10"]),
        (
            "amqps://u:p%40@a,v:q@[::1]:7,c:8/x%2Fy?heartbeat=3",
            [
                "amqps://u:p%40@a:5671/x%2Fy?heartbeat=3",
                "amqps://v:q@[::1]:7/x%2Fy?heartbeat=3",
                "amqps://u:p%40@c:8/x%2Fy?heartbeat=3",
            ],
        ),
    ],
)
def test_addresses(url, found):
    if found is None:
        with pytest.raises(errors.Invalid):
            amqp.addresses(url)
    else:
        assert amqp.addresses(url) == found


@pytest.fixture
def private_broker():
    """A broker of the test's own, which it may end."""
    rabbitmq.install()
    with testbed.lock(testbed.FOLDER / f"{PRIVATE}.lock"):
        yield rabbitmq.start(PRIVATE)["url"]
        rabbitmq.drop(PRIVATE)
    (testbed.FOLDER / f"{PRIVATE}.lock").unlink()


async def test_a_broker_that_dies_and_returns(private_broker, topic, monkeypatch):
    monkeypatch.setattr(amqp, "PATIENCE", 120.0)
    bus = _over(private_broker)
    clerk = Clerk(opened=False)
    heard = []

    async def hear(body):
        heard.append(body)

    try:
        shared = await bus.server(f"{topic}.shared", clerk)
        alone = await bus.server(f"{topic}.alone", clerk, shared=False)
        await shared.subscribe(topic, hear)
        sender = await bus("client")
        desks = [base.client(Desk, sender, f"{topic}.{kind}") for kind in ("shared", "alone")]
        in_flight = [asyncio.create_task(desk.safe(asker(150), "safe")) for desk in desks]
        once = asyncio.create_task(desks[0].once(asker(150), "once"))
        await until(lambda: len(clerk.begun) == 3)
        await asyncio.to_thread(rabbitmq.stop, PRIVATE, kill=True)
        with pytest.raises(errors.Unavailable, match="not known"):
            await once
        await until(lambda: sender.health() != "ok")
        with pytest.raises(errors.DeadlineExceeded):
            await desks[0].safe(asker(0.3), "meanwhile")
        await sender.broadcast(topic, b"lost")
        late = await bus("late")
        assert "broker 127.0.0.1" in late.health() and "magnum:" not in late.health()
        monkeypatch.setattr(amqp, "PATIENCE", 0.0)
        with pytest.raises(errors.Unavailable):
            await base.client(Desk, late, f"{topic}.shared").safe(asker(), "at once")
        monkeypatch.setattr(amqp, "PATIENCE", 120.0)
        clerk.gate.set()
        await asyncio.to_thread(rabbitmq.start, PRIVATE)
        assert await asyncio.gather(*in_flight) == ["safe", "safe"]
        assert await base.client(Desk, late, f"{topic}.alone").once(asker(), "after") == "after"
        await until(lambda: all(each.health() == "ok" for each in (shared, alone, sender, late)))
        for number in itertools.count():
            await sender.broadcast(topic, str(number).encode())
            if heard:
                break
            assert number < LIMIT * 20, "no broadcast after the restart"
            await asyncio.sleep(0.05)
        assert clerk.begun.count("once") == 1 and "meanwhile" not in clerk.begun
    finally:
        await bus.close()
