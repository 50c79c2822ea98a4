"""A bay on two hosts, through two real engines in one swarm: names, addresses, services, isolation, nothing left."""

import asyncio
import contextlib
import uuid

import pytest

from magnum import errors
from magnum.clients import docker, nftables
from magnum.engines import base
from magnum.networks import docker as networks
from magnum.networks import overlay
from magnum.objects import service as objects
from testbed import images
from tests import packets, wanted


async def _until(what, seconds=60.0):
    """Return the first true answer of ``what``."""
    for _ in range(int(seconds * 5)):
        if found := await what():
            return found
        await asyncio.sleep(0.2)
    raise AssertionError(f"not within {seconds} s: {found!r}")


@pytest.fixture
async def pair():
    """Two hosts in a swarm of their own."""
    hosts = packets.hosts(2)
    clients = [docker.Client(host["url"]) for host in hosts]
    first, second = clients
    for client in clients:
        with contextlib.suppress(errors.EngineError):
            await client.request("POST", "/swarm/leave?force=1")
    await first.request("POST", "/swarm/init", body={
        "ListenAddr": f"{hosts[0]['address']}:2377", "AdvertiseAddr": hosts[0]["address"],
    }, into=str)  # fmt: skip
    tokens = (await first.request("GET", "/swarm", into=dict))["JoinTokens"]
    await second.request("POST", "/swarm/join", body={
        "ListenAddr": f"{hosts[1]['address']}:2377", "AdvertiseAddr": hosts[1]["address"],
        "RemoteAddrs": [f"{hosts[0]['address']}:2377"], "JoinToken": tokens["Worker"],
    })  # fmt: skip
    yield hosts
    for client in (second, first):
        with contextlib.suppress(errors.EngineError):
            await client.request("POST", "/swarm/leave?force=1")
        await client.close()


async def test_a_swarm_without_a_leader_is_not_taken_at_its_word(pair):
    """A manager that cannot ask lists no network: that is no reason to believe that it is gone."""
    first, second = (docker.Client(host["url"]) for host in pair)
    ident = str(uuid.uuid4())
    name, labels = networks.network_name(ident), [f"{base.UUID}={ident}"]
    tokens = (await first.request("GET", "/swarm", into=dict))["JoinTokens"]
    await second.request("POST", "/swarm/leave?force=1")
    place = {"ListenAddr": f"{pair[1]['address']}:2377", "AdvertiseAddr": pair[1]["address"]}
    managers = {"RemoteAddrs": [f"{pair[0]['address']}:2377"], "JoinToken": tokens["Manager"]}
    await second.request("POST", "/swarm/join", body=place | managers)
    await _until(lambda: _answers(first))
    await first.create_network({"Name": name, "Driver": "overlay", "Attachable": True, "Labels": {base.UUID: ident}})
    await _until(lambda: _listed(second, name))
    # one of two managers is no majority
    await second.request("POST", "/swarm/leave?force=1")

    async def lost():
        return not await _answers(first) and not await _listed(first, name)

    await _until(lost)
    (why,) = await networks.remove(first, ident, labels)
    assert "leader" in why
    assert "leader" in (await overlay.remove(first, ident, name=name) or "")
    # of a part that others go on with it has nothing to ask
    assert await networks.remove(first, ident, labels, whole=False) == []
    place = {"ListenAddr": f"{pair[0]['address']}:2377", "AdvertiseAddr": pair[0]["address"]}
    await first.request("POST", "/swarm/init", body=place | {"ForceNewCluster": True}, into=str)
    await _until(lambda: _listed(first, name))

    async def removed():
        return await networks.remove(first, ident, labels) == []

    await _until(removed)
    assert not await _listed(first, name)
    for client in (first, second):
        await client.close()


async def _answers(client):
    try:
        return bool(await client.request("GET", "/swarm", into=dict))
    except errors.EngineError:
        return False


async def _listed(client, name):
    return any(network.name == name for network in await client.networks())


