"""What must be true once all faults are healed: promises kept, engines equal to the database, nothing left over.

``Checker.look`` returns every violation as a sentence. What is still on its way is
one, too: the bench looks again until there is none, or the time is over.
"""

import collections
import contextlib
import json
import re
import subprocess
from typing import Any

import sqlalchemy as sa

from magnum import context as contexts
from magnum import objects
from magnum.db import store, tables
from magnum.engines import base as engines
from testbed.faults import injector, stand, workload

STATES = {"running": "Running", "exited": "Stopped", "paused": "Paused", "created": "Created"}
"""Docker's word → ours."""
FINAL = {
    "container": {"Running", "Stopped", "Paused", "Created"}, "pod": {"Running"}, "service": {"Active"}, "rc": {"Active"},
    "bay": {"CREATE_COMPLETE", "UPDATE_COMPLETE"}, "baymodel": None,
}  # fmt: skip
ENDS = {"completed", "failed", "expired", "cancelled", "deleted"}
UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
MARK = engines.LABEL


class Checker:
    """Compares what ``things`` may be with what is."""

    def __init__(self, cloud: stand.Stand, things: list[workload.Thing], faults: injector.Injector) -> None:
        self._cloud = cloud
        self._things = things
        self._restarted = faults.restarted
        self._store = store.Store(store.connect(cloud.settings["database"]["connection"]))
        self._rows: dict[str, store.Record] = {}
        self._found: list[str] = []

    async def close(self) -> None:
        await self._store.close()

    async def look(self) -> list[str]:
        """Return what is wrong now."""
        self._found = []
        await self._store.read(contexts.service(), self._read)
        inspected = {name: self._inspect(name) for name in self._cloud.hosts}
        self._promises()
        self._settled()
        self._engines(inspected)
        self._leftovers()
        return self._found

    def _say(self, text: str) -> None:
        self._found.append(text)

    async def _read(self, tx: store.Transaction) -> None:
        self._rows, self._shares = {}, collections.defaultdict(set)
        for kind in objects.KINDS.values():
            for record in await tx.records(kind):
                self._rows[record.item.uuid] = record
        for row in await tx.connection.execute(sa.select(tables.PLACEMENTS)):
            self._shares[row.uuid].add(row.host)
        claims = {row.uuid for row in await tx.connection.execute(sa.select(tables.CLAIMS.c.uuid))}
        for uuid in (claims | set(self._shares)) - set(self._rows):
            self._say(f"a claim or a share of {uuid}, which is no more")
        self._log = collections.defaultdict(list)
        after = 0
        while rows := await tx.events_of(after=after, limit=5000):
            after = rows[-1].revision
            for event in rows:
                self._log[event.uuid].append(event)

    def _inspect(self, name: str) -> list[dict[str, Any]]:
        """Return every container of the deployment on a host, as Docker describes it."""
        url = self._cloud.hosts[name].url
        for _ in range(3):
            ids = self._docker(
                url, "ps", "-aq", "--no-trunc", "--filter", f"label={engines.DEPLOYMENT}={self._cloud.name}"
            ).split()
            if not ids:
                return []
            with contextlib.suppress(subprocess.CalledProcessError):
                return list(json.loads(self._docker(url, "inspect", *ids)))
        return []

    def _docker(self, url: str, *words: str) -> str:
        return subprocess.run(["docker", "-H", url, *words], capture_output=True, text=True, check=True).stdout

    # what was promised

    def _promises(self) -> None:
        by_name = {(r.item.project_id, r.item.name): r.item for r in self._rows.values()}
        for thing in self._things:
            item = self._rows[thing.uuid].item if thing.uuid in self._rows else None
            if thing.uuid is None:
                # its creation was left open
                item = by_name.get((thing.tenant, thing.name))
            what = f"{thing.kind} {thing.name} {thing.uuid or ''} of {thing.tenant}"
            if (item is not None) not in thing.there:
                self._say(f"{what} {'is there, though deleted' if item is not None else 'is gone'}")
            if thing.uuid is not None:
                self._history(thing, what)
            if item is None or item.deleting:
                continue
            if thing.kind == "container":
                if item.spec.power not in thing.power:
                    self._say(f"{what} is to be {item.spec.power}, promised was {thing.power}")
                if item.spec.memory // 2**20 not in thing.size:
                    self._say(f"{what} has memory {item.spec.memory}, promised was {thing.size} MiB")
                self._runs(thing, item, what)
            if thing.kind == "rc" and item.spec.replicas not in thing.size:
                self._say(f"{what} has {item.spec.replicas} replicas, promised were {thing.size}")

    def _runs(self, thing: workload.Thing, item: Any, what: str) -> None:
        """A container that is to run does, unless its engine was ended under it and nobody asked for another run."""
        wanted = {
            "running": {"Running"},
            "stopped": {"Stopped", "Created"},
            "paused": {"Paused"},
            "created": {"Created"},
        }
        allowed = set(wanted[item.spec.power])
        if item.spec.power in ("running", "paused") and not thing.always and self._restarted.get(item.host):
            allowed.add("Stopped")
        if item.status not in allowed:
            self._say(f"{what} is {item.status}, wanted {item.spec.power}: {item.status_reason}")

    def _history(self, thing: workload.Thing, what: str) -> None:
        events = self._log.get(thing.uuid or "", [])
        accepted = [event for event in events if event.step == "accepted"]
        generations = [event.generation for event in accepted]
        # a service's generation also grows as its endpoints come and go
        if generations != (
            sorted(set(generations)) if thing.kind == "service" else list(range(1, len(generations) + 1))
        ):
            self._say(f"{what} has a gap in its generations: {generations}")
        counted = collections.Counter(event.request_id for event in accepted)
        ended = {event.request_id for event in events if event.step in ENDS}
        for request, action in thing.asked:
            if not counted[request] and not (action == "delete" and thing.uuid not in self._rows):
                self._say(f"{what}: the acknowledged {action} {request} is not in the log")
            if counted[request] > 1:
                self._say(f"{what}: {action} {request} was done {counted[request]} times")
        for event in accepted:
            if event.request_id not in ended:
                self._say(f"{what}: {event.action} {event.request_id} has no end in the log")

    # what stands

    def _settled(self) -> None:
        for record in self._rows.values():
            item, kind = record.item, objects.kind_of(record.item).name
            what = f"{kind} {item.name} {item.uuid} on {item.host}"
            if record.lost:
                self._say(f"{what}: its host is down")
            if item.deleting or item.operation is not None:
                self._say(f"{what} is still {item.status}: {item.status_reason}")
            elif (words := FINAL[kind]) is not None and item.status not in words:
                self._say(f"{what} is {item.status}: {item.status_reason}")
            elif kind == "pod" and not item.state.ready:
                self._say(f"{what} is not ready: {item.status_reason}")
            elif kind == "rc" and item.state.ready_replicas != item.spec.replicas:
                self._say(f"{what} has {item.state.ready_replicas} of {item.spec.replicas} pods")
            elif item.observed_generation != item.generation:
                self._say(f"{what} was observed at generation {item.observed_generation} of {item.generation}")

    def _engines(self, inspected: dict[str, list[dict[str, Any]]]) -> None:
        there: dict[str, list[tuple[str, dict[str, Any]]]] = collections.defaultdict(list)
        for name, containers in inspected.items():
            for one in containers:
                labels = one["Config"]["Labels"]
                uuid, kind = labels[engines.UUID], labels[engines.KIND]
                record = self._rows.get(uuid)
                what = f"{one['Name']} of {kind} {uuid} on {name}"
                if record is None:
                    self._say(f"orphan container {what}")
                elif kind in ("bay", "service"):
                    if name not in self._shares.get(uuid, ()):
                        self._say(f"{what}, which has no share of it")
                elif record.item.host != name:
                    self._say(f"{what}, which belongs to {record.item.host}")
                there[uuid].append((name, one))
        for record in self._rows.values():
            item = record.item
            kind = objects.kind_of(item).name
            mine = there.get(item.uuid, [])
            if kind == "container":
                if len(mine) != 1:
                    self._say(f"container {item.name} {item.uuid} is there {len(mine)} times ({item.status})")
                elif (word := STATES.get(mine[0][1]["State"]["Status"])) != item.status:
                    self._say(f"container {item.name} {item.uuid} is {item.status}, its engine says {word}")
                elif mine[0][1]["HostConfig"]["Memory"] != item.spec.memory and not item.deleting:
                    self._say(f"container {item.name} {item.uuid} has not the memory that is wanted")
            elif kind == "pod":
                running = collections.Counter(
                    one["Config"]["Labels"].get(MARK + "container", "sandbox")
                    for _, one in mine if one["State"]["Status"] == "running"
                )  # fmt: skip
                names = {c["name"] for c in item.spec.manifest["spec"]["containers"]} | {"sandbox"}
                if dict(running) != dict.fromkeys(names, 1):
                    self._say(f"pod {item.name} {item.uuid} runs {dict(running)}, wanted one each of {sorted(names)}")

    def _leftovers(self) -> None:
        for name, host in self._cloud.hosts.items():
            mark = f"label={engines.DEPLOYMENT}={self._cloud.name}"
            for what in ("network", "volume"):
                for ident in self._docker(host.url, what, "ls", "-q", "--filter", mark).split():
                    with contextlib.suppress(subprocess.CalledProcessError):
                        (one,) = json.loads(self._docker(host.url, what, "inspect", ident))
                        uuid = one["Labels"][engines.UUID]
                        if uuid not in self._rows:
                            self._say(f"orphan {what} {one['Name']} on {name}")
            ruleset = subprocess.run([*host.enter, "nft", "list", "ruleset"], capture_output=True, text=True).stdout
            if "table inet faults" in ruleset:
                self._say(f"{name} is still cut off")
            for uuid in (set(UUID.findall(ruleset)) & set(self._log)) - set(self._rows):
                self._say(f"a rule of {uuid}, which is no more, on {name}")
            share = {row for row, hosts in self._shares.items() if name in hosts}
            networks = set(UUID.findall(self._docker(host.url, "network", "ls", "--format", "{{.Name}} {{.Driver}}")))
            for uuid in share & {u for u, r in self._rows.items() if isinstance(r.item, objects.bay.Bay)}:
                if uuid not in networks:
                    self._say(f"bay {self._rows[uuid].item.name} {uuid} has no network on {name}")
