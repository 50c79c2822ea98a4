"""Three programs over RabbitMQ and PostgreSQL with three hosts: the real client, and kill -9 between any two steps."""

import contextlib
import json
import signal
import socket
import threading

import pytest

from testbed import base
from tests.deployment import until

COMMAND = ["sh", "-c", "trap exit TERM; while :; do sleep 0.1; done"]


def test_the_client_sees_bays_on_three_hosts(cloud, docker_hosts):
    def says(*words, text=""):
        out = cloud.client(*words, project="walkers")
        assert "ERROR" not in out and "failed" not in out and "usage:" not in out and text in out, out
        return out

    says("baymodel-create", "--name", "w", "--coe", "docker", "--image-id", "i", "--keypair-id", "k",
         "--external-network-id", "e")  # fmt: skip
    for name in ("b1", "b2", "b3"):
        says("bay-create", "--name", name, "--baymodel", "w", "--node-count", "1", text="CREATE_COMPLETE")
        says("bay-show", name, text="CREATE_COMPLETE")
        says("container-create", "--name", f"c-{name}", "--image", docker_hosts[0].image, "--bay", name,
             "--command", "sh -c 'echo said; exec sleep 1000'", text="Created")  # fmt: skip
        says("container-start", f"c-{name}")
        until(lambda name=name: "said" in says("container-logs", f"c-{name}"))
        says("container-exec", f"c-{name}", "--command", "echo executed", text="executed")
    for command, status in (
        ("pause", "Paused"), ("unpause", "Running"), ("reboot", "Running"), ("stop", "Stopped"), ("start", "Running"),
    ):  # fmt: skip
        says(f"container-{command}", "c-b1")
        until(lambda status=status: status in says("container-show", "c-b1"))
    says("baymodel-update", "w", "replace", "image_id=other", text="other")
    says("baymodel-show", "w", text="other")
    assert "w" in says("baymodel-list")
    says("bay-update", "b3", "replace", "node_count=1", text="UPDATE_COMPLETE")
    # what makes no sense on Docker hosts says so, and a host too many is refused with each host's reason
    assert "made of Docker hosts" in cloud.client("ca-show", "--bay", "b1", project="walkers")
    assert "hosts are asked for" in cloud.client("bay-update", "b3", "replace", "node_count=9", project="walkers")
    says("container-delete", "c-b3", text="accepted")
    shown = cloud.request("GET", "/v1/containers", headers={"X-Project-Id": "walkers"})[1]["containers"]
    assert len(shown) == 2 and {c["host"] for c in shown} < set(cloud.hosts)
    out = says("service-list")
    assert out.count("magnum-backend") == 3 and "magnum-api" in out and "magnum-conductor" in out
    # what is another project's is not there
    assert "c-b1" not in cloud.client("container-list", project="others")
    assert "404" in cloud.client("container-show", "c-b1", project="others") or "no container" in cloud.client(
        "container-show", "c-b1", project="others"
    )
    for name in ("b1", "b2", "b3"):
        says("bay-delete", name)
    until(lambda: "b1" not in (out := says("bay-list")) and "b2" not in out and "b3" not in out)
    says("baymodel-delete", "w")
    assert all(cloud.engine_objects(c["uuid"]) == 0 for c in shown)


def test_a_bay_grows_from_one_host_to_several_while_it_is_empty(cloud, bay, docker_hosts):
    status, made = cloud.request("POST", "/v1/bays?wait=60", {"name": "grows", "baymodel_id": "m"})
    assert (status, made["status"]) == (201, "CREATE_COMPLETE"), made
    body = {"name": "first", "bay_uuid": "grows", "image": docker_hosts[0].image, "command": ["sleep", "600"]}
    assert cloud.request("POST", "/v1/containers?wait=60", {**body, "stop_timeout": 0})[0] == 201
    grow = [{"op": "replace", "path": "/node_count", "value": 2}]
    status, refusal = cloud.request("PATCH", "/v1/bays/grows", grow)
    assert (status, refusal["errors"][0]["field"]) == (409, "node_count"), refusal
    assert "1 containers" in refusal["errors"][0]["detail"]
    assert cloud.request("DELETE", "/v1/containers/first?bay_ident=grows&wait=60")[0] == 204
    status, grown = cloud.request("PATCH", "/v1/bays/grows?wait=60", grow)
    assert (status, grown["status"], len(grown["hosts"])) == (200, "UPDATE_COMPLETE", 2), grown["status_reason"]
    # what is made now reaches what is on the other host, by name
    names = [f"on-{host}" for host in grown["hosts"]]
    for name in names:
        serve = ["sh", "-c", "echo here > /tmp/a; exec httpd -f -p 8080 -h /tmp"]
        there = {**body, "name": name, "command": serve, "start": True, "stop_timeout": 0}
        status, made = cloud.request("POST", "/v1/containers?wait=60", there)
        assert (status, made["status"]) == (201, "Running"), made
    shown = cloud.request("GET", "/v1/containers?bay_ident=grows")[1]["containers"]
    assert len({item["host"] for item in shown}) == 2
    path = f"/v1/containers/{names[0]}/execute?bay_ident=grows&command=wget%20-qO-%20http://{names[1]}:8080/a"
    until(lambda: "here" in str(cloud.request("PUT", path)[1]))
    assert cloud.request("DELETE", "/v1/bays/grows?wait=60")[0] == 204


