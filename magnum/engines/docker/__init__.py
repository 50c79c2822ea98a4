"""Docker: the engine of bays that are made of plain Docker hosts.

Loaded by the backend through the ``magnum.engines`` entry points.
"""

import asyncio
import collections.abc
import os
from typing import Any

import structlog
from oslo_config import cfg

from magnum import errors
from magnum.clients import docker as client_docker
from magnum.engines import base
from magnum.engines.docker import bay, container, pod, service, wiring
from magnum.networks import docker as networks
from magnum.networks import names, swarm
from magnum.objects import bay_model

LOG = structlog.get_logger(__name__)

WATCHED = {
    "type": ["container", "network"],
    "event": ["create", "start", "die", "oom", "pause", "unpause", "destroy", "update", "rename", "health_status"],
}
"""Docker's events that change what an object shows. A network's bear no labels, so names say whose they are."""

INFO_SECONDS = 2.0
"""How long the engine may take to describe itself."""
FIRST_WAIT, LAST_WAIT = 0.1, 2.0
"""Seconds between tries to reach an engine that is away."""


class Docker(base.Engine):
    """One Docker Engine, found by ``[docker]``. Raises Invalid for a URL that cannot be used."""

    name = "docker"

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self._conf = conf
        options = conf.docker
        self.client = client_docker.Client(
            options.url, tls_ca=options.tls_ca, tls_cert=options.tls_cert, tls_key=options.tls_key,
            timeout=options.timeout,
        )  # fmt: skip
        hosts = names.Names(conf.state_dir)
        self._wired = wiring.Wiring(self.client, conf, hosts)
        self._services = service.Service(self.client, conf, hosts, self._wired)
        self._checking: asyncio.Task[None] | None = None
        self._notices: asyncio.Queue[base.Notice | Exception] = asyncio.Queue()
        self._managing: asyncio.Task[None] | None = None
        self._facts: dict[str, Any] | None = None
        self._pods = pod.Pod(self.client, conf, hosts, self._notices.put_nowait, self._wired)
        self._containers = container.Container(self.client, conf, hosts, self._wired)
        self.drivers: dict[str, base.Driver] = {
            "bay": bay.Bay(self.client, conf, hosts, self._wired),
            "container": self._containers,
            "pod": self._pods,
            "service": self._services,
        }

    async def start(self) -> None:
        try:
            found = await self.client.version()
            LOG.info("Docker answers", url=self.client.url, version=found.version)
        except errors.MagnumError as error:
            LOG.warning("Docker does not answer yet", url=self.client.url, reason=error.detail)
        if self._wired.wires.configured:
            self._checking = asyncio.create_task(self._wired.wires.checking(self._check))
        if self._conf.docker.swarm_managers:
            self._managing = asyncio.create_task(
                swarm.manage(self.client, self._conf, networks.host_address(self._conf))
            )

    async def close(self) -> None:
        for task in (self._managing, self._checking):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._pods.close()
        await self._wired.wires.close()
        await self.client.close()

    async def _check(self) -> None:
        """Look for ports that are gone, and for those that nobody has any more. Raises Unavailable."""
        marks = [f"{base.DEPLOYMENT}={self._conf.deployment}"]
        there = {(row.labels or {}).get(base.UUID) for row in await self.client.containers(marks)}
        for kind, uuid in await self._wired.wires.check(there.__contains__):
            self._notices.put_nowait(base.Notice(kind=kind, uuid=uuid))

    async def facts(self) -> dict[str, Any]:
        try:
            async with asyncio.timeout(INFO_SECONDS):
                info = await self.client.info()
        except TimeoutError:
            # while a swarm elects a leader only this call waits for it; the engine works
            version = await self.client.version()
            if self._facts is None:
                raise errors.Unavailable(f"Docker {version.version} does not describe itself yet") from None
            return self._facts
        self._facts = {
            "engines": {self.name: info.server_version}, "cpus": float(info.n_cpu), "memory": info.mem_total,
            "disk": _free(info.docker_root_dir), "containers": info.containers,
            "networks": [bay_model.NEUTRON] if self._wired.wires.configured else [],
        }  # fmt: skip
        return self._facts

    async def seen(self) -> list[base.Seen]:
        mark = [f"{base.DEPLOYMENT}={self._conf.deployment}"]
        rows, networks, volumes = await asyncio.gather(
            self.client.containers(mark), self.client.networks(mark), self.client.volumes(mark)
        )
        found: dict[tuple[str, str], base.Seen] = {}
        for name, labels, runs in (
            *(((row.names or [""])[0].lstrip("/"), row.labels or {}, row.state == "running") for row in rows),
            *((n.name, n.labels or {}, False) for n in networks),
            *((v.name, v.labels or {}, False) for v in volumes),
        ):
            kind, uuid = labels.get(base.KIND, ""), labels.get(base.UUID, "")
            if not (kind and uuid):
                continue
            one = base.Seen(
                kind=kind, uuid=uuid, name=name, project_id=labels.get(base.PROJECT, ""), bay_uuid=labels.get(base.BAY, ""),
                memo=labels.get(base.MEMO, ""), runs=runs,
            )  # fmt: skip
            if (kind, uuid) not in found or (one.memo and not found[kind, uuid].memo):
                found[kind, uuid] = one
        return [*found.values(), *await self._services.seen()]

    async def watch(self) -> collections.abc.AsyncIterator[base.Notice]:
        """Yield changes. Each connection begins with an empty Notice: what happened before it was not seen."""
        hearing = asyncio.create_task(self._hear())
        try:
            while True:
                notice = await self._notices.get()
                if isinstance(notice, Exception):
                    raise notice
                yield notice
        finally:
            hearing.cancel()

    async def _hear(self) -> None:
        """Put the engine's events in the queue, where those of pods' probes come too."""
        wait = FIRST_WAIT
        while True:
            try:
                async for event in self.client.events(WATCHED):
                    wait = FIRST_WAIT
                    if event is None:
                        self._containers.met()
                    notice = base.Notice() if event is None else self._notice(event)
                    if notice is not None:
                        self._notices.put_nowait(notice)
            except errors.MagnumError as error:
                LOG.warning("Docker's events stopped", url=self.client.url, reason=error.detail)
            except Exception as error:
                self._notices.put_nowait(error)
                return
            await asyncio.sleep(wait)
            wait = min(wait * 2, LAST_WAIT)

    def _notice(self, event: client_docker.Event) -> base.Notice | None:
        attributes = event.actor.attributes or {}
        if event.type == "network":
            uuid = attributes.get("name", "").removeprefix("magnum-")
            return base.Notice(kind="bay", uuid=uuid) if len(uuid) == 36 else None
        if attributes.get(base.DEPLOYMENT) != self._conf.deployment or base.UUID not in attributes:
            return None
        return base.Notice(kind=attributes.get(base.KIND, ""), uuid=attributes[base.UUID])


def _free(folder: str) -> int:
    """Return the bytes free where the engine stores, 0 if that is not on this machine."""
    try:
        found = os.statvfs(folder)
    except OSError:
        return 0
    return found.f_bavail * found.f_frsize
