"""The network of a Docker bay: a bridge of its own on one host, Docker's overlay on several.

Docker keeps bridges apart from each other, and its own name server answers
containers' names within one network; so a bay is closed to the others and open within.

Who calls: the Docker engine's drivers of bays and containers.
"""

import asyncio
import collections.abc
import ipaddress
import pathlib
import socket

import msgspec
from oslo_config import cfg

from magnum import errors
from magnum.clients import docker
from magnum.networks import overlay, swarm
from magnum.objects import bay as bays

_choosing = asyncio.Lock()


class NetworkFacts(msgspec.Struct, kw_only=True):
    """A bay's network as it stands: Docker's id and name of it, its CIDR."""

    id: str
    name: str
    subnet: str


def network_name(bay_uuid: str) -> str:
    """Return the name of a bay's network on any engine."""
    return f"magnum-{bay_uuid}"


async def ensure(
    client: docker.Client, conf: cfg.ConfigOpts, bay: bays.Bay, labels: dict[str, str], memo: dict[str, str]
) -> NetworkFacts:
    """Have the network of ``bay`` and return it. For an overlay the pause image is there already.

    It is known by ``labels``; ``memo`` are labels that a new one bears beside them.

    Raises EngineError (no addresses left, no swarm, Docker's refusal), Unavailable.
    """
    name = network_name(bay.uuid)
    if bays.spans(bay.spec):
        await swarm.ensure(client, conf, host_address(conf))
        await _leave_bridge(client, name, labels)
        made = await overlay.ensure(
            client, bay.uuid, name=name, labels=labels, pool=overlay.halves(conf.docker.service_cidr)[0],
            image=conf.docker.pause_image, command=conf.docker.pause_command, memo=memo,
        )  # fmt: skip
        return NetworkFacts(id=made.network, name=name, subnet=made.subnet)
    async with _choosing:
        return await _bridge(client, conf, name, labels, memo)


async def _leave_bridge(client: docker.Client, name: str, labels: dict[str, str]) -> None:
    """Remove what the network was while the bay was on this host alone; the conductor sees to it that nothing is on it."""
    for network in await client.networks([f"{key}={value}" for key, value in labels.items()]):
        if network.name == name and network.driver == "bridge":
            await client.remove_network(network.id)


async def _bridge(
    client: docker.Client, conf: cfg.ConfigOpts, name: str, labels: dict[str, str], memo: dict[str, str]
) -> NetworkFacts:
    networks = await client.networks()
    for network in networks:
        if network.name == name:
            if any((network.labels or {}).get(key) != value for key, value in labels.items()):
                raise errors.EngineError(f"a network {name} is there that is not ours")
            return NetworkFacts(id=network.id, name=name, subnet=_subnet(network))
    taken = [s.subnet for n in networks for s in n.ipam.config or [] if s.subnet] + routes()
    for subnet in free(conf.docker.bay_cidr, conf.docker.bay_prefix, [*taken, conf.docker.service_cidr]):
        config = {
            "Name": name, "Driver": "bridge", "CheckDuplicate": True, "Labels": labels | memo,
            "IPAM": {"Config": [{"Subnet": subnet}]},
        }  # fmt: skip
        try:
            ident = await client.create_network(config)
        except errors.EngineError as error:
            # taken in a place that only Docker sees
            if "overlap" in error.detail:
                continue
            raise
        return NetworkFacts(id=ident, name=name, subnet=subnet)
    raise errors.EngineError(f"[docker] bay_cidr {conf.docker.bay_cidr} has no network left for the bay")


def _subnet(network: docker.NetworkInfo) -> str:
    return next((s.subnet for s in network.ipam.config or [] if s.subnet), "")


def free(pool: str, prefix: int, taken: list[str]) -> collections.abc.Iterator[str]:
    """Yield the networks of ``pool`` with prefix length ``prefix`` that meet none of ``taken``, lowest first."""
    used = [n for n in (ipaddress.ip_network(t, strict=False) for t in taken) if isinstance(n, ipaddress.IPv4Network)]
    whole = ipaddress.IPv4Network(pool)
    for candidate in whole.subnets(new_prefix=max(prefix, whole.prefixlen)):
        if not any(candidate.overlaps(n) for n in used):
            yield str(candidate)


def routes(table: str = "/proc/net/route") -> list[str]:
    """Return the IPv4 networks that this machine has routes to, the default route aside (proc(5))."""
    found = []
    try:
        lines = pathlib.Path(table).read_text().splitlines()[1:]
    except OSError:
        return []
    for line in lines:
        fields = line.split()
        address, mask = (int.from_bytes(bytes.fromhex(fields[n]), "little") for n in (1, 7))
        if mask:
            found.append(str(ipaddress.IPv4Network((address, mask.bit_count()))))
    return found


async def remove(client: docker.Client, bay_uuid: str, labels: list[str], *, whole: bool = True) -> list[str]:
    """Remove the network of a bay, found by ``labels``; return a sentence for everything that keeps it.

    ``whole``: else only this host's part of a network that goes on on others.
    """
    left: list[str] = []
    found = await client.networks(labels)
    # a worker of a swarm no longer sees the network once its anchor has stopped
    if any(n.driver == "overlay" for n in found) or await client.containers(labels):
        name = network_name(bay_uuid)
        why = await overlay.remove(client, bay_uuid, name=name, whole=whole)
        left += [f"network {name}: {why}"] if why else []
    elif whole and not found and (why := await swarm.silent(client)):
        left.append(f"whether it has a network is not known: {why}")
    for network in found:
        if network.driver == "overlay":
            continue
        try:
            await client.remove_network(network.id)
        except errors.NotFound:
            continue
        except (errors.Conflict, errors.EngineError) as error:
            try:
                attached = (await client.network(network.id)).containers or {}
            except errors.NotFound:
                continue
            names = ", ".join(sorted(c.name for c in attached.values()))
            left.append(f"network {network.name}: containers are on it: {names}" if names else error.detail)
    return left


def host_address(conf: cfg.ConfigOpts) -> str:
    """Return the address at which others reach this host: ``[backend] address``, or that of the route out."""
    if conf.backend.address:
        return str(conf.backend.address)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            # sends nothing; an address of TEST-NET-3 (RFC 5737) takes the default route
            probe.connect(("203.0.113.1", 9))
        except OSError:
            return "127.0.0.1"
        return str(probe.getsockname()[0])
