"""The faults, one after the other: each is made, held, healed, and what it cost is measured.

A recovery is over once every host concerned runs a new container for the watcher and has
removed it again.
"""

import asyncio
import random
import signal
import subprocess
import time
from typing import Any

import aiohttp
import msgspec

from testbed import base, docker, rabbitmq
from testbed.faults import stand

RECOVERY_SECONDS = 120.0
POINTS = {
    "backend": ("container-before-engine", "container-after-engine", "backend-before-report", "backend-after-report"),
    "conductor": ("conductor-before-intent", "conductor-after-intent", "conductor-before-report", "conductor-after-report"),
    "api": ("api-after-intent", "api-before-answer"),
}  # fmt: skip
DIES_SECONDS = 10.0
SWARM_SECONDS = 45
"""Within which an engine that starts is in its swarm, or has given it up."""
AGAIN = 3


class Fault(msgspec.Struct, kw_only=True):
    """One fault as it was: ``at`` and ``healed`` in seconds from the beginning, ``recovery`` in seconds from the healing."""

    kind: str
    where: str
    at: float
    healed: float = 0.0
    recovery: float | None = None


class Injector:
    """Makes faults of every one of ``kinds``, ``each`` times, in an order that follows from ``seed``."""

    def __init__(self, cloud: stand.Stand, seed: int, kinds: list[str], each: int) -> None:
        self._cloud = cloud
        self._random = random.Random(f"{seed}-faults")
        self._todo = [kind for kind in kinds for _ in range(each)]
        self._random.shuffle(self._todo)
        self._began = time.monotonic()
        self.done: list[Fault] = []
        self.restarted: dict[str, list[float]] = {}
        """Host → when its engine was begun anew (Unix seconds)."""
        self.given_up = 0
        """How often an engine that was begun anew gave up its swarm and was begun once more."""
        self.wrong: list[str] = []

    async def run(self, session: aiohttp.ClientSession) -> None:
        for kind in self._todo:
            await asyncio.sleep(self._random.uniform(0.5, 2.0))
            host = self._random.choice(list(self._cloud.hosts))
            fault = Fault(kind=kind, where="", at=time.monotonic() - self._began)
            self.done.append(fault)
            fault.where = await getattr(self, "_" + kind.replace("-", "_"))(host)
            healed = time.monotonic()
            fault.healed = healed - self._began
            concerned = [fault.where] if fault.where in self._cloud.hosts else list(self._cloud.hosts)
            try:
                async with asyncio.timeout(RECOVERY_SECONDS):
                    await asyncio.gather(*(self._works(session, name) for name in concerned))
                fault.recovery = time.monotonic() - healed
            except TimeoutError:
                self.wrong.append(f"{kind} of {fault.where}: no recovery within {RECOVERY_SECONDS:.0f} s")
            base.say(f"{fault.at:6.1f} s  {kind} {fault.where}: recovered after {fault.recovery or -1:.1f} s")

    async def _works(self, session: aiohttp.ClientSession, host: str) -> None:
        """Return once a new container has run on a host, and is gone again."""
        headers = {"X-Project-Id": stand.WATCHER}
        body = {"bay_uuid": self._cloud.bay_of(host), "image": stand.IMAGE, "command": ["sleep", "60"], "start": True,
                "stop_timeout": 0, "memory": "8m"}  # fmt: skip

        async def ask(method: str, path: str, data: Any = None) -> tuple[int, Any]:
            try:
                async with session.request(method, self._cloud.url + path, json=data, headers=headers) as answer:
                    return answer.status, await answer.json(content_type=None) if answer.status != 204 else None
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
                return 0, None

        while True:
            status, made = await ask("POST", "/v1/containers?wait=5", body)
            if status in (201, 202):
                break
            await asyncio.sleep(0.1)
        while not (status == 201 and made["status"] == "Running"):
            await asyncio.sleep(0.1)
            status, found = await ask("GET", f"/v1/containers/{made['uuid']}")
            if status == 200:
                made, status = found, 201
        while status not in (204, 404):
            status, _ = await ask("DELETE", f"/v1/containers/{made['uuid']}?wait=5")
            await asyncio.sleep(0.02)

    # programs

    async def _kill(self, name: str) -> str:
        self._cloud.kill(name)
        await asyncio.sleep(self._random.uniform(0.2, 1.0))
        self._cloud.start(name)
        return name

    async def _kill_api(self, host: str) -> str:
        return await self._kill("api")

    async def _kill_conductor(self, host: str) -> str:
        return await self._kill("conductor")

    async def _kill_backend(self, host: str) -> str:
        return await self._kill(host)

    async def _die_at_a_point(self, host: str) -> str:
        program = self._random.choice(("api", "conductor", host))
        point = self._random.choice(POINTS.get(program, POINTS["backend"]))
        self._cloud.kill(program, signal.SIGTERM)
        self._cloud.start(program, crash_at=f"{point}:{self._random.randint(1, 4)}")
        process = self._cloud.processes[program]
        try:
            await asyncio.to_thread(process.wait, DIES_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        del self._cloud.processes[program]
        self._cloud.start(program)
        return program

    async def _pause(self, name: str) -> str:
        process = self._cloud.processes[name]
        process.send_signal(signal.SIGSTOP)
        # longer than a host may be silent
        await asyncio.sleep(self._cloud.settings["backend"]["down_after"] + 2)
        process.send_signal(signal.SIGCONT)
        return name

    async def _pause_backend(self, host: str) -> str:
        return await self._pause(host)

    async def _pause_conductor(self, host: str) -> str:
        return await self._pause("conductor")

    async def _skew_clock(self, host: str) -> str:
        self._cloud.kill(host, signal.SIGTERM)
        self._cloud.skewed[host] = self._random.choice((-1, 1)) * self._random.choice((5, 90, 4000, 90000))
        self._cloud.start(host)
        await asyncio.sleep(6)
        self._cloud.kill(host, signal.SIGTERM)
        del self._cloud.skewed[host]
        self._cloud.start(host)
        return host

    # servers

    async def _restart_broker(self, host: str) -> str:
        await asyncio.to_thread(rabbitmq.stop, kill=self._random.random() < 0.5)
        await asyncio.to_thread(rabbitmq.start)
        return "broker"

    async def _restart_database(self, host: str) -> str:
        await asyncio.to_thread(self._cloud.database.stop, kill=self._random.random() < 0.5)
        await asyncio.sleep(self._random.uniform(0, 2))
        await asyncio.to_thread(self._cloud.database.up, 0)
        return "database"

    async def _restart_engine(self, host: str) -> str:
        name = self._cloud.hosts[host].name
        self.restarted.setdefault(host, []).append(time.time())
        await asyncio.to_thread(docker.stop, name)
        await asyncio.sleep(self._random.uniform(0, 2))
        await asyncio.to_thread(docker.start, name)
        for _ in range(AGAIN):
            if not await asyncio.to_thread(self._swarm_given_up, self._cloud.hosts[host].url):
                break
            # as its operator is told to: Docker tries to be in its swarm once, when it starts
            self.given_up += 1
            await asyncio.to_thread(docker.stop, name)
            await asyncio.to_thread(docker.start, name)
        self.restarted[host].append(time.time())
        return host

    def _swarm_given_up(self, url: str) -> bool:
        """Return whether an engine that was begun anew has given up its swarm, once that is known."""
        for _ in range(SWARM_SECONDS):
            words = ["docker", "-H", url, "info", "--format", "{{.Swarm.LocalNodeState}}"]
            state = subprocess.run(words, capture_output=True, text=True).stdout.strip()
            if state != "pending":
                break
            time.sleep(1)
        return state == "error"

    async def _fill_disk(self, host: str) -> str:
        name = self._cloud.hosts[host].name
        await asyncio.to_thread(docker.fill, name, full=True)
        await asyncio.sleep(5)
        await asyncio.to_thread(docker.fill, name, full=False)
        return host

    # the network

    def _rules(self, host: str, text: str) -> None:
        words = [*self._cloud.hosts[host].enter, "nft", "-f", "-"]
        subprocess.run(words, input=text, text=True, check=True, capture_output=True)

    async def _drop(self, host: str, match: str) -> str:
        chains = "".join(
            f"chain {way} {{ type filter hook {way} priority -300; {match.replace('peer', side)} drop; }}\n"
            for way, side in (("input", "saddr"), ("output", "daddr"))
        )
        self._rules(host, f"table inet faults {{ {chains} }}\n")
        await asyncio.sleep(self._cloud.settings["backend"]["down_after"] + 2)
        self._rules(host, "delete table inet faults\n")
        return host

    async def _cut_broker(self, host: str) -> str:
        return await self._drop(host, f"ip peer {base.facts('docker')['address']}")

    async def _cut_hosts(self, host: str) -> str:
        others = ", ".join(h.address for name, h in self._cloud.hosts.items() if name != host)
        return await self._drop(host, f"ip peer {{ {others} }}")


KINDS = [
    "kill-api", "kill-conductor", "kill-backend", "die-at-a-point", "pause-backend", "pause-conductor",
    "restart-broker", "restart-database", "restart-engine", "cut-broker", "cut-hosts", "fill-disk", "skew-clock",
]  # fmt: skip
