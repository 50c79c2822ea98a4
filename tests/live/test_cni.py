"""Kubernetes bays on Neutron, proven by packets: tenants' pods on one node, each on its bay's network by ``magnum-cni``.

Both tenants' networks have the same addresses on purpose. One Docker host is there,
too: a network can be that of bays of both kinds.
"""

import concurrent.futures
import functools
import json
import os
import pathlib
import signal
import sys
import time

import pytest

from testbed import base, images, kubernetes
from tests.deployment import Deployment, keystone_authtoken, on_neutron, until
from tests.live.conftest import _running, _servers
from tests.tenants import SERVE, Machine, PodOfCluster, Tenant, leftovers

PLUGIN = pathlib.Path(sys.executable).parent / "magnum-cni"
LABEL = "org.openstack.magnum."


class Kube(Tenant):
    """A tenant whose bays are slices of the cluster unless a model says otherwise."""

    def model(self, name, **model):
        return super().model(name, **({"coe": "kubernetes", "external_network_id": None} | model))

    def pod(self, bay, name, image=images.DEMO, **more):
        ready = {"exec": {"command": ["test", "-e", "/www/index.html"]}, "periodSeconds": 1}
        container = {"name": "web", "image": image, "command": SERVE, "readinessProbe": ready,
                     "imagePullPolicy": "Never", "ports": [{"containerPort": 80}]}  # fmt: skip
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
                    "spec": {"containers": [container], "terminationGracePeriodSeconds": 0}}  # fmt: skip
        status, made = self.ask("POST", "/v1/pods?wait=60", {"bay_uuid": bay["uuid"], "manifest": manifest, **more})
        assert status in (201, 202), made
        return made

    def running(self, bay, name, **more):
        """Return a pod as the node's root sees it, once it is ready and tells of its groups."""
        uuid = self.pod(bay, name, **more)["uuid"]
        found = until(lambda: (f := self.show("pods", uuid))["ready"] and f["security_groups"] and f)
        return PodOfCluster(self.cloud, found)

    def port(self, machine):
        (port,) = [p for p in self.ports(mac_address=machine.json("link", "show", "eth0")[0]["address"])]
        return port


def kubectl(*words, data=None, check=True):
    return base.run("kubectl", f"--kubeconfig={base.facts('kubernetes')['kubeconfig']}", *words, data=data, check=check)


def space(bay):
    return f"magnum-{bay['uuid']}"


@pytest.fixture(scope="module")
def wired(identity, networking_node, docker_hosts, tmp_path_factory):
    """A deployment on Neutron: the node's backend, another one that keeps bays, a Docker host."""
    _servers()
    name = f"nodes-{base.TAG}"
    asked = functools.cache(identity.token)
    more, each = on_neutron(check_interval=1)
    folder = tmp_path_factory.mktemp("nodes")
    each[base.facts("kubernetes")["node"]]["kubernetes"]["cni_socket"] = folder / "cni.sock"
    found = Deployment(
        name, folder, docker_hosts[:1],
        {"api": {"auth_strategy": "keystone"}, "keystone_authtoken": keystone_authtoken(), **more},
        headers=lambda: {"X-Auth-Token": asked("alpha-admin")}, each=each, keepers=2,
    )  # fmt: skip
    found.neutron = networking_node
    kubernetes.plugin(PLUGIN, socket=str(folder / "cni.sock"))
    try:
        yield from _running(found, identity.secret_words)
        assert leftovers(found) == []
    finally:
        kubernetes.plugin(None)


@pytest.fixture(scope="module")
def alpha(wired, networking_node, identity):
    return Kube(wired, networking_node, identity, "alpha")


@pytest.fixture(scope="module")
def beta(wired, networking_node, identity):
    return Kube(wired, networking_node, identity, "beta")


@pytest.fixture(scope="module")
def ours(alpha):
    return alpha.bay("ours")


@pytest.fixture(scope="module")
def theirs(beta):
    return beta.bay("theirs")


@pytest.fixture(scope="module")
def pods(alpha, beta, ours, theirs):
    """Two pods of each of two tenants, on one node."""
    return {name: tenant.running(bay, name)
            for tenant, bay, names in ((alpha, ours, ("a0", "a1")), (beta, theirs, ("b0", "b1"))) for name in names}  # fmt: skip


