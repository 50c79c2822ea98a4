"""A bay on Neutron: a network, subnet, router and security group of its owner, made or adopted, and its workloads' ports.

What Magnum makes belongs to the tenant's project and bears ``magnum:<deployment>:<kind>:<uuid>`` as its description,
by which it is found again and by which it goes: never by its name, never what has no mark. The bay's group lets its
members reach each other and nobody else in. Of several hosts the first makes the network; the others wait for it.

A tenant names networks and groups by uuid or name. Magnum asks Neutron as an
operator, which sees all, so what a project may use is decided here: its own,
what Neutron shows to everybody, and what an RBAC policy opens to it.

Who calls: ``engines.docker`` for bays, ``networks.wires`` for ports.
"""

import collections.abc
import ipaddress
from typing import Any, TypeVar

import msgspec
from oslo_config import cfg

from magnum import errors
from magnum.clients import neutron
from magnum.objects import base, service
from magnum.objects import bay as bays

DRIVER = "neutron"
"""The ``network_driver`` of bays that are on Neutron."""

_Named = TypeVar("_Named", neutron.Network, neutron.Subnet, neutron.SecurityGroup)


class Way(msgspec.Struct, kw_only=True):
    """A subnet as a workload needs it: where the default route goes (None: nowhere), and other routes."""

    id: str
    cidr: str
    gateway: str | None = None
    routes: list[tuple[str, str]] = []
    nameservers: list[str] = []


class Net(msgspec.Struct, kw_only=True):
    """A network that workloads are on. ``mtu`` in bytes. ``ways``: its subnets by uuid."""

    id: str
    name: str
    mtu: int
    ways: dict[str, Way]


class Facts(msgspec.Struct, kw_only=True):
    """A bay's network as it stands. ``subnet``: where its workloads get their addresses. ``external``: uuid of the outside network."""

    net: Net
    subnet: str
    cidr: str
    group: str
    project: str
    router: str | None = None
    external: str | None = None
    nameservers: list[str] = []


def mark(deployment: str, kind: str, uuid: str) -> str:
    """Return the description of what is made for an object."""
    return f"magnum:{deployment}:{kind}:{uuid}"


def marked(text: str | None, deployment: str) -> tuple[str, str] | None:
    """Return (kind, uuid) of the object that a description marks as ours, None for any other."""
    head = f"magnum:{deployment}:"
    kind, _, uuid = (text or "").removeprefix(head).partition(":")
    return (kind, uuid) if (text or "").startswith(head) and base.is_uuid(uuid) else None


def is_on(spec: bays.BaySpec) -> bool:
    """Return whether a bay's network is Neutron's."""
    return spec.network_driver == DRIVER


def agent_host(conf: cfg.ConfigOpts) -> str:
    """Return what Neutron's agent calls this machine."""
    return str(conf.neutron.agent_host or conf.host)


def _oldest(found: list[Any]) -> Any:
    """Return which of several counts: the first that was made, None of none."""
    return min(found, key=lambda one: (one.created_at, one.id)) if found else None


class Waits(errors.MagnumError):
    """Another host's part comes first."""


async def find(client: neutron.Client, cls: type[_Named], given: str, project: str, field: str) -> _Named:
    """Return the network, subnet or security group that ``project`` means by a uuid or a name.

    Raises Invalid for one that is not there, or not for this project to use, or that several bear the name of.
    """
    key = "id" if base.is_uuid(given) else "name"
    found = [one for one in await client.list(cls, **{key: given}) if await usable(client, one, project)]
    what = {neutron.Network: "network", neutron.Subnet: "subnet", neutron.SecurityGroup: "security group"}[cls]
    if not found:
        raise errors.Invalid(f"there is no {what} {given!r} that this project may use", field=field)
    if len(found) > 1:
        own = [one for one in found if one.project_id == project]
        if len(own) != 1:
            raise errors.Invalid(f"several are called {given!r}: {', '.join(one.id for one in found)}", field=field)
        found = own
    return found[0]


async def usable(client: neutron.Client, one: Any, project: str) -> bool:
    """Return whether ``project`` may put a workload on a network or subnet, or give it a security group."""
    if one.project_id == project:
        return True
    if isinstance(one, neutron.Network):
        return one.shared or await client.allowed("network", one.id, project, "access_as_shared")
    if isinstance(one, neutron.Subnet):
        return await usable(client, await client.get(neutron.Network, one.network_id), project)
    return await client.allowed("security_group", one.id, project, "access_as_shared")


