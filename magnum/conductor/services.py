"""Services of Docker bays: their addresses, and which pods stand behind them.

A virtual address and node ports are claimed in the transaction that writes the
service, so no two have the same. Endpoints follow the ready pods that the selector
matches; a change is a new generation, which the bay's hosts take up.

Called by ``conductor.server`` and ``changes``, ``claim`` when a service is written, and by ``rounds``, ``refresh`` after
each change in its bay.
"""

import ipaddress
import secrets
from typing import Any

from oslo_config import cfg

from magnum import context as contexts
from magnum import errors, objects
from magnum.conductor import replication
from magnum.db import store, tables
from magnum.objects import bay as bays
from magnum.objects import pod, service

ADDRESSES = "service address"
NODE_PORTS = "node port"


def _halves(network: str) -> tuple[ipaddress.IPv4Network, ipaddress.IPv4Network]:
    lower, upper = ipaddress.IPv4Network(network).subnets(prefixlen_diff=1)
    return lower, upper


def pool(conf: cfg.ConfigOpts, where: bays.Bay) -> ipaddress.IPv4Network:
    """Return where a bay's virtual addresses are cut from: its own network's upper half if that spans hosts.

    See ``networks.overlay`` for that half. Otherwise it is the upper half of
    ``service_cidr``, whose lower one is the overlays'. Raises Conflict: the network does not stand yet.
    """
    if not bays.spans(where.spec):
        return _halves(conf.docker.service_cidr)[1]
    if not stands(conf, where):
        raise errors.Conflict(f"the network of bay {where.name} does not stand yet", status=where.status)
    return _halves(where.state.subnet or "")[1]


def stands(conf: cfg.ConfigOpts, where: bays.Bay) -> bool:
    """Return whether the network of a bay is there, and no more the bridge of its first host if it spans hosts."""
    subnet = where.state.subnet
    if subnet is None or not bays.spans(where.spec):
        return subnet is not None
    return ipaddress.IPv4Network(subnet).subnet_of(_halves(conf.docker.service_cidr)[0])


async def claim(
    tx: store.Transaction, conf: cfg.ConfigOpts, item: service.Service, before: service.ServiceSpec | None = None
) -> None:
    """Give ``item`` its address and node ports; those of ``before`` that it has no more are free again.

    Raises Conflict (a node port is taken, none is left), Invalid (a node port out of range).
    """
    where = (await tx.find(objects.KINDS["bay"], item.bay_uuid or "")).item
    item.spec = service.settle(item.spec, where.spec)
    if where.spec.engine != "docker":
        return
    item.spec.door = await _door(tx, item.spec, where)
    taken = await tx.claims([ADDRESSES, NODE_PORTS])
    if item.spec.virtual_ip is None and not item.spec.headless:
        item.spec.virtual_ip = _address(pool(conf, where), taken[ADDRESSES])
        await tx.claim(ADDRESSES, item.spec.virtual_ip, item.uuid)
    await _claim_ports(tx, conf, item, before, taken[NODE_PORTS])


async def _door(tx: store.Transaction, spec: service.ServiceSpec, where: bays.Bay) -> str | None:
    """Return the host that is to have the door of a service: the one that has it, unless that is lost."""
    if not spec.external:
        return None
    machines = await tx.hosts_named(where.spec.members)
    alive = [name for name in where.spec.members if name in machines and machines[name].status != "down"]
    if spec.door in alive or not alive:
        return spec.door
    return secrets.choice(alive)


def _address(network: ipaddress.IPv4Network, taken: dict[str, str]) -> str:
    size = network.num_addresses
    # by chance, so that two who choose at once seldom meet; then in order, so that the last one is found
    for offset in (*(1 + secrets.randbelow(size - 2) for _ in range(32)), *range(1, size - 1)):
        address = str(network[offset])
        if address not in taken:
            return address
    raise errors.Conflict(f"{network} has no address left for the service")


