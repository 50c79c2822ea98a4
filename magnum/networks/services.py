"""What a service is in the kernel and in the hosts file: from the object to nft's language. No I/O.

One table a deployment in each network namespace concerned. Its base chains look
a packet's (address, protocol, port) up in the map ``services`` and go to the
service's own chain, which picks a ready endpoint; so the cost of a packet does
not grow with the number of services. Only a connection's first packet is looked
up: the rest follows the connection tracker. Chains and sets of a service have its
uuid in their names, elements in their comments; that is how they are found again.
``docs/decisions/services.md`` says why the packets are where they are.

Who calls: ``engines.docker.service``.
"""

import msgspec

from magnum import errors
from magnum.clients import nftables
from magnum.objects import service as services

F = nftables.FAMILY


class Port(msgspec.Struct, kw_only=True):
    """One port of a service: ``endpoints`` are the (address, port) of the ready pods behind it."""

    protocol: str
    port: int
    node_port: int | None = None
    endpoints: list[tuple[str, int]] = []


class Place(msgspec.Struct, kw_only=True):
    """The namespace that a table is for.

    ``bridge``: the engine's own, where the packets of a one-host bay are routed;
    that interface is the bay's. ``relay``: the engine's own on a host of an overlay
    bay; what is for a node port goes to that address, the bay's anchor on this host.
    ``member``: that of one workload of a bay on Neutron, for what it sends itself.
    None of them: the anchor itself. ``strangers`` are networks whose members may not
    come in by a node port (the engine's own: other bays), and of the anchor the
    network, with its one admitted address, by which the host reaches it.
    """

    bridge: str | None = None
    relay: str | None = None
    member: bool = False
    strangers: tuple[str, ...] = ()
    admitted: str | None = None

    @property
    def anchor(self) -> bool:
        return self.bridge is None and self.relay is None and not self.member


def ports(spec: services.ServiceSpec) -> list[Port]:
    """Return the ports of a service with the endpoints of each, in a stable order.

    An endpoint's ``ports`` are keyed by the service port's number, followed by
    ``/udp`` where both protocols share it. Raises EngineError for a protocol that is neither TCP nor UDP.
    """
    found = []
    for port in spec.ports:
        protocol = port.protocol.lower()
        if protocol not in ("tcp", "udp"):
            raise errors.EngineError(f"port {port.port}: {port.protocol} is not balanced on Docker bays")
        behind = []
        for endpoint in spec.endpoints:
            target = endpoint.ports.get(f"{port.port}/{protocol}", endpoint.ports.get(str(port.port)))
            if target is not None and endpoint.ip:
                behind.append((endpoint.ip, target))
        found.append(Port(protocol=protocol, port=port.port, node_port=port.node_port, endpoints=sorted(behind)))
    return found


class _Wanted(msgspec.Struct):
    """What a service is to have in a table."""

    chains: dict[str, list[str]] = {}
    sets: dict[str, str] = {}
    elements: dict[str, dict[str, str | None]] = {}


def _balance(wanted: _Wanted, uuid: str, port: Port, affinity: int | None) -> str:
    """Add the chains of one port to ``wanted`` and return the name of the first."""
    chain = f"service-{uuid}-{port.protocol}-{port.port}"
    count = len(port.endpoints)
    if affinity is None:
        choices = ", ".join(f"{n} : {ip} . {target}" for n, (ip, target) in enumerate(port.endpoints))
        wanted.chains[chain] = [
            f"meta l4proto {port.protocol} dnat ip to numgen inc mod {count} map {{ {choices} }}",
        ]
        return chain
    rules, ends = [], []
    for number, (ip, target) in enumerate(port.endpoints):
        end = f"endpoint-{uuid}-{port.protocol}-{port.port}-{ip}-{target}"
        # the timeout is in the name: that of a set cannot be changed
        clients = f"clients-{uuid}-{port.protocol}-{port.port}-{ip}-{target}-{affinity}"
        wanted.sets[clients] = f"type ipv4_addr; flags dynamic,timeout; timeout {affinity}s;"
        wanted.chains[end] = [
            f"update @{clients} {{ ip saddr }}",
            f"meta l4proto {port.protocol} dnat to {ip}:{target}",
        ]
        rules.append(f"ip saddr @{clients} goto {end}")
        ends.append(f"{number} : goto {end}")
    wanted.chains[chain] = [*rules, f"numgen inc mod {count} vmap {{ {', '.join(ends)} }}"]
    return chain


