"""The hosts file of a bay: how a service is known by name in the bay's containers.

Docker answers the names of containers; those of services are lines of one file
a bay and host, mounted over ``/etc/hosts`` of every container and pod of the bay.
It is there before the first container starts and is changed in place, so that
each of them sees a service in the moment that it comes, without a daemon of ours
in the path of a tenant's look-ups.

Who calls: ``engines.docker``: the bay's driver makes and removes the file, those
of containers and pods mount it, that of services writes it.
"""

import asyncio
import os
import pathlib
import shutil
from typing import Any

from magnum.objects import service as services

BEGINNING = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"

DOMAIN = "svc.cluster.local"
"""The suffix that Kubernetes' manifests and clients expect."""


def names(item: services.Service) -> list[str]:
    """Return the names of a service inside its bay, shortest first."""
    metadata = item.spec.manifest.get("metadata")
    space = item.spec.namespace or (metadata.get("namespace") if isinstance(metadata, dict) else None) or "default"
    return [item.name, f"{item.name}.{space}", f"{item.name}.{space}.svc", f"{item.name}.{space}.{DOMAIN}"]


def render(text: str, uuid: str, item: services.Service | None) -> str:
    """Return the file ``text`` with the lines of service ``uuid`` as ``item`` wants them (None: without any).

    A headless service's name stands for its ready pods.
    """
    mark = f"\t# {uuid}"
    lines = [line for line in (text or BEGINNING).splitlines() if not line.endswith(mark)]
    if item is not None:
        where = sorted({e.ip for e in item.spec.endpoints}) if item.spec.headless else [item.spec.virtual_ip or ""]
        lines += [f"{ip}\t{' '.join(names(item))}{mark}" for ip in where if ip]
    return "".join(f"{line}\n" for line in lines)


class Names:
    """The hosts files of all bays on this machine. ``state_dir``: the program's own folder."""

    def __init__(self, state_dir: str) -> None:
        self._folder = pathlib.Path(state_dir).absolute() / "bays"
        self._lock = asyncio.Lock()

    def path(self, bay: str) -> pathlib.Path:
        return self._folder / bay / "hosts"

    def mount(self, bay: str) -> dict[str, Any]:
        """Return the entry for ``HostConfig.Mounts`` of a container of ``bay``."""
        return {"Type": "bind", "Source": str(self.path(bay)), "Target": "/etc/hosts", "ReadOnly": True}

    async def ensure(self, bay: str) -> None:
        """Have the file; what is in it stays."""
        async with self._lock:
            await asyncio.to_thread(self._change, bay, None, None)

    async def write(self, bay: str, uuid: str, item: services.Service | None) -> None:
        """Give the file of ``bay`` the lines of service ``uuid``; ``item`` None takes them out, of a file that is there."""
        async with self._lock:
            if item is not None or self.path(bay).exists():
                await asyncio.to_thread(self._change, bay, uuid, item)

    async def forget(self, uuid: str) -> None:
        """Take the lines of service ``uuid`` out of every bay's file."""
        for bay in await asyncio.to_thread(self._bays):
            await self.write(bay, uuid, None)

    async def remove(self, bay: str) -> None:
        """Remove the file of a bay. No error if there is none."""
        async with self._lock:
            await asyncio.to_thread(shutil.rmtree, self._folder / bay, True)

    def _bays(self) -> list[str]:
        return [entry.name for entry in self._folder.iterdir()] if self._folder.is_dir() else []

    def _change(self, bay: str, uuid: str | None, item: services.Service | None) -> None:
        path = self.path(bay)
        path.parent.mkdir(parents=True, exist_ok=True)
        # never replaced by another file: containers hold this one
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.fchmod(file, 0o644)
            before = os.read(file, 16 * 1024 * 1024).decode()
            after = render(before, uuid or "", item)
            if after != before:
                data = after.encode()
                os.pwrite(file, data, 0)
                os.ftruncate(file, len(data))
        finally:
            os.close(file)
