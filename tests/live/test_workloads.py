"""Pods, services and replication controllers through three programs: the real client, failures, three hosts, one of them lost."""

import asyncio
import configparser
import json
import pathlib
import re
import signal
import subprocess
import time

import pytest
import sqlalchemy as sa

from magnum.db import store, tables
from testbed import base, docker, images
from tests import guestbook
from tests.deployment import until

EXAMPLES = pathlib.Path(__file__).parents[2] / "docs" / "examples"


@pytest.fixture
def says(cloud):
    def run(*words, text=""):
        out = cloud.client(*words)
        assert "ERROR" not in out and "failed" not in out and "usage:" not in out and text in out, out
        return out

    return run


def _page(cloud, bay, where, name="asker"):
    """Return the page that a container of the bay gets, empty for none."""
    command = f"timeout 2 wget -qO- http://{where}"
    status, found = cloud.request(
        "PUT", f"/v1/containers/{name}/execute?bay={bay}&command={command.replace(' ', '%20')}"
    )
    return found["output"].strip() if status == 200 and found["exit_code"] == 0 else ""


def _asker(cloud, bay, name="asker", command=("sleep", "100000")):
    body = {"name": name, "bay_uuid": bay, "image": images.DEMO, "command": list(command), "stop_timeout": 0}
    status, made = cloud.request("POST", "/v1/containers?wait=30", body)
    assert status == 201, made
    status, made = cloud.request("PUT", f"/v1/containers/{made['uuid']}/start?wait=30")
    assert made["status"] == "Running", made
    return made


def _pods(cloud, bay):
    return cloud.request("GET", f"/v1/pods?bay={bay}")[1]["pods"]


def _gone(cloud, kind, uuid):
    shown = []

    def gone():
        shown[:] = [cloud.request("GET", f"/v1/{kind}/{uuid}")]
        return shown[0][0] == 404

    try:
        until(gone)
    except AssertionError as error:
        raise AssertionError(f"{error}: {shown}") from None


def test_the_client_walks_pods_services_and_controllers(cloud, bay, says):
    says("pod-create", "--manifest", str(EXAMPLES / "web-pod.yaml"), "--bay", "b", text="web")
    # until it is ready its status_reason may rightly tell of a probe that failed
    until(lambda: all(p["ready"] for p in _pods(cloud, "b")))
    assert re.search(r"\| status +\| Running", says("pod-show", "web", "--bay", "b"))
    says("pod-list", "--bay", "b", text="web")
    says("coe-service-create", "--manifest", str(EXAMPLES / "web-service.yaml"), "--bay", "b", text="web")
    says("coe-service-list", "--bay", "b", text="web")
    ip = re.search(r"\| ip +\| ([\d.]+)", says("coe-service-show", "web", "--bay", "b"))[1]
    _asker(cloud, "b")
    for where in (ip, "web", "web.default.svc.cluster.local"):
        until(lambda where=where: _page(cloud, "b", where).startswith("hello from pod web"))
    # logs and exec of the pod's container, by the api
    status, out = cloud.request("PUT", "/v1/pods/web/execute?bay=b&command=hostname")
    assert (status, out["output"]) == (200, "web\n")
    # parts of a manifest change in place
    changed = 'manifest/spec/containers/0/env/0={"name":"POD","value":"changed"}'
    out = cloud.client("pod-update", "--bay", "b", "web", "replace", changed)
    assert "ERROR" not in out, out
    until(lambda: _page(cloud, "b", ip).startswith("hello from pod changed"))
    says("coe-service-update", "--bay", "b", "web", "replace", "manifest/spec/ports/0/port=81")
    until(lambda: _page(cloud, "b", f"{ip}:81").startswith("hello"))
    uuid = cloud.request("GET", "/v1/pods/web?bay=b")[1]["uuid"]
    says("pod-delete", "web", "--bay", "b")
    _gone(cloud, "pods", uuid)
    assert cloud.engine_objects(uuid) == 0
    until(lambda: cloud.request("GET", "/v1/services/web?bay=b")[1]["endpoints"] == [])

    says("rc-create", "--manifest", str(EXAMPLES / "web-rc.yaml"), "--bay", "b", text="web")
    until(lambda: sum(p["ready"] for p in _pods(cloud, "b")) == 2)
    says("rc-list", "--bay", "b", text="web")
    says("rc-show", "web", "--bay", "b", text="web")
    until(lambda: {_page(cloud, "b", f"{ip}:81") for _ in range(6)} == {p["name"] for p in _pods(cloud, "b")})
    says("rc-update", "--bay", "b", "web", "replace", "manifest/spec/replicas=3")
    until(lambda: sum(p["ready"] for p in _pods(cloud, "b")) == 3)
    # a pod that goes is replaced
    first = _pods(cloud, "b")[0]
    says("pod-delete", first["uuid"], "--bay", "b")
    until(lambda: sum(p["ready"] and p["uuid"] != first["uuid"] for p in _pods(cloud, "b")) == 3)
    says("rc-update", "--bay", "b", "web", "replace", "manifest/spec/replicas=1")
    until(lambda: len(_pods(cloud, "b")) == 1)
    says("rc-delete", "web", "--bay", "b")
    until(lambda: _pods(cloud, "b") == [])
    says("coe-service-delete", "web", "--bay", "b")
    assert cloud.request("DELETE", "/v1/containers/asker?bay=b&wait=30")[0] in (202, 204)


