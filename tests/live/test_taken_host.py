"""A machine that was taken over: what the user of its backend at the broker can do to others, which is nothing."""

import asyncio
import contextlib
import secrets

import aiormq
import msgspec
import pytest

from magnum import context as contexts
from magnum import errors, objects
from magnum.objects import base as objects_base
from magnum.objects import host
from magnum.rpc import amqp, backend, base, conductor
from testbed import base as testbed
from tests.deployment import Deployment, until
from tests.live import conftest


@pytest.fixture(scope="module")
def apart(docker_hosts, tmp_path_factory):
    """Two hosts with a user each at the broker."""
    conftest.servers()
    name = f"apart-{testbed.TAG}-{secrets.token_hex(3)}"
    more = {"DEFAULT": {"host_user": "magnum-host-{host}"}}
    made = Deployment(name, tmp_path_factory.mktemp("apart"), docker_hosts[:2], more, own_users=True)
    yield from conftest.running(made)


@pytest.fixture(scope="module")
def containers(apart, docker_hosts):
    """One container on each host: host's name → what the api shows."""
    assert apart.request("POST", "/v1/baymodels", {"name": "m"})[0] == 201
    body = {"name": "b", "baymodel_id": "m", "node_count": 2}
    status, bay = apart.request("POST", "/v1/bays?wait=60", body)
    assert (status, bay["status"]) == (201, "CREATE_COMPLETE"), bay
    found = {}
    for number in range(2):
        body = {"name": f"c{number}", "bay_uuid": "b", "image": docker_hosts[0].image, "command": ["sleep", "600"],
                "stop_timeout": 0, "start": True, "environment": {"WORD": "of-one-host"}}  # fmt: skip
        status, made = apart.request("POST", "/v1/containers?wait=60", body)
        assert (status, made["status"]) == (201, "Running"), made
        found[made["host"]] = made
    assert set(found) == set(apart.hosts)
    return found


@contextlib.asynccontextmanager
async def _thief(cloud, name):
    """A transport with what the backend of host ``name`` has."""
    transport = amqp.Amqp(cloud.host_urls[name], name="thief")
    await transport.start()
    try:
        yield transport
    finally:
        await transport.close()


def _speaks_for(name):
    return contexts.service(name).within(20)


async def test_it_speaks_for_itself_alone(apart, containers):
    mine, other = apart.hosts
    theirs = containers[other]["uuid"]
    async with _thief(apart, mine) as transport:
        asks = base.client(conductor.Conductor, transport, conductor.TOPIC)
        (own,) = await asks.wanted(_speaks_for(mine), [containers[mine]["uuid"]])
        assert own.spec.environment == {"WORD": "of-one-host"} and own.host == mine
        assert await asks.wanted(_speaks_for(mine), [theirs]) == []
        lie = objects_base.Report(
            kind="container", uuid=theirs, generation=9, sequence=2**60, status="Error", reason="lie"
        )
        gone = objects_base.Report(kind="container", uuid=theirs, generation=9, sequence=2**60, gone=True)
        assert await asks.report(_speaks_for(mine), [lie, gone]) == [None, None]
        for name in (other, ""):
            with pytest.raises(errors.Forbidden, match="speaks for host"):
                await asks.report(_speaks_for(name), [lie])
            with pytest.raises(errors.Forbidden, match="speaks for host"):
                await asks.wanted(_speaks_for(name))
        beat = host.Beat(binary="magnum-backend", host=other, facts=host.Facts(problem="lie"))
        with pytest.raises(errors.Forbidden, match="is not"):
            await asks.beat(_speaks_for(mine), beat)
        for ask in (
            lambda: asks.get(_speaks_for(mine), "container", theirs),
            lambda: asks.delete(_speaks_for(mine), "container", theirs),
            lambda: asks.act(_speaks_for(mine), "container", theirs, None, "stop"),
            lambda: asks.page(_speaks_for(mine), "container", objects_base.Query()),
            lambda: asks.events(_speaks_for(mine)),
            lambda: asks.set_quota(_speaks_for(mine), "default", {"bays": 0}),
        ):
            with pytest.raises(errors.Forbidden, match="hosts may not ask that"):
                await ask()
    shown = apart.request("GET", f"/v1/containers/{theirs}")[1]
    assert (shown["status"], shown["status_reason"]) == ("Running", None), shown
    assert {h["status"] for h in apart.request("GET", "/v1/hosts")[1]["hosts"]} == {"up"}
    assert "sender=magnum-host-" in (apart.folder / "conductor.log").read_text()


