"""Pods on a Docker Engine: a sandbox that holds the namespaces, and runs of containers in them.

Every run of a container is a Docker container of its own, as on Kubernetes: it
begins with the image's files, and the run before is kept for its log and its end.
``decide`` is a pure function of what is wanted and seen; the driver does what it
says, looks again, and tells what shows. Nothing that matters is kept here alone:
how often a container ran and how long the next run must wait are labels, what a
probe found is in the pod's own state, and volumes live by the sandbox.

What takes long (a hook before the end, the grace after the signal) goes on
beside the rounds: the pod tells that it waits, and its end is an event.

Who calls: the Docker engine, which has this as its driver of pods.
"""

import asyncio
import collections.abc
import io
import tarfile
import time
from typing import Any

import msgspec
import structlog
from oslo_config import cfg

from magnum import errors
from magnum.clients import docker
from magnum.engines import base
from magnum.engines.docker import images, pod_bodies, pod_status, probes, shims, streams, wiring
from magnum.engines.docker.pod_status import ALIVE, Live, Seen, Waiting
from magnum.networks import docker as networks
from magnum.networks import names, neutron, wires
from magnum.objects import base as objects
from magnum.objects import manifest, pod

LOG = structlog.get_logger(__name__)

STEADY = 600.0
"""Seconds of a run after which the waits before new runs begin anew (as the kubelet's)."""
LEAST_GRACE = 2
"""Seconds that a container has after its ``preStop`` hook took all of its grace (as the kubelet's)."""
PASSES = 5
"""Steps of one round; what is left then is another round's."""
SOON = 0.2
WAIT_SECONDS = 2.0
"""Until Neutron is asked again, if it is away."""
REFUSED_SECONDS = 10.0
"""Until what Neutron refused is tried again: a quota may be raised."""
KEPT_RUNS = 2
"""Runs of a container that are kept: the last, and the one before for its log."""


class Refusal(msgspec.Struct, kw_only=True):
    """What the engine refused of a container (or of the sandbox, by the name ""), and when to try again (Unix seconds)."""

    waiting: Waiting
    tries: int
    until: float


class Known(msgspec.Struct, kw_only=True):
    """What is known of a pod beside the engine; all of it may be lost."""

    generation: int = 0
    probers: dict[str, probes.Prober] = {}
    hooked: set[str] = set()
    """Runs whose ``postStart`` is done."""
    failures: dict[str, str] = {}
    """Runs that are to be killed, and why."""
    stopping: dict[str, asyncio.Task[None]] = {}
    refusals: dict[str, Refusal] = {}


class Start(msgspec.Struct, kw_only=True, frozen=True):
    """A run to be made, or (``ident``) one that is made and not started."""

    container: manifest.Container
    attempt: int = 0
    backoff: float = 0.0
    ident: str | None = None


class Plan(msgspec.Struct, kw_only=True):
    """What is to be done now. ``again``: seconds until something more is. ``waiting``: why a container does not run."""

    replace: bool = False
    sandbox: str = ""
    kill: list[tuple[str, docker.ContainerInfo]] = []
    hooks: list[tuple[manifest.Container, docker.ContainerInfo]] = []
    start: list[Start] = []
    prune: list[str] = []
    again: float | None = None
    waiting: dict[str, Waiting] = {}

    @property
    def idle(self) -> bool:
        return not (self.replace or self.sandbox or self.kill or self.hooks or self.start or self.prune)

    def later(self, seconds: float) -> None:
        self.again = seconds if self.again is None else min(self.again, seconds)


