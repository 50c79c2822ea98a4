"""A container: one Docker container, or a pod of one container on a Kubernetes bay.

Statuses and the actions that are allowed in them::

    Creating ──► Created ──start──► Running ◄──unpause── Paused
                    ▲                │ ▲ │                 ▲
                    │           stop │ │ └──────pause──────┘
                    │                ▼ │ start, reboot
                    └─────────────  Stopped                 Error, Unknown, Deleting

``Created`` was never started; ``Stopped`` ran and ended (``exit_code`` says how);
``Restarting`` is the engine's own restart policy at work; ``Unknown``: its host
is down. ``Starting``, ``Stopping``, ``Rebooting``, ``Pausing``, ``Unpausing`` and
``Updating`` are changes in progress.
"""

import ipaddress
from typing import Any

import msgspec

from magnum import errors
from magnum.objects import base, bay, bay_model, explanation


class Port(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A port of the container, published on its host if ``host_port`` is given (0: any free one)."""

    port: int
    protocol: str = "tcp"
    host_port: int | None = None
    host_ip: str | None = None


class Mount(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """Storage in the container: ``volume`` (kept by name, the bay's own) or ``tmpfs``; ``bind`` for admins."""

    type: str
    target: str
    source: str | None = None
    read_only: bool = False
    size: int | None = None
    """Bytes; tmpfs alone."""


class Network(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """A network of Neutron that the container is on, by uuid or name; without one the bay's own is meant.

    ``subnet`` (uuid or name) and ``fixed_ip`` say which address it gets there.
    """

    network: str | None = None
    subnet: str | None = None
    fixed_ip: str | None = None


class RestartPolicy(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: str = "no"
    maximum_retry_count: int = 0


RESTART_POLICIES = ("no", "always", "on-failure", "unless-stopped")


class ContainerSpec(base.Spec):
    """What the owner wants.

    ``memory`` is in bytes (the api takes ``512m`` too), ``cpus`` in cores.
    ``command`` and ``entrypoint`` are argument lists, never shell strings.
    ``power`` is the state to be in: ``created``, ``running``, ``stopped``,
    ``paused``. ``reboot_of`` is the start time (the engine's text) of the run
    that a reboot was asked for: while the engine still shows that run, the
    restart is owed; so a reboot happens once, whatever crashes in between.
    ``start_of`` is the same for a start: the run that had ended when it was asked.
    """

    image: str
    command: list[str] | None = None
    entrypoint: list[str] | None = None
    environment: dict[str, str] = {}
    ports: list[Port] = []
    memory: int | None = None
    memory_swap: int | None = None
    cpus: float | None = None
    pids: int | None = None
    restart_policy: RestartPolicy = msgspec.field(default_factory=RestartPolicy)
    labels: dict[str, str] = {}
    workdir: str | None = None
    user: str | None = None
    hostname: str | None = None
    tty: bool = False
    stdin_open: bool = False
    mounts: list[Mount] = []
    stop_timeout: int = 10
    """Seconds between the stop signal and the kill."""
    stop_signal: str | None = None
    read_only: bool = False
    privileged: bool = False
    cap_add: list[str] = []
    cap_drop: list[str] = []
    devices: list[str] = []
    host_network: bool = False
    host_pid: bool = False
    host_ipc: bool = False
    image_pull_policy: str = "IfNotPresent"
    networks: list[Network] = []
    """Of a bay on Neutron; the bay's own network comes first if it is not among them."""
    security_groups: list[str] | None = None
    """Uuids or names of Neutron's, in place of the bay's own group."""
    power: str = "created"
    reboot_of: str | None = None
    start_of: str | None = None


class ContainerState(base.State):
    """What the engine shows. ``addresses``: network name → list of IP addresses.

    ``security_groups``: uuids of Neutron's groups that its ports have, on a bay on Neutron.
    ``node`` is the cluster's machine that it is on; ``applied``: what the engine had of our wish, as a hash.
    """

    engine_id: str | None = None
    image_id: str | None = None
    addresses: dict[str, list[str]] = {}
    ports: list[Port] = []
    exit_code: int | None = None
    oom_killed: bool = False
    started_at: str | None = None
    finished_at: str | None = None
    restart_count: int = 0
    health: str | None = None
    security_groups: list[str] = []
    node: str | None = None
    applied: str | None = None
    deaths: list[explanation.Death] = []


class Container(base.Object, tag="container"):
    spec: ContainerSpec
    state: ContainerState = msgspec.field(default_factory=ContainerState)


PENDING = frozenset({"Creating", "Starting", "Stopping", "Rebooting", "Pausing", "Unpausing", "Updating", "Deleting"})
ASKED = {
    "create": "Creating", "start": "Starting", "stop": "Stopping", "reboot": "Rebooting",
    "pause": "Pausing", "unpause": "Unpausing", "update": "Updating", "retry": "Updating", "delete": "Deleting",
}  # fmt: skip

ALLOWED = {
    "start": ({"Created", "Stopped", "Error", "Running", "Creating", "Starting", "Dead"}, "running"),
    "stop": ({"Running", "Restarting", "Paused", "Stopped", "Starting", "Rebooting", "Error", "Stopping"}, "stopped"),
    "reboot": ({"Running", "Stopped", "Restarting", "Paused", "Error", "Created"}, "running"),
    "pause": ({"Running"}, "paused"),
    "unpause": ({"Paused"}, "running"),
}
"""Action → (statuses it is allowed in, the power it asks for)."""


def act(container: Container, action: str) -> None:
    """Change ``container``'s spec as ``action`` asks.

    Raises Conflict if its status does not allow it, NotFound for an unknown action.
    """
    if action not in ALLOWED:
        raise errors.NotFound(f"a container has no action {action!r}")
    allowed, power = ALLOWED[action]
    if container.deleting or container.status not in allowed:
        raise errors.Conflict(
            f"cannot {action} a container that is {container.status}", status=container.status, action=action
        )
    container.spec.power = power
    container.spec.reboot_of = container.state.started_at if action == "reboot" else None
    container.spec.start_of = container.state.started_at if action == "start" else None


LACKING = {
    "pause": "has no way to freeze a container",
    "unpause": "has no way to freeze a container",
    "stop": "cannot stop a container and keep it: delete it, and make another",
    "reboot": "cannot start a container again with its files: delete it, and make another",
}
"""Action → why a container on a Kubernetes bay has none."""


def act_on(container: Container, action: str, engine: str) -> None:
    """Change ``container``'s spec as ``action`` asks, on an engine. As ``act``; raises NotSupported for what it lacks."""
    if engine == "kubernetes":
        if action in LACKING:
            raise errors.NotSupported(f"Kubernetes {LACKING[action]}", status=container.status, action=action)
        if action == "start" and container.status == "Stopped":
            raise errors.NotSupported(
                "Kubernetes cannot start a container again that has ended: delete it, and make another",
                status=container.status, action=action,
            )  # fmt: skip
    act(container, action)


CHANGEABLE = ("memory", "memory_swap", "cpus", "pids", "restart_policy", "security_groups")
"""Docker and Neutron change these on a running container; anything else means another container."""


def patch(old: Container, spec: ContainerSpec) -> Any:
    """Check a changed spec: resource limits, the restart policy and security groups may change."""
    for name in ContainerSpec.__struct_fields__:
        if name not in CHANGEABLE and getattr(spec, name) != getattr(old.spec, name):
            raise errors.Invalid("cannot be changed", field=name)
    return check(spec)


MIN_MEMORY = 6 * 1024 * 1024
"""Bytes; Docker's own lower bound."""


def check(spec: ContainerSpec) -> ContainerSpec:
    """Return ``spec`` if it makes sense on any engine. Raises Invalid naming the field."""
    if not spec.image or any(c.isspace() for c in spec.image) or spec.image.startswith("-"):
        raise errors.Invalid("must be the name of an image", field="image")
    if spec.memory is not None and spec.memory < MIN_MEMORY:
        raise errors.Invalid(f"must be at least {MIN_MEMORY} bytes (6m)", field="memory")
    if spec.cpus is not None and not 0.01 <= spec.cpus <= 1024:
        raise errors.Invalid("must be between 0.01 and 1024 cores", field="cpus")
    if spec.pids is not None and spec.pids < 1:
        raise errors.Invalid("must be at least 1", field="pids")
    if spec.stop_timeout < 0 or spec.stop_timeout > 3600:
        raise errors.Invalid("must be between 0 and 3600 seconds", field="stop_timeout")
    if spec.restart_policy.name not in RESTART_POLICIES:
        raise errors.Invalid(f"must be one of {', '.join(RESTART_POLICIES)}", field="restart_policy.name")
    if spec.restart_policy.maximum_retry_count and spec.restart_policy.name != "on-failure":
        raise errors.Invalid("is for on-failure alone", field="restart_policy.maximum_retry_count")
    for number, port in enumerate(spec.ports):
        if not 1 <= port.port <= 65535:
            raise errors.Invalid("must be between 1 and 65535", field=f"ports[{number}].port")
        if port.host_port is not None and not 0 <= port.host_port <= 65535:
            raise errors.Invalid("must be between 0 and 65535", field=f"ports[{number}].host_port")
        if port.protocol not in ("tcp", "udp", "sctp"):
            raise errors.Invalid("must be tcp, udp or sctp", field=f"ports[{number}].protocol")
    for key in spec.environment:
        if not key or "=" in key or "\0" in key:
            raise errors.Invalid("a variable's name must not be empty nor hold '='", field="environment")
    for key in spec.labels:
        if key.startswith("org.openstack.magnum"):
            raise errors.Invalid("labels under org.openstack.magnum are Magnum's own", field=f"labels.{key}")
    for number, mount in enumerate(spec.mounts):
        where = f"mounts[{number}]"
        if mount.type not in ("volume", "tmpfs", "bind"):
            raise errors.Invalid("must be volume, tmpfs or bind", field=f"{where}.type")
        if not mount.target.startswith("/") or ".." in mount.target.split("/"):
            raise errors.Invalid("must be an absolute path", field=f"{where}.target")
        if mount.type == "tmpfs" and mount.source is not None:
            raise errors.Invalid("a tmpfs has no source", field=f"{where}.source")
        if mount.type == "volume" and (not mount.source or "/" in mount.source):
            raise errors.Invalid("must be the name of a volume", field=f"{where}.source")
        if mount.type == "bind" and not (mount.source or "").startswith("/"):
            raise errors.Invalid("must be an absolute path", field=f"{where}.source")
    if spec.workdir is not None and not spec.workdir.startswith("/"):
        raise errors.Invalid("must be an absolute path", field="workdir")
    check_networks(spec.networks, spec.security_groups)
    if spec.image_pull_policy not in ("Always", "IfNotPresent", "Never"):
        raise errors.Invalid("must be Always, IfNotPresent or Never", field="image_pull_policy")
    return spec


MAX_NETWORKS = 8


def check_networks(networks: list[Network], groups: list[str] | None) -> None:
    """Raise Invalid for networks or security groups that make no sense anywhere."""
    if len(networks) > MAX_NETWORKS:
        raise errors.Invalid(f"must be at most {MAX_NETWORKS}", field="networks")
    for number, one in enumerate(networks):
        field = f"networks[{number}]"
        for name in ("network", "subnet"):
            if getattr(one, name) == "":
                raise errors.Invalid("must be a uuid or a name", field=f"{field}.{name}")
        if one.fixed_ip is not None:
            try:
                ipaddress.ip_address(one.fixed_ip)
            except ValueError:
                raise errors.Invalid("must be an IP address", field=f"{field}.fixed_ip") from None
        if networks.index(one) != number:
            raise errors.Invalid("is there twice", field=field)
    if sum(one.network is None for one in networks) > 1:
        raise errors.Invalid("the bay's own network is there twice", field="networks")
    for number, group in enumerate(groups or []):
        if not group:
            raise errors.Invalid("must be a uuid or a name", field=f"security_groups[{number}]")


def check_in(spec: ContainerSpec, where: bay.BaySpec) -> None:
    """Raise Invalid naming what a container cannot have in a bay of this make."""
    if where.network_driver == bay_model.NEUTRON:
        for number, port in enumerate(spec.ports):
            for name in ("host_port", "host_ip"):
                if getattr(port, name) is not None:
                    raise errors.Invalid(
                        "a host is not on the bay's network: a service with external set publishes",
                        field=f"ports[{number}].{name}",
                    )
    refuse_networks(spec, where)
    for name in ("networks", "security_groups"):
        if spec.host_network and getattr(spec, name):
            raise errors.Invalid("is not for who has the host's network", field=name)


def refuse_networks(spec: Any, where: bay.BaySpec) -> None:
    """Raise Invalid if ``spec`` names networks or groups of Neutron's in a bay that has none."""
    if where.network_driver == bay_model.NEUTRON:
        return
    for name in ("networks", "security_groups"):
        if getattr(spec, name):
            raise errors.Invalid("the bay is not on Neutron", field=name)


UNSUPPORTED = ("memory_swap", "pids", "stop_signal", "devices")
"""Fields that a Kubernetes bay refuses."""


def check_on(spec: ContainerSpec, engine: str) -> ContainerSpec:
    """Return ``spec`` if ``engine`` can honour it. Raises Invalid naming the field."""
    if engine != "kubernetes":
        return spec
    words = "not supported on Kubernetes bays"
    for name in UNSUPPORTED:
        if getattr(spec, name):
            raise errors.Invalid(words, field=name)
    for number, port in enumerate(spec.ports):
        for name in ("host_port", "host_ip"):
            if getattr(port, name) is not None:
                raise errors.Invalid(f"{words}: a service publishes", field=f"ports[{number}].{name}")
    if spec.restart_policy.maximum_retry_count:
        raise errors.Invalid(words, field="restart_policy.maximum_retry_count")
    for number, mount in enumerate(spec.mounts):
        if mount.type == "volume":
            raise errors.Invalid(f"{words}: nothing is kept by name there", field=f"mounts[{number}].type")
    if spec.user is not None and not all(part.isdigit() for part in spec.user.split(":", 1)):
        raise errors.Invalid("must be a number, or two with a colon between: UID[:GID]", field="user")
    return spec


PRIVILEGES = {
    "privileged": "container:privileged", "cap_add": "container:cap_add", "devices": "container:devices",
    "host_network": "container:host_namespaces", "host_pid": "container:host_namespaces",
    "host_ipc": "container:host_namespaces",
}  # fmt: skip
"""Spec field → policy rule that opens it; any true value asks for it. Checked at the api and again at the backend."""


def privileges(spec: ContainerSpec) -> list[tuple[str, str]]:
    """Return (field, policy rule) of everything that ``spec`` asks for beyond a tenant's defaults."""
    asked = [(name, rule) for name, rule in PRIVILEGES.items() if getattr(spec, name)]
    asked += [
        (f"mounts[{n}].type", "container:host_mounts") for n, mount in enumerate(spec.mounts) if mount.type == "bind"
    ]
    return asked


def demand(spec: ContainerSpec) -> base.Demand:
    """Return what a container takes of its host and of a quota."""
    ports = tuple((p.protocol, p.host_port) for p in spec.ports if p.host_port)
    return base.Demand(cpus=spec.cpus or 0.0, memory=spec.memory or 0, ports=ports)


KIND = base.Kind(
    name="container", plural="containers", cls=Container, spec=ContainerSpec, state=ContainerState,
    spread="one", in_bay=True, pending=PENDING, asked=ASKED, act=act_on, check=check_on, check_in=check_in, patch=patch, demand=demand,
)  # fmt: skip
