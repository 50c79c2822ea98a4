"""Bays on a Docker Engine: this host's share is a network, the hosts file of services, and volumes as containers ask.

Who calls: the Docker engine, which has this as its driver of bays.
"""

from typing import Any

from oslo_config import cfg

from magnum import errors
from magnum.clients import docker as client_docker
from magnum.engines import base
from magnum.engines.docker import images
from magnum.networks import docker as networks
from magnum.networks import names
from magnum.objects import bay as bays

RETRY_SECONDS = 10.0


class Bay(base.Driver):
    """Status words are those of ``objects.bay``, of this host's share."""

    def __init__(self, client: client_docker.Client, conf: cfg.ConfigOpts, hosts: names.Names) -> None:
        self._client = client
        self._conf = conf
        self._hosts = hosts

    async def apply(self, item: bays.Bay, progress: base.Progress) -> base.Outcome:
        verb = item.status.partition("_")[0] or "CREATE"
        try:
            if bays.spans(item.spec) and not await self._client.has_image(self._conf.docker.pause_image):
                await images.pull(self._client, self._conf, self._conf.docker.pause_image, item.status, progress)
            marks = base.labels(self._conf.deployment, item, "bay")
            made = await networks.ensure(self._client, self._conf, item, marks)
            await self._hosts.ensure(item.uuid)
            return base.Outcome(status=f"{verb}_COMPLETE", state=await self._state(made.name, made.subnet))
        except errors.Unavailable:
            raise
        except errors.MagnumError as error:
            return base.Outcome(status=f"{verb}_FAILED", reason=error.detail, retry_after=RETRY_SECONDS)

    async def observe(self, item: bays.Bay) -> base.Outcome:
        verb = item.status.partition("_")[0] or "CREATE"
        found = await self._client.networks(self._marks(item.uuid))
        if found:
            subnet = next((s.subnet for s in found[0].ipam.config or [] if s.subnet), "")
            return base.Outcome(status=f"{verb}_COMPLETE", state=await self._state(found[0].name, subnet))
        if item.observed_generation == 0:
            return base.Outcome(status=item.status, reason=item.status_reason, pending=True)
        return base.Outcome(status=f"{verb}_FAILED", reason="its network is gone from the engine", retry_after=0.0)

    async def remove(self, uuid: str, item: bays.Bay | None) -> base.Outcome:
        """Remove the bay's network, volumes and hosts file.

        Containers of the bay have removals of their own; one that is not ours is left alone and named.
        """
        left = await networks.remove(self._client, uuid, self._marks(uuid))
        for volume in await self._client.volumes(self._marks(uuid)):
            try:
                await self._client.remove_volume(volume.name)
            except errors.NotFound:
                continue
            except (errors.Conflict, errors.EngineError) as error:
                left.append(f"volume {volume.name}: {error.detail}")
        if left:
            return base.Outcome(status="DELETE_IN_PROGRESS", reason="; ".join(left), pending=True, retry_after=1.0)
        await self._hosts.remove(uuid)
        return base.Outcome(gone=True)

    def _marks(self, uuid: str) -> list[str]:
        return [f"{base.DEPLOYMENT}={self._conf.deployment}", f"{base.UUID}={uuid}"]

    async def _state(self, network: str, subnet: str) -> dict[str, Any]:
        address = networks.host_address(self._conf)
        return {
            "api_address": self._client.url if self._client.url.startswith("tcp://") else None,
            "node_addresses": [address], "master_addresses": [],
            "coe_version": (await self._client.version()).version, "network": network, "subnet": subnet,
        }  # fmt: skip
