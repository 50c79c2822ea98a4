"""The network of a bay on several hosts: one of Docker's own overlay networks, and an anchor on each host.

An anchor is a small container of the operator's on the bay's network, one a host.
It keeps this host's share of the overlay up (Docker takes it down with the last
container, and what starts meanwhile can be stuck for ever). Docker is not to start it
again by itself: an engine that does so before its swarm is back fails, and leaves an
attachment behind (a task of the swarm) that keeps the network from ever being removed.
So the backend looks whether it runs. Its network
namespace is where this host's containers of the bay find the virtual addresses
of services: an overlay answers address look-ups on the host that asks, so every
host's anchor has them all.

Containers get addresses from the lower half of the network, services from the
upper. Networks are cut from the lower half of ``[docker] service_cidr``, since hosts'
bridges are cut from ``bay_cidr`` and the two must not meet; the upper half is for
the virtual addresses of bays on one host.

Who calls: ``networks.docker`` for a bay with several members, ``engines.docker.service``.
"""

import asyncio
import ipaddress
import zlib
from typing import Any

import msgspec

from magnum import errors
from magnum.clients import docker, nftables
from magnum.networks import swarm

ROLE = "org.openstack.magnum.role"
ANCHOR = "anchor"
"""An anchor bears its bay's labels and this role."""

PREFIX = 24
ATTACH_SECONDS = 20.0
"""How long a member waits for the network that a manager makes."""

REMOVE_SECONDS = 5.0


class Overlay(msgspec.Struct, kw_only=True):
    """What stands. ``services``: the part of ``subnet`` for virtual addresses."""

    network: str
    subnet: str
    services: str
    anchor: str


def anchor_name(bay: str) -> str:
    return f"magnum-anchor-{bay}"


def halves(subnet: str) -> tuple[str, str]:
    """Return the parts of ``subnet`` for containers and for services."""
    lower, upper = ipaddress.ip_network(subnet).subnets(prefixlen_diff=1)
    return str(lower), str(upper)


def choose(pool: str, taken: list[str], bay: str) -> str:
    """Return a free network of ``pool`` for ``bay``, the same for all who ask with the same ``taken``.

    Bays start looking at different places, so two made at once seldom meet. Raises EngineError: the pool is used up.
    """
    whole = ipaddress.ip_network(pool)
    prefix = max(PREFIX, whole.prefixlen)
    count = 2 ** (prefix - whole.prefixlen)
    used = [ipaddress.ip_network(t, strict=False) for t in taken]
    first = zlib.crc32(bay.encode()) % count
    size = 2 ** (32 - prefix)
    for step in range(count):
        start = int(whole.network_address) + (first + step) % count * size
        candidate = ipaddress.ip_network((start, prefix))
        if not any(u.version == candidate.version and u.overlaps(candidate) for u in used):
            return str(candidate)
    raise errors.EngineError(f"[docker] service_cidr {pool} has no network left for the bay")


async def ensure(
    client: docker.Client,
    bay: str,
    *,
    name: str,
    labels: dict[str, str],
    pool: str,
    image: str,
    command: list[str],
    memo: dict[str, str] | None = None,
) -> Overlay:
    """Have the network ``name`` of ``bay`` and this host's anchor on it. The host is in the swarm already.

    ``image`` is there already; it and ``command`` are of the anchor, ``memo`` further labels of a new network. Raises EngineError, Unavailable.
    """
    if await swarm.manages(client):
        await _make(client, bay, name, labels | (memo or {}), pool)
    anchor = await _anchor(client, bay, name, labels, image, command)
    found = await client.network(name)
    subnet = next((s.subnet for s in found.ipam.config or [] if s.subnet), "")
    if not subnet:
        raise errors.EngineError(f"the swarm gave network {name} no addresses")
    return Overlay(network=found.id, subnet=subnet, services=halves(subnet)[1], anchor=anchor)


