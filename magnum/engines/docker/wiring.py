"""Workloads of a bay on Neutron: a sandbox that holds the network namespace, and the ports that are plugged into it.

Docker itself knows nothing of the network: the sandbox has none, and what runs joins
its namespace. So the interfaces are there, and their ports ACTIVE, before the
workload starts, and they stay through its restarts, whether or not Neutron or
the backend are up then. A pod has a sandbox anyway; a container gets one here.

Who calls: ``engines.docker``'s drivers of containers, pods and services.
"""

import asyncio
import collections.abc
from typing import Any

from oslo_config import cfg

from magnum import errors
from magnum.clients import docker, nftables
from magnum.engines import base
from magnum.engines.docker import images
from magnum.networks import names, neutron, wires
from magnum.objects import base as objects

ROLE = base.LABEL + "role"
SANDBOX = "sandbox"
"""A container's sandbox bears its labels and this role."""
MEMORY = 16 * 1024 * 1024


def tag(sandbox: docker.ContainerInfo) -> str:
    """Return what tells one stand of a sandbox from another."""
    return f"{sandbox.id}/{sandbox.state.started_at}"


def sandbox_name(uuid: str) -> str:
    """Return the engine's name of the sandbox of a container, or of the door of a service."""
    return f"magnum-{uuid}-{SANDBOX}"


class Wiring:
    """``entered`` is told (bay, process id) of each namespace that was joined, before anything starts in it."""

    def __init__(self, client: docker.Client, conf: cfg.ConfigOpts, hosts: names.Names) -> None:
        self._client = client
        self._conf = conf
        self._hosts = hosts
        self.wires = wires.Wires(conf, self._engine)
        self.entered: collections.abc.Callable[[str, int], collections.abc.Awaitable[None]] | None = None

    def _engine(self) -> nftables.Where:
        scheme, _, path = self._client.url.partition("://")
        if scheme != "unix":
            raise errors.EngineError("Neutron needs the Docker Engine on the backend's own machine (a unix:// URL)")
        return nftables.engine_process(path)

    def facts(self, item: objects.Object) -> neutron.Facts | None:
        """Return the network of the bay of ``item``, None if that is not on Neutron."""
        return self.wires.bay(item.bay_uuid)

    def attached(self, uuid: str) -> bool:
        """Return whether the object's ports are there and plugged into a namespace that lives."""
        record = self.wires.record(uuid)
        return record is not None and record.stands(record.tag) and not self.wires.broken(uuid)

    def address(self, uuid: str) -> str | None:
        """Return the first address of an object, None if it has none."""
        record = self.wires.record(uuid)
        return next((a for wire in record.wires for a in wire.addresses), None) if record is not None else None

    async def join(self, item: Any, kind: str, facts: neutron.Facts, sandbox: docker.ContainerInfo) -> bool:
        """Have the ports of ``item`` in its sandbox, which runs; return whether the namespace is another than before.

        Raises neutron.Waits (Neutron is away, the sandbox has ended), Invalid, QuotaExceeded, EngineError.
        """
        record = await self.wires.ports(item, kind, facts, item.spec.networks, item.spec.security_groups)
        if record.stands(tag(sandbox)):
            return False
        await self.wires.plug(record, sandbox.state.pid, tag(sandbox), self._conf.docker.service_cidr)
        if self.entered is not None:
            await self.entered(item.bay_uuid, sandbox.state.pid)
        return True

    async def stand(self, item: Any, facts: neutron.Facts, progress: base.Progress) -> bool:
        """Have the sandbox of container ``item`` stand, plugged; as ``join``."""
        # the two take about as long as each other
        made, ports = await asyncio.gather(
            self.hold(item, "container", facts.nameservers, progress),
            self.wires.ports(item, "container", facts, item.spec.networks, item.spec.security_groups),
            return_exceptions=True,
        )
        for outcome in (made, ports):
            if isinstance(outcome, BaseException):
                raise outcome
        assert isinstance(made, docker.ContainerInfo)
        return await self.join(item, "container", facts, made)

    async def hold(self, item: Any, kind: str, nameservers: list[str], progress: base.Progress) -> docker.ContainerInfo:
        """Have the sandbox of a container, or of the door of a service, run, and return it. Raises EngineError, Unavailable."""
        name = sandbox_name(item.uuid)
        try:
            seen: docker.ContainerInfo | None = await self._client.inspect(name)
        except errors.NotFound:
            seen = None
        if seen is not None and seen.state.status == "running":
            return seen
        if seen is None:
            await self._create(item, kind, name, nameservers, progress)
        await self._client.start(name)
        return await self._client.inspect(name)

    async def _create(self, item: Any, kind: str, name: str, nameservers: list[str], progress: base.Progress) -> None:
        options = self._conf.docker
        host: dict[str, Any] = {
            "NetworkMode": "none", "ReadonlyRootfs": True, "CapDrop": ["ALL"], "SecurityOpt": ["no-new-privileges"],
            "PidsLimit": 16, "Memory": MEMORY, "MemorySwap": MEMORY, "Dns": nameservers,
            "RestartPolicy": {"Name": "no"},
        }  # fmt: skip
        body: dict[str, Any] = {
            "Image": options.pause_image,
            "Labels": base.labels(self._conf.deployment, item, kind) | {ROLE: SANDBOX},
            "Hostname": getattr(item.spec, "hostname", None) or hostname(item.name or item.uuid), "HostConfig": host,
        }  # fmt: skip
        if options.pause_command:
            body |= {"Cmd": list(options.pause_command), "Entrypoint": []}
        if not await self._client.has_image(options.pause_image):
            await images.pull(self._client, self._conf, options.pause_image, item.status, progress)
        try:
            await self._client.create(name, body)
        except errors.Conflict:
            # a round before this one made it
            found = await self._client.inspect(name)
            if found.labels.get(base.UUID) != item.uuid:
                raise errors.EngineError(f"the name {name} is taken by a container that is not ours") from None


def hostname(name: str) -> str:
    """Return what a namespace's machine is called for ``name``: 63 characters at most (RFC 1123)."""
    return "".join(c if c.isalnum() or c == "-" else "-" for c in name)[:63].strip("-") or "container"
