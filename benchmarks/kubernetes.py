"""What a slice of a cluster costs: ``python -m benchmarks.kubernetes [--rounds N] [--pods N]``.

Three programs, RabbitMQ, PostgreSQL and the test bed's cluster. A pod's create to
Running by Magnum takes turns with the same by the cluster's own API; then 200 pods
change at the cluster and each change is timed until ``GET /v1/events`` tells it; then
the backend's memory is read with nothing to watch and with ``--pods`` pods in the bay.
"""

import argparse
import concurrent.futures
import http.client
import json
import pathlib
import ssl
import statistics
import sys
import tempfile
import threading
import time
import urllib.parse
import urllib.request
from typing import Any

import psutil

from testbed import base, images, kubernetes, postgresql, rabbitmq
from tests.deployment import Deployment, until

CHANGES = 200
WRITERS = 8
MERGE = "application/merge-patch+json"


class Api:
    """The cluster's own API, over one kept connection a thread."""

    def __init__(self) -> None:
        facts = base.facts("kubernetes")
        config = json.loads(pathlib.Path(facts["kubeconfig"]).read_text())
        user = config["users"][0]["user"]
        self._tls = ssl.create_default_context(cafile=config["clusters"][0]["cluster"]["certificate-authority"])
        self._tls.load_cert_chain(user["client-certificate"], user["client-key"])
        self._where = urllib.parse.urlsplit(facts["url"]).netloc
        self._kept = threading.local()

    def __call__(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        """Return the decoded answer. Raises AssertionError for a refusal."""
        if not hasattr(self._kept, "connection"):
            self._kept.connection = http.client.HTTPSConnection(self._where, context=self._tls, timeout=60)
        connection = self._kept.connection
        connection.request(method, path, None if body is None else json.dumps(body), {"Content-Type": kind})
        answer = connection.getresponse()
        found = json.loads(answer.read())
        assert answer.status < 300, found
        return found

    def running(self, path: str, name: str, revision: str) -> None:
        """Return once a pod runs, told by a watch."""
        connection = http.client.HTTPSConnection(self._where, context=self._tls, timeout=60)
        query = {"watch": "1", "resourceVersion": revision, "fieldSelector": f"metadata.name={name}"}
        connection.request("GET", f"{path}?{urllib.parse.urlencode(query)}")
        answer = connection.getresponse()
        while line := answer.readline():
            if json.loads(line)["object"].get("status", {}).get("phase") == "Running":
                break
        connection.close()


def _pod(name: str, **spec: Any) -> dict[str, Any]:
    main = {"name": "c", "image": images.DEMO, "command": ["sleep", "1000"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
            "spec": {"containers": [main], "terminationGracePeriodSeconds": 0} | spec}  # fmt: skip


def _creates(magnum: Deployment, cluster: Api, path: str, rounds: int) -> tuple[list[float], list[float]]:
    """Return seconds from create to Running, by Magnum and by the cluster's API."""
    ours, theirs = [], []
    for number in range(rounds):
        began = time.perf_counter()
        status, made = magnum.request("POST", "/v1/pods?wait=60", {"bay_uuid": "b", "manifest": _pod(f"m{number}")})
        assert (status, made["status"]) == (201, "Running"), made
        ours.append(time.perf_counter() - began)
        assert magnum.request("DELETE", f"/v1/pods/{made['uuid']}?wait=60")[0] == 204
        began = time.perf_counter()
        made = cluster("POST", path, _pod(f"k{number}"))
        cluster.running(path, f"k{number}", made["metadata"]["resourceVersion"])
        theirs.append(time.perf_counter() - began)
        cluster("DELETE", f"{path}/k{number}")
        # the next turn is not to bear what is left of this one
        until(lambda number=number: f"k{number}" not in {p["metadata"]["name"] for p in cluster("GET", path)["items"]})
    return ours, theirs


def _lags(magnum: Deployment, cluster: Api, path: str) -> list[float]:
    """Return seconds from each of many changes at the cluster until the api's event stream told it."""

    def make(number: int) -> str:
        # on no node: nobody but this program changes it
        body = {"bay_uuid": "b", "manifest": _pod(f"c{number}", nodeSelector={"benchmark": "none"})}
        status, made = magnum.request("POST", "/v1/pods?wait=0", body)
        assert status in (201, 202), made
        return str(made["uuid"])

    with concurrent.futures.ThreadPoolExecutor(WRITERS) as pool:
        uuids = list(pool.map(make, range(CHANGES)))
    until(lambda: len(cluster("GET", f"{path}?limit=1000")["items"]) >= CHANGES)
    time.sleep(3)
    told: dict[str, float] = {}
    request = urllib.request.Request(f"{magnum.url}/v1/events")
    with urllib.request.urlopen(request, timeout=120) as stream:

        def listen() -> None:
            while len(told) < CHANGES and (line := stream.readline()):
                if line.startswith(b"data:"):
                    event = json.loads(line[5:])
                    if event.get("to_status") == "Running" and event["uuid"] in uuids:
                        told.setdefault(event["uuid"], time.perf_counter())

        stream.readline()
        listener = threading.Thread(target=listen)
        listener.start()

        def change(number: int) -> float:
            cluster("PATCH", f"{path}/c{number}/status", {"status": {"phase": "Running"}}, MERGE)
            return time.perf_counter()

        with concurrent.futures.ThreadPoolExecutor(WRITERS) as pool:
            changed = list(pool.map(change, range(CHANGES)))
        listener.join(60)
    assert len(told) == CHANGES, len(told)
    return [told[uuid] - at for uuid, at in zip(uuids, changed, strict=True)]


def _memory(magnum: Deployment, cluster: Api, path: str, pods: int) -> tuple[float, float, float]:
    """Return the backend's resident megabytes before and with ``pods`` pods, and the seconds until Magnum shows all."""
    process = psutil.Process(magnum.processes[magnum.keepers[0]].pid)
    before = process.memory_info().rss / 2**20
    began = time.perf_counter()
    with concurrent.futures.ThreadPoolExecutor(WRITERS * 2) as pool:
        list(pool.map(lambda n: cluster("POST", path, _pod(f"w{n}", schedulerName="nobody")), range(pods)))
    made = time.perf_counter()

    def shown() -> bool:
        count, marker = 0, ""
        while True:
            page = magnum.request("GET", f"/v1/pods?bay=b&limit=1000{marker}")[1]["pods"]
            count += sum(pod["name"].startswith("w") for pod in page)
            if len(page) < 1000:
                return count >= pods
            marker = f"&marker={page[-1]['uuid']}"

    until(shown, 600)
    print(f"{pods} pods made in {made - began:.0f} s", file=sys.stderr)
    return before, process.memory_info().rss / 2**20, time.perf_counter() - made


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kubernetes", description=__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="turns of the pair (15)")
    parser.add_argument("--pods", type=int, default=5000, help="pods to watch (5000)")
    asked = parser.parse_args()
    with base.lock(base.FOLDER / "lock"):
        for component in (kubernetes, postgresql, rabbitmq):
            component.install()
            component.up(0)
    cluster = Api()
    with tempfile.TemporaryDirectory() as folder:
        magnum = Deployment(f"slices-bench-{base.TAG}", pathlib.Path(folder), [], keepers=1)
        magnum.start(*reversed(magnum.programs))
        try:
            magnum.ready()
            assert magnum.request("POST", "/v1/baymodels", {"name": "k", "coe": "kubernetes"})[0] == 201
            body = {"name": "b", "baymodel_id": "k", "labels": {"quota.pods": str(asked.pods + 1000)}}
            status, bay = magnum.request("POST", "/v1/bays?wait=60", body)
            assert (status, bay["status"]) == (201, "CREATE_COMPLETE"), bay
            path = f"/api/v1/namespaces/magnum-{bay['uuid']}/pods"
            ours, theirs = _creates(magnum, cluster, path, asked.rounds)
            lags = sorted(_lags(magnum, cluster, path))
            before, after, behind = _memory(magnum, cluster, path, asked.pods)
        finally:
            for bay in magnum.request("GET", "/v1/bays")[1]["bays"]:
                magnum.request("DELETE", f"/v1/bays/{bay['uuid']}?wait=300", timeout=400)
            magnum.stop()
    mine, other = statistics.median(ours), statistics.median(theirs)
    rows = [
        {"what": "pod create to Running beside the cluster's API, median ms", "magnum": round(mine * 1000),
         "peer": round(other * 1000), "ratio": round(mine / other, 2)},
        {"what": f"change to event while {CHANGES} pods change, median ms", "magnum": round(statistics.median(lags) * 1000)},
        {"what": "the same, p99 ms", "magnum": round(lags[int(len(lags) * 0.99)] * 1000)},
        {"what": "backend's resident memory with nothing to watch, MB", "magnum": round(before)},
        {"what": f"the same with {asked.pods} pods, MB", "magnum": round(after)},
        {"what": f"{asked.pods} pods shown after the last was made, s", "magnum": round(behind, 1)},
    ]  # fmt: skip
    for row in rows:
        print(f"{row['what']:65} {row['magnum']:>8} {row.get('peer', ''):>8} {row.get('ratio', ''):>6}")
    (base.FOLDER / "kubernetes.json").write_text(json.dumps(rows, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
