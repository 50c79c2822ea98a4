"""A thousand hosts that beat, and two hundred changes a second: what the conductor needs, and how far behind it is.

The backends are simulated: one process beats and reports for all of them over the real RabbitMQ, as a backend does, and
hears the conductor's broadcasts, by which the lag of each report is known.
"""

import asyncio
import random
import subprocess
import sys
import time

import msgspec

from benchmarks import asking, deployments, filling, table
from magnum import context as contexts
from magnum.objects import base as objects
from magnum.objects import host
from magnum.rpc import base as rpc
from magnum.rpc import conductor, transports
from testbed import docker, images, postgresql, rabbitmq

NEEDS = (docker, postgresql, rabbitmq)
HOSTS, CHANGES = 1000, 200
EVERY = (5.0, 2.0)
"""Seconds between two beats of a host: once as many hosts would be configured, once as is the default."""
WARM = 5.0
"""Seconds before anything counts."""


async def _simulate(url: str, uuids: list[str], seconds: float, every: float) -> dict[str, object]:
    """Beat and report as every host; return seconds of each report's lag, and how many beats and reports there were."""
    transport = transports.open(url, name="fleet")
    await transport.start()
    asks = rpc.client(conductor.Conductor, transport, conductor.TOPIC)
    decode = msgspec.msgpack.Decoder(list[objects.Event]).decode
    sent: dict[tuple[str, str], float] = {}
    lags: list[float] = []
    began = time.monotonic()
    counts = {"beats": 0, "reports": 0, "late": 0}

    async def heard(body: bytes) -> None:
        for event in decode(body):
            at = sent.pop((event.uuid, event.to_status), None)
            if at is not None and at > began + WARM:
                lags.append(time.monotonic() - at)

    await transport.subscribe(conductor.EVENTS, heard)
    facts = host.Facts(engines={"docker": "26.1.5"}, cpus=8, memory=32 * 2**30, disk=2**40, address="192.0.2.1")
    end = began + seconds + WARM

    async def beats(number: int) -> None:
        name, epoch = f"h{number}", 0
        await asyncio.sleep(random.random() * every)
        while time.monotonic() < end:
            # what is free of a disk changes all the time
            told = msgspec.structs.replace(facts, disk=facts.disk - counts["beats"] * 2**20)
            beat = host.Beat(binary="magnum-backend", host=name, epoch=epoch, facts=told)
            epoch = await asks.beat(contexts.service(name).within(30), beat)
            counts["beats"] += 1
            await asyncio.sleep(every)

    async def report(number: int) -> None:
        place = number % HOSTS
        status = "Stopped" if number // HOSTS % 2 == 0 else "Running"
        sent[uuids[place], status] = time.monotonic()
        one = objects.Report(kind="container", uuid=uuids[place], generation=1, sequence=number + 2, status=status)
        await asks.report(contexts.service(f"h{place}").within(30), [one])
        counts["reports"] += 1

    beating = [asyncio.create_task(beats(number)) for number in range(HOSTS)]
    await asyncio.sleep(WARM / 2)
    tasks: set[asyncio.Task[None]] = set()
    number = 0
    started = time.monotonic()
    while (now := time.monotonic()) < end:
        while number < (now - started) * CHANGES:
            task = asyncio.create_task(report(number))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
        await asyncio.sleep(0.005)
    await asyncio.gather(*tasks, *beating)
    await asyncio.sleep(2)
    await transport.close()
    return {"lags": lags, "lost": len(sent), **counts}


def measure(seconds: float) -> list[table.Row]:
    """Return the rows; ``seconds``: how long hosts beat and change, after a few to begin with."""
    return [row for every in EVERY for row in _one(max(seconds, 15), every)]


def _one(seconds: float, every: float) -> list[table.Row]:
    with deployments.deployed("fleet", {"backend": {"down_after": 30}}) as cloud:
        deployments.bay(cloud)
        assert cloud.request("POST", "/v1/containers?wait=60", {"bay_uuid": "bench", "image": images.DEMO})[0] == 201
        database = cloud.settings["database"]["connection"]
        uuids = asyncio.run(filling.fill(database, HOSTS, 1, [f"h{number}" for number in range(HOSTS)]))
        argv = [sys.executable, "-m", "benchmarks.fleet", str(seconds), str(every)]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        words = msgspec.json.encode([cloud.settings["DEFAULT"]["transport_url"], uuids])
        pid = [cloud.processes["conductor"].pid]
        before, began = asking.processor_seconds(pid), time.monotonic()
        out, _ = process.communicate(words)
        used, took = asking.processor_seconds(pid) - before, time.monotonic() - began
        # the log comes before
        found = msgspec.json.decode(out.splitlines()[-1])
        asyncio.run(filling.empty(database))
        cloud.request("DELETE", "/v1/bays/bench?wait=60")
    lags = [lag * 1000 for lag in found["lags"]]
    assert lags and not found["lost"], found["lost"]
    what = f"{HOSTS:,} hosts beating each {every:g} s, {CHANGES} changes/s"
    return [
        table.Row(what=f"{what}: lag of a change, p99", unit="ms", ours=table.quantile(lags, 0.99), reach="<= 1000",
                  note=f"{table.spread(lags)}; {found['beats']:,} beats, {found['reports']:,} reports"),
        table.Row(what=f"{what}: the conductor's processor", unit="cores", ours=used / took, reach="<= 1"),
    ]  # fmt: skip


if __name__ == "__main__":
    url, uuids = msgspec.json.decode(sys.stdin.buffer.read(), type=tuple[str, list[str]])
    sys.stdout.buffer.write(msgspec.json.encode(asyncio.run(_simulate(url, uuids, *map(float, sys.argv[1:])))))