def decide(found: manifest.Pod, seen: Seen, known: Known, first: float, most: float, now: float) -> Plan:
    """Return what gets the pod from ``seen`` to ``found``.

    ``first``, ``most``: seconds before the second new run of a container that
    ended, doubled with each to the most. ``now``: Unix seconds.
    """
    plan = Plan()
    made_of = pod_bodies.sandbox_hash(found)
    if seen.sandbox is not None and seen.sandbox.labels.get(pod_bodies.HASH) != made_of:
        plan.replace = True
        return plan
    word = pod_status.phase(found, seen)
    if word in ("Succeeded", "Failed"):
        if seen.stands:
            plan.sandbox = "stop"
        return plan
    if not seen.stands:
        # what still runs has lost its network
        plan.kill = [("", run) for run in seen.everything if run.state.status in ALIVE]
        refusal = known.refusals.get("")
        if refusal is not None and refusal.until > now:
            plan.later(refusal.until - now)
            for container in (*found.spec.init_containers, *found.spec.containers):
                plan.waiting[container.name] = Waiting(reason="ContainerCreating")
            return plan
        plan.sandbox = "create" if seen.sandbox is None else "start"
        if plan.kill:
            return plan
    policy = found.spec.restart_policy
    for container in found.spec.init_containers:
        if not pod_status.succeeded(seen.latest(container.name)):
            _decide_one(plan, container, seen, known, "Never" if policy == "Never" else "OnFailure", first, most, now)
            after = [c.name for c in (*found.spec.init_containers, *found.spec.containers)]
            for other in after[after.index(container.name) + 1 :]:
                plan.waiting[other] = Waiting(reason="PodInitializing")
            return plan
    for container in found.spec.containers:
        _decide_one(plan, container, seen, known, policy, first, most, now)
    for name, runs in seen.runs.items():
        if name in {c.name for c in found.spec.containers}:
            plan.prune += [run.id for run in runs[:-KEPT_RUNS] if run.id not in known.stopping]
    return plan


def _decide_one(
    plan: Plan, container: manifest.Container, seen: Seen, known: Known, policy: str,
    first: float, most: float, now: float,
) -> None:  # fmt: skip
    run = seen.latest(container.name)
    refusal = known.refusals.get(container.name)
    if refusal is not None and refusal.until > now and (run is None or run.state.status not in ALIVE):
        plan.waiting[container.name] = refusal.waiting
        plan.later(refusal.until - now)
        return
    if run is None:
        plan.start.append(Start(container=container))
        return
    changed = run.labels.get(pod_bodies.HASH) != pod_bodies.container_hash(container)
    backoff = float(run.labels.get(pod_bodies.BACKOFF, "0"))
    attempt = pod_status.attempt(run)
    if run.state.status in ALIVE:
        prober = known.probers.get(run.id)
        why = known.failures.get(run.id) or (prober.failure if prober else None) or ""
        if run.id in known.stopping:
            return
        if changed or why:
            plan.kill.append((why or "its manifest changed", run))
        elif container.lifecycle.post_start is not None and run.id not in known.hooked:
            plan.hooks.append((container, run))
        return
    if run.state.status == "created" and not run.state.error:
        if changed:
            plan.start.append(Start(container=container, attempt=attempt + 1))
        else:
            plan.start.append(Start(container=container, attempt=attempt, backoff=backoff, ident=run.id))
        return
    if run.state.status == "removing":
        plan.later(SOON)
        return
    failed = run.state.exit_code != 0 or bool(run.state.error)
    if not changed and (policy == "Never" or (policy == "OnFailure" and not failed)):
        return
    ran = pod_status.when(run.state.finished_at) - pod_status.when(run.state.started_at)
    if changed or ran >= STEADY:
        backoff = 0.0
    left = pod_status.when(run.state.finished_at) + backoff - now
    if left > 0 and backoff:
        words = known.failures.get(run.id) or run.state.error or _ending(run)
        plan.waiting[container.name] = Waiting(
            reason="CrashLoopBackOff", message=f"back-off {backoff:g}s restarting failed container: {words}"
        )
        # a clock that was set back must not keep it for ever
        plan.later(min(left, backoff))
        return
    following = first if not backoff else min(backoff * 2, most)
    plan.start.append(Start(container=container, attempt=attempt + 1, backoff=0.0 if changed else following))