async def test_it_tells_other_hosts_nothing(apart, containers):
    mine, other = apart.hosts
    async with _thief(apart, mine) as transport:
        asked = base.client(conductor.Conductor, transport, conductor.TOPIC)
        (item,) = await asked.wanted(_speaks_for(mine), [containers[mine]["uuid"]])
        item.uuid, item.deleting = containers[other]["uuid"], True
        asks = base.client(backend.Backend, transport, f"{backend.TOPIC}.{other}")
        for ask in (
            lambda: asks.ping(contexts.service()),
            lambda: asks.apply(contexts.service(), item),
            lambda: asks.stream(contexts.service(), item, backend.StreamAsked(verb="logs", url="", ticket="")),
        ):
            with pytest.raises(errors.Forbidden, match="by the conductor and the api alone"):
                await ask()
    # its own backend is told by the api as ever
    for name, shown in containers.items():
        status, _ = apart.request("GET", f"/v1/containers/{shown['uuid']}/logs")
        assert status == 200, name
        assert apart.engine_objects(shown["uuid"]) == 1


async def test_the_broker_keeps_it_from_what_is_not_its_own(apart, containers):
    mine, other = apart.hosts
    connection = await aiormq.connect(apart.host_urls[mine])

    async def refused(what, error=aiormq.exceptions.ChannelAccessRefused):
        channel = await connection.channel()
        with pytest.raises(error):
            await what(channel)
            # what needs no answer is refused by the end of its channel
            await channel.basic_qos(prefetch_count=1)

    await refused(lambda c: c.queue_declare(f"{backend.TOPIC}.{other}", exclusive=True))
    await refused(lambda c: c.queue_declare("mine", exclusive=True))
    await refused(lambda c: c.queue_delete(f"{backend.TOPIC}.{other}"))
    await refused(lambda c: c.queue_purge(conductor.TOPIC))
    await refused(lambda c: c.basic_consume(conductor.TOPIC, lambda message: None))
    await refused(lambda c: c.basic_get(conductor.TOPIC))
    await refused(lambda c: c.exchange_declare(amqp.BROADCAST, exchange_type="direct", durable=True))
    await refused(lambda c: c.basic_publish(b"", exchange=amqp.BROADCAST, routing_key=conductor.EVENTS))
    await connection.close()
    async with _thief(apart, mine) as transport:
        asks = base.client(conductor.Conductor, transport, conductor.TOPIC)
        # in another's name
        for name, words in (("", "its sender is not known"), (None, "interrupted|closed|PRECONDITION")):
            transport._link.user = f"magnum-host-{other}" if name is None else name
            with pytest.raises((errors.Forbidden, errors.Unavailable, errors.DeadlineExceeded), match=words):
                await asks.settle(_speaks_for(other).within(3), "req-1", "cancel")
            until(lambda: transport.health() == "ok")


async def test_who_has_the_same_name_at_the_broker_is_no_other_host(apart, containers):
    """The queue of a host is its backend's alone, even for its own user."""
    mine = next(iter(apart.hosts))
    connection = await aiormq.connect(apart.host_urls[mine])
    channel = await connection.channel()
    with pytest.raises(aiormq.exceptions.ChannelLockedResource):
        await channel.queue_declare(f"{backend.TOPIC}.{mine}", exclusive=True)
    await connection.close()


class _Liar(backend.Backend):
    """Answers for a host what is not so; ``lies``: what it says of whatever it is asked to apply."""

    def __init__(self, **lies):
        self.lies, self.asked = lies, 0

    async def apply(self, context, item):
        self.asked += 1
        return msgspec.structs.replace(
            item, status="Stopped", observed_generation=item.generation, operation=None, **self.lies
        )

    async def kick(self, context, uuids):
        pass


async def test_what_it_passes_on_is_taken_for_its_own_object_alone(apart, containers):
    mine, other = apart.hosts
    shown, theirs = containers[mine], containers[other]["uuid"]
    apart.kill(mine)
    try:
        async with _thief(apart, mine) as transport:
            lies = (
                {"uuid": theirs}, {"generation": 99},
                {"name": "taken", "project_id": "another", "host": other, "bay_uuid": None,
                 "spec": objects.container.ContainerSpec(image="another", environment={"WORD": "of-another"})},
            )  # fmt: skip
            for number, lie in enumerate(lies):
                liar = _Liar(**lie)
                await transport.serve(f"{backend.TOPIC}.{mine}", base.handler(backend.Backend, liar), shared=False)
                until(lambda: transport.health() == "ok")
                body = [{"op": "replace", "path": "/memory", "value": f"{64 + number}m"}]
                path = f"/v1/containers/{shown['uuid']}?wait=1"
                status, found = await asyncio.to_thread(apart.request, "PATCH", path, body)
                await transport.stop_serving()
                assert liar.asked, (lie, status, found)
                assert (found["uuid"], found["name"], found["project_id"]) == (
                    shown["uuid"], shown["name"], shown["project_id"]
                )  # fmt: skip
                assert (found["host"], found["environment"]) == (mine, {"WORD": "of-one-host"})
                # an answer that is not of just this change tells nothing: the conductor knows of no end of it
                assert (status, found["status"]) == ((200, "Stopped") if "name" in lie else (202, "Updating")), lie
    finally:
        apart.start(mine)
    # what it said was for whoever asked: written is what its own backend reports
    until(lambda: apart.request("GET", f"/v1/containers/{shown['uuid']}")[1]["status"] == "Running")