def _want(place: Place, uuid: str, spec: services.ServiceSpec) -> _Wanted:
    wanted = _Wanted()
    address = spec.virtual_ip
    if spec.headless or not address:
        return wanted
    elements = wanted.elements
    if place.relay is None:
        for port in ports(spec):
            if not port.endpoints:
                continue
            chain = _balance(wanted, uuid, port, spec.affinity_seconds)
            elements.setdefault("services", {})[f"{address} . {port.protocol} . {port.port}"] = f"goto {chain}"
            if port.node_port:
                elements.setdefault("node_ports", {})[f"{port.protocol} . {port.node_port}"] = f"goto {chain}"
    else:
        for port in ports(spec):
            if port.node_port:
                chain = f"service-{uuid}-{port.protocol}-{port.node_port}-relay"
                wanted.chains[chain] = [f"meta l4proto {port.protocol} dnat to {place.relay}:{port.node_port}"]
                elements.setdefault("node_ports", {})[f"{port.protocol} . {port.node_port}"] = f"goto {chain}"
    elements["virtual_ips"] = {address: None}
    if place.member:
        elements["local_ips"] = {address: None}
    if place.bridge:
        elements["local_ips"] = {address: None}
        elements["reach"] = {f"{place.bridge} . {address}": None}
    return wanted


_SETS = {
    "virtual_ips": "set {} {{ type ipv4_addr; }}",
    "local_ips": "set {} {{ type ipv4_addr; }}",
    "reach": "set {} {{ type ifname . ipv4_addr; }}",
    "services": "map {} {{ type ipv4_addr . inet_proto . inet_service : verdict; }}",
    "node_ports": "map {} {{ type inet_proto . inet_service : verdict; }}",
}


def _base(table: str, place: Place) -> list[str]:
    """Return the commands for what all services of a table share; to repeat them changes nothing.

    Priorities are just before those that Docker's own rules have.
    """
    service = "ip daddr . meta l4proto . th dport vmap @services"
    node_port = "meta l4proto . th dport vmap @node_ports"
    refuse = ["meta l4proto tcp reject with tcp reset", "reject with icmp port-unreachable"]
    hooks: dict[str, tuple[str, list[str]]]
    if place.member:
        hooks = {
            "output": ("nat hook output priority -105", [service]),
            "local": ("filter hook output priority -5", [f"ip daddr @local_ips {rule}" for rule in refuse]),
        }
    elif place.anchor:
        # of what the host hands on, only its own and what comes from outside: not other bays' containers
        guard = [f"ip saddr {net} ip saddr != {place.admitted} drop" for net in place.strangers if place.admitted]
        hooks = {
            "guard": ("filter hook prerouting priority -110", guard),
            "prerouting": ("nat hook prerouting priority -105", [service, f"fib daddr type local {node_port}"]),
            # every host's anchor answers for itself: the reply has to come back to this one
            "postrouting": ("nat hook postrouting priority 95", ["ct status dnat masquerade"]),
        }
    else:
        from_outside = [f"ip saddr != {net}" for net in place.strangers]
        local = "fib daddr type local ip daddr != 127.0.0.0/8"
        hooks = {
            "prerouting": ("nat hook prerouting priority -105", [
                f"iifname . ip daddr @reach {service}",
                " ".join([*from_outside, 'iifname != { "docker0", "docker_gwbridge" }', local, node_port]),
            ]),
            "output": ("nat hook output priority -105", [service, f"{local} {node_port}"]),
            # members of one bridge answer each other past the router, unless they are asked by it; without
            # the interface that it came by, which is not known of a bridged frame
            "postrouting": ("nat hook postrouting priority 95", [
                "oifname . ct original ip daddr @reach masquerade",
            ]),
            # what is still for a virtual address here has no endpoint, or is a stranger to the bay
            "forward": ("filter hook forward priority -5", [f"ip daddr @virtual_ips {rule}" for rule in refuse]),
            "local": ("filter hook output priority -5", [
                *(f"ip daddr @local_ips {rule}" for rule in refuse),
                # clients would go on to ask the endpoint itself, past the translation
                "ct status dnat icmp type redirect drop",
            ]),
        }  # fmt: skip
    commands = [f"add table {F} {table}"]
    commands += [f"add {text.format(f'{F} {table} {name}')}" for name, text in _SETS.items()]
    for name, (hook, rules) in hooks.items():
        commands.append(f"add chain {F} {table} {name} {{ type {hook}; }}")
        commands.append(f"flush chain {F} {table} {name}")
        commands += [f"add rule {F} {table} {name} {rule}" for rule in rules]
    return commands


