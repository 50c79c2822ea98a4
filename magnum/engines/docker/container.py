"""Containers on a Docker Engine.

What is to be done is decided by ``steps``, a pure function of what is wanted and
what is seen; the driver does it, looks again, and tells what shows. A container
bears its uuid as a label and in its name, so one that a crash left half made is
found and carried on with.

One that ended stays ended: whether it starts again is the owner's restart policy,
which is Docker's to keep, or a new ``start``. One that somebody removed from the
engine is made anew if its owner asks something new of it (start, reboot, retry),
if its restart policy says that a new run is always welcome (``always``,
``unless-stopped``), or if it was never seen at all (its creation was cut short);
else it reads ``Error``, since its files are lost and its owner should know.

Who calls: the Docker engine, which has this as its driver of containers.
"""

import collections.abc
import signal
from typing import Any

import msgspec
from oslo_config import cfg

from magnum import errors
from magnum.clients import docker as client_docker
from magnum.engines import base
from magnum.engines.docker import images, shims, streams, wiring
from magnum.networks import docker as networks
from magnum.networks import names, neutron, wires
from magnum.objects import container as containers

FIRST_RETRY = 1.0
LAST_RETRY = 300.0
RETRY_GROWTH = 1.5
"""Seconds between tries of what was refused, from the first to the last, and how they grow."""

RETRY_NETWORK = 10.0
"""Seconds until what Neutron refused is tried again: a quota may be raised."""
WAIT_SECONDS = 2.0

PASSING = ("port is already allocated", "address already in use", "network", "pulling ", "no space left", "timeout",
           client_docker.STUCK)  # fmt: skip
"""Words of refusals that may pass by themselves; others wait for the owner."""

EVER = ("always", "unless-stopped")
"""Restart policies that welcome another run whenever there is none."""

_UNITS = {"b": 1, "k": 1024, "m": 1024**2, "g": 1024**3}


def bytes_of(text: str) -> int:
    """Return the bytes that ``512m`` and the like stand for. Raises Invalid."""
    unit = _UNITS.get(text[-1:].lower())
    digits = text[:-1] if unit else text
    if not digits.isdigit():
        raise errors.Invalid(f"must be a number with b, k, m or g, not {text!r}", field="[docker] default_memory")
    return int(digits) * (unit or 1)


def container_name(uuid: str) -> str:
    """Return the name on the engine of a container that Magnum made for ``uuid``."""
    return f"magnum-{uuid}"


def time_of(text: str) -> str | None:
    """Return Docker's time, None for one that has not come."""
    return None if not text or text == client_docker.NEVER else text


def limits(conf: cfg.ConfigOpts, spec: containers.ContainerSpec) -> dict[str, Any]:
    """Return what of ``HostConfig`` may change while a container runs: limits and the restart policy.

    Swap is as much as memory alone unless asked otherwise: none.
    """
    memory = spec.memory if spec.memory is not None else bytes_of(conf.docker.default_memory)
    return {
        "Memory": memory,
        "MemorySwap": spec.memory_swap if spec.memory_swap is not None else memory,
        "NanoCpus": round((spec.cpus or 0) * 1_000_000_000),
        "PidsLimit": spec.pids or conf.docker.default_pids,
        "RestartPolicy": {
            "Name": spec.restart_policy.name,
            "MaximumRetryCount": spec.restart_policy.maximum_retry_count,
        },
    }


def limits_differ(wanted: dict[str, Any], seen: client_docker.HostConfig) -> bool:
    """Return whether Docker's ``HostConfig`` is another than ``limits`` wants.

    Swap is compared only where Docker took it: a kernel without swap accounting shows -1.
    """
    rule = wanted["RestartPolicy"]
    return bool(
        wanted["Memory"] != seen.memory
        or (seen.memory_swap > 0 and wanted["MemorySwap"] != seen.memory_swap)
        or wanted["NanoCpus"] != seen.nano_cpus
        or (wanted["PidsLimit"] != (seen.pids_limit or 0))
        or rule["Name"] != (seen.restart_policy.name or "no")
        or rule["MaximumRetryCount"] != seen.restart_policy.maximum_retry_count
    )


