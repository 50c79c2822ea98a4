"""Bays on a Docker Engine: this host's share is a network, the hosts file of services, and volumes as containers ask.

Who calls: the Docker engine, which has this as its driver of bays.
"""

from typing import Any

from oslo_config import cfg

from magnum import errors
from magnum.clients import docker as client_docker
from magnum.engines import base
from magnum.engines.docker import images, wiring
from magnum.networks import docker as networks
from magnum.networks import names, neutron, overlay
from magnum.objects import bay as bays

RETRY_SECONDS = 10.0
SWARM_AWAY = (
    "does not have a leader", "deadline exceeded", "no manager", "not a swarm manager", "is pending", "cannot be reached",
    "connection error", "could not be attached", "attaching to network failed",
)  # fmt: skip
"""What the engine says while its swarm elects, or another's manager is away: it passes."""
SWARM_SECONDS = 1.0


class Bay(base.Driver):
    """Status words are those of ``objects.bay``, of this host's share."""

    def __init__(
        self, client: client_docker.Client, conf: cfg.ConfigOpts, hosts: names.Names, wired: wiring.Wiring
    ) -> None:
        self._client = client
        self._conf = conf
        self._hosts = hosts
        self._wires = wired.wires

    async def _apply_neutron(self, item: bays.Bay, verb: str) -> base.Outcome:
        waits = bays.waiting(item)
        try:
            # the first makes it for all; another may become the first later, and there is nothing to make then
            first = item.spec.members[:1] in ([], [self._conf.host])
            facts = await neutron.ensure(self._wires.client, self._conf, item, make=first)
        except neutron.Waits as error:
            return base.Outcome(status=waits, reason=error.detail, pending=True, retry_after=1.0)
        except errors.Unavailable as error:
            return base.Outcome(status=waits, reason=error.detail, pending=True, retry_after=2.0)
        except errors.MagnumError as error:
            return base.Outcome(status=f"{verb}_FAILED", reason=str(error), retry_after=RETRY_SECONDS)
        self._wires.keep_bay(item.uuid, facts)
        await self._hosts.ensure(item.uuid)
        return base.Outcome(status=f"{verb}_COMPLETE", state=await self._state(facts.net.name, facts.cidr))

    async def apply(self, item: bays.Bay, progress: base.Progress) -> base.Outcome:
        verb = bays.verb(item)
        if neutron.is_on(item.spec):
            return await self._apply_neutron(item, verb)
        try:
            if bays.spans(item.spec) and not await self._client.has_image(self._conf.docker.pause_image):
                await images.pull(self._client, self._conf, self._conf.docker.pause_image, item.status, progress)
            marks = base.labels(self._conf.deployment, item, "bay")
            made = await networks.ensure(self._client, self._conf, item, marks, base.memo(item))
            await self._hosts.ensure(item.uuid)
            return base.Outcome(status=f"{verb}_COMPLETE", state=await self._state(made.name, made.subnet))
        except errors.Unavailable:
            raise
        except errors.MagnumError as error:
            passes = any(words in error.detail.lower() for words in SWARM_AWAY)
            if passes and not error.detail.startswith("pulling "):
                status = bays.waiting(item)
                return base.Outcome(status=status, reason=error.detail, pending=True, retry_after=SWARM_SECONDS)
            return base.Outcome(status=f"{verb}_FAILED", reason=error.detail, retry_after=RETRY_SECONDS)

    async def observe(self, item: bays.Bay) -> base.Outcome:
        verb = bays.verb(item)
        if neutron.is_on(item.spec):
            facts = self._wires.bay(item.uuid)
            if facts is not None:
                return base.Outcome(status=f"{verb}_COMPLETE", state=await self._state(facts.net.name, facts.cidr))
            return base.Outcome(status=item.status, reason=item.status_reason, pending=True, retry_after=0.0)
        if bays.spans(item.spec) and not await overlay.anchored(self._client, item.uuid):
            reason = "this host's part of the bay's network is down"
            return base.Outcome(status=item.status, reason=reason, pending=True, retry_after=0.0)
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
        A host that is leaving the bay removes its own part of the network alone.
        """
        return await self._remove(uuid, item, whole=item is None or self._conf.host in item.spec.members)

    async def leave(self, uuid: str) -> base.Outcome:
        return await self._remove(uuid, None, whole=False)

    async def _remove(self, uuid: str, item: bays.Bay | None, *, whole: bool) -> base.Outcome:
        left = await networks.remove(self._client, uuid, self._marks(uuid), whole=whole)
        # a host that leaves a bay, or comes back when it is over, has nothing to say of the network that others are on
        if item is not None and item.deleting and whole and neutron.is_on(item.spec):
            try:
                left += await neutron.remove(self._wires.client, self._conf.deployment, uuid, item.project_id)
            except errors.MagnumError as error:
                left.append(error.detail)
        for volume in await self._client.volumes(self._marks(uuid)):
            try:
                await self._client.remove_volume(volume.name)
            except errors.NotFound:
                continue
            except (errors.Conflict, errors.EngineError) as error:
                left.append(f"volume {volume.name}: {error.detail}")
        if left:
            return base.Outcome(status="DELETE_IN_PROGRESS", reason="; ".join(left), pending=True, retry_after=1.0)
        self._wires.forget_bay(uuid)
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
