"""Start, memory and one create's latency: ``python -m benchmarks.figures [--rounds N]``.

Starts magnum-standalone, and three programs over the test bed's RabbitMQ and
PostgreSQL, on one of its hosts. Prints a table, and writes it as JSON below the
test bed's folder. A create is measured beside the same by the Docker API, one
after the other in the same loop, since a machine's speed changes by the minute.
"""

import argparse
import asyncio
import json
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import uuid

import psutil

from magnum.clients import docker as client
from magnum.objects import base as objects
from testbed import base, docker, images, postgresql, rabbitmq
from tests.conftest import Host, hosts
from tests.deployment import BIN, Deployment, until

CONTAINERS = 1000
COMMAND = ["sleep", "1000"]


def _memory(pid: int) -> float:
    """Return the resident memory of a process in MB (10^6 bytes)."""
    return psutil.Process(pid).memory_info().rss / 1e6


class Standalone(Deployment):
    """The same questions, asked of magnum-standalone."""

    def __init__(self, folder: pathlib.Path, host: Host) -> None:
        self.folder, self.hosts, self.processes = folder, {}, {}
        (self.port,) = base.free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}"
        (folder / "magnum.conf").write_text(
            f"[DEFAULT]\ndeployment = bench-{uuid.uuid4().hex[:8]}\n"
            f"[docker]\npause_image = {images.PAUSE}\npause_command = {','.join(images.PAUSE_COMMAND)}\n"
        )
        self.argv = [
            str(BIN / "magnum-standalone"), f"--port={self.port}", f"--state-dir={folder / 'state'}",
            f"--docker={host.url}", f"--config-file={folder / 'magnum.conf'}",
        ]  # fmt: skip

    def start(self) -> float:
        """Start; return the seconds until a request was answered."""
        started = time.monotonic()
        with open(self.folder / "standalone.log", "ab") as out:
            self.processes["standalone"] = subprocess.Popen(self.argv, stdout=out, stderr=out)
        until(lambda: self.request("GET", "/v1/bays")[0] == 200)
        seconds = time.monotonic() - started
        until(lambda: self.request("GET", "/healthcheck")[0] == 200)
        return seconds


def _bay(deployment: Deployment) -> dict[str, object]:
    deployment.request("POST", "/v1/baymodels", {"name": "bench"})
    status, made = deployment.request("POST", "/v1/bays?wait=60", {"name": "bench", "baymodel_id": "bench"})
    assert status == 201, made
    return made


def _fill(deployment: Deployment) -> None:
    """Write containers into the database as a tenant's would be, without an engine's."""
    import sqlite3

    with sqlite3.connect(deployment.folder / "state" / "magnum.sqlite") as database:
        database.row_factory = sqlite3.Row
        row = dict(database.execute("SELECT * FROM containers LIMIT 1").fetchone())
        for number in range(CONTAINERS):
            row |= {"uuid": objects.new_uuid(), "name": f"n{number}", "host": "another"}
            names = ", ".join(row)
            marks = ", ".join(f":{name}" for name in row)
            database.execute(f"INSERT INTO containers ({names}) VALUES ({marks})", row)


async def _latency(deployment: Deployment, bay: dict[str, object], host: Host, rounds: int) -> dict[str, list[float]]:
    """Return seconds of create + start, and of delete, by Magnum and by the Docker API, in turn."""
    engine = client.Client(host.url)
    found: dict[str, list[float]] = {"magnum create+start": [], "docker create+start": [], "magnum delete": [],
                                     "docker delete": []}  # fmt: skip
    network = next(n.name for n in await engine.networks([f"org.openstack.magnum.uuid={bay['uuid']}"]))
    for _ in range(rounds):
        started = time.perf_counter()
        body = {"bay_uuid": "bench", "image": images.DEMO, "command": COMMAND, "start": True, "stop_timeout": 0}
        status, made = await asyncio.to_thread(deployment.request, "POST", "/v1/containers?wait=60", body)
        assert (status, made["status"]) == (201, "Running"), made
        found["magnum create+start"].append(time.perf_counter() - started)
        started = time.perf_counter()
        status, _ = await asyncio.to_thread(deployment.request, "DELETE", f"/v1/containers/{made['uuid']}?wait=60")
        assert status == 204
        found["magnum delete"].append(time.perf_counter() - started)
        config = {"Image": images.DEMO, "Cmd": COMMAND, "HostConfig": {"NetworkMode": network}}
        started = time.perf_counter()
        ident = (await engine.request("POST", "/containers/create", body=config, into=dict))["Id"]
        await engine.request("POST", f"/containers/{ident}/start")
        found["docker create+start"].append(time.perf_counter() - started)
        started = time.perf_counter()
        await engine.request("DELETE", f"/containers/{ident}?force=1")
        found["docker delete"].append(time.perf_counter() - started)
    await engine.close()
    return found