def test_bad_manifests_name_the_field(cloud, bay):
    def refused(spec, kind="Pod"):
        data = {"apiVersion": "v1", "kind": kind, "metadata": {"name": "bad"}, "spec": spec}
        status, found = cloud.request("POST", "/v1/pods", {"bay_uuid": "b", "manifest": data},
                                      headers={"X-Roles": "member", "X-Project-Id": "default"})  # fmt: skip
        return status, json.dumps(found)

    container = {"name": "a", "image": images.DEMO}
    for spec, words in (
        ({"containers": []}, "spec.containers"),
        ({"containers": [container | {"securityContext": {"privileged": True}}]}, "not allowed by policy"),
        ({"containers": [container], "affinity": {"nodeAffinity": {}}}, "not supported on Docker bays"),
        ({"containers": [container], "nonsense": 1}, "spec.nonsense"),
        ({"containers": [container | {"livenessProbe": {}}]}, "spec.containers[0].livenessProbe"),
    ):
        status, text = refused(spec)
        assert status in (400, 403) and words in text, (status, text)


def test_no_request_fails_while_pods_are_replaced(cloud, bay):
    """Load on a service whose pods are replaced one by one."""
    text = (EXAMPLES / "web-rc.yaml").read_text()
    # a pod that is to go answers on while it is taken out of the service
    text = text.replace("      terminationGracePeriodSeconds: 1", "      terminationGracePeriodSeconds: 10").replace(
        "          readinessProbe:",
        "          lifecycle: {preStop: {exec: {command: [sleep, '2']}}}\n          readinessProbe:",
    )
    assert cloud.request("POST", "/v1/rcs", {"bay_uuid": "b", "manifest": text})[0] in (201, 202)
    status, made = cloud.request("POST", "/v1/services?wait=30", {
        "bay_uuid": "b", "manifest": (EXAMPLES / "web-service.yaml").read_text()})  # fmt: skip
    assert status == 201, made
    _asker(cloud, "b")
    until(lambda: sum(p["ready"] for p in _pods(cloud, "b")) == 2)
    until(lambda: _page(cloud, "b", made["ip"]))
    script = (
        f"while [ ! -e /tmp/end ]; do if timeout 5 wget -qO- http://{made['ip']}/ >/dev/null 2>&1; "
        "then ok=$((ok+1)); else bad=$((bad+1)); fi; done; echo $((ok)) $((bad)); sleep 1000"
    )
    _asker(cloud, "b", "load", ["sh", "-c", script])
    for old in _pods(cloud, "b"):
        assert cloud.request("DELETE", f"/v1/pods/{old['uuid']}?bay=b")[0] in (202, 204)
        until(lambda old=old: sum(p["ready"] and p["uuid"] != old["uuid"] for p in _pods(cloud, "b")) == 2)
    time.sleep(1)
    cloud.request("PUT", "/v1/containers/load/execute?bay=b&command=touch%20/tmp/end")
    counted = until(lambda: cloud.request("GET", "/v1/containers/load/logs?bay=b")[1]["output"])
    good, bad = map(int, counted.split())
    print(f"requests while every pod was replaced: {good} answered, {bad} failed")
    assert good > 50 and bad == 0
    for kind, name in (("rcs", "web"), ("services", "web"), ("containers", "asker"), ("containers", "load")):
        assert cloud.request("DELETE", f"/v1/{kind}/{name}?bay=b&wait=60")[0] in (202, 204)
    until(lambda: _pods(cloud, "b") == [])


