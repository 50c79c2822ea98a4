"""``explain``: why an object is not as wanted, as a tree down to the engine's own words, and its last deaths."""

import signal

from testbed import base
from tests.deployment import until


def _walk(causes):
    for cause in causes:
        yield cause
        yield from _walk(cause["causes"])


def _explained(cloud, plural, ident, code, **headers):
    """Return the explanation once it has a cause of ``code`` somewhere, and that cause."""

    seen = {}

    def look():
        status, found = cloud.request("GET", f"/v1/{plural}/{ident}/explain", **headers)
        assert status == 200, found
        seen.update(found)
        return next(((found, cause) for cause in _walk(found["causes"]) if cause["code"] == code), None)

    try:
        return until(look, 60)
    except AssertionError:
        raise AssertionError(f"no {code} among the causes of {seen}") from None


def _made(cloud, plural, body):
    status, made = cloud.request("POST", f"/v1/{plural}?wait=5", body)
    assert status in (201, 202), made
    return made


def _manifest(kind, name, spec):
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "labels": {"app": name}}, "spec": spec}


def test_what_passes_is_tried_again_by_itself(cloud, bay, docker_hosts):
    taken = "18099"
    takers = [
        base.run("docker", "-H", host.url, "run", "-d", "-p", f"{taken}:80", host.image, "sleep", "600").stdout.strip()
        for host in docker_hosts
    ]
    body = {
        "bay_uuid": "b",
        "image": docker_hosts[0].image,
        "command": ["sleep", "600"],
        "start": True,
        "stop_timeout": 0,
    }
    try:
        late = _made(cloud, "containers", {**body, "name": "late", "ports": [f"{taken}:80"]})
        # each refusal makes events of the engine, so the backend looks between its tries
        _explained(cloud, "containers", late["uuid"], "port-taken")
    finally:
        for host, taker in zip(docker_hosts, takers, strict=True):
            base.run("docker", "-H", host.url, "rm", "-f", taker)
    until(lambda: cloud.request("GET", f"/v1/containers/{late['uuid']}")[1]["status"] == "Running", 30)
    assert cloud.request("DELETE", f"/v1/containers/{late['uuid']}?wait=30")[0] == 204


def test_a_container_that_is_as_wanted_and_ones_that_are_not(cloud, bay, docker_hosts):
    body = {"bay_uuid": "b", "image": docker_hosts[0].image, "start": True, "stop_timeout": 0}
    well = _made(cloud, "containers", {**body, "name": "well", "command": ["sleep", "600"], "ports": ["0:80"]})
    status, found = cloud.request("GET", f"/v1/containers/{well['uuid']}/explain")
    assert status == 200 and found["as_wanted"] and not found["causes"] and found["wanted"] == "running", found
    taken = next(p["host_port"] for p in well["ports"] if p.get("host_port"))
    # an image that is nowhere
    absent = _made(
        cloud, "containers", {**body, "name": "absent", "image": "nowhere.invalid/none:1", "image_pull_policy": "Never"}
    )
    _, cause = _explained(cloud, "containers", absent["uuid"], "image")
    assert "nowhere.invalid/none:1" in cause["detail"]
    # one that ends by itself, with its last words
    dies = _made(cloud, "containers", {**body, "name": "dies", "command": ["sh", "-c", "echo my last words; exit 7"]})
    found, cause = _explained(cloud, "containers", dies["uuid"], "exited")
    assert "code 7" in cause["detail"] and not found["as_wanted"]
    (death,) = found["deaths"]
    assert death["exit_code"] == 7 and death["log"] == ["my last words"]
    # one that takes more memory than it may
    eats = "a=x; while :; do a=$a$a; done"
    greedy = _made(cloud, "containers", {**body, "name": "greedy", "command": ["sh", "-c", eats], "memory": "8m"})
    found, cause = _explained(cloud, "containers", greedy["uuid"], "memory")
    assert found["deaths"][-1]["reason"] == "OOMKilled"
    # the deaths outlive the backend
    host = dies["host"]
    cloud.kill(host)
    _, cause = _explained(cloud, "containers", dies["uuid"], "host-down")
    assert host in cause["detail"]
    cloud.start(host)
    found, _ = _explained(cloud, "containers", dies["uuid"], "exited")
    assert found["deaths"] == [death]
    # a port that another has: the conductor would place it elsewhere, so there is no elsewhere
    status, refused = cloud.request("POST", "/v1/containers", {**body, "ports": [f"{taken}:80"], "name": "late"})
    assert status in (201, 202, 409), refused
    if status != 409:
        _explained(cloud, "containers", refused["uuid"], "port-taken")
        assert cloud.request("DELETE", f"/v1/containers/{refused['uuid']}?wait=30")[0] == 204
    for made in (well, absent, dies, greedy):
        assert cloud.request("DELETE", f"/v1/containers/{made['uuid']}?wait=30")[0] == 204