def _key(name: str, key: str) -> str:
    """Return an element's key as nft takes it."""
    if name != "reach":
        return key
    interface, _, address = key.partition(" . ")
    return f'"{interface}" . {address}'


def _of(uuid: str, names: list[str]) -> list[str]:
    return [name for name in names if uuid in name]


def _merge(table: str, uuid: str, found: nftables.Table | None, wanted: _Wanted) -> list[str]:
    found = found or nftables.Table()
    commands, later = [], []
    for name in _SETS:
        have = {k: v for k, (v, comment) in found.elements.get(name, {}).items() if comment == uuid}
        want = wanted.elements.get(name, {})
        for key, verdict in have.items():
            if key not in want or want[key] != verdict:
                commands.append(f"delete element {F} {table} {name} {{ {_key(name, key)} }}")
        for key, verdict in want.items():
            if key not in have or have[key] != verdict:
                data = f" : {verdict}" if verdict else ""
                later.append(f'add element {F} {table} {name} {{ {_key(name, key)} comment "{uuid}"{data} }}')
    commands += [f"add set {F} {table} {name} {{ {text} }}" for name, text in wanted.sets.items()]
    stale = [name for name in _of(uuid, found.chains) if name not in wanted.chains]
    for name in wanted.chains:
        commands.append(f'add chain {F} {table} {name} {{ comment "service {uuid}"; }}')
    # what is jumped to goes after what jumps
    commands += [f"flush chain {F} {table} {name}" for name in [*wanted.chains, *stale]]
    for name, rules in wanted.chains.items():
        commands += [f"add rule {F} {table} {name} {rule}" for rule in rules]
    commands += [f"delete chain {F} {table} {name}" for name in stale]
    commands += [f"delete set {F} {table} {name}" for name in _of(uuid, found.sets) if name not in wanted.sets]
    return commands + later


def apply(table: str, place: Place, found: nftables.Table | None, item: services.Service) -> str:
    """Return the commands, one transaction, that make ``table`` hold ``item`` as it is wanted and leave others' alone."""
    wanted = _want(place, item.uuid, item.spec)
    if not wanted.elements and not wanted.chains:
        return remove(table, found, item.uuid)
    return "\n".join([*_base(table, place), *_merge(table, item.uuid, found, wanted)]) + "\n"


def remove(table: str, found: nftables.Table | None, uuid: str) -> str:
    """Return the commands that remove all of service ``uuid``, and the table with the last one; empty: nothing is there."""
    if found is None:
        return ""
    if not owners(found) - {uuid}:
        return f"delete table {F} {table}\n"
    return "".join(f"{line}\n" for line in _merge(table, uuid, found, _Wanted()))


def addresses(found: nftables.Table | None, uuid: str) -> list[str]:
    """Return the virtual addresses that a table keeps for service ``uuid``."""
    return [] if found is None else [
        key for key, (_, comment) in found.elements.get("virtual_ips", {}).items() if comment == uuid
    ]  # fmt: skip


def stale(flow: nftables.Flow, item: services.Service, mine: frozenset[str] = frozenset()) -> bool:
    """Return whether a tracked UDP ``flow`` of ``item`` goes where no ready pod is.

    TCP connections are left to end by themselves. ``mine``: the addresses that node ports are asked at.
    """
    for port in ports(item.spec):
        meant = (flow.address == item.spec.virtual_ip and flow.port == port.port) or (
            flow.port == port.node_port and flow.address in mine
        )
        if port.protocol == flow.protocol == "udp" and meant:
            return flow.answering not in {ip for ip, _ in port.endpoints}
    return False


def owners(found: nftables.Table | None) -> set[str]:
    """Return the uuids of the services that a table has something of."""
    if found is None:
        return set()
    prefixes = ("service-", "endpoint-")
    named = {c.partition("-")[2][:36] for c in found.chains if c.startswith(prefixes)}
    return named | {comment for held in found.elements.values() for _, comment in held.values() if comment}


def admissions(place: Place, deployment: str, item: services.Service) -> list[str]:
    """Return the rules by which Docker's own are to let node ports in, as iptables writes them."""
    out = place.bridge or "docker_gwbridge"
    return [
        f"-o {out} -p {port.protocol} -m conntrack --ctstate DNAT --ctorigdstport {port.node_port} "
        f"-m comment --comment {comment(deployment, item.uuid)} -j ACCEPT"
        for port in ports(item.spec)
        if port.node_port and not item.spec.headless
    ]


def comment(deployment: str, uuid: str) -> str:
    """Return the mark of rules that stand in a chain which is not ours."""
    return f"magnum:{deployment}:{uuid}"
