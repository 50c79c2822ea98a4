"""Lists, gets and creates that no engine has a part in, beside bare AMQP and SQL with the same bytes."""

import asyncio
import itertools
import json

from benchmarks import asking, deployments, floor, table
from testbed import docker, images, postgresql, rabbitmq
from tests.deployment import Deployment

NEEDS = (docker, postgresql, rabbitmq)
CLIENTS = 16
TURNS = 4
ITEMS = 100


async def _measure(cloud: Deployment, uuid: str, seconds: float) -> list[table.Row]:
    pids = [cloud.processes[name].pid for name in ("api", "conductor")]
    rows, names = [], itertools.count()
    broker, database = (
        cloud.settings[group][key] for group, key in (("DEFAULT", "transport_url"), ("database", "connection"))
    )
    async with asking.session(cloud.url) as client, floor.Floor(broker, database) as bare:
        page = await asking.get(client, f"/v1/containers?limit={ITEMS}")
        assert len(json.loads(page)["containers"]) == ITEMS
        one = await asking.get(client, f"/v1/containers/{uuid}")
        made = await asking.send(client, "POST", "/v1/baymodels", {"name": "first"})
        for what, ours, theirs in (
            (f"list of {ITEMS} containers",
             lambda number: asking.get(client, f"/v1/containers?limit={ITEMS}"), lambda number: bare.ask(b"list " + page)),
            ("get of a container",
             lambda number: asking.get(client, f"/v1/containers/{uuid}"), lambda number: bare.ask(f"get {uuid} ".encode() + one)),
            ("create of a bay model",
             lambda number: asking.send(client, "POST", "/v1/baymodels", {"name": f"n{next(names)}"}),
             lambda number: bare.ask(b"create " + made)),
        ):  # fmt: skip
            mine, other = [], []
            for _ in range(TURNS):
                mine.append(await asking.at_once(ours, CLIENTS, seconds / TURNS, pids))
                other.append(await asking.at_once(theirs, CLIENTS, seconds / TURNS, [bare.process.pid]))
            rows.append(
                table.rates(
                    f"{what}, {CLIENTS} at once", mine, other, "a bare AMQP call, SQL, the same bytes", ">= 0.5"
                )
            )
    return rows


def measure(seconds: float) -> list[table.Row]:
    """Return the rows; ``seconds``: how long each side of each is asked."""
    with deployments.deployed("calls") as cloud:
        deployments.bay(cloud)
        for _ in range(ITEMS):
            body = {"bay_uuid": "bench", "image": images.DEMO}
            status, made = cloud.request("POST", "/v1/containers?wait=60", body)
            assert status == 201, made
        rows = asyncio.run(_measure(cloud, made["uuid"], seconds))
        cloud.request("DELETE", "/v1/bays/bench?wait=80")
    return rows