@pytest.fixture
def three(cloud, docker_hosts):
    """A bay on all three hosts, in a swarm that the backends form; the hosts are in none before and after."""

    def left(host):
        done = subprocess.run(["docker", "-H", host.url, "swarm", "leave", "-f"], capture_output=True, text=True)
        return not done.returncode or "not part of a swarm" in done.stderr or print(host.name, done.stderr)

    def leave():
        for host in docker_hosts:
            # a busy engine may give its swarm up at the second time only
            until(lambda host=host: left(host))
        (cloud.folder / "swarm-tokens").unlink(missing_ok=True)
        for name in cloud.hosts:
            # for good: a backend whose engine was in one gives it half a minute to come back to it
            (cloud.folder / name / "was-in-swarm").unlink(missing_ok=True)

    leave()
    for host in docker_hosts:
        base.run("docker", "-H", host.url, "load", data=guestbook.archive())
    assert cloud.request("POST", "/v1/baymodels", {"name": "wide"})[0] == 201
    body = {"name": "guests", "baymodel_id": "wide", "node_count": 3}
    status, made = cloud.request("POST", "/v1/bays?wait=80", body)
    assert (status, made["status"]) == (201, "CREATE_COMPLETE"), made["status_reason"]
    yield made
    cloud.request("DELETE", f"/v1/bays/{made['uuid']}")
    _gone(cloud, "bays", made["uuid"])
    cloud.request("DELETE", "/v1/baymodels/wide")
    leave()


@pytest.mark.timeout(400)
def test_the_guestbook_outlives_a_host(cloud, docker_hosts, three):
    guestbook.create(cloud, "guests")
    began = time.monotonic()
    until(lambda: sum(p["ready"] for p in _pods(cloud, "guests")) == 6)
    print(f"six pods ready after {time.monotonic() - began:.1f} s")
    hosts = {p["host"] for p in _pods(cloud, "guests")}
    assert hosts == set(cloud.hosts)
    _asker(cloud, "guests")
    where = "frontend/cgi-bin/page"
    page = until(lambda: _page(cloud, "guests", where))
    assert page == "guest was here"
    # the host that goes is not the one that asks
    asker = cloud.request("GET", "/v1/containers/asker?bay=guests")[1]["host"]
    lost = sorted(hosts - {asker})[0]
    lost_host = cloud.hosts[lost]
    cloud.kill(lost, signal.SIGKILL)
    docker.end(lost_host.name)
    began = time.monotonic()
    lost_pods = {p["uuid"] for p in _pods(cloud, "guests") if p["host"] == lost}

    def all_six():
        pods = _pods(cloud, "guests")
        wanted = sum(p["ready"] and p["host"] != lost for p in pods) == 6
        return wanted or print(*((p["name"], p["host"], p["status"], p["status_reason"]) for p in pods), sep="\n")

    until(lambda: {p["status"] for p in _pods(cloud, "guests") if p["uuid"] in lost_pods} <= {"Unknown", "Deleting"})
    unknown = time.monotonic() - began
    until(lambda: _page(cloud, "guests", where) == page)
    answers = time.monotonic() - began
    until(all_six)
    print(f"lost host: pods Unknown after {unknown:.1f} s, page answers after {answers:.1f} s, "
          f"all six ready again after {time.monotonic() - began:.1f} s")  # fmt: skip
    # each host hears by itself which pods are behind a service now
    until(lambda: all(_page(cloud, "guests", where) == page for _ in range(10)))
    # it comes back and removes what was replaced
    with base.lock(base.FOLDER / "lock"):
        docker.up(3)
    cloud.start(lost)
    cloud.ready()
    until(lambda: not any(cloud.engine_objects(uuid) for uuid in lost_pods))
    # its part of the network, too, by the backend and not by an engine whose swarm is away
    argv = ["docker", "-H", lost_host.url, "inspect", "-f", "{{.State.Status}} {{.HostConfig.RestartPolicy.Name}}",
            f"magnum-anchor-{three['uuid']}"]  # fmt: skip
    until(lambda: base.run(*argv, check=False).stdout.strip() == "running no")
    until(lambda: len(_pods(cloud, "guests")) == 6)
    for kind in ("rcs", "services", "containers"):
        for each in cloud.request("GET", f"/v1/{kind}?bay=guests")[1][kind]:
            assert cloud.request("DELETE", f"/v1/{kind}/{each['uuid']}")[0] in (202, 204)
    until(lambda: _pods(cloud, "guests") == [])
    for host in docker_hosts:
        rules = subprocess.run(
            [*host.enter, "nft", "list", "ruleset"], capture_output=True, text=True, check=True
        ).stdout
        assert three["uuid"] not in rules


