"""Clients of several tenants, each with objects of its own, and what each object may be by all that was answered.

An answer of 2xx is a promise, 4xx says that nothing happened, anything else (5xx, a
connection that broke) leaves it open: the client asks nothing more of that object then,
so what may be is what was and what was asked for.
"""

import asyncio
import json
import random
from typing import Any

import aiohttp
import msgspec

from testbed.faults import stand

SECONDS = 80.0
MOST = 7
"""Objects that a client has at once."""
SLEEP = ["sleep", "3600"]
ACTIONS = {
    "start": "running", "stop": "stopped", "pause": "paused", "unpause": "running", "reboot": "running",
}  # fmt: skip
PLURALS = {"container": "containers", "pod": "pods", "service": "services", "rc": "rcs", "bay": "bays"}


class Thing(msgspec.Struct, kw_only=True):
    """One object of a client. ``there``: whether it may be; ``power`` and ``size``: what may be wanted of it.

    ``closed``: its last answer left something open. ``asked``: (request id, action) of what was acknowledged.
    """

    kind: str
    name: str
    tenant: str
    bay: str | None = None
    uuid: str | None = None
    there: set[bool] = msgspec.field(default_factory=lambda: {True})
    power: set[str] = set()
    size: set[int] = set()
    always: bool = False
    closed: bool = False
    asked: list[tuple[str, str]] = []


class Tally(msgspec.Struct):
    """What was done: answers by kind of operation and status."""

    operations: int = 0
    answers: dict[str, dict[str, int]] = {}
    wrong: list[str] = []

    def count(self, what: str, status: int | None) -> None:
        self.operations += 1
        known = self.answers.setdefault(what, {})
        key = str(status or "broken")
        known[key] = known.get(key, 0) + 1