BACKEND = ("container-before-engine", "container-after-engine", "backend-before-report", "backend-after-report")
CONDUCTOR = (
    "conductor-before-intent", "conductor-after-intent", "conductor-before-report", "conductor-after-report"
)  # fmt: skip
API = ("api-after-intent", "api-before-answer")


@pytest.mark.parametrize("point", [*BACKEND, *CONDUCTOR, *API])
def test_killed_between_two_steps_it_ends_as_wanted_once(cloud, bay, docker_hosts, point):
    """Create, stop and delete, each with the program killed at ``point`` and started again."""
    program = {"api": "api", "conductor": "conductor"}.get(point.partition("-")[0]) or next(iter(bay["hosts"]))

    def interrupted(method, path, body=None):
        """Ask while the program will die at the point; return once it is back."""
        cloud.kill(program, signal.SIGTERM)
        cloud.start(program, crash_at=point)
        until(lambda: cloud.request("GET", "/healthcheck")[0] == 200)
        answers = []

        def ask():
            with contextlib.suppress(OSError):
                answers.append(cloud.request(method, path, body))

        asking = threading.Thread(target=ask)
        asking.start()
        cloud.died(program)
        cloud.start(program)
        asking.join()
        cloud.ready()
        return answers[0] if answers else (0, None)

    def now():
        found = cloud.request("GET", "/v1/containers?name=victim")[1]["containers"]
        assert len(found) <= 1, found
        return found[0] if found else None

    wanted = {"name": "victim", "bay_uuid": "b", "image": docker_hosts[0].image, "command": COMMAND, "start": True}
    status, _ = interrupted("POST", "/v1/containers", wanted)
    if now() is None:
        # nothing was acknowledged, so nothing may be there; asked again it is made
        assert status not in (200, 201, 202), status
        assert cloud.request("POST", "/v1/containers", wanted)[0] in (201, 202)
    until(lambda: now()["status"] == "Running")
    uuid = now()["uuid"]
    assert cloud.engine_objects(uuid) == 1
    status, _ = interrupted("PUT", f"/v1/containers/{uuid}/stop")
    if status not in (0, 200, 202) and now()["status"] == "Running":
        assert cloud.request("PUT", f"/v1/containers/{uuid}/stop")[0] in (200, 202)
    if status == 0 and now()["operation"] is None and now()["status"] == "Running":
        assert cloud.request("PUT", f"/v1/containers/{uuid}/stop")[0] in (200, 202)
    until(lambda: now()["status"] == "Stopped")
    assert cloud.engine_objects(uuid) == 1
    interrupted("DELETE", f"/v1/containers/{uuid}")
    if now() is not None and now()["status"] != "Deleting":
        cloud.request("DELETE", f"/v1/containers/{uuid}")
    until(lambda: now() is None)
    until(lambda: cloud.engine_objects(uuid) == 0)


@pytest.mark.parametrize("kind", ["container", "pod"])
def test_what_pulls_is_deleted_at_once(cloud, bay, kind):
    """An image that a registry is slow to give, or never gives, holds up no newer wish."""
    address = base.facts("docker")["address"]
    with socket.create_server((address, 0)) as registry:
        # it takes connections and says nothing
        image = f"{address}:{registry.getsockname()[1]}/slow:1"
        body = {"name": f"slow-{kind}", "bay_uuid": "b", "image": image, "command": ["sleep", "60"], "start": True}
        if kind == "pod":
            spec = {"containers": [{"name": "c", "image": image}], "terminationGracePeriodSeconds": 0}
            manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "slow-pod"}, "spec": spec}
            body = {"bay_uuid": "b", "manifest": json.dumps(manifest)}
        status, made = cloud.request("POST", f"/v1/{kind}s?wait=0", body)
        assert status == 202, made
        path = f"/v1/{kind}s/{made['uuid']}"
        until(lambda: f"pulling {image}" in (cloud.request("GET", path)[1]["status_reason"] or ""))
        # far sooner than the pull is given up, which would be after minutes
        assert cloud.request("DELETE", f"{path}?wait=60")[0] == 204