def _ending(run: docker.ContainerInfo) -> str:
    return f"exited with code {run.state.exit_code}"


class Pod(base.Driver):
    """``hosts``: the bays' hosts files of this machine. ``tell`` is given a notice when a pod is to be looked at."""

    def __init__(
        self, client: docker.Client, conf: cfg.ConfigOpts, hosts: names.Names,
        tell: collections.abc.Callable[[base.Notice], None], wired: wiring.Wiring,
    ) -> None:  # fmt: skip
        self._wired = wired
        self._client = client
        self._conf = conf
        self._hosts = hosts
        self._tell = tell
        self._known: dict[str, Known] = {}

    async def close(self) -> None:
        """End what goes on beside the rounds; the engine goes on with what it was told."""
        tasks = [task for known in self._known.values() for task in known.stopping.values()]
        for known in self._known.values():
            for prober in known.probers.values():
                prober.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._known.clear()

    async def apply(self, item: pod.Pod, progress: base.Progress) -> base.Outcome:
        found = pod.check(item.spec, "docker")
        known = self._of(item.uuid)
        if item.generation != known.generation:
            known.generation = item.generation
            known.refusals.clear()
        seen = await self._look(item, found)
        for _ in range(PASSES):
            plan = self._decide(found, seen, known)
            if self._on_neutron(item, found) and seen.stands and not plan.replace:
                waits = await self._join(item, found, seen)
                if waits is not None:
                    return waits
            if plan.idle:
                break
            await self._do(plan, item, found, seen, known, progress)
            seen = await self._look(item, found)
        return self._outcome(item, found, seen, known)

    async def observe(self, item: pod.Pod) -> base.Outcome:
        found = pod.check(item.spec, "docker")
        seen = await self._look(item, found)
        outcome = self._outcome(item, found, seen, self._of(item.uuid))
        if self._on_neutron(item, found) and seen.stands and not self._wired.attached(item.uuid):
            # a port is gone: the next round makes it anew
            outcome.retry_after = 0.0
        return outcome

    def _on_neutron(self, item: pod.Pod, found: manifest.Pod) -> bool:
        return not found.spec.host_network and self._wired.facts(item) is not None

    async def _join(self, item: pod.Pod, found: manifest.Pod, seen: Seen) -> base.Outcome | None:
        """Have the pod's ports in its sandbox; return what shows if that has to wait, or is refused."""
        facts = self._wired.facts(item)
        assert facts is not None and seen.sandbox is not None
        again: float | None = WAIT_SECONDS
        try:
            if await self._wired.join(item, "pod", facts, seen.sandbox):
                LOG.debug("a pod's sandbox is on its networks", pod=item.uuid)
            return None
        except neutron.Waits as error:
            words = error.detail
        except errors.Unavailable:
            raise
        except errors.MagnumError as error:
            words, again = str(error), None if isinstance(error, errors.Invalid) else REFUSED_SECONDS
        outcome = self._outcome(item, found, seen, self._of(item.uuid))
        return msgspec.structs.replace(outcome, reason=f"FailedCreatePodSandBox: {words}", retry_after=again)

    async def remove(self, uuid: str, item: pod.Pod | None) -> base.Outcome:
        """End the containers as their manifest asks, then remove them, the sandbox and the volumes."""
        found = self._manifest(item)
        known = self._of(uuid)
        for prober in known.probers.values():
            prober.close()
        rows = await self._client.containers(self._marks(uuid))
        members = [row for row in rows if pod_bodies.CONTAINER in (row.labels or {})]
        alive = await self._alive(members)
        for row in alive:
            if row.id not in known.stopping:
                self._stop(uuid, known, row.id, (row.labels or {})[pod_bodies.CONTAINER], found, item)
        if alive:
            waits = ", ".join(sorted((row.labels or {})[pod_bodies.CONTAINER] for row in alive))
            state = objects.to_builtins(item.state) | {"ready": False} if item is not None else {}
            reason = f"waits for the end of {waits}"
            return base.Outcome(status="Deleting", reason=reason, state=state, pending=True, retry_after=5.0)
        sandboxes = [row for row in rows if row not in members]
        left = [words for words in await asyncio.gather(*map(self._remove, members)) if words]
        if not left:
            left = [words for words in await asyncio.gather(*map(self._remove, sandboxes)) if words]
        if not left:
            for volume in await self._client.volumes(self._marks(uuid)):
                try:
                    await self._client.remove_volume(volume.name)
                except errors.NotFound:
                    continue
                except (errors.Conflict, errors.EngineError) as error:
                    left.append(f"volume {volume.name}: {error.detail}")
        if not left:
            try:
                await self._wired.wires.remove(uuid)
            except errors.MagnumError as error:
                left.append(error.detail)
        if left:
            return base.Outcome(status="Deleting", reason="; ".join(left), pending=True, retry_after=1.0)
        self._forget(uuid)
        return base.Outcome(gone=True)

    async def _alive(self, rows: list[docker.ContainerRow]) -> list[docker.ContainerRow]:
        """Return those that really run: a list tells what the engine could write to its disk last, and that may be full."""

        async def runs(row: docker.ContainerRow) -> bool:
            try:
                return (await self._client.inspect(row.id)).state.status in ALIVE
            except errors.NotFound:
                return False

        listed = [row for row in rows if row.state in ALIVE]
        there = await asyncio.gather(*map(runs, listed))
        return [row for row, alive in zip(listed, there, strict=True) if alive]

    async def stream(self, item: pod.Pod, asked: Any) -> base.Session:
        found = pod.check(item.spec, "docker")
        everyone = [*found.spec.init_containers, *found.spec.containers]
        default = found.spec.containers[0].name if len(found.spec.containers) == 1 else None
        wanted = asked.member or default
        if wanted is None:
            choice = ", ".join(c.name for c in found.spec.containers)
            raise errors.Invalid(f"say which of the pod's containers: {choice}", field="container")
        container = next((c for c in everyone if c.name == wanted), None)
        if container is None:
            raise errors.NotFound(f"pod {item.name} has no container {wanted!r}", field="container")
        runs = (await self._look(item, found)).runs.get(wanted, [])
        if asked.previous:
            runs = runs[:-1]
        if not runs:
            what = "has no run before its last" if asked.previous else "has not been made yet"
            raise errors.NotFound(f"container {wanted} of pod {item.name} {what}", field="container")
        return await streams.open(self._client, runs[-1].id, asked, tty=container.tty, stdin=container.stdin)

    # what is there

    def _of(self, uuid: str) -> Known:
        return self._known.setdefault(uuid, Known())

    def _forget(self, uuid: str) -> None:
        known = self._known.pop(uuid, None)
        if known is not None:
            for prober in known.probers.values():
                prober.close()

    def _manifest(self, item: pod.Pod | None) -> manifest.Pod | None:
        try:
            return pod.check(item.spec, "docker") if item is not None else None
        except errors.Invalid:
            # from before a rule was made; it is to go all the same
            return None

    def _marks(self, uuid: str) -> list[str]:
        return [f"{base.DEPLOYMENT}={self._conf.deployment}", f"{base.UUID}={uuid}"]

    async def _look(self, item: pod.Pod, found: manifest.Pod) -> Seen:
        rows = await self._client.containers(self._marks(item.uuid))

        async def inspect(ident: str) -> docker.ContainerInfo | None:
            try:
                return await self._client.inspect(ident)
            except errors.NotFound:
                return None

        seen = Seen(runs={})
        for info in await asyncio.gather(*(inspect(row.id) for row in rows)):
            if info is None or info.state.status == "dead":
                continue
            name = info.labels.get(pod_bodies.CONTAINER)
            if name is None:
                seen.sandbox = info
            else:
                seen.runs.setdefault(name, []).append(info)
        for runs in seen.runs.values():
            runs.sort(key=pod_status.attempt)
        self._track(item, found, seen)
        return seen

    def _track(self, item: pod.Pod, found: manifest.Pod, seen: Seen) -> None:
        """Have each run probed that is to be, and no other; take over what is known of those that ran before."""
        known = self._of(item.uuid)
        told = {s.get("containerID"): s for s in item.state.container_statuses if "running" in s.get("state", {})}
        running = set()
        for container in found.spec.containers:
            run = seen.latest(container.name)
            if run is None or run.state.status not in ALIVE:
                continue
            before = told.get(f"docker://{run.id}")
            if before is not None:
                known.hooked.add(run.id)
            if container.lifecycle.post_start is not None and run.id not in known.hooked:
                continue
            running.add(run.id)
            if run.id not in known.probers and run.id not in known.stopping and seen.sandbox is not None:
                where = self._target(item.uuid, run.id, container, seen.sandbox)

                async def attempt(probe: manifest.Probe, where: probes.Target = where) -> str | None:
                    return await probes.attempt(self._client, where, probe)

                known.probers[run.id] = probes.Prober(
                    container, attempt, lambda: self._tell(base.Notice(kind="pod", uuid=item.uuid)),
                    began=pod_status.when(run.state.started_at),
                    known_started=bool(before and before.get("started")), known_ready=bool(before and before.get("ready")),
                )  # fmt: skip
        for ident in set(known.probers) - running:
            prober = known.probers.pop(ident)
            if prober.failure:
                known.failures[ident] = prober.failure
            prober.close()
        there = {run.id for run in seen.everything}
        known.hooked &= there
        known.failures = {ident: why for ident, why in known.failures.items() if ident in there}

    def _target(
        self, uuid: str, ident: str, container: manifest.Container, sandbox: docker.ContainerInfo
    ) -> probes.Target:
        ports = {port.name: port.container_port for port in container.ports if port.name}
        local = self._client.url.startswith("unix://")
        address = self._wired.address(uuid) or self._address(sandbox) or networks.host_address(self._conf)
        return probes.Target(ident=ident, address=address, pid=sandbox.state.pid if local else 0, ports=ports)

    def _address(self, sandbox: docker.ContainerInfo | None) -> str | None:
        if sandbox is None:
            return None
        return next((e.ip_address for e in (sandbox.network_settings.networks or {}).values() if e.ip_address), None)

    def _decide(self, found: manifest.Pod, seen: Seen, known: Known) -> Plan:
        options = self._conf.docker
        return decide(found, seen, known, options.restart_backoff, options.restart_backoff_max, time.time())

    def _outcome(self, item: pod.Pod, found: manifest.Pod, seen: Seen, known: Known) -> base.Outcome:
        plan = self._decide(found, seen, known)
        live, waiting = {}, dict(plan.waiting)
        for container in found.spec.containers:
            run = seen.latest(container.name)
            if run is None or run.state.status not in ALIVE:
                continue
            prober = known.probers.get(run.id)
            if prober is None and run.id not in known.stopping and run.id not in known.failures:
                waiting.setdefault(container.name, Waiting(reason="ContainerCreating"))
                continue
            why = known.failures.get(run.id) or (prober.failure or prober.unready if prober else None)
            stops = run.id in known.stopping
            ready = bool(prober and prober.ready and not prober.failure and not stops)
            live[container.name] = Live(started=bool(prober and prober.started), ready=ready, words=why)
        host_ip = networks.host_address(self._conf)
        wired = self._on_neutron(item, found)
        pod_ip = host_ip if found.spec.host_network else self._address(seen.sandbox)
        if wired:
            pod_ip = self._wired.address(item.uuid)
        now = objects.now().isoformat().replace("+00:00", "Z")
        state = pod_status.state(item, found, seen, live, waiting, pod_ip=pod_ip, host_ip=host_ip, now=now)
        reason = pod_status.reason(found, seen, live, waiting)
        if wired:
            state["security_groups"] = wires.shown(self._wired.wires.record(item.uuid))["security_groups"]
        refusal = known.refusals.get("")
        if refusal is not None and not seen.stands:
            reason = f"{refusal.waiting.reason}: {refusal.waiting.message}"
        again = plan.again if plan.idle else 0.0
        return base.Outcome(status=state["phase"], reason=reason, state=state, retry_after=again)

    # what is done

    async def _do(
        self, plan: Plan, item: pod.Pod, found: manifest.Pod, seen: Seen, known: Known, progress: base.Progress
    ) -> None:
        if plan.replace:
            await self._replace(item, seen, known)
            return
        for why, run in plan.kill:
            name = run.labels[pod_bodies.CONTAINER]
            if why:
                LOG.info("ending a pod's container", pod=item.uuid, container=name, reason=why)
                known.failures[run.id] = why
                self._stop(item.uuid, known, run.id, name, found, item)
            else:
                await self._quietly(self._client.kill(run.id))
        if plan.kill:
            # those that end at once are seen by the next step, the others tell it by their event
            tasks = [known.stopping[run.id] for _, run in plan.kill if run.id in known.stopping]
            if tasks:
                await asyncio.wait(tasks, timeout=SOON)
        for ident in plan.prune:
            await self._quietly(self._client.remove(ident))
        if plan.sandbox == "stop":
            assert seen.sandbox is not None
            await self._quietly(self._client.stop(seen.sandbox.id, 0))
        elif plan.sandbox and not (plan.kill and plan.sandbox):
            await self._stand(plan, item, found, seen, known, progress)
            return
        if seen.stands:
            assert seen.sandbox is not None
            await self._start(plan, item, found, seen.sandbox, known, progress)
        for container, run in plan.hooks:
            await self._post_start(item, container, run.id, seen.sandbox, known)

    async def _quietly(self, move: collections.abc.Awaitable[None]) -> None:
        """Do what may have been done, or be under way, already."""
        try:
            await move
        except (errors.NotFound, errors.Conflict):
            pass

    async def _replace(self, item: pod.Pod, seen: Seen, known: Known) -> None:
        """Remove all of the pod but its row: the next step makes it anew, as the changed manifest wants it."""
        outcome = await self.remove(item.uuid, item)
        if not outcome.gone:
            tasks = list(self._of(item.uuid).stopping.values())
            if tasks:
                await asyncio.wait(tasks)

    async def _stand(
        self, plan: Plan, item: pod.Pod, found: manifest.Pod, seen: Seen, known: Known, progress: base.Progress
    ) -> None:
        """Have the sandbox run; make the containers meanwhile that come first."""
        try:
            if plan.sandbox == "create":
                ident = await self._create_sandbox(item, found, progress)
            else:
                assert seen.sandbox is not None
                ident = seen.sandbox.id
            await self._client.start(ident)
            sandbox = await self._client.inspect(ident)
        except errors.Unavailable:
            raise
        except errors.MagnumError as error:
            self._refuse(known, "", Waiting(reason="FailedCreatePodSandBox", message=error.detail))
            if docker.STUCK in error.detail and plan.sandbox == "start":
                # it will not start again: the next step makes another
                await shims.end(ident)
                await self._quietly(self._client.remove(ident))
            return
        known.refusals.pop("", None)
        if not self._on_neutron(item, found):
            await self._start(plan, item, found, sandbox, known, progress)

    async def _create_sandbox(self, item: pod.Pod, found: manifest.Pod, progress: base.Progress) -> str:
        bay = item.bay_uuid or ""
        if not found.spec.host_network and not self._hosts.path(bay).exists():
            await self._hosts.ensure(bay)
        facts = self._wired.facts(item)
        nameservers = facts.nameservers if facts is not None else None
        name = pod_bodies.name_of(item.uuid)
        body = pod_bodies.sandbox(self._conf, item, found, self._hosts, nameservers)
        image = self._conf.docker.pause_image
        ident = await self._create(name, body, image, "IfNotPresent", item, progress)
        disks = [v.name for v in found.spec.volumes if v.empty_dir is not None and v.empty_dir.medium != "Memory"]
        if disks:
            # anybody in the pod may write to an emptyDir
            await self._client.put_archive(ident, pod_bodies.VOLUMES, _folders(disks))
        return ident

    async def _create(
        self, name: str, body: dict[str, Any], image: str, policy: str, item: pod.Pod, progress: base.Progress
    ) -> str:
        pulled = policy == "Always"
        if pulled:
            await images.pull(self._client, self._conf, image, item.status, progress)
        while True:
            try:
                return await self._client.create(name, body)
            except errors.Conflict:
                found = await self._client.inspect(name)
                if found.labels.get(base.UUID) != item.uuid:
                    raise errors.EngineError(f"the name {name} is taken by a container that is not ours") from None
                return found.id
            except errors.NotFound as error:
                if pulled or "image" not in error.detail.lower():
                    raise
                if policy == "Never":
                    raise _NeverPull(f"image {image} is absent and imagePullPolicy is Never") from error
                await images.pull(self._client, self._conf, image, item.status, progress)
                pulled = True

    async def _start(
        self, plan: Plan, item: pod.Pod, found: manifest.Pod, sandbox: docker.ContainerInfo, known: Known,
        progress: base.Progress,
    ) -> None:  # fmt: skip
        pod_ip = self._wired.address(item.uuid) or self._address(sandbox) or networks.host_address(self._conf)
        values = pod_bodies.fields(item, found, pod_ip, networks.host_address(self._conf))

        async def one(start: Start) -> None:
            name = start.container.name
            try:
                ident = start.ident or await self._create_run(start, item, found, sandbox.id, values, progress)
            except errors.Unavailable:
                raise
            except ValueError as error:
                self._refuse(known, name, Waiting(reason="CreateContainerConfigError", message=str(error)))
                return
            except errors.MagnumError as error:
                self._refuse(known, name, _refused(start.container, error, known.refusals.get(name)))
                return
            try:
                await self._client.start(ident)
            except errors.Unavailable:
                raise
            except errors.NotFound:
                return
            except errors.MagnumError as error:
                self._refuse(known, name, Waiting(reason="RunContainerError", message=error.detail))
                return
            known.refusals.pop(name, None)
            await self._post_start(item, start.container, ident, sandbox, known)

        if any(start.container.lifecycle.post_start for start in plan.start):
            # as on Kubernetes, a hook holds up the containers after its own
            for start in plan.start:
                await one(start)
        else:
            # all of them end before the first failure counts: none goes on behind a later step's back
            for error in await asyncio.gather(*map(one, plan.start), return_exceptions=True):
                if error is not None:
                    raise error

    async def _create_run(
        self, start: Start, item: pod.Pod, found: manifest.Pod, holder: str, values: pod_bodies.Fields,
        progress: base.Progress,
    ) -> str:  # fmt: skip
        container = start.container
        policy, user = pod_bodies.pull_policy(container), ""
        if pod_bodies.needs_image(container, found):
            if policy == "Always" or (policy == "IfNotPresent" and not await self._client.has_image(container.image)):
                await images.pull(self._client, self._conf, container.image, item.status, progress)
                policy = "IfNotPresent"
            user = await self._client.image_user(container.image)
        body = pod_bodies.member(
            self._conf, item, found, container, holder=holder, values=values, attempt=start.attempt,
            backoff=start.backoff, image_user=user,
        )  # fmt: skip
        name = pod_bodies.name_of(item.uuid, container.name, start.attempt)
        return await self._create(name, body, container.image, policy, item, progress)

    async def _post_start(
        self,
        item: pod.Pod,
        container: manifest.Container,
        ident: str,
        sandbox: docker.ContainerInfo | None,
        known: Known,
    ) -> None:
        if container.lifecycle.post_start is None or sandbox is None:
            return
        words = await probes.hook(
            self._client, self._target(item.uuid, ident, container, sandbox), container.lifecycle.post_start
        )
        if words is None:
            known.hooked.add(ident)
        else:
            known.failures[ident] = f"FailedPostStartHook: {words}"

    def _refuse(self, known: Known, name: str, waiting: Waiting) -> None:
        tries = known.refusals[name].tries + 1 if name in known.refusals else 1
        first, most = self._conf.docker.restart_backoff, self._conf.docker.restart_backoff_max
        wait = min(first * 2 ** (min(tries, 20) - 1), most)
        known.refusals[name] = Refusal(waiting=waiting, tries=tries, until=time.time() + wait)

    # the end of a run

    def _stop(
        self, uuid: str, known: Known, ident: str, name: str, found: manifest.Pod | None, item: pod.Pod | None
    ) -> None:
        """End a run beside the rounds: its hook, the signal, the grace; the pod is looked at after it."""

        async def end() -> None:
            try:
                await self._end(uuid, ident, name, found)
            except errors.NotFound:
                pass
            except errors.MagnumError as error:
                LOG.warning("a pod's container does not end", pod=uuid, container=name, reason=error.detail)
            finally:
                known.stopping.pop(ident, None)
                self._tell(base.Notice(kind="pod", uuid=uuid))

        known.stopping[ident] = asyncio.get_running_loop().create_task(end())

    async def _end(self, uuid: str, ident: str, name: str, found: manifest.Pod | None) -> None:
        container = next((c for c in found.spec.containers if c.name == name), None) if found else None
        if found is None:
            await self._client.stop(ident, None)
            return
        grace = found.spec.termination_grace_period_seconds
        begun = time.monotonic()
        if container is not None and container.lifecycle.pre_stop is not None and grace:
            rows = await self._client.containers(self._marks(uuid))
            holder = next((row.id for row in rows if pod_bodies.CONTAINER not in (row.labels or {})), None)
            if holder is not None:
                where = self._target(uuid, ident, container, await self._client.inspect(holder))
                try:
                    async with asyncio.timeout(grace):
                        words = await probes.hook(self._client, where, container.lifecycle.pre_stop)
                except TimeoutError:
                    words = f"took longer than the grace of {grace} s"
                if words is not None:
                    LOG.info("FailedPreStopHook", pod=uuid, container=name, reason=words)
        left = grace - (time.monotonic() - begun)
        await self._client.stop(ident, max(round(left), LEAST_GRACE) if grace else 0)

    async def _remove(self, row: docker.ContainerRow) -> str | None:
        try:
            await self._client.remove(row.id)
        except errors.NotFound:
            pass
        except (errors.Conflict, errors.EngineError) as error:
            return f"{(row.names or [row.id])[0].lstrip('/')}: {error.detail}"
        return None


class _NeverPull(errors.EngineError):
    """An image that may not be pulled is absent."""


def _refused(container: manifest.Container, error: errors.MagnumError, before: Refusal | None) -> Waiting:
    if isinstance(error, _NeverPull):
        return Waiting(reason="ErrImageNeverPull", message=error.detail)
    if error.detail.startswith(f"pulling {container.image}"):
        again = before is not None and before.waiting.reason in ("ErrImagePull", "ImagePullBackOff")
        return Waiting(reason="ImagePullBackOff" if again else "ErrImagePull", message=error.detail)
    return Waiting(reason="CreateContainerError", message=error.detail)


def _folders(folders: list[str]) -> bytes:
    """Return an archive that gives existing folders the mode of an ``emptyDir``."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in folders:
            info = tarfile.TarInfo(name)
            info.type, info.mode = tarfile.DIRTYPE, 0o777
            tar.addfile(info)
    return out.getvalue()