class Client:
    """One client: ``run`` works until ``enough`` says so. Everything it does follows from ``seed`` and the answers."""

    def __init__(self, cloud: stand.Stand, number: int, seed: int, tally: Tally, pause: float) -> None:
        self.number = number
        self.tenant = stand.TENANTS[number % len(stand.TENANTS)]
        self.things: list[Thing] = []
        self._cloud = cloud
        self._random = random.Random(f"{seed}-{number}")
        self._tally = tally
        self._pause = pause
        self._made = 0

    async def run(self, session: aiohttp.ClientSession, enough) -> None:
        while not enough():
            await self._one(session)
            await asyncio.sleep(self._random.uniform(0, 2 * self._pause))

    async def _one(self, session: aiohttp.ClientSession) -> None:
        own = [thing for thing in self.things if True in thing.there and not thing.closed]
        if not own or (len(own) < MOST and self._random.random() < 0.45):
            await self._create(session)
            return
        thing = self._random.choice(own)
        roll = self._random.random()
        if roll < 0.35 or thing.kind in ("bay", "service", "pod"):
            await self._delete(session, thing)
        elif thing.kind == "rc":
            await self._scale(session, thing)
        elif roll < 0.55:
            await self._resize(session, thing)
        else:
            await self._act(session, thing)

    async def _ask(self, session, method: str, path: str, body: Any = None) -> tuple[int | None, Any, str]:
        """Return (status, body, request id); no status: the connection broke. While nobody listens, nothing is asked."""
        while True:
            try:
                return await self._send(session, method, path, body)
            except aiohttp.ClientConnectorError:
                await asyncio.sleep(0.2)

    async def _send(self, session, method: str, path: str, body: Any) -> tuple[int | None, Any, str]:
        try:
            async with session.request(
                method,
                f"{self._cloud.url}{path}",
                json=body,
                headers={"X-Project-Id": self.tenant, "X-Roles": "member"},
            ) as answer:
                raw = await answer.read()
                found = json.loads(raw) if raw else None
                return answer.status, found, answer.headers.get("X-OpenStack-Request-Id", "")
        except aiohttp.ClientConnectorError:
            raise
        except (aiohttp.ClientError, TimeoutError, OSError, json.JSONDecodeError):
            return None, None, ""

    def _path(self, thing: Thing, more: str = "", wait: float = 3) -> str:
        return f"/v1/{PLURALS[thing.kind]}/{thing.uuid}{more}?wait={wait:g}"

    def _new(self) -> tuple[Thing, dict[str, Any]]:
        kind = self._random.choices(("container", "pod", "service", "rc", "bay"), (60, 18, 10, 5, 7))[0]
        self._made += 1
        thing = Thing(kind=kind, name=f"c{self.number}-{self._made}", tenant=self.tenant, asked=[])
        if kind == "bay":
            return thing, {"name": thing.name, "baymodel_id": "m", "node_count": self._random.choice((1, 1, 2))}
        thing.bay = self._random.choice(("one", "one", "wide"))
        if kind == "container":
            started, thing.always = self._random.random() < 0.8, self._random.random() < 0.5
            thing.power, thing.size = {"running" if started else "created"}, {16}
            return thing, {
                "name": thing.name, "bay_uuid": thing.bay, "image": stand.IMAGE, "command": SLEEP, "memory": "16m",
                "stop_timeout": 0, "start": started, "restart_policy": "always" if thing.always else "no",
            }  # fmt: skip
        labels = {"app": thing.name}
        pod = {
            "containers": [{"name": n, "image": stand.IMAGE, "command": SLEEP} for n in ("a", "b")[: self._random.choice((1, 2))]],
            "terminationGracePeriodSeconds": 0,
        }  # fmt: skip
        specs: dict[str, Any] = {
            "pod": ("Pod", pod),
            "service": ("Service", {"selector": {"app": f"c{self.number}-1"}, "ports": [{"port": 80}]}),
            "rc": ("ReplicationController", {"replicas": 1, "selector": labels, "template": {"metadata": {"labels": labels}, "spec": pod}}),
        }  # fmt: skip
        named, spec = specs[kind]
        thing.size = {1} if kind == "rc" else set()
        manifest = {"apiVersion": "v1", "kind": named, "metadata": {"name": thing.name, "labels": labels}, "spec": spec}
        return thing, {"bay_uuid": thing.bay, "manifest": manifest}

    async def _create(self, session) -> None:
        thing, body = self._new()
        status, found, request = await self._ask(session, "POST", f"/v1/{PLURALS[thing.kind]}?wait=3", body)
        self._tally.count(f"create {thing.kind}", status)
        if status in (201, 202):
            thing.uuid = found["uuid"]
            thing.asked.append((request, "create"))
        elif status is not None and 400 <= status < 500 and status != 429:
            return
        else:
            thing.there, thing.closed = {True, False}, True
        self.things.append(thing)

    def _told(self, thing: Thing, what: str, status: int | None, found: Any, request: str) -> bool | None:
        """Note an answer; return whether it is a promise (True), a refusal (False) or leaves things open (None)."""
        self._tally.count(f"{what} {thing.kind}", status)
        if status == 404:
            self._tally.wrong.append(
                f"{what} of the acknowledged {thing.kind} {thing.name} {thing.uuid} is answered 404"
            )
            thing.closed = True
            return False
        if status is not None and 200 <= status < 300:
            thing.asked.append((request, what))
            return True
        if status is not None and 400 <= status < 500 and status != 429:
            return False
        thing.closed = True
        return None

    async def _delete(self, session, thing: Thing) -> None:
        told = self._told(thing, "delete", *await self._ask(session, "DELETE", self._path(thing)))
        if told:
            thing.there = {False}
        elif told is None:
            thing.there = {True, False}

    async def _act(self, session, thing: Thing) -> None:
        action = self._random.choice(list(ACTIONS))
        told = self._told(thing, action, *await self._ask(session, "PUT", self._path(thing, f"/{action}")))
        if told:
            thing.power = {ACTIONS[action]}
        elif told is None:
            thing.power = thing.power | {ACTIONS[action]}

    async def _resize(self, session, thing: Thing) -> None:
        await self._patch(session, thing, "/memory", lambda size: size * 2**20, self._random.choice((12, 16, 20, 24)))

    async def _scale(self, session, thing: Thing) -> None:
        await self._patch(session, thing, "/manifest/spec/replicas", lambda size: size, self._random.choice((0, 1, 2)))

    async def _patch(self, session, thing: Thing, path: str, value, size: int) -> None:
        body = [{"op": "replace", "path": path, "value": value(size)}]
        told = self._told(thing, "update", *await self._ask(session, "PATCH", self._path(thing), body))
        if told:
            thing.size = {size}
        elif told is None:
            thing.size = thing.size | {size}
