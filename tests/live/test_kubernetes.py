"""Bays on a real cluster through api, conductor and backends: the real clients, kubectl, tenants apart, failures."""

import asyncio
import base64
import concurrent.futures
import json
import os
import pathlib
import re
import signal
import subprocess
import time
import urllib.parse

import pytest

from testbed import base, images, kubernetes
from tests import guestbook, sessions
from tests.deployment import until

EXAMPLES = pathlib.Path(__file__).parents[2] / "docs" / "examples"
LABEL = "org.openstack.magnum."
MEMBER = {"X-Roles": "member"}


def _kubectl(*words, kubeconfig=None, check=True):
    argv = ["kubectl", "--kubeconfig", str(kubeconfig or base.facts("kubernetes")["kubeconfig"]), *words]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert not check or done.returncode == 0, (words, done.stderr)
    return (done.stdout + done.stderr).strip()


@pytest.fixture(autouse=True)
def _emptied(slices, slice):
    """Leave the bay empty to the next test, whatever came of this one."""
    yield
    for kind in ("rcs", "services", "containers", "pods"):
        for each in _get(slices, f"/v1/{kind}?bay=s&limit=1000")[kind]:
            if each.get("managed", True):
                slices.request("DELETE", f"/v1/{kind}/{each['uuid']}?wait=0")
    until(lambda: _pods(slices, "s") == [] and not _get(slices, "/v1/containers?bay=s")["containers"])


def _space(bay):
    return f"magnum-{bay['uuid']}"


def _get(cloud, path, headers=None):
    status, found = cloud.request("GET", path, headers=headers)
    assert status == 200, found
    return found


def _pods(cloud, bay, headers=None):
    return _get(cloud, f"/v1/pods?bay={bay}", headers)["pods"]


def _gone(cloud, kind, uuid):
    until(lambda: cloud.request("GET", f"/v1/{kind}/{uuid}")[0] == 404)


def _run(cloud, bay, name, command, headers=None):
    body = {"name": name, "bay_uuid": bay, "image": images.DEMO, "command": command, "stop_timeout": 0, "start": True}
    status, made = cloud.request("POST", "/v1/containers?wait=60", body, headers=headers)
    assert (status, made.get("status")) == (201, "Running"), made
    return made


def _execute(cloud, bay, name, command, kind="containers"):
    path = f"/v1/{kind}/{name}/execute?bay={bay}&command={urllib.parse.quote(command)}"
    status, found = cloud.request("PUT", path)
    assert status == 200, found
    return found