def test_from_a_service_to_the_word_of_the_engine(cloud, bay, docker_hosts):
    """Service → no endpoint → pod → its container's probe, and controller → pod → image."""
    container = {"name": "web", "image": docker_hosts[0].image, "command": ["sleep", "600"],
                 "readinessProbe": {"exec": {"command": ["sh", "-c", "echo not today; exit 1"]}, "periodSeconds": 1}}  # fmt: skip
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
    pod = _made(cloud, "pods", {"bay_uuid": "b", "manifest": _manifest("Pod", "unready", spec)})
    service = _made(cloud, "services", {"bay_uuid": "b", "manifest": _manifest(
        "Service", "unready", {"selector": {"app": "unready"}, "ports": [{"port": 80}]})})  # fmt: skip
    found, cause = _explained(cloud, "services", service["uuid"], "probe")
    (top,) = found["causes"]
    assert top["code"] == "no-endpoints" and "app=unready" in top["detail"]
    assert top["causes"][0]["uuid"] == pod["uuid"] and "not today" in cause["detail"], found
    status, _ = cloud.request("GET", f"/v1/pods/{pod['uuid']}/explain", headers={"X-Project-Id": "other"})
    assert status == 404
    template = {"metadata": {"labels": {"app": "gone"}}, "spec": {"containers": [
        {"name": "a", "image": "nowhere.invalid/none:1", "imagePullPolicy": "Never"}, {"name": "b", "image": docker_hosts[0].image,
         "command": ["sh", "-c", "echo b was here; exit 3"]}], "terminationGracePeriodSeconds": 0}}  # fmt: skip
    manifest = _manifest(
        "ReplicationController", "gone", {"replicas": 1, "selector": {"app": "gone"}, "template": template}
    )
    rc = _made(cloud, "rcs", {"bay_uuid": "b", "manifest": manifest})
    found, cause = _explained(cloud, "rcs", rc["uuid"], "image")
    assert found["wanted"] == "1 pods ready" and "nowhere.invalid/none:1" in cause["detail"], found
    _explained(cloud, "rcs", rc["uuid"], "crash-loop")
    inner = next(cause["uuid"] for cause in found["causes"] if cause["code"] == "pod")
    deaths = cloud.request("GET", f"/v1/pods/{inner}/explain")[1]["deaths"]
    assert {d["container"] for d in deaths} == {"b"} and deaths[0]["exit_code"] == 3, deaths
    assert any("b was here" in d["log"] for d in deaths)
    for plural, made in (("rcs", rc), ("services", service), ("pods", pod)):
        assert cloud.request("DELETE", f"/v1/{plural}/{made['uuid']}?wait=30")[0] == 204


def test_a_bay_names_the_host_that_it_lacks(cloud):
    assert cloud.request("POST", "/v1/baymodels", {"name": "explained"})[0] == 201
    status, made = cloud.request("POST", "/v1/bays?wait=60", {"name": "lacks", "baymodel_id": "explained"})
    assert (status, made["status"]) == (201, "CREATE_COMPLETE"), made
    (host,) = made["hosts"]
    cloud.kill(host, signal.SIGTERM)
    found, cause = _explained(cloud, "bays", made["uuid"], "host-down")
    assert cause["name"] == host and not found["as_wanted"]
    cloud.start(host)
    until(lambda: cloud.request("GET", f"/v1/bays/{made['uuid']}/explain")[1]["as_wanted"])
    assert cloud.request("DELETE", f"/v1/bays/{made['uuid']}?wait=30")[0] == 204
    assert cloud.request("DELETE", "/v1/baymodels/explained")[0] == 204


def test_on_kubernetes_too(slices, slice):
    spec = {
        "containers": [{"name": "a", "image": "nowhere.invalid/none:1", "imagePullPolicy": "Never"}],
        "terminationGracePeriodSeconds": 0,
    }
    pod = _made(slices, "pods", {"bay_uuid": "s", "manifest": _manifest("Pod", "absent", spec)})
    _, cause = _explained(slices, "pods", pod["uuid"], "image")
    assert "container a" in cause["detail"]
    assert slices.request("DELETE", f"/v1/pods/{pod['uuid']}?wait=30")[0] == 204
