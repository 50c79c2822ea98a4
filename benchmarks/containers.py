"""A container's create, start and delete, beside the very same container by the Docker API: one at a time, and eight at once.

Three programs over RabbitMQ and PostgreSQL, and magnum-standalone, each on one host. Docker is given what Magnum gave it:
the configuration of a container that Magnum made, names and labels aside.
"""

import asyncio
import collections.abc
import json
import time

from benchmarks import asking, deployments, table
from magnum.clients import docker as client
from testbed import docker, images, postgresql, rabbitmq
from tests.conftest import Host, hosts
from tests.deployment import Deployment

NEEDS = (docker, postgresql, rabbitmq)
AT_ONCE = 8
COMMAND = ["sleep", "1000"]
BODY = {"bay_uuid": "bench", "image": images.DEMO, "command": COMMAND, "start": True, "stop_timeout": 0}
PEER = "the same by the Docker API"


async def twin(engine: client.Client, ident: str) -> dict[str, object]:
    """Return what the Docker API is to be sent to have another container like one that Magnum made."""
    found = await engine.request("GET", f"/containers/{ident}/json", into=dict)
    config, host = found["Config"], found["HostConfig"]
    return {
        **{key: config[key] for key in ("Image", "Cmd", "Env", "StopTimeout") if config.get(key) is not None},
        "HostConfig": {key: value for key, value in host.items() if value not in (None, [], {}, "", 0, False)},
        "NetworkingConfig": {"EndpointsConfig": {name: {} for name in found["NetworkSettings"]["Networks"]}},
    }


Turn = collections.abc.Callable[[], collections.abc.Awaitable[float]]
"""Creates, starts and deletes one container; returns the seconds of the create with its start."""


async def _measure(cloud: Deployment, host: Host, title: str, reach: str, rounds: int) -> list[table.Row]:
    engine = client.Client(host.url)
    async with asking.session(cloud.url) as session:
        made = json.loads(await asking.send(session, "POST", "/v1/containers?wait=60", BODY))
        config = await twin(engine, f"magnum-{made['uuid']}")
        await asking.send(session, "DELETE", f"/v1/containers/{made['uuid']}?wait=60", status=204)

        async def ours() -> float:
            began = time.perf_counter()
            made = json.loads(await asking.send(session, "POST", "/v1/containers?wait=60", BODY))
            took = time.perf_counter() - began
            assert made["status"] == "Running", made
            await asking.send(session, "DELETE", f"/v1/containers/{made['uuid']}?wait=60", status=204)
            return took

        async def theirs() -> float:
            began = time.perf_counter()
            ident = (await engine.request("POST", "/containers/create", body=config, into=dict))["Id"]
            await engine.request("POST", f"/containers/{ident}/start")
            took = time.perf_counter() - began
            await engine.request("DELETE", f"/containers/{ident}?force=1")
            return took

        whole: dict[str, list[float]] = {"ours": [], "theirs": []}
        creates: dict[str, list[float]] = {"ours": [], "theirs": []}
        for number in range(rounds):
            sides: list[tuple[str, Turn]] = [("ours", ours), ("theirs", theirs)]
            for name, turn in sides if number % 2 else reversed(sides):
                began = time.perf_counter()
                creates[name].append(await turn())
                whole[name].append(time.perf_counter() - began)
        deletes = {name: [w - c for w, c in zip(whole[name], creates[name], strict=True)] for name in whole}
        rates: dict[str, list[asking.Load]] = {"ours": [], "theirs": []}
        for name, turn in (("ours", ours), ("theirs", theirs)) * 3:
            rates[name].append(await asking.at_once(lambda number, turn=turn: turn(), AT_ONCE, rounds / 6, []))
    await engine.close()
    return [
        table.medians(f"{title}: create + start + delete", "ms", whole["ours"], whole["theirs"], PEER, reach, 1000),
        table.medians(f"{title}: create + start alone", "ms", creates["ours"], creates["theirs"], PEER, scale=1000),
        table.medians(f"{title}: delete alone", "ms", deletes["ours"], deletes["theirs"], PEER, scale=1000),
        table.rates(f"{title}: create + start + delete, {AT_ONCE} at once", rates["ours"], rates["theirs"], PEER,
                    ">= 0.95" if title == "three programs" else ""),
    ]  # fmt: skip


def measure(seconds: float) -> list[table.Row]:
    """Return the rows; ``seconds``: about as many turns of each pair."""
    rows = []
    for title, reach, made in (
        ("three programs", "<= 1.10", deployments.deployed("bench")), ("standalone", "<= 1.05", deployments.standalone()),
    ):  # fmt: skip
        with made as cloud:
            deployments.bay(cloud)
            rows += asyncio.run(_measure(cloud, hosts()[0], title, reach, max(int(seconds), 6)))
            cloud.request("DELETE", "/v1/bays/bench?wait=60")
    return rows