async def _rows(url):
    db = store.connect(url)
    try:
        async with db.connect() as connection:
            return {
                table.name: await connection.scalar(sa.select(sa.func.count()).select_from(table))
                for table in (*tables.KINDS.values(), tables.PLACEMENTS, tables.CLAIMS)
            }
    finally:
        await db.dispose()


def _standing(cloud):
    """Return all that objects leave on hosts and in the database: what, where → names or counts."""
    conf = configparser.ConfigParser()
    conf.read(cloud.folder / "magnum.conf")
    found = {("rows",): asyncio.run(_rows(conf["database"]["connection"]))}
    for name, host in cloud.hosts.items():

        def run(*words):
            return subprocess.run(words, check=True, capture_output=True, text=True).stdout

        for what in ("container", "network", "volume"):
            flags = ["-aq", "--no-trunc"] if what == "container" else ["-q"]
            found[name, what] = sorted(run("docker", "-H", host.url, what, "ls", *flags).split())
        links = json.loads(run(*host.enter, "ip", "-j", "link"))
        found[name, "interfaces"] = sorted(link["ifname"] for link in links)
        # a bridge of the engine's own says linkdown or not as it likes
        routes = run(*host.enter, "ip", "-4", "route").replace(" linkdown", "")
        found[name, "routes"] = sorted(line.strip() for line in routes.splitlines())
        for program in (("nft", "list", "tables"), ("iptables", "-S", "DOCKER-USER")):
            lines = run(*host.enter, *program).splitlines()
            found[name, program] = sorted(line for line in lines if "magnum" in line)
        found[name, "mounts"] = sorted(
            line.split()[1] for line in run(*host.enter, "cat", "/proc/mounts").splitlines() if "/docker/" in line
        )
        found[name, "files"] = sorted(
            str(p) for p in (cloud.folder / name).rglob("*") if p.name not in ("epoch", "bays")
        )
    return found


def test_nothing_is_left_of_what_was_deleted(cloud):
    before = _standing(cloud)
    assert cloud.request("POST", "/v1/baymodels", {"name": "brief"})[0] == 201
    status, made = cloud.request("POST", "/v1/bays?wait=60", {"name": "brief", "baymodel_id": "brief"})
    assert (status, made["status"]) == (201, "CREATE_COMPLETE"), made
    service = (EXAMPLES / "web-service.yaml").read_text().replace("spec:", "spec:\n  type: NodePort", 1)
    pod = (
        (EXAMPLES / "web-pod.yaml")
        .read_text()
        .replace("  containers:", "  volumes: [{name: d, emptyDir: {}}]\n  containers:", 1)
    )
    pod = pod.replace("    - name:", "    - volumeMounts: [{name: d, mountPath: /d}]\n      name:", 1)
    for kind, text in (("pods", pod), ("services", service), ("rcs", (EXAMPLES / "web-rc.yaml").read_text())):
        status, found = cloud.request("POST", f"/v1/{kind}?wait=30", {"bay_uuid": "brief", "manifest": text})
        assert status in (201, 202), found
    _asker(cloud, "brief")
    until(lambda: sum(p["ready"] for p in _pods(cloud, "brief")) == 2)
    until(lambda: _page(cloud, "brief", "web"))
    during = _standing(cloud)
    unlike = {key[1] for key in before if len(key) > 1 and before[key] != during[key]}
    assert unlike >= {"container", "network", "volume", "interfaces", ("nft", "list", "tables"),
                      ("iptables", "-S", "DOCKER-USER"), "files"}, unlike  # fmt: skip
    # objects of a bay go before it; the bay itself takes what is left in it along or names it
    for kind in ("rcs", "services", "containers", "pods"):
        for each in cloud.request("GET", f"/v1/{kind}?bay=brief")[1][kind]:
            # a controller's pods may go by themselves meanwhile
            assert cloud.request("DELETE", f"/v1/{kind}/{each['uuid']}?wait=60")[0] in (202, 204, 404)
    cloud.request("DELETE", f"/v1/bays/{made['uuid']}?wait=60")
    _gone(cloud, "bays", made["uuid"])
    assert cloud.request("DELETE", "/v1/baymodels/brief")[0] == 204
    after = _standing(cloud)
    assert after == before
