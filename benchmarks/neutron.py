"""What a port of Neutron costs a container: ``python -m benchmarks.neutron [--rounds N] [--at-once N]``.

Three programs, RabbitMQ, PostgreSQL, and the test bed's Keystone and Neutron; one host.
A create to Running in a bay on Neutron takes turns with what it is made of: the
same in a bay on a bridge, and a port that is made by Neutron's API, plugged into an
empty namespace and waited for until it is ACTIVE, one after the other. Then many of each at
once. The agent looks at its switch once a second, so most of a port's time is its.
"""

import argparse
import asyncio
import concurrent.futures
import functools
import json
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import types
from typing import Any

from magnum import config
from magnum.clients import nftables, vif
from testbed import base, docker, images, keystone, neutron, postgresql, rabbitmq
from tests.conftest import Host, hosts
from tests.deployment import Deployment, neutron_options

BODY = {"image": images.DEMO, "command": ["sleep", "1000"], "start": True, "stop_timeout": 0, "memory": "16m"}


def _create(magnum: Deployment, bay: str) -> tuple[float, str]:
    """Return (seconds to Running, uuid) of a container."""
    began = time.perf_counter()
    status, made = magnum.request("POST", "/v1/containers?wait=60", {"bay_uuid": bay, **BODY})
    assert (status, made["status"]) == (201, "Running"), made
    return time.perf_counter() - began, made["uuid"]


def _delete(magnum: Deployment, uuid: str) -> None:
    assert magnum.request("DELETE", f"/v1/containers/{uuid}?wait=60")[0] == 204


class Bare:
    """Ports without Magnum: Neutron's own API, the same plug, and the same question until it is ACTIVE."""

    def __init__(self, host: Host, network: str, project: str) -> None:
        self.host, self.network, self.project = host, network, project
        self.token = keystone.token("magnum-networks")
        facts = base.facts("neutron")["hosts"][host.name]
        self.engine = nftables.engine_process(host.socket)
        conf = config.load([], neutron__ovsdb_connection=facts["ovsdb"])
        self.switch = vif.Switch(conf)

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        return neutron.send(method, path, body, self.token)

    def create(self, inside: int) -> tuple[float, str]:
        """Return (seconds to ACTIVE, uuid) of a port that is plugged into the namespace of process ``inside``."""
        began = time.perf_counter()
        port = self._ask("POST", "/ports", {"port": {
            "network_id": self.network, "project_id": self.project, "binding:host_id": self.host.name,
        }})["port"]  # fmt: skip
        address = port["fixed_ips"][0]["ip_address"]
        shape = vif.Interface(
            port=port["id"], mac=port["mac_address"], name=f"e{port['id'][:8]}", mtu=1450, bridge="br-int",
            addresses=[f"{address}/24"],
        )  # fmt: skip
        asyncio.run(self.switch.plug(self.engine, inside, shape, "bench", port["id"]))
        while self._ask("GET", f"/ports/{port['id']}?fields=status")["port"]["status"] != "ACTIVE":
            time.sleep(0.15)
        return time.perf_counter() - began, port["id"]

    def delete(self, port: str) -> None:
        asyncio.run(self.switch.unplug(self.engine, [port]))
        self._ask("DELETE", f"/ports/{port}")


def _measure(magnum: Deployment, bare: Bare, rounds: int, many: int) -> list[dict[str, object]]:
    holder = subprocess.Popen(["unshare", "--net", "sleep", "infinity"])
    time.sleep(0.5)
    found: dict[str, list[float]] = {"wired": [], "plain": [], "port": []}
    try:
        for _ in range(rounds):
            for name in ("wired", "plain"):
                seconds, uuid = _create(magnum, name)
                found[name].append(seconds)
                _delete(magnum, uuid)
            seconds, port = bare.create(holder.pid)
            found["port"].append(seconds)
            bare.delete(port)
        whole: dict[str, float] = {}
        for name, make, drop in (
            ("wired", functools.partial(_create, magnum, "wired"), functools.partial(_delete, magnum)),
            ("plain", functools.partial(_create, magnum, "plain"), functools.partial(_delete, magnum)),
            ("port", functools.partial(bare.create, holder.pid), bare.delete),
        ):
            with concurrent.futures.ThreadPoolExecutor(many) as pool:
                began = time.perf_counter()
                made = [task.result()[1] for task in [pool.submit(make) for _ in range(many)]]
                whole[name] = time.perf_counter() - began
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                list(pool.map(drop, made))
    finally:
        holder.kill()
        holder.wait()
    ms = {name: statistics.median(values) * 1000 for name, values in found.items()}
    rows: list[dict[str, object]] = []
    for what, ours, parts in (
        (f"create to Running with a port, median ms of {rounds}", ms["wired"], (ms["plain"], ms["port"])),
        (f"{many} at once: until the last runs, s", whole["wired"], (whole["plain"], whole["port"])),
    ):
        floor = sum(parts)
        rows.append({"what": what, "magnum": round(ours, 2), "without": round(parts[0], 2), "port": round(parts[1], 2),
                     "ratio": round(ours / floor, 2)})  # fmt: skip
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.neutron", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="turns (15)")
    parser.add_argument("--at-once", type=int, default=50, help="creates at once (50)")
    asked = parser.parse_args()
    components: tuple[types.ModuleType, ...] = (docker, postgresql, rabbitmq, neutron)
    with base.lock(base.FOLDER / "lock"):
        for component in components:
            component.install()
            component.up(neutron.HOSTS)
    host = hosts()[0]
    with tempfile.TemporaryDirectory() as folder:
        more, each = neutron_options()
        magnum = Deployment(f"wires-{base.TAG}", pathlib.Path(folder), [host], more, each=each)
        magnum.start()
        magnum.ready()
        bays = {}
        for name, driver in (("wired", "neutron"), ("plain", "docker")):
            magnum.request("POST", "/v1/baymodels", {"name": name, "network_driver": driver})
            status, bays[name] = magnum.request("POST", "/v1/bays?wait=60", {"name": name, "baymodel_id": name})
            assert status == 201, bays[name]
        (network,) = neutron.request("GET", "/networks?name=magnum-wired")["networks"]
        rows = _measure(magnum, Bare(host, network["id"], network["project_id"]), asked.rounds, asked.at_once)
        for bay in bays.values():
            magnum.request("DELETE", f"/v1/bays/{bay['uuid']}?wait=60")
        magnum.stop()
    print(f"{'':50} {'magnum':>9} {'without':>9} {'port':>9} {'ratio':>6}")
    for row in rows:
        print(f"{row['what']:50} {row['magnum']:>9} {row['without']:>9} {row['port']:>9} {row['ratio']:>6}")
    (base.FOLDER / "neutron.json").write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