def steps(
    spec: containers.ContainerSpec, seen: client_docker.ContainerInfo | None, wanted: dict[str, Any]
) -> list[str]:
    """Return what is to be done, in order, to get from ``seen`` (None: nothing) to ``spec``.

    Steps are names of the driver's moves. ``wanted`` is ``limits`` of the spec.
    """
    if seen is None:
        then = {"running": ["start"], "paused": ["start", "pause"]}
        return ["create", *then.get(spec.power, [])]
    status = seen.state.status
    if status in ("removing", "dead"):
        return []
    done = ["update"] if limits_differ(wanted, seen.host_config) else []
    run = time_of(seen.state.started_at)
    if spec.power == "running":
        if spec.reboot_of is not None and run == spec.reboot_of:
            return [*done, *(["unpause"] if status == "paused" else []), "restart"]
        # an engine tries again what ended, and not what it could not start
        owed = bool(seen.state.error) and spec.restart_policy.name in EVER
        if status == "created" or (status == "exited" and (run is None or run == spec.start_of or owed)):
            return [*done, "start"]
        if status == "paused":
            return [*done, "unpause"]
    elif spec.power == "stopped":
        if status == "paused":
            return [*done, "unpause", "stop"]
        if status in ("running", "restarting"):
            return [*done, "stop"]
    elif spec.power == "paused":
        if status == "running":
            return [*done, "pause"]
        if status == "created":
            return [*done, "start", "pause"]
    return done


def config(
    conf: cfg.ConfigOpts, item: containers.Container, hosts: names.Names | None, sandbox: str | None = None
) -> dict[str, Any]:
    """Return the body of ``POST /containers/create`` for ``item``.

    What a tenant may not have is absent unless the spec asks for it, which
    policy has allowed by then. ``hosts`` adds the bay's hosts file. ``sandbox``: the container whose network
    namespace it joins, which has its name on the network then.
    """
    spec = item.spec
    bay = item.bay_uuid or ""
    network = "host" if spec.host_network else f"container:{sandbox}" if sandbox else networks.network_name(bay)
    host: dict[str, Any] = {
        **limits(conf, spec),
        "NetworkMode": network,
        "IpcMode": "host" if spec.host_ipc else "private",
        "ReadonlyRootfs": spec.read_only,
        "Mounts": [_mount(conf, item, m) for m in spec.mounts],
    }
    if hosts is not None and not spec.host_network:
        host["Mounts"].append(hosts.mount(bay))
    if spec.host_pid:
        host["PidMode"] = "host"
    if spec.privileged:
        host["Privileged"] = True
    else:
        asked = {c.removeprefix("CAP_") for c in spec.cap_add}
        dropped = [c for c in (*conf.docker.drop_capabilities, *spec.cap_drop) if c.removeprefix("CAP_") not in asked]
        host |= {"SecurityOpt": ["no-new-privileges"], "CapAdd": spec.cap_add, "CapDrop": list(dict.fromkeys(dropped))}
    if spec.devices:
        host["Devices"] = [_device(d) for d in spec.devices]
    body: dict[str, Any] = {
        "Image": spec.image,
        "Labels": spec.labels | base.labels(conf.deployment, item, "container") | base.memo(item),
        "Env": [f"{key}={value}" for key, value in spec.environment.items()],
        "Tty": spec.tty, "OpenStdin": spec.stdin_open, "StopTimeout": spec.stop_timeout,
    }  # fmt: skip
    optional = {
        "Cmd": spec.command, "Entrypoint": spec.entrypoint, "WorkingDir": spec.workdir, "User": spec.user,
        "Hostname": None if sandbox else spec.hostname, "StopSignal": spec.stop_signal,
    }  # fmt: skip
    body |= {key: value for key, value in optional.items() if value is not None}
    if spec.ports and not sandbox:
        body["ExposedPorts"] = {f"{p.port}/{p.protocol}": {} for p in spec.ports}
        bindings: dict[str, list[dict[str, str]]] = {}
        for port in spec.ports:
            if port.host_port is not None:
                bindings.setdefault(f"{port.port}/{port.protocol}", []).append(
                    {
                        "HostIp": port.host_ip or str(conf.docker.publish_ip),
                        "HostPort": str(port.host_port) if port.host_port else "",
                    }
                )
        host["PortBindings"] = bindings
    if not spec.host_network and not sandbox:
        aliases = [item.name] if item.name else []
        body["NetworkingConfig"] = {"EndpointsConfig": {network: {"Aliases": aliases}}}
    body["HostConfig"] = host
    return body