def test_a_bay_tells_what_stands(slices, slice):
    facts = base.facts("kubernetes")
    assert (slice["coe"], slice["node_count"], slice["api_address"]) == ("kubernetes", 1, facts["url"])
    assert (slice["node_addresses"], slice["coe_version"]) == ([facts["address"]], facts["version"].removeprefix("v"))
    names = _kubectl(
        "-n",
        _space(slice),
        "get",
        "resourcequota,limitrange,networkpolicy,serviceaccount,role,rolebinding",
        "-o",
        "name",
    )
    for part in ("resourcequota/magnum", "limitrange/magnum", "magnum-default-deny", "magnum-inside", "serviceaccount/tenant",
                 "role.rbac.authorization.k8s.io/magnum-tenant", "rolebinding.rbac.authorization.k8s.io/magnum-tenant"):  # fmt: skip
        assert part in names
    labels = json.loads(_kubectl("get", "namespace", _space(slice), "-o", "json"))["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "baseline"
    assert labels["org.openstack.magnum.project"] == slice["project_id"]


def test_labels_of_a_bay_are_its_quota_and_limits(slices, slice):
    body = {"name": "small", "baymodel_id": "k", "labels": {"quota.pods": "1", "limit.default.memory": "64Mi"}}
    status, small = slices.request("POST", "/v1/bays?wait=60", body)
    assert (status, small["status"]) == (201, "CREATE_COMPLETE"), small
    made = _run(slices, "small", "one", ["sleep", "1000"])
    pod = json.loads(_kubectl("-n", _space(small), "get", "pod", f"container-{made['uuid']}", "-o", "json"))
    assert pod["spec"]["containers"][0]["resources"]["limits"]["memory"] == "64Mi"
    # the cluster's own words reach the tenant
    two = {"name": "two", "bay_uuid": "small", "image": images.DEMO, "command": ["sleep", "1000"], "start": True,
           "stop_timeout": 0}  # fmt: skip
    status, refused = slices.request("POST", "/v1/containers?wait=30", two)
    assert refused["status"] == "Error" and "exceeded quota" in refused["status_reason"], refused
    # and once there is room, it is tried again
    slices.request("DELETE", "/v1/containers/one?bay=small&wait=60")
    until(lambda: _get(slices, f"/v1/containers/{refused['uuid']}")["status"] == "Running")
    body = {"name": "odd", "baymodel_id": "k", "labels": {"quota.memory": "much"}}
    status, odd = slices.request("POST", "/v1/bays?wait=30", body)
    assert odd["status"] == "CREATE_FAILED" and "quantities must match" in odd["status_reason"], odd
    status, found = slices.request("POST", "/v1/bays", {"name": "wide", "baymodel_id": "k", "node_count": 9})
    assert status == 409 and "no cluster with 9 nodes" in found["errors"][0]["detail"], found
    for each in (small, odd):
        slices.request("DELETE", f"/v1/bays/{each['uuid']}?wait=0")
    for each in (small, odd):
        _gone(slices, "bays", each["uuid"])
        assert "NotFound" in _kubectl("get", "namespace", _space(each), check=False)


def test_the_client_walks_pods_services_and_controllers(slices, slice, tmp_path):
    for each in EXAMPLES.glob("web-*.yaml"):
        # one that is given time goes from this cluster when its kubelet looks, every ten seconds
        (tmp_path / each.name).write_text(each.read_text().replace("PeriodSeconds: 1\n", "PeriodSeconds: 0\n"))

    def says(*words, text=""):
        out = slices.client(*words)
        assert "ERROR" not in out and "failed" not in out and "usage:" not in out and text in out, out
        return out

    says("pod-create", "--manifest", str(tmp_path / "web-pod.yaml"), "--bay", "s", text="web")
    until(lambda: all(p["ready"] for p in _pods(slices, "s")))
    shown = says("pod-show", "web", "--bay", "s")
    assert re.search(r"\| status +\| Running", shown) and re.search(r"\| host +\| node1", shown)
    says("pod-list", "--bay", "s", text="web")
    says("coe-service-create", "--manifest", str(tmp_path / "web-service.yaml"), "--bay", "s", text="web")
    says("coe-service-list", "--bay", "s", text="web")
    ip = re.search(r"\| ip +\| ([\d.]+)", says("coe-service-show", "web", "--bay", "s"))[1]
    waits = "sh -c 'trap exit TERM; while :; do sleep 1; done'"
    says("container-create", "--name", "asker", "--image", images.DEMO, "--bay", "s", "--command", waits)
    says("container-start", "asker")
    until(lambda: _get(slices, "/v1/containers/asker?bay=s")["status"] == "Running")
    # a request by the service's cluster IP, and by its name
    until(lambda: _get(slices, "/v1/services/web?bay=s")["endpoints"])
    for where in (ip, "web", f"web.{_space(slice)}.svc.cluster.local"):
        found = until(lambda where=where: _execute(slices, "s", "asker", f"timeout 5 wget -qO- http://{where}/"))
        assert found["output"].startswith("hello from pod web at "), (where, found)
    says("container-exec", "asker", "--command", "hostname", text="asker")
    # a changed manifest, as a whole and in parts
    changed = 'manifest/spec/containers/0/env/0={"name":"POD","value":"changed"}'
    assert "ERROR" not in slices.client("pod-update", "--bay", "s", "web", "replace", changed)
    command = f"timeout 5 wget -qO- http://{ip}/"
    until(lambda: _execute(slices, "s", "asker", command)["output"].startswith("hello from pod changed"))
    says("coe-service-update", "--bay", "s", "web", "replace", "manifest/spec/ports/0/port=81")
    until(lambda: _execute(slices, "s", "asker", f"timeout 5 wget -qO- http://{ip}:81/")["output"].startswith("hello"))
    uuid = _get(slices, "/v1/pods/web?bay=s")["uuid"]
    says("pod-delete", "web", "--bay", "s")
    _gone(slices, "pods", uuid)

    says("rc-create", "--manifest", str(tmp_path / "web-rc.yaml"), "--bay", "s", text="web")
    says("rc-list", "--bay", "s", text="web")

    def ready():
        mine = [p for p in _pods(slices, "s") if p["controller"]]
        return sum(p["ready"] for p in mine)

    until(lambda: ready() == 2)
    rc = _get(slices, "/v1/rcs/web?bay=s")
    assert (rc["replicas"], rc["current_replicas"], rc["status"]) == (2, 2, "Active")
    assert {p["controller"] for p in _pods(slices, "s")} == {rc["uuid"]}
    says("rc-update", "--bay", "s", "web", "replace", "manifest/spec/replicas=3")
    until(lambda: ready() == 3)
    # a pod that goes is replaced
    first = _pods(slices, "s")[0]
    says("pod-delete", first["uuid"], "--bay", "s")
    until(lambda: ready() == 3 and first["uuid"] not in {p["uuid"] for p in _pods(slices, "s")})
    status, found = slices.request(
        "PATCH", f"/v1/pods/{_pods(slices, 's')[0]['uuid']}", [{"op": "replace", "path": "/labels/app", "value": "x"}]
    )
    assert status == 409 and "template" in found["errors"][0]["detail"], found
    says("rc-delete", "web", "--bay", "s")
    until(lambda: _pods(slices, "s") == [])
    says("coe-service-delete", "web", "--bay", "s")
    slices.request("DELETE", "/v1/containers/asker?bay=s&wait=30")


def test_logs_exec_and_verbs_of_a_container(slices, slice):
    script = "echo one; echo two; [ -e /tmp/x ] || sleep 1000"
    made = _run(slices, "s", "talker", ["sh", "-c", script])
    at = f"/v1/containers/{made['uuid']}"
    until(lambda: _get(slices, f"{at}/logs")["output"] == "one\ntwo\n")
    assert _get(slices, f"{at}/logs?tail=1")["output"] == "two\n"
    assert re.match(r"\d{4}-\d\d-\d\dT.* one\n", _get(slices, f"{at}/logs?timestamps=1")["output"])
    found = _execute(slices, "s", "talker", "sh -c 'echo out; echo err >&2; exit 7'")
    assert (sorted(found["output"].split()), found["exit_code"]) == (["err", "out"], 7)
    for action in ("pause", "unpause", "stop", "reboot"):
        status, refused = slices.request("PUT", f"{at}/{action}")
        assert status == 409 and "Kubernetes" in refused["errors"][0]["detail"], refused
    for what in ("stats", "top"):
        assert slices.request("GET", f"{at}/{what}")[0] == 409
    status, refused = slices.request("GET", f"{at}/logs?previous=1")
    assert status == 404 and "no run before" in refused["errors"][0]["detail"], refused
    status, refused = slices.request("PATCH", at, [{"op": "replace", "path": "/memory", "value": "64m"}])
    assert status == 409, refused
    assert slices.request("DELETE", f"{at}?wait=30")[0] == 204
    # what cannot be pulled says so in the cluster's words
    body = {"name": "lost", "bay_uuid": "s", "image": "127.0.0.1:1/absent:1", "start": True, "stop_timeout": 0}
    status, lost = slices.request("POST", "/v1/containers?wait=30", body)
    assert lost["status"] == "Error" and "ImagePull" in lost["status_reason"], lost
    slices.request("DELETE", f"/v1/containers/{lost['uuid']}?wait=30")
    # the log of the run before
    text = (EXAMPLES / "web-pod.yaml").read_text()
    text = re.sub(r"- mkdir.*", "- echo run; sleep 0.5; exit 3", text).replace("readinessProbe", "startupProbe")
    text = text.replace("GracePeriodSeconds: 1", "GracePeriodSeconds: 0")
    status, crashing = slices.request("POST", "/v1/pods?wait=0", {"bay_uuid": "s", "manifest": text})
    assert status in (201, 202), crashing
    until(lambda: "exited with code 3" in (_get(slices, f"/v1/pods/{crashing['uuid']}")["status_reason"] or ""))
    until(lambda: slices.request("GET", f"/v1/pods/{crashing['uuid']}/logs?previous=1")[1].get("output") == "run\n")
    assert slices.request("DELETE", f"/v1/pods/{crashing['uuid']}?wait=60")[0] == 204


def test_what_needs_a_privilege_is_refused_by_magnum(slices, slice):
    own = {"X-Roles": "member", "X-Project-Id": "default"}

    def refused(kind, body):
        status, found = slices.request("POST", f"/v1/{kind}", {"bay_uuid": "s"} | body, headers=own)
        assert status in (400, 403), (status, found)
        return found["errors"][0]["detail"]

    def pod(container=None, **spec):
        main = {"name": "a", "image": images.DEMO} | (container or {})
        data = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bad"}, "spec": {"containers": [main]} | spec}
        return refused("pods", {"manifest": data})

    for words, text in (
        ("spec.containers[0].securityContext.privileged", pod({"securityContext": {"privileged": True}})),
        ("spec.containers[0].securityContext.capabilities.add", pod({"securityContext": {"capabilities": {"add": ["SYS_ADMIN"]}}})),
        ("spec.volumes[0].hostPath", pod(volumes=[{"name": "h", "hostPath": {"path": "/"}}])),
        ("spec.hostNetwork", pod(hostNetwork=True)),
        ("spec.hostPID", pod(hostPID=True)),
        ("spec.hostIPC", pod(hostIPC=True)),
        ("spec.containers[0].ports[0].hostPort", pod({"ports": [{"containerPort": 80, "hostPort": 80}]})),
        ("spec.nodeName", pod(nodeName="node1")),
        ("spec.serviceAccountName", pod(serviceAccountName="other")),
    ):  # fmt: skip
        assert words in text, text
    elsewhere = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "bad", "namespace": "kube-system"},
                 "spec": {"containers": [{"name": "a", "image": images.DEMO}]}}  # fmt: skip
    assert "metadata.namespace" in refused("pods", {"manifest": elsewhere})
    for field, value in (("privileged", True), ("cap_add", ["SYS_ADMIN"]), ("host_network", True),
                         ("ports", [{"port": 80, "host_port": 80}]), ("devices", ["/dev/kmsg"]), ("pids", 5),
                         ("mounts", [{"type": "bind", "source": "/", "target": "/h"}])):  # fmt: skip
        assert field in refused("containers", {"image": images.DEMO, field: value})
    assert _pods(slices, "s") == []


