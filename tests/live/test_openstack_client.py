"""Every ``openstack coe`` command and every method of the SDK's proxy, unmodified, with application credentials."""

import concurrent.futures
import json
import os
import pathlib
import subprocess

import pytest

from testbed import base
from tests import commands
from tests.deployment import until

OPENSTACK = pathlib.Path(os.environ.get("MAGNUM_TEST_OPENSTACK", "openstack"))

COMMANDS = """
    cluster template create, cluster template list, cluster template show, cluster template update,
    cluster template delete, cluster create, cluster list, cluster show, cluster update, cluster resize,
    cluster upgrade, cluster config, cluster delete, nodegroup list, nodegroup show, nodegroup create,
    nodegroup update, nodegroup delete, quotas create, quotas list, quotas show, quotas update, quotas delete,
    stats list, service list, ca show, ca sign, ca rotate, credential rotate
""".replace("\n", " ").split(",")


class Client:
    """The command line, as whoever has an application credential."""

    def __init__(self, identity, region, folder):
        self.identity = identity
        self.region = region
        self.folder = folder
        self.ran = set()

    def __call__(self, command, *words, who="whole", refused=False):
        """Return what ``openstack coe command words`` printed: decoded if it was asked for JSON."""
        self.ran.add(command)
        env = {**os.environ, **self.identity.credential_environ(who, self.region), "HOME": str(self.folder)}
        done = commands.openstack()("coe", *command.split(), *words, env=env, cwd=self.folder)
        # some commands print a refusal and end with 0
        assert refused or done.returncode == 0, done
        if "json" in words:
            # some commands say a sentence before
            return json.loads(done.stdout[min(i for i in map(done.stdout.find, "[{") if i >= 0) :])
        return done.stdout + done.stderr


@pytest.fixture
def coe(guarded, identity, tmp_path):
    return Client(identity, guarded.name, tmp_path)


@pytest.mark.timeout(400)
def test_every_command_of_the_command_line(coe, guarded, identity, tmp_path):
    json_ = ("-f", "json")
    # templates
    wanted = ("--coe", "docker", "--image", "machine", "--external-network", "public", "--labels", "a=1")
    made = coe("cluster template create", "walk", *wanted, *json_)
    assert (made["name"], made["coe"], made["labels"]) == ("walk", "docker", {"a": "1"})
    assert [t["name"] for t in coe("cluster template list", *json_)] == ["walk"]
    assert coe("cluster template show", "walk", *json_)["uuid"] == made["uuid"]
    coe("cluster template update", "walk", "--name", "walked")
    assert coe("cluster template show", made["uuid"], *json_)["name"] == "walked"
    # clusters
    assert "accepted" in coe("cluster create", "w", "--cluster-template", "walked", "--node-count", "1")
    until(lambda: coe("cluster show", "w", *json_)["status"] == "CREATE_COMPLETE")
    shown = coe("cluster show", "w", *json_)
    assert shown["health_status"] == "HEALTHY" and shown["node_count"] == 1 and len(shown["node_addresses"]) == 1
    (listed,) = coe("cluster list", *json_)
    assert (listed["uuid"], listed["name"]) == (shown["uuid"], "w")
    coe("cluster update", "w", "--name", "walker")
    assert "accepted" in coe("cluster resize", "walker", "2")
    until(lambda: coe("cluster show", "walker", *json_)["status"] == "UPDATE_COMPLETE")
    assert len(coe("cluster show", "walker", *json_)["node_addresses"]) == 2
    assert "software of cluster walker" in coe("cluster upgrade", "walker", "walked", refused=True)
    assert "Docker hosts" in coe("cluster config", "walker", "--dir", str(tmp_path), refused=True)
    assert not list(tmp_path.glob("*.pem"))

    def node_groups():
        (group,) = coe("nodegroup list", "walker", *json_)
        assert (group["name"], group["node_count"], group["role"]) == ("default-worker", 2, "worker")
        assert coe("nodegroup show", "walker", "default-worker", *json_)["uuid"] == group["uuid"]
        assert "one node group" in coe("nodegroup create", "walker", "more", refused=True)
        assert "no bounds to change" in coe(
            "nodegroup update", "walker", group["uuid"], "--max-nodes", "4", refused=True
        )
        assert "only node group" in coe("nodegroup delete", "walker", "default-worker", refused=True)

    def certificates():
        assert "Docker hosts" in coe("ca show", "walker", refused=True)
        (tmp_path / "a.csr").write_text("a request")
        assert "Docker hosts" in coe("ca sign", "walker", str(tmp_path / "a.csr"), refused=True)
        assert "Docker hosts" in coe("ca rotate", "walker", refused=True)
        assert "no credentials of its own" in coe("credential rotate", "walker", refused=True)

    def quotas():
        project = base.facts("keystone")["projects"]["beta"]
        of = ("--project-id", project, "--resource", "Cluster")
        assert "Cluster" in coe("quotas create", *of, "--hard-limit", "3", who="operator")
        assert "HTTP 403" in coe("quotas create", *of, "--hard-limit", "99", refused=True)
        assert project in coe("quotas list", "--all-tenants", who="operator")
        assert "3" in coe("quotas show", *of, who="operator")
        coe("quotas update", *of, "--hard-limit", "4", who="operator")
        assert "4" in coe("quotas show", *of, who="operator")
        coe("quotas delete", *of, who="operator")
        alpha = base.facts("keystone")["projects"]["alpha"]
        assert "clusters" in coe("stats list", alpha)
        assert {row["host"] for row in coe("service list", *json_, who="operator")} >= set(guarded.hosts)

    # each command is a process that mostly starts
    with concurrent.futures.ThreadPoolExecutor() as pool:
        for part in [pool.submit(each) for each in (node_groups, certificates, quotas)]:
            part.result()
    # and away
    coe("cluster delete", "walker")
    until(lambda: not coe("cluster list", *json_))
    coe("cluster template delete", "walked")
    assert coe("cluster template list", *json_) == []
    assert coe.ran == {" ".join(command.split()) for command in COMMANDS}


