"""The database restored from an older dump against newer engines: the difference is shown and settled, nothing is lost."""

import secrets
import signal

import pytest

from testbed import base, postgresql
from tests.deployment import Deployment, until
from tests.live import conftest


@pytest.fixture
def restored(docker_hosts, tmp_path_factory):
    conftest.servers()
    # what a run that was cut short left on the engines is no orphan of this one
    name = f"restored-{base.TAG}-{secrets.token_hex(3)}"
    more = {"backend": {"resync_interval": 3}}
    yield from conftest.running(Deployment(name, tmp_path_factory.mktemp("restored"), docker_hosts[:2], more))


def _made(cloud, plural, body):
    status, made = cloud.request("POST", f"/v1/{plural}?wait=60", body)
    assert status in (201, 202), made
    return made


def _pod(name, image):
    container = {"name": "a", "image": image, "command": ["sleep", "600"]}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}}, "spec": spec}


def test_what_came_after_the_dump_is_adopted_or_removed_as_told(restored, docker_hosts, tmp_path):
    cloud, image = restored, docker_hosts[0].image
    _made(cloud, "baymodels", {"name": "m"})
    _made(cloud, "bays", {"name": "before", "baymodel_id": "m"})
    body = {"image": image, "command": ["sleep", "600"], "start": True, "stop_timeout": 0, "memory": "16m"}
    kept = _made(cloud, "containers", {**body, "name": "kept", "bay_uuid": "before"})
    gone = _made(cloud, "containers", {**body, "name": "gone", "bay_uuid": "before"})
    dump = tmp_path / "dump.sql"
    postgresql.dump(cloud.settings["database"]["connection"], dump)
    # after the dump
    assert cloud.request("DELETE", f"/v1/containers/{gone['uuid']}?wait=60")[0] == 204
    later = _made(cloud, "bays", {"name": "later", "baymodel_id": "m"})
    inner = _made(cloud, "containers", {**body, "name": "inner", "bay_uuid": "later", "environment": {"A": "b"}})
    pod = _made(cloud, "pods", {"bay_uuid": "before", "manifest": _pod("late-pod", image)})
    until(lambda: cloud.request("GET", f"/v1/pods/{pod['uuid']}")[1]["ready"])
    manifest = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "late"},
                "spec": {"selector": {"app": "late-pod"}, "ports": [{"port": 80}]}}  # fmt: skip
    service = _made(cloud, "services", {"bay_uuid": "before", "manifest": manifest})
    unwanted = _made(cloud, "containers", {**body, "name": "unwanted", "bay_uuid": "before"})
    news = {later["uuid"], inner["uuid"], pod["uuid"], service["uuid"], unwanted["uuid"]}
    # the database is restored under backends that go on
    for program in ("api", "conductor"):
        cloud.kill(program, signal.SIGTERM)
    postgresql.restore(cloud.name, dump)
    cloud.start("conductor", "api")
    until(lambda: cloud.request("GET", "/healthcheck")[0] == 200)

    def report():
        done = cloud.manage("report")
        return done.returncode, done.stdout

    code, text = until(lambda: (found := report()) and all(uuid in found[1] for uuid in news) and found)
    assert code == 2 and all(f"orphan   {kind} {uuid}" in text for kind, uuid in (
        ("bay", later["uuid"]), ("container", inner["uuid"]), ("pod", pod["uuid"]), ("service", service["uuid"]),
    )), text  # fmt: skip
    until(lambda: f"missing  container {gone['uuid']}" in report()[1])
    assert kept["uuid"] not in report()[1]
    # nobody was told to remove anything, so all of it runs
    assert all(cloud.engine_objects(one["uuid"]) == 1 for one in (inner, unwanted, kept))
    done = cloud.manage("adopt", service["uuid"])
    assert done.returncode == 1 and "can only be removed" in done.stderr
    assert cloud.manage("adopt", kept["uuid"]).returncode == 1
    done = cloud.manage("remove", unwanted["uuid"], service["uuid"])
    assert done.returncode == 0, done.stderr
    done = cloud.manage("adopt", "--all")
    assert done.returncode == 0 and done.stdout.count("adopted") == 3, done
    until(lambda: cloud.engine_objects(unwanted["uuid"]) == 0)

    def shown(plural, made):
        return cloud.request("GET", f"/v1/{plural}/{made['uuid']}")[1]

    again = until(lambda: (found := shown("containers", inner))["status"] == "Running" and found)
    assert (again["name"], again["bay_uuid"], again["memory"]) == ("inner", later["uuid"], inner["memory"])
    assert again["started_at"] == inner["started_at"], "it has run on"
    assert until(lambda: shown("bays", later)["status"] == "CREATE_COMPLETE")
    assert until(lambda: shown("pods", pod)["ready"])
    until(lambda: "orphan" not in report()[1])
    rules = "".join(base.run(*host.enter, "nft", "list", "ruleset").stdout for host in cloud.hosts.values())
    assert service["uuid"] not in rules
    # they are the owner's as before, and what is missing is the owner's to make anew or to delete
    assert cloud.request("PUT", f"/v1/containers/{inner['uuid']}/stop?wait=60")[1]["status"] == "Stopped"
    assert cloud.request("DELETE", f"/v1/pods/{pod['uuid']}?wait=60")[0] == 204
    assert cloud.request("DELETE", f"/v1/containers/{gone['uuid']}?wait=60")[0] == 204
    until(lambda: report() == (0, "nothing: engines have what the database knows\n"))