def test_a_pod_has_a_port_on_the_network_of_its_bay(wired, alpha, ours, pods):
    node = base.facts("kubernetes")["node"]
    for name in ("a0", "a1"):
        pod = pods[name]
        port = alpha.port(pod)
        admin = wired.neutron.request("GET", f"/ports/{port['id']}")["port"]
        assert (admin["binding:host_id"], admin["status"], port["project_id"]) == (node, "ACTIVE", alpha.id)
        uid = kubectl("-n", space(ours), "get", "pod", name, "-o", "jsonpath={.metadata.uid}").stdout
        assert (port["device_owner"], port["device_id"]) == ("magnum:kubernetes-pod", uid)
        network = alpha.neutron("GET", f"/networks/{port['network_id']}")["network"]
        assert (network["name"], network["project_id"]) == ("magnum-ours", alpha.id)
        (link,) = pod.json("link", "show", "eth0")
        assert (link["address"], link["mtu"]) == (port["mac_address"], network["mtu"])
        assert [port["fixed_ips"][0]["ip_address"]] == [pod.ip]
        assert pod.made["security_groups"] == port["security_groups"]
    bay = alpha.show("bays", ours["uuid"])
    assert (bay["network"], bay["subnet"]) == ("magnum-ours", "10.244.0.0/24")
    # what is in no bay goes on as it was
    kubectl("run", "plain", f"--image={images.DEMO}", "--restart=Never", "--command", "--", "sleep", "300")
    cluster = base.facts("kubernetes")["pods"].rpartition(".")[0]
    address = until(lambda: kubectl("get", "pod", "plain", "-o", "jsonpath={.status.podIP}").stdout)
    assert address.startswith(cluster + ".")
    kubectl("delete", "pod", "plain", "--grace-period=0", "--force")


def test_pods_of_one_tenant_reach_each_other_and_no_pod_of_another(pods):
    a0, a1, b0, b1 = (pods[name] for name in ("a0", "a1", "b0", "b1"))
    for one, other in ((a0, a1), (a1, a0), (b0, b1), (b1, b0)):
        assert one.gets(other.ip) == other.made["name"] and one.pings(other.ip) and one.arps(other.ip)
    mine, others = {a0.ip, a1.ip}, {b0.ip, b1.ip}
    tries = [(one, ip) for one in (b0, b1) for ip in mine - others] + [
        (one, ip) for one in (a0, a1) for ip in others - mine
    ]
    # of the same addresses each tenant sees its own
    shared = [(one, ip) for one in (a0, a1, b0, b1) for ip in mine & others]
    assert tries or shared
    for one, ip in tries:
        assert (one.pings(ip), one.arps(ip), one.gets(ip)) == (False, False, None)
    for one, ip in shared:
        assert (one.gets(ip) or "").startswith(one.made["name"][0])


def test_no_pod_takes_an_address_that_is_not_its_own(alpha, pods):
    a0, a1, b0, b1 = (pods[name] for name in ("a0", "a1", "b0", "b1"))
    stolen = "10.244.0.254"
    for thief, target in ((a0, a1), (b0, b1)):
        thief.run("ip", "address", "add", f"{stolen}/24", "dev", "eth0")
        assert thief.pings(target.ip) and not thief.pings(target.ip, stolen) and not target.arps(stolen)
    port = alpha.port(a0)
    for pairs, opened in (([{"ip_address": stolen}], True), ([], False)):
        alpha.neutron("PUT", f"/ports/{port['id']}", {"port": {"allowed_address_pairs": pairs}})
        until(lambda opened=opened: a0.pings(a1.ip, stolen) is opened, 20)
    for thief in (a0, b0):
        thief.run("ip", "address", "del", f"{stolen}/24", "dev", "eth0")


def test_a_rule_opens_and_closes_and_groups_are_replaced(wired, alpha, ours, pods):
    a0 = pods["a0"]
    group = alpha.made("security_group", {"name": "web"})
    shut = alpha.running(ours, "shut", security_groups=["web"])
    assert shut.made["security_groups"] == [group["id"]] and a0.gets(shut.ip) is None
    rule = alpha.made("security_group_rule", {
        "security_group_id": group["id"], "direction": "ingress", "protocol": "tcp", "port_range_min": 80, "port_range_max": 80,
    })  # fmt: skip
    until(lambda: a0.gets(shut.ip) == "shut", 20)
    assert not a0.pings(shut.ip)
    alpha.neutron("DELETE", f"/security-group-rules/{rule['id']}")
    until(lambda: a0.gets(shut.ip) is None, 20)
    bays = a0.made["security_groups"]
    patch = [{"op": "replace", "path": "/security_groups", "value": bays}]
    status, changed = alpha.ask("PATCH", f"/v1/pods/{shut.made['uuid']}?wait=30", patch)
    assert (status, changed["status"]) == (200, "Running"), changed
    until(lambda: a0.gets(shut.ip) == "shut", 20)
    until(lambda: alpha.show("pods", shut.made["uuid"])["security_groups"] == bays, 20)
    # what its owner changes in Neutron is shown, and stays
    alpha.neutron("PUT", f"/ports/{alpha.port(shut)['id']}", {"port": {"security_groups": [group["id"]]}})
    until(lambda: alpha.show("pods", shut.made["uuid"])["security_groups"] == [group["id"]], 20)
    alpha.gone("pods", shut.made["uuid"])
    until(lambda: alpha.ports(security_groups=group["id"]) == [], 20)
    alpha.neutron("DELETE", f"/security-groups/{group['id']}")