async def outside(client: neutron.Client, given: str, project: str) -> neutron.Network:
    """Return the external network that ``project`` means. Raises Invalid."""
    field = "external_network_id"
    key = "id" if base.is_uuid(given) else "name"
    found = [
        one for one in await client.list(neutron.Network, **{key: given, "router:external": True})
        if one.project_id == project or await client.allowed("network", one.id, project, "access_as_external")
    ]  # fmt: skip
    if len(found) != 1:
        words = "there is no external network" if not found else "several external networks are called"
        raise errors.Invalid(f"{words} {given!r}" + (" that this project may use" if not found else ""), field=field)
    return found[0]


def _way(subnet: neutron.Subnet) -> Way:
    return Way(
        id=subnet.id, cidr=subnet.cidr, gateway=subnet.gateway_ip, nameservers=subnet.dns_nameservers,
        routes=[(route.destination, route.nexthop) for route in subnet.host_routes],
    )  # fmt: skip


async def net(client: neutron.Client, network: neutron.Network, subnets: list[neutron.Subnet] | None = None) -> Net:
    """Return a network as its workloads need it."""
    found = subnets if subnets is not None else await client.list(neutron.Subnet, network_id=network.id)
    return Net(id=network.id, name=network.name or network.id, mtu=network.mtu, ways={s.id: _way(s) for s in found})


async def ensure(client: neutron.Client, conf: cfg.ConfigOpts, bay: bays.Bay, *, make: bool) -> Facts:
    """Have the network of ``bay`` and return it. ``make``: this host makes what there is not.

    Raises Waits (another host has not made it yet), Invalid (what the tenant names is not there), QuotaExceeded,
    EngineError with Neutron's words, Unavailable.
    """
    spec, project = bay.spec, bay.project_id
    description = mark(conf.deployment, "bay", bay.uuid)
    name = f"magnum-{bay.name}"
    ours = {"description": description, "project_id": project}

    async def have(cls: type[Any], make_it: collections.abc.Callable[[], collections.abc.Awaitable[Any]]) -> Any:
        found = _oldest(await client.list(cls, **ours))
        if found is None:
            if not make:
                raise Waits(
                    f"waits for {spec.members[0] if spec.members else 'another host'} to make the bay's network"
                )
            found = await make_it()
        return found

    external = await outside(client, spec.external_network_id, project) if spec.external_network_id else None
    subnet: neutron.Subnet
    if spec.fixed_network or spec.fixed_subnet:
        network, subnet = await _adopted(client, spec, project)
    else:
        network = await have(neutron.Network, lambda: client.create(neutron.Network, name=name, **ours))
        routed = {"gateway_ip": None} if external is None else {}
        subnet = await have(neutron.Subnet, lambda: client.create(
            neutron.Subnet, name=name, network_id=network.id, ip_version=4, cidr=conf.neutron.bay_cidr,
            enable_dhcp=False, **routed, **ours,
        ))  # fmt: skip
    group = await have(neutron.SecurityGroup, lambda: client.create(neutron.SecurityGroup, name=name, **ours))
    inner = [r for r in group.security_group_rules if r.direction == "ingress" and r.remote_group_id == group.id]
    for ethertype in ("IPv4", "IPv6"):
        if make and not any(rule.ethertype == ethertype for rule in inner):
            await client.create(
                neutron.Rule, security_group_id=group.id, direction="ingress", ethertype=ethertype,
                remote_group_id=group.id, **ours,
            )  # fmt: skip
    router = None
    if external is not None:
        router = await _router(client, network, subnet, external, make, have, name, ours)
    servers = spec.dns_nameserver.replace(",", " ").split() if spec.dns_nameserver else []
    return Facts(
        net=await net(client, network), subnet=subnet.id, cidr=subnet.cidr, group=group.id, project=project,
        router=router, external=external.id if external is not None else None,
        nameservers=servers or subnet.dns_nameservers or list(conf.neutron.dns_nameservers),
    )  # fmt: skip


async def _adopted(client: neutron.Client, spec: bays.BaySpec, project: str) -> tuple[neutron.Network, neutron.Subnet]:
    subnet: neutron.Subnet | None = None
    if spec.fixed_subnet:
        subnet = await find(client, neutron.Subnet, spec.fixed_subnet, project, "fixed_subnet")
    if spec.fixed_network:
        network = await find(client, neutron.Network, spec.fixed_network, project, "fixed_network")
        if subnet is not None and subnet.network_id != network.id:
            raise errors.Invalid(f"is not a subnet of {spec.fixed_network}", field="fixed_subnet")
    else:
        assert subnet is not None
        network = await client.get(neutron.Network, subnet.network_id)
    if subnet is None:
        subnets = [s for s in await client.list(neutron.Subnet, network_id=network.id) if s.ip_version == 4]
        if not subnets:
            raise errors.Invalid(f"network {spec.fixed_network} has no IPv4 subnet", field="fixed_network")
        subnet = _oldest(subnets)
    assert subnet is not None
    if subnet.ip_version != 4:
        raise errors.Invalid("must be an IPv4 subnet", field="fixed_subnet")
    return network, subnet


