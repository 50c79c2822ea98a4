"""What an operator does: databases and samples, workers that die, a host that goes away and comes back, quotas."""

import os
import signal
import subprocess

import psutil
import yaml

from tests.deployment import BIN, until


def test_the_database_and_the_samples_are_looked_after(cloud):
    assert cloud.manage("db", "version").stdout.strip() == "0001"
    assert cloud.manage("db", "check").returncode == 0
    assert "already" in cloud.manage("db", "upgrade").stdout
    sample = cloud.manage("sample", "config").stdout
    assert "[docker]" in sample and "#transport_url" in sample
    rules = cloud.manage("sample", "policy").stdout
    assert '"bay:create"' in rules
    assert yaml.safe_load(rules.replace('#"', '"'))["container:privileged"] == "rule:admin"


def test_a_wrong_configuration_is_named(tmp_path):
    (tmp_path / "magnum.conf").write_text("[api]\nport = many\n")
    for program in ("magnum-api", "magnum-conductor", "magnum-backend", "magnum-standalone"):
        done = subprocess.run(
            [str(BIN / program), "--config-file", str(tmp_path / "magnum.conf")], capture_output=True, text=True
        )
        assert done.returncode == 1 and "port" in done.stderr, (program, done.stderr)


def test_noauth_serves_loopback_alone(tmp_path):
    (tmp_path / "magnum.conf").write_text("[api]\nhost = 0.0.0.0\nport = 0\nauth_strategy = noauth\n")
    done = subprocess.run(
        [str(BIN / "magnum-api"), "--config-file", str(tmp_path / "magnum.conf")], capture_output=True, text=True
    )
    assert done.returncode == 1 and "loopback" in done.stderr


def test_workers_share_a_port_and_one_that_dies_is_replaced(cloud):
    with cloud.another_api("workers", {}, "--workers", "2") as (port, parent):
        other = cloud.at(port)
        until(lambda: other("GET", "/v1/bays")[0] == 200)
        workers = until(lambda: (found := psutil.Process(parent.pid).children()) and len(found) == 2 and found)
        os.kill(workers[0].pid, signal.SIGKILL)
        until(lambda: len({w.pid for w in psutil.Process(parent.pid).children()} - {workers[0].pid}) == 2)
        for _ in range(20):
            assert until(lambda: other("GET", "/v1/bays"))[0] == 200


def test_a_host_that_goes_away_reads_unknown_and_comes_back(cloud, bay, docker_hosts):
    body = {"bay_uuid": "b", "image": docker_hosts[0].image, "command": ["sleep", "1000"], "start": True}
    status, made = cloud.request("POST", "/v1/containers?wait=60", {**body, "stop_timeout": 0})
    assert (status, made["status"]) == (201, "Running")
    host, path = made["host"], f"/v1/containers/{made['uuid']}"
    cloud.kill(host)
    until(lambda: cloud.request("GET", path)[1]["status"] == "Unknown")
    shown = cloud.request("GET", f"/v1/hosts/{host}")[1]
    assert shown["status"] == "down" and "no sign of life" in shown["status_reason"]
    status, refusal = cloud.request("POST", "/v1/containers", body)
    assert status == 409 and host in refusal["errors"][0]["detail"]
    status, _ = cloud.request("PUT", f"{path}/stop")
    assert status == 409
    cloud.start(host)
    until(lambda: cloud.request("GET", path)[1]["status"] == "Running")
    assert cloud.request("DELETE", f"{path}?wait=60")[0] == 204


def test_what_is_changed_while_the_conductor_is_away_is_served_when_it_is_back(cloud, bay):
    cloud.kill("conductor")
    status, health = cloud.request("GET", "/healthcheck")
    assert status == 503 and health["checks"]["conductor"] != "ok"
    cloud.start("conductor")
    cloud.ready()
    assert cloud.request("GET", "/v1/bays/b")[1]["status"] == "CREATE_COMPLETE"
