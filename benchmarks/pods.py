"""A pod's start and a service's data path.

Starts magnum-standalone on one host of the test bed. A pod of two containers to
Running is measured beside the same two containers by the Docker API; requests and
bytes through a service's virtual address beside the same straight to its pod. Each
pair takes turns within one loop.
"""

import asyncio
import json
import subprocess
import sys
import time

from benchmarks import deployments, table
from magnum.clients import docker as client
from testbed import docker, images
from tests.conftest import Host, hosts
from tests.deployment import until

NEEDS = (docker,)
MEGABYTES = 200
CONNECTIONS = 200
SCRIPT = f"""
import json, socket, sys, time
def fetch(where, port, path):
    with socket.create_connection((where, port), 10) as s:
        s.sendall(b"GET " + path + b" HTTP/1.0\\r\\n\\r\\n")
        size = 0
        while data := s.recv(1 << 20):
            size += len(data)
        return size
found = {{"pod": [[], []], "service": [[], []]}}
for turn in range(int(sys.argv[3])):
    for name, where, port in (("pod", sys.argv[1], 8080), ("service", sys.argv[2], 80)):
        began = time.perf_counter()
        for _ in range({CONNECTIONS}):
            fetch(where, port, b"/index.html")
        found[name][0].append({CONNECTIONS} / (time.perf_counter() - began))
        began = time.perf_counter()
        size = fetch(where, port, b"/big")
        found[name][1].append(size / (time.perf_counter() - began) / 1e6)
print(json.dumps(found))
"""
SERVE = (
    f"mkdir -p /tmp/www; echo ok > /tmp/www/index.html; truncate -s {MEGABYTES}M /tmp/www/big; "
    "exec httpd -f -p 8080 -h /tmp/www"
)


def _pod(name: str, containers: list[dict[str, object]]) -> dict[str, object]:
    spec = {"containers": containers, "terminationGracePeriodSeconds": 0}
    metadata = {"name": name, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


async def _starts(
    magnum: deployments.Standalone, host: Host, network: str, rounds: int
) -> tuple[list[float], list[float]]:
    """Return seconds until two containers run: as a pod by Magnum, and on their own by the Docker API."""
    engine = client.Client(host.url)
    ours, theirs = [], []
    pair: list[dict[str, object]] = [
        {"name": name, "image": images.DEMO, "command": ["sleep", "1000"]} for name in ("a", "b")
    ]
    for number in range(rounds):
        started = time.perf_counter()
        body = {"bay_uuid": "bench", "manifest": _pod(f"p{number}", pair)}
        status, made = await asyncio.to_thread(magnum.request, "POST", "/v1/pods?wait=60", body)
        assert (status, made["status"]) == (201, "Running"), made
        ours.append(time.perf_counter() - started)
        await asyncio.to_thread(magnum.request, "DELETE", f"/v1/pods/{made['uuid']}?wait=60")
        config = {"Image": images.DEMO, "Cmd": ["sleep", "1000"], "HostConfig": {"NetworkMode": network}}
        started = time.perf_counter()
        idents = []
        for _ in pair:
            ident = (await engine.request("POST", "/containers/create", body=config, into=dict))["Id"]
            await engine.request("POST", f"/containers/{ident}/start")
            idents.append(ident)
        theirs.append(time.perf_counter() - started)
        for ident in idents:
            await engine.request("DELETE", f"/containers/{ident}?force=1")
    await engine.close()
    return ours, theirs


def _path(magnum: deployments.Standalone, host: Host, rounds: int) -> dict[str, list[list[float]]]:
    """Return requests and megabytes a second, by pod and by service, from a container of the bay."""
    serve: dict[str, object] = {"name": "web", "image": images.DEMO, "command": ["sh", "-c", SERVE]}
    status, made = magnum.request("POST", "/v1/pods?wait=60", {"bay_uuid": "bench", "manifest": _pod("web", [serve])})
    assert (status, made["status"]) == (201, "Running"), made
    manifest = {
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    }  # fmt: skip
    status, service = magnum.request("POST", "/v1/services?wait=60", {"bay_uuid": "bench", "manifest": manifest})
    assert status == 201, service
    body = {"name": "asker", "bay_uuid": "bench", "image": images.DEMO, "command": ["sleep", "10000"], "start": True}
    status, asker = magnum.request("POST", "/v1/containers?wait=60", body)
    assert (status, asker["status"]) == (201, "Running"), asker

    def answers() -> bool:
        path = f"/v1/containers/asker/execute?command=wget%20-qO-%20http://{service['ip']}/"
        return bool(magnum.request("PUT", path)[1]["exit_code"] == 0)

    until(answers)
    argv = ["docker", "-H", host.url, "inspect", "-f", "{{.State.Pid}}", f"magnum-{asker['uuid']}"]
    pid = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
    argv = [
        "nsenter",
        f"--net=/proc/{pid}/ns/net",
        sys.executable,
        "-c",
        SCRIPT,
        made["pod_ip"],
        service["ip"],
        str(rounds),
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    found: dict[str, list[list[float]]] = json.loads(done.stdout)
    return found


def measure(seconds: float) -> list[table.Row]:
    """Return the rows; ``seconds``: about as many turns of each pair."""
    rounds = max(int(seconds), 6)
    host = hosts()[0]
    with deployments.standalone() as magnum:
        bay = deployments.bay(magnum)
        ours, theirs = asyncio.run(_starts(magnum, host, f"magnum-{bay['uuid']}", rounds))
        path = _path(magnum, host, rounds)
        for kind in ("services", "pods", "containers", "bays"):
            for each in magnum.request("GET", f"/v1/{kind}")[1][kind]:
                magnum.request("DELETE", f"/v1/{kind}/{each['uuid']}?wait=60")
    pod = "straight to the pod"
    return [
        table.medians("pod of two containers to Running", "ms", ours, theirs, "the two by the Docker API", "<= 1.15", 1000),
        table.medians("requests by a service's virtual address", "1/s", path["service"][0], path["pod"][0], pod),
        table.medians("bytes by a service's virtual address", "MB/s", path["service"][1], path["pod"][1], pod),
    ]  # fmt: skip