async def _router(
    client: neutron.Client, network: neutron.Network, subnet: neutron.Subnet, external: neutron.Network, make: bool,
    have: Any, name: str, ours: dict[str, str],
) -> str:  # fmt: skip
    """Have a router between the bay's subnet and the outside; one that is there already is adopted."""
    doors = await client.list(neutron.Port, network_id=network.id, device_owner="network:router_interface")
    for door in doors:
        if any(ip.subnet_id == subnet.id for ip in door.fixed_ips):
            there = await client.get(neutron.Router, door.device_id)
            gateway = there.external_gateway_info
            if gateway is None or gateway.network_id != external.id:
                raise errors.Invalid(
                    f"router {there.name or there.id} of the subnet does not lead to {external.name}", field="external_network_id"
                )  # fmt: skip
            return there.id
    made = await have(neutron.Router, lambda: client.create(
        neutron.Router, name=name, external_gateway_info={"network_id": external.id}, **ours,
    ))  # fmt: skip
    if make:
        if subnet.gateway_ip is None:
            raise errors.Invalid("has no gateway address that a router could have", field="fixed_subnet")
        await client.interface(made.id, subnet.id, add=True)
    return str(made.id)


async def remove(client: neutron.Client, deployment: str, bay: str, project: str) -> list[str]:
    """Remove what was made for ``bay`` of ``project``; return a sentence for everything that keeps it.

    What a tenant put on the network is named, never removed.
    """
    ours = {"description": mark(deployment, "bay", bay), "project_id": project}
    left: list[str] = []
    subnets = await client.list(neutron.Subnet, **ours)
    for router in await client.list(neutron.Router, **ours):
        doors = await client.list(neutron.Port, device_id=router.id, device_owner="network:router_interface")
        for behind in {ip.subnet_id for door in doors for ip in door.fixed_ips}:
            try:
                await client.interface(router.id, behind, add=False)
            except (errors.Conflict, errors.EngineError) as error:
                left.append(f"router {router.id}: {error.detail}")
        await _delete(client, neutron.Router, router.id, "router", left)
    for subnet in subnets:
        await _delete(client, neutron.Subnet, subnet.id, "subnet", left)
    for network in await client.list(neutron.Network, **ours):
        await _delete(client, neutron.Network, network.id, "network", left)
    for group in await client.list(neutron.SecurityGroup, **ours):
        await _delete(client, neutron.SecurityGroup, group.id, "security group", left)
    return left


async def _delete(client: neutron.Client, cls: type, ident: str, what: str, left: list[str]) -> None:
    try:
        await client.delete(cls, ident)
    except (errors.Conflict, errors.EngineError) as error:
        left.append(f"{what} {ident}: {error.detail}")


class Asked(msgspec.Struct, kw_only=True):
    """A port as an object's owner wants it, resolved: uuids, and the name in the workload's namespace."""

    net: Net
    interface: str
    subnet: str | None = None
    fixed_ip: str | None = None
    groups: list[str]


def publication(item: service.Service) -> str:
    """Return what changes when a service is to be open in another way than before."""
    ports = [(port.protocol.lower(), port.port) for port in item.spec.ports]
    return msgspec.json.encode([sorted(ports), sorted(item.spec.source_ranges), item.spec.door]).decode()


async def publish(client: neutron.Client, deployment: str, facts: Facts, item: service.Service) -> str:
    """Have the security group of ``item``: its ports, open to its source ranges; return its uuid. As ``ensure`` raises."""
    ours = {"description": mark(deployment, "service", item.uuid), "project_id": item.project_id}
    group = _oldest(await client.list(neutron.SecurityGroup, **ours)) or (
        await client.create(neutron.SecurityGroup, name=f"magnum-{item.name}", **ours)
    )
    wanted = {
        (port.protocol.lower(), port.port, cidr)
        for port in item.spec.ports for cidr in item.spec.source_ranges or ["0.0.0.0/0"]
    }  # fmt: skip
    for rule in group.security_group_rules:
        if rule.direction != "ingress":
            continue
        have = (rule.protocol or "", rule.port_range_min or 0, rule.remote_ip_prefix or "0.0.0.0/0")
        if have in wanted and rule.remote_group_id is None:
            wanted.discard(have)
        else:
            await client.delete(neutron.Rule, rule.id)
    for protocol, port, cidr in sorted(wanted):
        await client.create(
            neutron.Rule, security_group_id=group.id, direction="ingress", ethertype="IPv4", protocol=protocol,
            port_range_min=port, port_range_max=port, remote_ip_prefix=cidr, **ours,
        )  # fmt: skip
    return str(group.id)


