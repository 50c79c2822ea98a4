"""magnum-standalone on a real engine, driven by the unmodified python-magnumclient as its users type it."""

import contextlib
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import pytest

from tests import commands

SECONDS = 90.0


def until(what, seconds=SECONDS):
    """Return the first true answer of ``what``."""
    end = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.1)
    return found


class Standalone:
    """A magnum-standalone of this test's own."""

    def __init__(self, folder, docker):
        self.folder = folder
        self.log = folder / "log"
        self.argv = [
            str(pathlib.Path(sys.executable).parent / "magnum-standalone"), "--port=0",
            f"--state-dir={folder / 'state'}", f"--docker={docker}", f"--config-file={folder / 'magnum.conf'}",
        ]  # fmt: skip
        (folder / "magnum.conf").write_text(f"[DEFAULT]\ndeployment = {folder.name.replace('_', '-')[:40]}\n")
        self.process = None

    def start(self):
        with open(self.log, "ab") as out:
            self.process = subprocess.Popen(self.argv, stderr=out, stdout=out)
        offset = self.log.read_text().count("is ready")
        self.url = until(lambda: self._ready(offset))
        until(lambda: self.request("GET", "/healthcheck")[0] == 200)

    def _ready(self, offset):
        assert self.process.poll() is None, self.log.read_text()
        found = re.findall(r"is ready: (http://\S+?)/v1", self.log.read_text())
        return found[-1] if len(found) > offset else None

    def stop(self, number=signal.SIGTERM):
        self.process.send_signal(number)
        return self.process.wait(60)

    def request(self, method, path, body=None, headers=None):
        """Return (status, decoded body) of one request."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url}{path}", data, {"Content-Type": "application/json", **(headers or {})}, method=method
        )
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                raw, status = answer.read(), answer.status
        except urllib.error.HTTPError as error:
            raw, status = error.read(), error.code
        return status, json.loads(raw) if raw else None

    def client(self, *words):
        """Return what python-magnumclient printed."""
        env = os.environ | {
            "OS_AUTH_URL": f"{self.url}/identity/v3", "OS_USERNAME": "admin", "OS_PASSWORD": "any",
            "OS_PROJECT_NAME": "default", "OS_TENANT_NAME": "default", "OS_USER_DOMAIN_ID": "default",
            "OS_PROJECT_DOMAIN_ID": "default",
        }  # fmt: skip
        done = commands.magnum()(*words, env=env)
        return done.stdout + done.stderr


@pytest.fixture(scope="module")
def magnum(docker_hosts, tmp_path_factory):
    found = Standalone(tmp_path_factory.mktemp("standalone"), docker_hosts[0].url)
    found.start()
    yield found
    with contextlib.suppress(AssertionError):
        for item in found.request("GET", "/v1/bays")[1]["bays"]:
            found.request("DELETE", f"/v1/bays/{item['uuid']}?wait=60")
    assert found.stop() == 0


def test_the_client_walks_through_the_life_of_a_container(magnum, docker_hosts):
    def says(*words, text=""):
        out = magnum.client(*words)
        assert "ERROR" not in out and "failed" not in out and "usage:" not in out, out
        assert text in out, out
        return out

    says("baymodel-create", "--name", "walk", "--coe", "docker", "--image-id", "i", "--keypair-id", "k",
         "--external-network-id", "e", "--labels", "a=b", text="walk")  # fmt: skip
    says("baymodel-list", text="walk")
    says("baymodel-show", "walk", text="{'a': 'b'}")
    says("baymodel-update", "walk", "replace", "image_id=other", text="other")
    says("bay-create", "--name", "walk", "--baymodel", "walk", "--node-count", "1", text="CREATE_COMPLETE")
    says("bay-list", text="walk")
    says("bay-show", "walk", text="CREATE_COMPLETE")
    says("coe-service-list", "--bay", "walk")
    says("pod-list", "--bay", "walk")
    says("rc-list", "--bay", "walk")
    image = docker_hosts[0].image
    says("container-create", "--name", "c", "--image", image, "--bay", "walk", "--memory", "64m",
         "--command", "sh -c 'trap exit TERM; echo said; while :; do sleep 0.2; done'", text="Created")  # fmt: skip
    says("container-list", text="Created")
    for command, status in (
        ("start", "Running"), ("pause", "Paused"), ("unpause", "Running"), ("reboot", "Running"), ("stop", "Stopped"),
        ("start", "Running"),
    ):  # fmt: skip
        says(f"container-{command}", "c")
        until(lambda status=status: status in says("container-show", "c"))
    until(lambda: "said" in magnum.client("container-logs", "c"))
    says("container-exec", "c", "--command", "echo executed", text="executed")
    says("service-list", text="magnum-backend")
    says("container-delete", "c", text="accepted")
    assert "walk" not in says("container-list", "--bay", "walk")
    says("bay-delete", "walk")
    until(lambda: "walk" not in magnum.client("bay-list"))
    says("baymodel-delete", "walk")
    assert "walk" not in says("baymodel-list")


@pytest.fixture
def bay(magnum):
    status, _ = magnum.request("POST", "/v1/baymodels", {"name": "m"})
    assert status == 201
    status, made = magnum.request("POST", "/v1/bays?wait=60", {"name": "b", "baymodel_id": "m"})
    assert (status, made["status"]) == (201, "CREATE_COMPLETE"), made
    yield made
    magnum.request("DELETE", "/v1/bays/b?wait=60")
    assert magnum.request("DELETE", "/v1/baymodels/m")[0] == 204


def _container(magnum, docker_hosts, **more):
    body = {
        "bay_uuid": "b",
        "image": docker_hosts[0].image,
        "command": ["sh", "-c", "trap exit TERM; while :; do sleep 0.2; done"],
        "start": True,
        **more,
    }
    status, made = magnum.request("POST", "/v1/containers?wait=60", body)
    assert (status, made["status"]) == (201, "Running"), made
    return made


def test_what_happens_behind_our_back_shows(magnum, bay, docker_hosts):
    made = _container(magnum, docker_hosts)
    name = subprocess.run(
        ["docker", "-H", docker_hosts[0].url, "ps", "--filter", f"label=org.openstack.magnum.uuid={made['uuid']}",
         "--format", "{{.ID}}"], capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    subprocess.run(["docker", "-H", docker_hosts[0].url, "kill", name], check=True, capture_output=True)
    until(lambda: magnum.request("GET", f"/v1/containers/{made['uuid']}")[1]["status"] == "Stopped")
    shown = magnum.request("GET", f"/v1/containers/{made['uuid']}")[1]
    assert shown["exit_code"] == 137
    steps = [e["to_status"] for e in magnum.request("GET", f"/v1/containers/{made['uuid']}/history")[1]["events"]]
    assert steps[0] == "Creating" and steps[-1] == "Stopped"


def test_a_killed_standalone_goes_on_where_it_was(magnum, bay, docker_hosts):
    made = _container(magnum, docker_hosts)
    status, _ = magnum.request("PUT", f"/v1/containers/{made['uuid']}/stop?wait=0")
    assert status in (200, 202)
    magnum.stop(signal.SIGKILL)
    magnum.start()
    until(lambda: magnum.request("GET", f"/v1/containers/{made['uuid']}")[1]["status"] == "Stopped")
    assert magnum.request("DELETE", f"/v1/containers/{made['uuid']}?wait=60")[0] == 204


def test_a_second_one_on_the_same_folder_is_refused(magnum):
    done = subprocess.run(magnum.argv, capture_output=True, text=True)
    assert done.returncode == 1
    assert "in use by another magnum-standalone" in done.stderr


def test_without_docker_it_starts_and_says_so(tmp_path):
    alone = Standalone(tmp_path, f"unix://{tmp_path}/nothing.sock")
    with open(alone.log, "ab") as out:
        alone.process = subprocess.Popen(alone.argv, stderr=out, stdout=out)
    alone.url = until(lambda: alone._ready(0))
    status, health = until(lambda: (f := alone.request("GET", "/healthcheck"))[1]["checks"].get("engines") and f)
    assert status == 503 and "no host is up" in health["checks"]["engines"]
    assert alone.stop() == 0


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "field"),
    [
        ("POST", "/v1/bays", {}, 400, "baymodel_id"),
        ("POST", "/v1/bays", {"baymodel_id": "m", "node_count": 0}, 400, "node_count"),
        ("POST", "/v1/bays", {"baymodel_id": "m", "colour": "red"}, 400, "colour"),
        ("POST", "/v1/baymodels", {"coe": "mesos"}, 400, "coe"),
        ("POST", "/v1/baymodels", {"name": "-x"}, 400, "name"),
        ("POST", "/v1/containers", {"image": "i"}, 400, "bay_uuid"),
        ("POST", "/v1/containers", {"image": "i", "bay_uuid": "b", "memory": "lots"}, 400, "memory"),
        ("POST", "/v1/containers", {"image": "i", "bay_uuid": "b", "ports": ["x"]}, 400, "ports[0]"),
        ("POST", "/v1/pods", {"bay_uuid": "b"}, 400, "manifest"),
        ("GET", "/v1/containers?sort_key=colour", None, 400, "sort_key"),
        ("GET", "/v1/containers?limit=-1", None, 400, "limit"),
        ("GET", "/v1/containers/nothing", None, 404, None),
        ("PATCH", "/v1/bays/nothing", [{"op": "replace", "path": "/node_count", "value": 2}], 404, None),
        ("PATCH", "/v1/bays/nothing", [{"op": "jump", "path": "/x"}], 400, "[0].op"),
        ("PUT", "/v1/containers/nothing/start", None, 404, None),
        ("DELETE", "/v1/bays/nothing", None, 404, None),
        ("POST", "/v1/hosts", {}, 405, None),
        ("GET", "/v2", None, 404, None),
    ],
)
def test_bad_input_is_refused_by_name(magnum, method, path, body, status, field):
    answered, data = magnum.request(method, path, body)
    assert answered == status, data
    error = data["errors"][0]
    assert error["status"] == status and error["request_id"].startswith("req-")
    assert error.get("field") == field, error