def _mount(conf: cfg.ConfigOpts, item: containers.Container, mount: containers.Mount) -> dict[str, Any]:
    made: dict[str, Any] = {"Type": mount.type, "Target": mount.target, "ReadOnly": mount.read_only}
    if mount.type == "tmpfs":
        if mount.size:
            made["TmpfsOptions"] = {"SizeBytes": mount.size}
    elif mount.type == "volume":
        bay = item.bay_uuid or ""
        made["Source"] = f"magnum-{bay}-{mount.source}"
        marks = {
            base.DEPLOYMENT: conf.deployment, base.UUID: bay, base.BAY: bay, base.KIND: "bay",
            base.PROJECT: item.project_id,
        }  # fmt: skip
        made["VolumeOptions"] = {"Labels": marks}
    else:
        made["Source"] = mount.source
    return made


def _device(text: str) -> dict[str, str]:
    host, _, rest = text.partition(":")
    inside, _, permissions = rest.partition(":")
    return {"PathOnHost": host, "PathInContainer": inside or host, "CgroupPermissions": permissions or "rwm"}


def ending(state: client_docker.RunState) -> str:
    """Return in words how a container ended."""
    if state.oom_killed:
        return f"killed for want of memory (exit code {state.exit_code})"
    if state.exit_code > 128:
        try:
            name = signal.Signals(state.exit_code - 128).name
        except ValueError:
            name = ""
        if name:
            return f"exited with code {state.exit_code} ({name})"
    return f"exited with code {state.exit_code}"


def outcome(item: containers.Container, seen: client_docker.ContainerInfo) -> base.Outcome:
    """Return what ``seen`` is in our words: every state that Docker has."""
    state = seen.state
    status, reason = "Error", f"Docker says {state.status}"
    match state.status:
        case "created" if state.error and item.spec.power in ("running", "paused"):
            reason = state.error
        case "created":
            status, reason = "Created", ""
        case "running":
            unwell = state.health is not None and state.health.status == "unhealthy"
            status, reason = "Running", "its health check fails" if unwell else ""
        case "paused":
            status, reason = "Paused", ""
        case "restarting":
            status = "Restarting"
            reason = f"{ending(state)}; the engine starts it again ({seen.restart_count} times so far)"
        case "exited" if state.error and item.spec.power == "running":
            reason = state.error
        case "exited":
            status, reason = "Stopped", ending(state)
        case "dead":
            status, reason = "Dead", state.error or "the engine could not remove it"
        case "removing":
            status, reason = "Deleting", "the engine is removing it"
    return base.Outcome(status=status, reason=reason or None, state=_state(seen), pending=state.status == "removing")


def _state(seen: client_docker.ContainerInfo) -> dict[str, Any]:
    state, settings = seen.state, seen.network_settings
    ran = time_of(state.started_at) is not None
    ended = state.status in ("exited", "dead", "restarting") or (state.status == "created" and bool(state.error))
    addresses = {
        name: [a for a in (e.ip_address, e.ipv6_address) if a] for name, e in (settings.networks or {}).items()
    }
    ports: list[dict[str, Any]] = []
    for key, bindings in (settings.ports or {}).items():
        number, _, protocol = key.partition("/")
        if not bindings:
            ports.append({"port": int(number), "protocol": protocol})
        for binding in bindings or []:
            ports.append(
                {
                    "port": int(number), "protocol": protocol,
                    "host_port": int(binding.host_port) if binding.host_port else None, "host_ip": binding.host_ip,
                }
            )  # fmt: skip
    return {
        "engine_id": seen.id, "image_id": seen.image,
        "addresses": {name: found for name, found in addresses.items() if found}, "ports": ports,
        "exit_code": state.exit_code if ended else None, "oom_killed": state.oom_killed,
        "started_at": time_of(state.started_at),
        "finished_at": time_of(state.finished_at) if ran and ended else None,
        "restart_count": seen.restart_count, "health": state.health.status if state.health else None,
    }  # fmt: skip