def _show(title: str, found: dict[str, list[float]], rows: list[dict[str, object]]) -> None:
    for what in ("create+start", "delete"):
        ours, theirs = (statistics.median(found[f"{who} {what}"]) * 1000 for who in ("magnum", "docker"))
        rows.append({"what": f"{title}: {what}, median ms", "magnum": round(ours, 1), "floor": round(theirs, 1),
                     "ratio": round(ours / theirs, 2)})  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.figures", description=__doc__)
    parser.add_argument("--rounds", type=int, default=20, help="creates of each kind (20)")
    asked = parser.parse_args()
    with base.lock(base.FOLDER / "lock"):
        for component in (docker, postgresql, rabbitmq):
            component.install()
            component.up(1)
    host = hosts()[0]
    rows: list[dict[str, object]] = []
    with tempfile.TemporaryDirectory() as folder:
        alone = Standalone(pathlib.Path(folder), host)
        rows.append({"what": "standalone: first start to first answer, s", "magnum": round(alone.start(), 2)})
        bay = _bay(alone)
        _show("standalone", asyncio.run(_latency(alone, bay, host, asked.rounds)), rows)
        alone.request("POST", "/v1/containers?wait=60", {"bay_uuid": "bench", "image": images.DEMO})
        alone.kill("standalone", 15)
        _fill(alone)
        starts = []
        for _ in range(5):
            starts.append(alone.start())
            memory = _memory(alone.processes["standalone"].pid)
            status, page = alone.request("GET", "/v1/containers?limit=1000")
            assert status == 200 and len(page["containers"]) == 1000
            listed = _memory(alone.processes["standalone"].pid)
            alone.kill("standalone", 15)
        rows.append({"what": f"standalone with {CONTAINERS} containers: start to first answer, median s",
                     "magnum": round(statistics.median(starts), 2)})  # fmt: skip
        rows.append({"what": "  resident memory, MB", "magnum": round(memory, 1)})
        rows.append({"what": "  resident memory after a list of 1,000, MB", "magnum": round(listed, 1)})
        alone.start()
        alone.request("DELETE", "/v1/bays/bench?wait=60")
        alone.kill("standalone", 15)
    with tempfile.TemporaryDirectory() as folder:
        cloud = Deployment(f"figures-{base.TAG}", pathlib.Path(folder), [host])
        cloud.start()
        cloud.ready()
        bay = _bay(cloud)
        for name in cloud.programs:
            title = name if name in ("api", "conductor") else "backend"
            rows.append({"what": f"magnum-{title}: resident memory idle, MB",
                         "magnum": round(_memory(cloud.processes[name].pid), 1)})  # fmt: skip
        _show("three programs", asyncio.run(_latency(cloud, bay, host, asked.rounds)), rows)
        cloud.request("DELETE", "/v1/bays/bench?wait=60")
        cloud.stop()
    width = max(len(str(row["what"])) for row in rows)
    print(f"{'':{width}}  magnum   floor  ratio")
    for row in rows:
        print(f"{row['what']:{width}}  {row['magnum']:>6}  {row.get('floor', ''):>6}  {row.get('ratio', ''):>5}")
    (base.FOLDER / "figures.json").write_text(
        json.dumps({"machine": platform.platform(), "python": platform.python_version(), "rows": rows}, indent=1)
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