def test_the_guestbook_runs(slices, slice):
    kubernetes.load(guestbook.archive())
    guestbook.create(slices, "s")
    began = time.monotonic()
    until(lambda: sum(p["ready"] for p in _pods(slices, "s")) == 6)
    print(f"six pods ready after {time.monotonic() - began:.1f} s")
    _run(slices, "s", "guest", ["sleep", "1000"])
    page = until(lambda: _execute(slices, "s", "guest", "timeout 5 wget -qO- http://frontend/cgi-bin/page")["output"])
    assert page == "guest was here"
    for kind in ("rcs", "services", "containers"):
        for each in _get(slices, f"/v1/{kind}?bay=s")[kind]:
            assert slices.request("DELETE", f"/v1/{kind}/{each['uuid']}?wait=60")[0] in (202, 204)
    until(lambda: _pods(slices, "s") == [])


def test_what_others_make_is_shown_and_never_changed(slices, slice):
    where = ("-n", _space(slice))
    _kubectl(
        *where, "run", "theirs", f"--image={images.DEMO}", "--restart=Never", "--grace-period=1", "--", "sleep", "1000"
    )
    _kubectl(*where, "create", "service", "clusterip", "theirs", "--tcp=80:8080")
    pod = until(
        lambda: next((p for p in _pods(slices, "s") if p["name"] == "theirs" and p["status"] == "Running"), None)
    )
    service = until(
        lambda: next((s for s in _get(slices, "/v1/services?bay=s")["services"] if s["name"] == "theirs"), None)
    )
    assert (pod["managed"], service["managed"]) == (False, False)
    assert pod["images"] == [images.DEMO] and pod["project_id"] == slice["project_id"]
    until(lambda: _get(slices, f"/v1/services/{service['uuid']}")["ip"])
    assert _execute(slices, "s", "theirs", "echo hello", "pods")["output"] == "hello\n"
    before = _kubectl(*where, "get", "pod,service", "theirs", "-o", "jsonpath={.items[*].metadata.resourceVersion}")
    patch = [{"op": "replace", "path": "/labels", "value": {"a": "b"}}]
    for kind, item in (("pods", pod), ("services", service)):
        for answer in (slices.request("DELETE", f"/v1/{kind}/{item['uuid']}"),
                       slices.request("PATCH", f"/v1/{kind}/{item['uuid']}", patch)):  # fmt: skip
            assert answer[0] == 409 and "did not make it" in answer[1]["errors"][0]["detail"], answer
    assert (
        _kubectl(*where, "get", "pod,service", "theirs", "-o", "jsonpath={.items[*].metadata.resourceVersion}")
        == before
    )
    # a name that another has is not ours to take
    text = (EXAMPLES / "web-pod.yaml").read_text().replace("name: web", "name: theirs", 1)
    status, found = slices.request("POST", "/v1/pods", {"bay_uuid": "s", "manifest": text})
    assert status == 409, found
    _kubectl(*where, "delete", "pod,service", "theirs", "--wait=false", "--grace-period=1")
    _gone(slices, "pods", pod["uuid"])
    _gone(slices, "services", service["uuid"])