class Container(base.Driver):
    """``hosts``: the bays' hosts files of this machine. ``wired``: what joins workloads to Neutron."""

    def __init__(
        self, client: client_docker.Client, conf: cfg.ConfigOpts, hosts: names.Names, wired: wiring.Wiring
    ) -> None:
        self._client = client
        self._conf = conf
        self._hosts = hosts
        self._wired = wired
        self._tries: dict[str, int] = {}
        self._owed: dict[str, str] = {}
        """Uuid → the refusal after which another try is to come."""
        self._met = 0
        self._refused: dict[str, int] = {}
        """Uuid → when ``met`` said how often, as its start was refused for good."""

    def met(self) -> None:
        """The engine is there, or there again: what it refused before is tried once more.

        One that ends while it starts a container says what is not so, such as that a command is not found.
        """
        self._met += 1

    async def apply(self, item: containers.Container, progress: base.Progress) -> base.Outcome:
        known = item.state.engine_id is not None
        seen = await self.find(item.uuid) if known or item.observed_generation else None
        if seen is None and known and not _welcome_again(item):
            return _lost(item)
        if seen is not None and self._refused_for_good(item, seen):
            return outcome(item, seen)
        facts = self._facts(item)
        moved = False
        if facts is not None:
            try:
                moved = await self._wired.stand(item, facts, progress)
            except neutron.Waits as error:
                return self._waits(item, seen, error)
            except errors.Unavailable:
                raise
            except errors.MagnumError as error:
                again = None if isinstance(error, errors.Invalid) else RETRY_NETWORK
                return self._shown(item, seen, "Error", str(error), again)
        wanted = limits(self._conf, item.spec)
        todo = steps(item.spec, seen, wanted)
        if moved and seen is not None:
            # what still runs has the namespace of before; what the engine could not start again had none
            lost = seen.state.status in ("exited", "created") and bool(seen.state.error)
            if seen.state.status in ("running", "restarting") and "restart" not in todo:
                todo = ["restart", *todo]
            elif lost and item.spec.power == "running" and "start" not in todo:
                todo = [*todo, "start"]
        ident = seen.id if seen else container_name(item.uuid)
        refusal: errors.MagnumError | None = None
        try:
            while todo:
                step, *todo = todo
                adopted = await self._do(step, ident, item, wanted, progress)
                if adopted is not None:
                    ident, todo = adopted.id, steps(item.spec, adopted, wanted)
                    seen = adopted
                else:
                    seen = None
            seen = seen or await self._client.inspect(ident)
        except errors.Unavailable:
            raise
        except errors.MagnumError as error:
            refusal = error
            seen = await self.find(item.uuid)
            ended = seen is not None and seen.state.status in ("created", "exited")
            if seen is not None and ended and client_docker.STUCK in error.detail:
                # what runs by the engine's own word is no lost run, whatever else exists already
                await shims.end(seen.id)
        if refusal is None and seen is not None:
            self._settled(item.uuid)
            return self._outcome(item, seen)
        if seen is not None and not steps(item.spec, seen, wanted):
            # what was refused is owed no more: it ended while it was to be paused
            self._settled(item.uuid)
            return self._outcome(item, seen)
        words = refusal.detail if refusal else "it was removed from the engine meanwhile"
        return self._shown(item, seen, "Error", words, self._retry(item.uuid, words))

    def _facts(self, item: containers.Container) -> neutron.Facts | None:
        """Return the network of Neutron that the container is on, None if it is on none."""
        return None if item.spec.host_network else self._wired.facts(item)

    def _outcome(self, item: containers.Container, seen: client_docker.ContainerInfo) -> base.Outcome:
        """Return what shows, with what the engine does not know: the addresses that Neutron gave."""
        found = outcome(item, seen)
        if self._facts(item) is not None:
            found.state |= wires.shown(self._wired.wires.record(item.uuid))
        return found

    def _shown(
        self, item: containers.Container, seen: client_docker.ContainerInfo | None, status: str, reason: str,
        again: float | None,
    ) -> base.Outcome:  # fmt: skip
        found = self._outcome(item, seen) if seen is not None else base.Outcome()
        return base.Outcome(status=status, reason=reason, state=found.state, retry_after=again)

    def _waits(
        self, item: containers.Container, seen: client_docker.ContainerInfo | None, why: neutron.Waits
    ) -> base.Outcome:
        """Return what shows while Neutron, or its agent, is away: what runs goes on, what is new waits."""
        if seen is not None and seen.state.status in ("running", "paused", "restarting"):
            found = self._outcome(item, seen)
            return msgspec.structs.replace(found, reason=why.detail, retry_after=WAIT_SECONDS)
        status = item.status if item.status in containers.PENDING else "Creating" if seen is None else "Updating"
        return base.Outcome(status=status, reason=f"waits: {why.detail}", pending=True, retry_after=WAIT_SECONDS)

    async def observe(self, item: containers.Container) -> base.Outcome:
        seen = await self.find(item.uuid)
        owed = self._owed.get(item.uuid)
        if owed is not None and (seen is None or seen.state.status in ("created", "exited")):
            # another try is on its way; until then the refusal is what there is to tell
            return self._shown(item, seen, "Error", owed, None)
        if seen is not None:
            found = self._outcome(item, seen)
            if item.spec.power in ("paused", "stopped") and seen.state.status in ("running", "restarting"):
                # by the policy "always" the engine starts it with itself, whatever it did before
                found.retry_after = 0.0
            if self._untried(item, seen):
                found.retry_after = 0.0
            if self._facts(item) is not None and not self._wired.attached(item.uuid) and found.retry_after is None:
                # a port is gone, or the sandbox: the next round makes it anew
                found.retry_after = 0.0
            return found
        if item.state.engine_id is not None:
            return _lost(item)
        pending = item.status in containers.PENDING
        return base.Outcome(status=item.status, reason=item.status_reason, pending=pending)

    async def remove(self, uuid: str, item: containers.Container | None) -> base.Outcome:
        self._settled(uuid)
        left: list[str] = []
        rows = await self._client.containers(self._marks(uuid))
        for row in sorted(rows, key=lambda row: wiring.ROLE in (row.labels or {})):
            try:
                await self._client.remove(row.id)
            except errors.NotFound:
                continue
            except (errors.Conflict, errors.EngineError) as error:
                left.append(f"{(row.names or [row.id])[0].lstrip('/')}: {error.detail}")
        if not left:
            try:
                await self._wired.wires.remove(uuid)
            except errors.MagnumError as error:
                left.append(error.detail)
        if left:
            return base.Outcome(status="Deleting", reason="; ".join(left), pending=True, retry_after=1.0)
        return base.Outcome(gone=True)

    async def stream(self, item: containers.Container, asked: Any) -> base.Session:
        if asked.previous:
            raise errors.NotSupported("Docker keeps one log for all runs of a container")
        ident = await self._ident(item)
        return await streams.open(self._client, ident, asked, tty=item.spec.tty, stdin=item.spec.stdin_open)

    async def stats(self, item: containers.Container) -> dict[str, Any]:
        ident = await self._running(item)
        return streams.usage(await self._client.stats(ident))

    async def top(self, item: containers.Container) -> dict[str, Any]:
        found = await self._client.top(await self._running(item))
        return {"titles": found.titles, "processes": found.processes or []}

    async def find(self, uuid: str) -> client_docker.ContainerInfo | None:
        """Return the container of ``uuid``: by its name, else (renamed) by its label; None if there is none of ours."""
        try:
            found = await self._client.inspect(container_name(uuid))
            if self._ours(found, uuid):
                return found
        except errors.NotFound:
            pass
        for row in await self._client.containers(self._marks(uuid)):
            if wiring.ROLE in (row.labels or {}):
                continue
            try:
                return await self._client.inspect(row.id)
            except errors.NotFound:
                continue
        return None

    def _marks(self, uuid: str) -> list[str]:
        return [f"{base.DEPLOYMENT}={self._conf.deployment}", f"{base.UUID}={uuid}"]

    def _ours(self, found: client_docker.ContainerInfo, uuid: str) -> bool:
        return found.labels.get(base.DEPLOYMENT) == self._conf.deployment and found.labels.get(base.UUID) == uuid

    async def _ident(self, item: containers.Container) -> str:
        seen = await self.find(item.uuid)
        if seen is None:
            raise errors.NotFound(f"container {item.name or item.uuid} is not on the engine")
        return seen.id

    async def _running(self, item: containers.Container) -> str:
        seen = await self.find(item.uuid)
        if seen is None or seen.state.status not in ("running", "paused"):
            raise errors.Conflict(f"container {item.name or item.uuid} does not run")
        return seen.id

    def _refused_for_good(self, item: containers.Container, seen: client_docker.ContainerInfo) -> bool:
        """Return whether the start of this very intent was refused in a way that no other try would change."""
        tried = item.observed_generation >= item.generation and item.status == "Error"
        told = bool(seen.state.error) and not _passing(seen.state.error)
        return tried and told and self._refused.get(item.uuid) == self._met

    def _untried(self, item: containers.Container, seen: client_docker.ContainerInfo) -> bool:
        """Return whether a start that is owed was refused before the engine was met, and not since."""
        if not seen.state.error or self._refused.get(item.uuid) == self._met:
            return False
        return not {"start", "restart"}.isdisjoint(steps(item.spec, seen, limits(self._conf, item.spec)))

    def _settled(self, uuid: str) -> None:
        self._tries.pop(uuid, None)
        self._owed.pop(uuid, None)
        self._refused.pop(uuid, None)

    def _retry(self, uuid: str, words: str) -> float | None:
        if not _passing(words):
            self._settled(uuid)
            self._refused[uuid] = self._met
            return None
        self._owed[uuid] = words
        tries = self._tries[uuid] = self._tries.get(uuid, 0) + 1
        return float(min(FIRST_RETRY * RETRY_GROWTH ** (min(tries, 20) - 1), LAST_RETRY))

    async def _do(
        self, step: str, ident: str, item: containers.Container, wanted: dict[str, Any], progress: base.Progress
    ) -> client_docker.ContainerInfo | None:
        """Do one step; return the container that was there already instead of a created one."""
        if step == "create":
            return await self._create(item, progress)
        moves: dict[str, collections.abc.Callable[[], collections.abc.Awaitable[None]]] = {
            "start": lambda: self._client.start(ident),
            "stop": lambda: self._client.stop(ident, item.spec.stop_timeout),
            "restart": lambda: self._client.restart(ident, item.spec.stop_timeout),
            "pause": lambda: self._client.pause(ident),
            "unpause": lambda: self._client.unpause(ident),
            "update": lambda: self._client.update(ident, wanted),
        }
        await moves[step]()
        return None

    async def _create(self, item: containers.Container, progress: base.Progress) -> client_docker.ContainerInfo | None:
        spec, name = item.spec, container_name(item.uuid)
        sandbox = wiring.sandbox_name(item.uuid) if self._facts(item) is not None else None
        body = config(self._conf, item, self._hosts, sandbox)
        if not spec.host_network and not self._hosts.path(item.bay_uuid or "").exists():
            await self._hosts.ensure(item.bay_uuid or "")
        pulled = spec.image_pull_policy == "Always"
        if pulled:
            await images.pull(self._client, self._conf, spec.image, item.status, progress)
        while True:
            try:
                await self._client.create(name, body)
                return None
            except errors.Conflict:
                found = await self.find(item.uuid)
                if found is None:
                    raise errors.EngineError(f"the name {name} is taken by a container that is not ours") from None
                return found
            except errors.NotFound as error:
                if spec.image_pull_policy == "Never" or pulled or "image" not in error.detail.lower():
                    raise
                await images.pull(self._client, self._conf, spec.image, item.status, progress)
                pulled = True


def _passing(words: str) -> bool:
    return any(known in words.lower() for known in PASSING)


def _welcome_again(item: containers.Container) -> bool:
    if item.spec.power not in ("running", "paused"):
        return False
    asked = item.generation > item.observed_generation
    return asked or item.spec.restart_policy.name in EVER


def _lost(item: containers.Container) -> base.Outcome:
    state = {"exit_code": item.state.exit_code, "started_at": item.state.started_at, "engine_id": item.state.engine_id}
    words = "removed from the engine by someone else; a start makes it anew"
    return base.Outcome(status="Error", reason=words, state=state)
