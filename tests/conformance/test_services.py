"""Services of a one-host Docker bay, by packets through a real engine."""

import collections
import uuid

import pytest

from magnum import config
from magnum.clients import docker, nftables
from magnum.engines.docker import service as driver
from magnum.engines.docker import wiring
from magnum.networks import names
from magnum.objects import service as objects
from tests import packets, wanted


@pytest.fixture(scope="module")
def docker_host():
    return packets.hosts(1)[0]


@pytest.fixture
async def bay(docker_host, tmp_path):
    async with packets.bay(docker_host, tmp_path) as made:
        yield made


def _service(bay, address, ports, endpoints, **fields):
    spec = objects.ServiceSpec(
        manifest={"metadata": {"name": "web"}}, virtual_ip=address, ports=ports,
        endpoints=[objects.Endpoint(pod=e, ip=bay.ips[e], ports={str(p.port): p.target_port for p in ports}) for e in endpoints],
        **fields,
    )  # fmt: skip
    return objects.Service(uuid=str(uuid.uuid4()), name="web", bay_uuid=bay.uuid, spec=spec)


async def test_balances_follows_and_leaves_nothing(bay, docker_host):
    services = bay.services()
    engine = nftables.Namespace(nftables.engine_process(bay.socket))
    for name in ("one", "two"):
        await bay.serve(name)
    await bay.container("client")
    web = _service(
        bay, "172.30.200.7", [objects.ServicePort(port=80, target_port=8080, node_port=30080)], ["one", "two"]
    )

    outcome = await services.apply(web, wanted.ignore)
    assert (outcome.status, outcome.reason) == ("Active", None)
    assert (await services.observe(web)).status == "Active"
    assert [s.uuid for s in await services.seen()] == [web.uuid]

    counted = collections.Counter([await bay.fetch("client", "172.30.200.7") for _ in range(8)])
    assert counted == {"one": 4, "two": 4}
    # by name, and a pod by its own service, itself included
    assert {await bay.fetch("one", "web.default.svc.cluster.local") for _ in range(4)} == {"one", "two"}
    # from the host, by both addresses
    assert {await bay.fetch_from_host("http://172.30.200.7/") for _ in range(4)} == {"one", "two"}
    address = await bay.host_address()
    assert {await bay.fetch_from_host(f"http://{address}:30080/") for _ in range(4)} == {"one", "two"}
    # from nowhere else
    async with packets.bay(docker_host, bay.state_dir / "other") as other:
        await other.container("stranger")
        assert await other.fetch("stranger", "172.30.200.7") == ""
        assert await other.fetch("stranger", f"{address}:30080") == ""

    web.spec.endpoints = web.spec.endpoints[1:]
    await services.apply(web, wanted.ignore)
    assert {await bay.fetch("client", "web") for _ in range(4)} == {"two"}
    assert {await bay.fetch("two", "web") for _ in range(4)} == {"two"}

    web.spec.endpoints = []
    assert (await services.apply(web, wanted.ignore)).status == "Active"
    assert await bay.fetch("client", "web") == ""
    assert "Connection refused" in await bay.words("client", "172.30.200.7")

    assert (await services.remove(web.uuid, None)).gone
    assert await services.seen() == []
    left = await engine.run("nft", "list", "ruleset")
    assert web.uuid not in left
    assert f"magnum-{bay.deployment}" not in left
    assert web.uuid not in bay.hosts.path(bay.uuid).read_text()


async def test_udp_leaves_at_once_and_a_client_stays_with_its_pod(bay):
    services = bay.services()
    for name in ("one", "two"):
        await bay.serve(name)
        await bay.serve_udp(name)
    await bay.container("client")
    ports = [
        objects.ServicePort(port=53, target_port=5353, protocol="UDP"),
        objects.ServicePort(port=80, target_port=8080),
    ]
    item = _service(bay, "172.30.200.8", ports, ["one", "two"], affinity_seconds=300)
    await services.apply(item, wanted.ignore)

    pinned = {await bay.fetch("client", "web") for _ in range(6)}
    assert len(pinned) == 1
    # one flow: the same ports both ways, so that the connection tracker knows it
    first = await bay.ask_udp("client", "172.30.200.8", 53)
    assert first in ("one", "two")
    item.spec.endpoints = [e for e in item.spec.endpoints if e.pod != first]
    await services.apply(item, wanted.ignore)
    assert await bay.ask_udp("client", "172.30.200.8", 53) == ({"one", "two"} - {first}).pop()
    # the chosen pod is kept while it is there
    item.spec.endpoints = [
        objects.Endpoint(pod=n, ip=bay.ips[n], ports={"53": 5353, "80": 8080}) for n in ("one", "two")
    ]
    await services.apply(item, wanted.ignore)
    kept = {await bay.fetch("client", "web") for _ in range(6)}
    assert len(kept) == 1
    assert (await services.remove(item.uuid, item)).gone


async def test_two_services_of_a_table_do_not_touch_each_other(bay):
    services = bay.services()
    await bay.serve("one")
    await bay.container("client")
    port = [objects.ServicePort(port=80, target_port=8080)]
    web, other = _service(bay, "172.30.200.9", port, ["one"]), _service(bay, "172.30.200.10", port, ["one"])
    await services.apply(web, wanted.ignore)
    await services.apply(other, wanted.ignore)
    assert (await services.remove(other.uuid, other)).gone
    assert await bay.fetch("client", "172.30.200.9") == "one"
    assert await bay.fetch("client", "172.30.200.10") == ""
    assert (await services.remove(web.uuid, web)).gone


async def test_an_engine_out_of_reach_is_refused(tmp_path):
    conf = config.load([], state_dir=str(tmp_path))
    client = docker.Client("tcp://127.0.0.1:1", tls_ca="a", tls_cert="b", tls_key="c")
    hosts = names.Names(str(tmp_path))
    services = driver.Service(client, conf, hosts, wiring.Wiring(client, conf, hosts))
    spec = objects.ServiceSpec(manifest={}, virtual_ip="172.30.0.1")
    outcome = await services.apply(objects.Service(uuid=str(uuid.uuid4()), spec=spec), wanted.ignore)
    assert outcome.status == "Error"
    assert "unix://" in (outcome.reason or "")