async def floating(client: neutron.Client, deployment: str, facts: Facts, item: service.Service, port: str) -> str:
    """Have a floating IP that leads to ``port``; return its address. As ``ensure`` raises."""
    if facts.external is None:
        raise errors.Invalid("the bay has no external network", field="external")
    ours = {"description": mark(deployment, "service", item.uuid), "project_id": item.project_id}
    found = _oldest(await client.list(neutron.FloatingIp, **ours))
    if found is None:
        found = await client.create(neutron.FloatingIp, floating_network_id=facts.external, port_id=port, **ours)
    elif found.port_id != port:
        found = await client.update(neutron.FloatingIp, found.id, port_id=port)
    return str(found.floating_ip_address)


async def unpublish(client: neutron.Client, deployment: str, uuid: str) -> None:
    """Remove what ``publish`` and ``floating`` made; the port is gone by then. Raises Conflict, Unavailable."""
    ours = {"description": mark(deployment, "service", uuid)}
    for cls in (neutron.FloatingIp, neutron.SecurityGroup):
        for found in await client.list(cls, **ours):
            await client.delete(cls, found.id)


def wish(networks: list[Any], groups: list[str] | None) -> str:
    """Return what changes when an object's owner asks for other ports or groups than before."""
    return msgspec.json.encode([networks, groups], order="deterministic").decode()


async def ask(client: neutron.Client, facts: Facts, networks: list[Any], groups: list[str] | None) -> list[Asked]:
    """Return the ports that an object of a bay is to have: on the bay's network, then on others that its owner names.

    ``networks``: structs with ``network``, ``subnet``, ``fixed_ip``, all optional; one without a network means the
    bay's. ``groups``: names or uuids; None means the bay's group on the bay's network and the project's default elsewhere.
    Raises Invalid naming the field, Unavailable.
    """
    chosen = None
    if groups is not None:
        chosen = [
            (await find(client, neutron.SecurityGroup, given, facts.project, f"security_groups[{n}]")).id
            for n, given in enumerate(groups)
        ]
    default: list[str] | None = None
    found: list[Asked] = []
    listed = list(networks)
    if not any(one.network is None for one in listed):
        listed.insert(0, None)
    for one in listed:
        number = networks.index(one) if one is not None else 0
        field = f"networks[{number}]"
        if one is None or one.network is None:
            where, owns = facts.net, facts.group
        else:
            network = await find(client, neutron.Network, one.network, facts.project, f"{field}.network")
            where, owns = await net(client, network), None
        subnet = None
        if one is not None and one.subnet is not None:
            subnet = (
                next((way.id for way in where.ways.values() if way.id == one.subnet), None)
                or (await find(client, neutron.Subnet, one.subnet, facts.project, f"{field}.subnet")).id
            )
            if subnet not in where.ways:
                raise errors.Invalid(f"is not a subnet of {where.name}", field=f"{field}.subnet")
        if one is not None and one.fixed_ip is not None and not any(
            ipaddress.ip_address(one.fixed_ip) in ipaddress.ip_network(way.cidr)
            for way in where.ways.values() if subnet in (None, way.id)
        ):  # fmt: skip
            raise errors.Invalid(f"is in no subnet of {where.name}", field=f"{field}.fixed_ip")
        if not where.ways:
            raise errors.Invalid(f"network {where.name} has no subnet", field=f"{field}.network")
        if chosen is not None:
            mine_groups = chosen
        elif owns is not None:
            mine_groups = [owns]
        else:
            if default is None:
                default = [
                    g.id for g in await client.list(neutron.SecurityGroup, name="default", project_id=facts.project)
                ]  # fmt: skip
            mine_groups = default
        fixed = one.fixed_ip if one is not None else None
        if subnet is None and fixed is None and where.id == facts.net.id:
            subnet = facts.subnet
        found.append(Asked(net=where, interface=f"eth{len(found)}", subnet=subnet, fixed_ip=fixed, groups=mine_groups))
    return found