def test_what_others_break_is_mended(slices, slice):
    where = ("-n", _space(slice))
    text = (EXAMPLES / "web-service.yaml").read_text().replace("spec:", "spec:\n  type: NodePort", 1)
    status, made = slices.request("POST", "/v1/services?wait=30", {"bay_uuid": "s", "manifest": text})
    assert status == 201, made
    opening = f"magnum-service-{made['uuid']}"
    _kubectl(*where, "patch", "service", "web", "-p", '{"spec":{"selector":{"app":"other"}}}')
    _kubectl(*where, "delete", "networkpolicy", opening, "magnum-default-deny")
    _kubectl(*where, "patch", "resourcequota", "magnum", "-p", '{"spec":{"hard":{"pods":"9999"}}}')
    until(lambda: _kubectl(*where, "get", "service", "web", "-o", "jsonpath={.spec.selector.app}") == "web")
    until(
        lambda: "NotFound" not in _kubectl(*where, "get", "networkpolicy", opening, "magnum-default-deny", check=False)
    )
    until(lambda: _kubectl(*where, "get", "resourcequota", "magnum", "-o", "jsonpath={.spec.hard.pods}") == "250")
    until(lambda: _get(slices, "/v1/bays/s")["status"].endswith("_COMPLETE"))
    # the whole namespace
    _kubectl("delete", "namespace", _space(slice), "--wait=false")
    old = made["ip"]
    until(lambda: "gone from cluster main" in json.dumps(_get(slices, "/v1/bays/s/history")))
    until(lambda: _get(slices, "/v1/bays/s")["status"].endswith("_COMPLETE"))
    until(lambda: _get(slices, "/v1/services/web?bay=s")["ip"] not in (None, old))
    assert _kubectl(*where, "get", "service", "web", "-o", "name") == "service/web"
    assert slices.request("DELETE", "/v1/services/web?bay=s&wait=30")[0] == 204
    until(lambda: _kubectl(*where, "get", "networkpolicy", opening, "--ignore-not-found") == "")