async def _claim_ports(
    tx: store.Transaction, conf: cfg.ConfigOpts, item: service.Service, before: service.ServiceSpec | None,
    taken: dict[str, str],
) -> None:  # fmt: skip
    low, high = (int(part) for part in conf.docker.node_port_range.split("-"))
    had = {_key(port) for port in before.ports if port.node_port} if before is not None else set()
    wants = item.spec.type == "NodePort"
    has = {_key(port) for port in item.spec.ports if port.node_port} if wants else set()
    for key in had - has:
        await tx.release(item.uuid, NODE_PORTS, key)
        taken.pop(key, None)
    if not wants:
        return
    for number, port in enumerate(item.spec.ports):
        field = f"spec.ports[{number}].nodePort"
        if port.node_port:
            if not low <= port.node_port <= high:
                raise errors.Invalid(f"must be between {low} and {high}", field=field)
            if taken.get(_key(port), item.uuid) != item.uuid:
                raise errors.Conflict(f"node port {_key(port)} is taken", field=field)
        else:
            free = [n for n in range(low, high + 1) if f"{port.protocol.lower()}/{n}" not in taken]
            if not free:
                raise errors.Conflict(f"no node port between {low} and {high} is left", field=field)
            port.node_port = secrets.choice(free)
        if _key(port) not in taken:
            await tx.claim(NODE_PORTS, _key(port), item.uuid)
            taken[_key(port)] = item.uuid


def _key(port: service.ServicePort) -> str:
    return f"{port.protocol.lower()}/{port.node_port}"


async def refresh(db: store.Store, bay_uuid: str) -> None:
    """Bring the endpoints of a bay's services in line with its pods. Raises Unavailable, Conflict."""
    kind = objects.KINDS["service"]
    context = contexts.service()

    async def look(tx: store.Transaction) -> list[str]:
        records = await tx.records(kind, tables.KINDS["service"].c.bay_uuid == bay_uuid)
        if not records:
            return []
        where = await tx.by_uuid(objects.KINDS["bay"], bay_uuid)
        if where is None or where.item.spec.engine != "docker":
            return []
        pods = await _pods(tx, bay_uuid)
        return [
            r.item.uuid for r in records
            if not r.item.deleting and r.item.spec.selector and (
                endpoints(r.item.spec, pods) != r.item.spec.endpoints
                or (r.item.spec.external and await _door(tx, r.item.spec, where.item) != r.item.spec.door)
            )
        ]  # fmt: skip

    for uuid in await db.read(context, look):

        async def work(tx: store.Transaction, uuid: str = uuid) -> None:
            record = await tx.by_uuid(kind, uuid, lock="write")
            if record is None or record.item.deleting:
                return
            item = record.item
            found = endpoints(item.spec, await _pods(tx, bay_uuid))
            where = await tx.by_uuid(objects.KINDS["bay"], bay_uuid)
            door = await _door(tx, item.spec, where.item) if where is not None else item.spec.door
            if (found, door) == (item.spec.endpoints, item.spec.door):
                return
            reason = f"endpoints: {', '.join(e.pod for e in found) or 'none'}"
            if door != item.spec.door:
                reason += f"; its door was on {item.spec.door}, which is down, and is on {door} now"
            item.spec.endpoints, item.spec.door = found, door
            item.generation += 1
            await tx.save(kind, record)
            tx.note(kind, item, "observed", was=item.status, reason=reason)
            for share in (await tx.shares([uuid]))[uuid]:
                tx.kicks.setdefault(share.host, set()).add(uuid)

        await db.write(context, work)


async def _pods(tx: store.Transaction, bay_uuid: str) -> list[pod.Pod]:
    """Return the pods of a bay that may be sent traffic."""
    records = await tx.records(objects.KINDS["pod"], tables.KINDS["pod"].c.bay_uuid == bay_uuid)
    return [
        r.item for r in records if not r.item.deleting and not r.lost and r.item.state.ready and r.item.state.pod_ip
    ]  # fmt: skip


def endpoints(spec: service.ServiceSpec, pods: list[pod.Pod]) -> list[service.Endpoint]:
    """Return what stands behind a service: the pods that it selects, with the port of each that is meant."""
    found = []
    for item in sorted(pods, key=lambda p: p.uuid):
        if not replication.matches(spec.selector, item.spec.labels):
            continue
        ports = {}
        for port in spec.ports:
            target = port.target_port if isinstance(port.target_port, int) else _named(item, port)
            if target is not None:
                ports[f"{port.port}/{port.protocol.lower()}"] = target
        if ports or spec.headless:
            found.append(service.Endpoint(pod=item.name, ip=item.state.pod_ip or "", host=item.host, ports=ports))
    return found


def _named(item: pod.Pod, port: service.ServicePort) -> int | None:
    """Return the number of the pod's port with the name that ``port`` targets."""
    containers: list[dict[str, Any]] = item.spec.manifest.get("spec", {}).get("containers", [])
    for container in containers:
        for given in container.get("ports", []):
            if given.get("name") == port.target_port and given.get("protocol", "TCP") == port.protocol:
                return int(given["containerPort"])
    return None