SDK = """
import json, sys
import openstack
from openstack import exceptions
from openstack.container_infrastructure_management.v1 import _proxy

cloud = openstack.connect()
coe = cloud.container_infrastructure_management
used = set()

def call(name, /, *args, **words):
    used.add(name)
    return getattr(coe, name)(*args, **words)

def refused(name, /, *args, **words):
    try:
        call(name, *args, **words)
    except exceptions.HttpException as error:
        return error.status_code, str(error.details or error)
    raise SystemExit(f"{name} was not refused")

template = call("create_cluster_template", name="sdk", coe="docker", image_id="machine", labels={"a": "1"})
assert template.name == "sdk" and template.uuid, template
assert [t.name for t in call("cluster_templates")] == ["sdk"]
assert call("find_cluster_template", "sdk").uuid == template.uuid
assert call("find_cluster_template", "none") is None
assert call("get_cluster_template", template.uuid).coe == "docker"
template = call("update_cluster_template", template, labels={"a": "2"})
assert call("get_cluster_template", template.uuid).labels == {"a": "2"}

cluster = call("create_cluster", name="s", cluster_template_id=template.uuid, node_count=1)
cluster = call("wait_for_status", cluster, status="CREATE_COMPLETE", failures=["CREATE_FAILED"], interval=0.3, wait=60)
assert [c.name for c in call("clusters")] == ["s"]
assert call("find_cluster", "s").uuid == cluster.uuid
assert call("get_cluster", cluster.uuid).node_count == 1
call("update_cluster", cluster, name="sd")
assert call("get_cluster", cluster.uuid).name == "sd"
try:
    cluster.resize(coe, node_count=2)
except TypeError:
    pass  # once it is accepted, this version takes the answer for a dict
call("wait_for_status", cluster, status="UPDATE_COMPLETE", failures=["UPDATE_FAILED"], interval=0.3, wait=60)
assert len(call("get_cluster", cluster.uuid).node_addresses) == 2
try:
    cluster.upgrade(coe, cluster_template=template.uuid)
except exceptions.ConflictException:
    pass
else:
    raise SystemExit("an upgrade was not refused")
status, why = refused("create_cluster_certificate", cluster_uuid=cluster.uuid, csr="a request")
assert status == 409 and "Docker hosts" in why, (status, why)
status, why = refused("get_cluster_certificate", cluster.uuid)
assert status == 409 and "Docker hosts" in why, (status, why)
if sys.argv[1] == "operator":
    assert {s.host for s in call("services")} >= set(sys.argv[2:])
else:
    try:
        list(call("services"))
    except exceptions.ForbiddenException:
        pass
    else:
        raise SystemExit("a member was shown the services")
call("delete_cluster", cluster)
call("wait_for_delete", cluster, interval=0.3, wait=60)
call("delete_cluster_template", template)
assert list(call("cluster_templates")) == [] and list(call("clusters")) == []
methods = {
    name for name, what in vars(_proxy.Proxy).items()
    if callable(what) and not name.startswith("_")
}
print(json.dumps({"missed": sorted(methods - used), "used": sorted(used & methods)}))
"""


@pytest.mark.parametrize("who", ["whole", "operator"])
def test_every_method_of_the_sdk(guarded, identity, tmp_path, who):
    env = {**os.environ, **identity.credential_environ(who, guarded.name), "HOME": str(tmp_path)}
    argv = [str(OPENSTACK.parent / "python"), "-c", SDK, who, *guarded.hosts]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["missed"] == []
    assert len(found["used"]) >= 15