@contextlib.asynccontextmanager
async def _bay(hosts, tmp_path):
    """Give a bay's shares, one a host, and remove them after; nothing of it may be left."""
    ident = str(uuid.uuid4())
    shares = [
        packets.Bay(docker.Client(host["url"]), host["socket"], images.DEMO, ident, tmp_path / host["name"])
        for host in hosts
    ]

    async def remove():
        left = [await overlay.remove(share.client, ident, name=share.name) for share in shares]
        return all(why is None for why in left)

    try:
        for share in shares:
            made = await overlay.ensure(
                share.client, ident, name=share.name, labels=share.labels, pool="172.30.0.0/16",
                image=images.PAUSE, command=images.PAUSE_COMMAND,
            )  # fmt: skip
            await share.hosts.ensure(ident)
        yield shares, made
    finally:
        for share in shares:
            await share.clear()
        await _until(remove)
        for share in shares:
            assert not [n for n in await share.client.networks() if n.name == share.name]
            assert not await share.client.containers([f"{base.BAY}={ident}"])
            engine = nftables.Namespace(nftables.engine_process(share.socket))
            assert f"magnum-{share.deployment}" not in await engine.run("nft", "list", "ruleset")
            assert made.services.partition("/")[0].rpartition(".")[0] not in await engine.run("ip", "route")
            await share.client.close()


async def test_a_bay_on_two_hosts(pair, tmp_path):
    async with _bay(pair, tmp_path) as (shares, made):
        here, there = shares
        await here.serve("one")
        await there.serve("two")
        await here.container("client")
        await there.container("distant")

        async def fetch(share, name, where, wanted):
            await _until(lambda: _is(share.fetch(name, where), wanted))

        # what is new on the other host is heard of within moments
        for share, name, other in ((here, "client", "two"), (there, "distant", "one")):
            await fetch(share, name, f"{other}:8080", other)
        await fetch(here, "client", f"{there.ips['two']}:8080", "two")

        address = made.services.partition("/")[0].rpartition(".")[0] + ".200"
        ips = here.ips | there.ips
        spec = objects.ServiceSpec(
            manifest={}, virtual_ip=address, ports=[objects.ServicePort(port=80, target_port=8080, node_port=30081)],
            endpoints=[objects.Endpoint(pod=n, ip=ips[n], ports={"80": 8080}) for n in ("one", "two")],
        )  # fmt: skip
        web = objects.Service(uuid=str(uuid.uuid4()), name="web", bay_uuid=here.uuid, spec=spec)
        drivers = [share.services() for share in shares]

        async def apply():
            for driver in drivers:
                outcome = await driver.apply(web, wanted.ignore)
                assert (outcome.status, outcome.reason) == ("Active", None)
                assert (await driver.observe(web)).status == "Active"

        await apply()
        for share, name in ((here, "client"), (there, "distant"), (here, "one")):
            assert {await share.fetch(name, "web") for _ in range(4)} == {"one", "two"}
        for share, host in zip(shares, pair, strict=True):
            assert {await share.fetch_from_host(f"http://{address}/") for _ in range(4)} == {"one", "two"}
            assert {await share.fetch_from_host(f"http://{host['address']}:30081/") for _ in range(4)} == {"one", "two"}

        async with _bay(pair[:1], tmp_path / "other") as ((stranger,), _):
            await stranger.container("stranger")
            for where in ("web", "one:8080", address, f"{ips['one']}:8080"):
                assert await stranger.fetch("stranger", where) == ""

        web.spec.endpoints = web.spec.endpoints[1:]
        await apply()
        for share, name in ((here, "client"), (there, "distant"), (there, "two")):
            assert {await share.fetch(name, address) for _ in range(4)} == {"two"}
        # an anchor that starts anew has lost its rules; it shows, and is made good
        anchor = overlay.anchor_name(here.uuid)
        await here.client.restart(anchor, 0)
        assert (await drivers[0].observe(web)).status == "Error"
        await apply()
        await fetch(here, "client", address, "two")
        # as has one that has lost its network
        inside = nftables.Namespace((await here.client.inspect(anchor)).state.pid)
        taken = next(a for a in await inside.addresses() if a.startswith(made.subnet.rpartition(".")[0]))
        interface = (await inside.addresses())[taken]
        assert await overlay.anchored(here.client, here.uuid)
        await inside.run("ip", "address", "del", taken, "dev", interface)
        assert not await overlay.anchored(here.client, here.uuid)
        await overlay.ensure(
            here.client, here.uuid, name=here.name, labels=here.labels, pool="172.30.0.0/16",
            image=images.PAUSE, command=images.PAUSE_COMMAND,
        )  # fmt: skip
        assert await overlay.anchored(here.client, here.uuid)
        await apply()
        await fetch(here, "client", address, "two")
        for driver in drivers:
            assert (await driver.remove(web.uuid, None)).gone
        assert await here.fetch("client", address) == ""


async def _is(answer, wanted):
    return await answer == wanted