async def remove(client: docker.Client, bay: str, *, name: str, whole: bool = True) -> str | None:
    """Remove this host's anchor and, if the bay ends as a ``whole`` and this host manages the swarm, the network.

    Returns why something is left (other hosts' containers are still on it: to be tried again), None once
    nothing of it is left to this host.
    """
    try:
        await client.remove(anchor_name(bay))
    except errors.NotFound:
        pass
    except errors.Conflict:
        return "the anchor is being removed"
    # every manager sees the network, also one whose host has no part in the bay
    if not whole or not await swarm.manages(client):
        return None
    try:
        await client.remove_network(name)
    except errors.NotFound:
        return await swarm.silent(client)
    except (errors.Conflict, errors.EngineError) as error:
        return error.detail
    # the swarm has taken the order; the engine forgets its share a moment later
    loop = asyncio.get_running_loop()
    end = loop.time() + REMOVE_SECONDS
    while any(n.name == name for n in await client.networks()):
        if loop.time() > end:
            return "the swarm is removing it"
        await asyncio.sleep(0.1)
    return None


async def anchored(client: docker.Client, bay: str) -> bool:
    """Say whether this host's anchor runs, and is on the bay's network. Raises Unavailable."""
    try:
        found = await client.inspect(anchor_name(bay))
    except errors.NotFound:
        return False
    return found.state.status == "running" and await _attached(client, found)


def addresses_of(anchor: docker.ContainerInfo) -> set[str]:
    """Return the addresses that the engine says an anchor has."""
    return {e.ip_address for e in (anchor.network_settings.networks or {}).values() if e.ip_address}


async def _attached(client: docker.Client, anchor: docker.ContainerInfo) -> bool:
    """Say whether an anchor that runs has what the engine says it has: one begun while a swarm is away may not.

    Of an engine elsewhere only the engine's word is known.
    """
    own = addresses_of(anchor)
    if not own or not client.url.startswith("unix://"):
        return bool(own)
    inside = nftables.Namespace(anchor.state.pid)
    try:
        there = {address.partition("/")[0] for address in await inside.addresses()}
        return own <= there and await inside.gateway() is not None
    except errors.EngineError:
        # it ended meanwhile
        return False


async def _make(client: docker.Client, bay: str, name: str, labels: dict[str, str], pool: str) -> None:
    networks = await client.networks()
    if any(n.name == name for n in networks):
        return
    taken = [s.subnet for n in networks for s in n.ipam.config or [] if s.subnet]
    subnet = choose(pool, taken, bay)
    first = str(next(ipaddress.ip_network(subnet).hosts()))
    config: dict[str, Any] = {
        "Name": name, "Driver": "overlay", "Attachable": True, "CheckDuplicate": True, "Labels": labels,
        "IPAM": {"Config": [{"Subnet": subnet, "IPRange": halves(subnet)[0], "Gateway": first}]},
    }  # fmt: skip
    try:
        await client.create_network(config)
    except (errors.Conflict, errors.EngineError):
        # another manager was first
        if not any(n.name == name for n in await client.networks()):
            raise


async def _anchor(
    client: docker.Client, bay: str, name: str, labels: dict[str, str], image: str, command: list[str]
) -> str:
    config: dict[str, Any] = {
        "Image": image, "Labels": labels | {ROLE: ANCHOR}, "Hostname": "anchor",
        "HostConfig": {
            "NetworkMode": name, "RestartPolicy": {"Name": "no"}, "ReadonlyRootfs": True, "CapDrop": ["ALL"],
            "SecurityOpt": ["no-new-privileges"], "PidsLimit": 16, "Memory": 16 * 1024 * 1024,
        },
    }  # fmt: skip
    if command:
        config["Cmd"] = command
    loop = asyncio.get_running_loop()
    end = loop.time() + ATTACH_SECONDS
    while True:
        try:
            try:
                found = await client.inspect(anchor_name(bay))
                ident, running = found.id, found.state.status == "running"
                if running and not await _attached(client, found):
                    await client.restart(ident, 0)
            except errors.NotFound:
                ident, running = await client.create(anchor_name(bay), config), False
            if not running:
                await client.start(ident)
            return ident
        except (errors.NotFound, errors.Conflict, errors.EngineError):
            # the network is on its way from the managers
            if loop.time() > end:
                raise
        await asyncio.sleep(0.5)