def test_what_keeps_a_bay_is_named(slices, slice):
    status, made = slices.request("POST", "/v1/bays?wait=60", {"name": "kept", "baymodel_id": "k"})
    assert (status, made["status"]) == (201, "CREATE_COMPLETE"), made
    where = ("-n", _space(made))
    _kubectl(*where, "create", "configmap", "stays")
    _kubectl(*where, "patch", "configmap", "stays", "-p", '{"metadata":{"finalizers":["example.org/keeps"]}}')
    assert slices.request("DELETE", f"/v1/bays/{made['uuid']}")[0] == 202
    until(lambda: "example.org/keeps" in (_get(slices, f"/v1/bays/{made['uuid']}")["status_reason"] or ""))
    assert _get(slices, f"/v1/bays/{made['uuid']}")["status"] == "DELETE_IN_PROGRESS"
    _kubectl(*where, "patch", "configmap", "stays", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    _gone(slices, "bays", made["uuid"])
    assert "NotFound" in _kubectl("get", "namespace", _space(made), check=False)


async def test_sessions_are_the_same_as_on_docker(slices, slice):
    made = await asyncio.to_thread(_run, slices, "s", "shell", ["sleep", "1000"])
    at = f"/v1/containers/{made['uuid']}"
    await sessions.exec_is_interactive(slices, at)
    await sessions.terminal_has_its_size(slices, at)
    body = {"name": "asks", "bay_uuid": "s", "image": images.DEMO, "stdin_open": True, "start": True,
            "command": ["sh", "-c", "read line; echo got $line; sleep 1000"], "stop_timeout": 0}  # fmt: skip
    status, asks = await asyncio.to_thread(slices.request, "POST", "/v1/containers?wait=60", body)
    assert (status, asks["status"]) == (201, "Running"), asks
    async with sessions.socket_to(slices, f"/v1/containers/{asks['uuid']}/attach") as socket, asyncio.timeout(60):
        await socket.send(b"\x00this\n")
        found = b""
        while b"got this" not in found:
            found += (await socket.recv())[1:]


@pytest.fixture
def alone(slices, slice):
    """The backend that keeps the bay, while the other is away."""
    keeper = next(iter(_get(slices, "/v1/bays/s")["hosts"]))
    (other,) = set(slices.keepers) - {keeper}
    slices.kill(other, signal.SIGTERM)
    yield keeper
    slices.start(other)
    slices.ready()


@pytest.mark.parametrize(
    "point", ["pod-before-engine", "pod-after-engine", "backend-before-report", "backend-after-report"]
)
def test_a_backend_killed_between_two_steps_ends_as_wanted_once(slices, slice, alone, point):
    def interrupted(method, path, body=None):
        slices.kill(alone, signal.SIGTERM)
        slices.start(alone, crash_at=point)
        answer = slices.request(method, path, body)
        slices.died(alone)
        slices.start(alone)
        return answer

    text = (EXAMPLES / "web-pod.yaml").read_text()
    status, made = interrupted("POST", "/v1/pods?wait=0", {"bay_uuid": "s", "manifest": text})
    assert status in (201, 202), made
    until(lambda: _get(slices, f"/v1/pods/{made['uuid']}")["ready"])
    where = ("-n", _space(slice), "get", "pods", "-o", "name")
    assert _kubectl(*where) == "pod/web"
    assert interrupted("DELETE", f"/v1/pods/{made['uuid']}?wait=0")[0] in (202, 204)
    _gone(slices, "pods", made["uuid"])
    assert _kubectl(*where) == ""


def _config(cloud, bay, project, folder):
    """Return the kubeconfig that the unmodified client writes for a bay."""
    folder.mkdir()
    argv = [os.environ["MAGNUM_TEST_OPENSTACK"], "coe", "cluster", "config", bay, "--dir", str(folder), "--force"]
    env = cloud.environ(project) | {"SHELL": "/bin/sh", "HOME": str(folder)}
    done = subprocess.run(argv, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and "export KUBECONFIG" in done.stdout, (done.stdout, done.stderr)
    return folder / "config"


def test_two_projects_in_one_cluster_and_their_kubeconfigs(slices, slice, tmp_path):
    bays, configs = {}, {}
    quick = json.dumps({"spec": {"terminationGracePeriodSeconds": 0}})
    for project in ("alpha", "beta"):
        own = {"X-Project-Id": project, "X-Roles": "member"}
        assert slices.request("POST", "/v1/baymodels", {"name": "k", "coe": "kubernetes"}, headers=own)[0] == 201
        status, bays[project] = slices.request(
            "POST", "/v1/bays?wait=60", {"name": "mine", "baymodel_id": "k"}, headers=own
        )
        assert (status, bays[project]["status"]) == (201, "CREATE_COMPLETE"), bays
        _run(slices, "mine", "c", ["sleep", "1000"], headers=own)
        configs[project] = _config(slices, "mine", project, tmp_path / project)
    for project, other in (("alpha", "beta"), ("beta", "alpha")):
        own = {"X-Project-Id": project, "X-Roles": "member"}
        # by the api: a foreign object is not there
        assert [b["uuid"] for b in _get(slices, "/v1/bays", own)["bays"]] == [bays[project]["uuid"]]
        for method, path in (("GET", ""), ("DELETE", ""), ("PATCH", "")):
            body = [{"op": "replace", "path": "/node_count", "value": 1}] if method == "PATCH" else None
            assert slices.request(method, f"/v1/bays/{bays[other]['uuid']}{path}", body, headers=own)[0] == 404
        assert slices.request("GET", f"/v1/certificates/{bays[other]['uuid']}", headers=own)[0] == 404

        # by kubectl: all in its own namespace, nothing elsewhere
        def mine(*words, check=True, project=project, space=None):
            where = space or _space(bays[project])
            return _kubectl("-n", where, *words, kubeconfig=configs[project], check=check)

        (pod,) = mine("get", "pods", "-o", "name").split()
        assert mine("exec", pod, "--", "echo", "hello") == "hello"
        assert "running" in mine("get", pod, "-o", "jsonpath={.status.containerStatuses[0].state}")
        mine("create", "configmap", "notes", "--from-literal=a=b")
        mine("run", "extra", f"--image={images.DEMO}", "--restart=Never", "--overrides", quick, "--", "sleep", "1000")
        for words in (("get", "pods"), ("get", "secrets"), ("create", "configmap", "x"), ("delete", "pods", "--all"),
                      ("get", "networkpolicies"), ("auth", "can-i", "get", "pods", "-q")):  # fmt: skip
            for space in (_space(bays[other]), "default", "kube-system"):
                told = mine(*words, check=False, space=space)
                assert "forbidden" in told.lower() or "no" in told.split()[:1] or told == "", (words, space, told)
                done = subprocess.run(
                    ["kubectl", "--kubeconfig", str(configs[project]), "-n", space, *words], capture_output=True
                )
                assert done.returncode != 0, (words, space)
        for words in (("get", "nodes"), ("get", "namespaces"), ("get", "clusterroles"), ("get", "pods", "-A"),
                      ("delete", "networkpolicy", "magnum-default-deny"), ("delete", "resourcequota", "magnum"),
                      ("create", "rolebinding", "more", "--clusterrole=cluster-admin", "--user=me"),
                      ("delete", "namespace", _space(bays[project]))):  # fmt: skip
            assert "forbidden" in mine(*words, check=False).lower(), words
        # what bears the labels of the other's is not the other's
        labels = json.loads(_kubectl("-n", _space(bays[other]), "get", "pods", "-l", f"{LABEL}kind=container", "-o",
                                     "jsonpath={.items[0].metadata.labels}"))  # fmt: skip
        theirs = {"X-Project-Id": other, "X-Roles": "member"}
        overrides = json.dumps({"metadata": {"labels": labels}, "spec": {"terminationGracePeriodSeconds": 0}})
        mine(
            "run",
            "forged",
            f"--image={images.DEMO}",
            "--restart=Never",
            "--overrides",
            overrides,
            "--",
            "sleep",
            "1000",
        )
        mine("wait", "pod/forged", "--for=condition=Ready", "--timeout=60s")
        path = "/v1/containers/c/execute?bay=mine&command=hostname"
        status, said = slices.request("PUT", path, headers=theirs)
        assert (status, said["output"].strip()) == (200, "c"), said
        assert _get(slices, "/v1/containers/c?bay=mine", theirs)["status"] == "Running"
        mine("delete", "pod", "forged")
        spec = {"containers": [{"name": "x", "image": images.DEMO, "securityContext": {"privileged": True}}]}
        told = mine("run", "root", f"--image={images.DEMO}", "--overrides", json.dumps({"spec": spec}), check=False)
        assert "privileged" in told.lower() and "forbidden" in told.lower(), told
    # a rotation ends what was signed before, of that bay alone
    own = {"X-Project-Id": "alpha", "X-Roles": "member"}
    assert slices.request("PATCH", "/v1/certificates/mine?wait=30", headers=own)[0] == 202
    until(
        lambda: (
            "forbidden"
            in _kubectl("-n", _space(bays["alpha"]), "get", "pods", kubeconfig=configs["alpha"], check=False).lower()
        )
    )
    assert "pod/" in _kubectl("-n", _space(bays["beta"]), "get", "pods", "-o", "name", kubeconfig=configs["beta"])
    again = _config(slices, "mine", "alpha", tmp_path / "again")
    assert "pod/" in _kubectl("-n", _space(bays["alpha"]), "get", "pods", "-o", "name", kubeconfig=again)
    # what was asked for does not count: the subject is the bay's
    config = json.loads(_kubectl("config", "view", "--raw", "-o", "json", kubeconfig=again))
    pem = base64.b64decode(config["users"][0]["user"]["client-certificate-data"])
    shown = base.run("openssl", "x509", "-noout", "-subject", data=pem).stdout
    assert "system:masters" not in shown and f"magnum:{bays['alpha']['uuid']}:2" in shown
    # the older client's words for it
    assert "BEGIN CERTIFICATE" in slices.client("ca-show", "--bay", "mine", project="alpha")
    base.run("openssl", "req", "-new", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=me", "-keyout", str(tmp_path / "key"),
             "-out", str(tmp_path / "csr"))  # fmt: skip
    told = slices.client("ca-sign", "--bay", "mine", "--csr", str(tmp_path / "csr"), project="alpha")
    (pem,) = re.findall(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", told, re.DOTALL)
    shown = base.run("openssl", "x509", "-noout", "-subject", data=pem.encode()).stdout
    assert f"magnum:{bays['alpha']['uuid']}:2" in shown
    for csr in ("", "x", "-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n"):
        status, found = slices.request("POST", "/v1/certificates", {"bay_uuid": "mine", "csr": csr}, headers=own)
        assert status == 400 and found["errors"][0]["detail"].startswith("csr"), found
    for project in ("alpha", "beta"):
        own = {"X-Project-Id": project, "X-Roles": "member"}
        slices.request("DELETE", "/v1/bays/mine?wait=60", headers=own)
        until(lambda own=own: _get(slices, "/v1/bays", own)["bays"] == [])


def test_another_backend_goes_on_with_the_bays_of_one_that_is_lost(slices, slice):
    made = _run(slices, "s", "stays", ["sleep", "1000"])
    keeper = next(iter(_get(slices, "/v1/bays/s")["hosts"]))
    other = next(name for name in slices.keepers if name != keeper)
    identity = _kubectl(
        "-n", _space(slice), "get", "pod", f"container-{made['uuid']}", "-o", "jsonpath={.metadata.uid}"
    )
    began = time.monotonic()
    slices.kill(keeper)
    until(lambda: set(_get(slices, "/v1/bays/s")["hosts"]) == {other})
    until(lambda: _get(slices, f"/v1/containers/{made['uuid']}")["status"] == "Running")
    print(f"another keeper after {time.monotonic() - began:.1f} s")
    after = _run(slices, "s", "after", ["sleep", "1000"])
    assert _execute(slices, "s", "stays", "echo hello")["output"] == "hello\n"
    # it comes back, and takes nothing from the one that has the bay now
    slices.start(keeper)
    slices.ready()
    time.sleep(3)
    assert set(_get(slices, "/v1/bays/s")["hosts"]) == {other}
    again = _kubectl("-n", _space(slice), "get", "pod", f"container-{made['uuid']}", "-o", "jsonpath={.metadata.uid}")
    assert again == identity
    for each in (made, after):
        assert slices.request("DELETE", f"/v1/containers/{each['uuid']}?wait=60")[0] == 204


@pytest.mark.timeout(300)
def test_what_was_acknowledged_is_there_once_whatever_is_killed(slices, slice):
    """kill -9 of the API server, of the backend that keeps the bay, and of etcd during 100 creates."""
    keeper = next(iter(_get(slices, "/v1/bays/s")["hosts"]))
    acknowledged = []

    def create(number):
        data = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"n{number}"}, "spec": {
            "terminationGracePeriodSeconds": 0, "containers": [{"name": "c", "image": images.DEMO, "command": ["sleep", "1000"]}]}}  # fmt: skip
        status, found = slices.request("POST", "/v1/pods?wait=0", {"bay_uuid": "s", "manifest": data})
        if status in (201, 202):
            acknowledged.append((found["uuid"], found["name"]))
        return status

    def creates(first):
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            return list(pool.map(create, range(first, first + 25)))

    codes = []
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        for turn, victim in enumerate(("apiserver", keeper, "etcd", "")):
            running = pool.submit(creates, turn * 25)
            time.sleep(0.3)
            if victim == keeper:
                slices.kill(keeper)
                slices.start(keeper)
            elif victim:
                kubernetes.kill(victim)
                time.sleep(0.5)
                kubernetes.restart(victim)
            codes += running.result()
    print(f"100 creates: {len(acknowledged)} acknowledged, {len(codes) - len(acknowledged)} refused")
    assert len(acknowledged) > 50
    began = time.monotonic()
    wanted = dict(acknowledged)

    def standing():
        found = json.loads(_kubectl("-n", _space(slice), "get", "pods", "-o", "json", check=False) or "{}")
        return [p["metadata"]["labels"].get("org.openstack.magnum.uuid", "") for p in found.get("items", [])]

    until(lambda: sorted(standing()) == sorted(wanted))
    until(lambda: {p["status"] for p in _get(slices, "/v1/pods?bay=s&limit=1000")["pods"]} == {"Running"})
    print(f"all {len(wanted)} there once and Running after {time.monotonic() - began:.1f} s")
    for uuid in wanted:
        assert slices.request("DELETE", f"/v1/pods/{uuid}?wait=0")[0] in (202, 204)
    until(lambda: standing() == [] and _pods(slices, "s") == [])
