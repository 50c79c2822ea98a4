"""Kubernetes bays on Neutron, proven by packets: tenants' pods on one node, each on its bay's network by ``magnum-cni``.

Both tenants' networks have the same addresses on purpose. One Docker host is there,
too: a network can be that of bays of both kinds.
"""

import concurrent.futures
import json
import pathlib
import signal
import sys
import time

import pytest

from testbed import base, images, kubernetes
from tests.deployment import until
from tests.live.conftest import running, servers
from tests.tenants import SERVE, Machine, PodOfCluster, Tenant, gets, leftovers, on_neutron, unused

PLUGIN = pathlib.Path(sys.executable).parent / "magnum-cni"
LABEL = "org.openstack.magnum."


class Kube(Tenant):
    """A tenant whose bays are slices of the cluster unless a model says otherwise."""

    def model(self, name, **model):
        return super().model(name, **({"coe": "kubernetes", "external_network_id": None} | model))

    def pod(self, bay, name, image=images.DEMO, wait=60, **more):
        ready = {"exec": {"command": ["test", "-e", "/www/index.html"]}, "periodSeconds": 1}
        container = {"name": "web", "image": image, "command": SERVE, "readinessProbe": ready,
                     "imagePullPolicy": "Never", "ports": [{"containerPort": 80}]}  # fmt: skip
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
                    "spec": {"containers": [container], "terminationGracePeriodSeconds": 0}}  # fmt: skip
        status, made = self.ask(
            "POST", f"/v1/pods?wait={wait}", {"bay_uuid": bay["uuid"], "manifest": manifest, **more}
        )
        assert status in (201, 202), made
        return made

    def running(self, bay, name, **more):
        """Return a pod as the node's root sees it, once it is ready and tells of its groups."""
        uuid = self.pod(bay, name, **more)["uuid"]
        found = until(lambda: (f := self.show("pods", uuid))["ready"] and f["security_groups"] and f)
        return PodOfCluster(self.cloud, found)

    def port(self, machine):
        (port,) = self.ports(mac_address=machine.json("link", "show", "eth0")[0]["address"])
        return port


def kubectl(*words, data=None, check=True):
    return base.run("kubectl", f"--kubeconfig={base.facts('kubernetes')['kubeconfig']}", *words, data=data, check=check)


def space(bay):
    return f"magnum-{bay['uuid']}"


@pytest.fixture(scope="module")
def wired(identity, networking_node, docker_hosts, tmp_path_factory):
    """A deployment on Neutron: the node's backend, another one that keeps bays, a Docker host."""
    servers()
    folder = tmp_path_factory.mktemp("nodes")
    found = on_neutron(
        f"nodes-{base.TAG}", folder, docker_hosts[:1], identity, networking_node, keepers=2, cni_socket=folder / "cni.sock"
    )  # fmt: skip
    kubernetes.plugin(PLUGIN, socket=str(folder / "cni.sock"))
    try:
        yield from running(found, identity.secret_words)
        assert leftovers(found) == []
    finally:
        kubernetes.plugin(None)


@pytest.fixture(scope="module")
def alpha(wired, identity):
    return Kube(wired, identity, "alpha")


@pytest.fixture(scope="module")
def beta(wired, identity):
    return Kube(wired, identity, "beta")


@pytest.fixture(scope="module")
def ours(alpha):
    return alpha.bay("ours")


@pytest.fixture(scope="module")
def theirs(beta):
    return beta.bay("theirs")


@pytest.fixture(scope="module")
def pods(alpha, beta, ours, theirs):
    """Two pods of each of two tenants, on one node."""
    wanted = [(alpha, ours, "a0"), (alpha, ours, "a1"), (beta, theirs, "b0"), (beta, theirs, "b1")]
    with concurrent.futures.ThreadPoolExecutor() as pool:
        return {one.made["name"]: one for one in pool.map(lambda each: each[0].running(*each[1:]), wanted)}


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
    # what is in no bay goes on as it was
    kubectl("run", "plain", f"--image={images.DEMO}", "--restart=Never", "--command", "--", "sleep", "300")
    cluster = base.facts("kubernetes")["pods"].rpartition(".")[0]
    address = until(lambda: kubectl("get", "pod", "plain", "-o", "jsonpath={.status.podIP}").stdout)
    assert address.startswith(cluster + ".")
    kubectl("delete", "pod", "plain", "--grace-period=0", "--force")


def test_pods_of_one_tenant_reach_each_other_and_no_pod_of_another(pods):
    a0, a1, b0, b1 = (pods[name] for name in ("a0", "a1", "b0", "b1"))
    for one, other in ((a0, a1), (a1, a0), (b0, b1), (b1, b0)):
        assert one.reaches(other) and one.pings(other.ip) and one.arps(other.ip)
    mine, others = {a0.ip, a1.ip}, {b0.ip, b1.ip}
    tries = [(one, ip) for one in (b0, b1) for ip in mine - others] + [
        (one, ip) for one in (a0, a1) for ip in others - mine
    ]
    # of the same addresses each tenant sees its own
    shared = [(one, ip) for one in (a0, a1, b0, b1) for ip in mine & others]
    assert tries or shared
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        found = list(
            pool.map(lambda each: (each[0].pings(each[1]), each[0].arps(each[1]), each[0].gets(each[1])), tries)
        )
    assert found == [(False, False, None)] * len(tries)
    for one, ip in shared:
        assert (one.gets(ip) or "").startswith(one.made["name"][0])


def test_no_pod_takes_an_address_that_is_not_its_own(alpha, beta, pods):
    a0, a1, b0, b1 = (pods[name] for name in ("a0", "a1", "b0", "b1"))
    stolen = unused(alpha, beta)
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


def test_networks_of_ones_choice_also_for_pods_made_with_kubectl(alpha, beta, ours, pods):
    network = alpha.made("network", {"name": "backstage"})
    subnet = alpha.made(
        "subnet", {"network_id": network["id"], "ip_version": 4, "cidr": "10.9.0.0/24", "enable_dhcp": False}
    )
    free = unused(alpha, beta)
    two = alpha.running(ours, "two", networks=[{"fixed_ip": free}, {"network": "backstage", "fixed_ip": "10.9.0.7"}])
    assert two.ip == free and pods["a0"].reaches(two)
    manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "own", "annotations": {
        LABEL + "networks": '[{"network": "backstage"}]'}}, "spec": {"terminationGracePeriodSeconds": 0, "containers": [
            {"name": "web", "image": images.DEMO, "command": ["sleep", "300"], "imagePullPolicy": "Never"}]}}  # fmt: skip
    kubectl("-n", space(ours), "apply", "-f", "-", data=json.dumps(manifest).encode())
    shown = until(lambda: (f := alpha.ask("GET", "/v1/pods/own?bay=ours")[1]).get("security_groups") and f)
    assert len(shown["security_groups"]) == 2 and not shown["managed"]
    wget = ["exec", "own", "--", "wget", "-qO-", "http://10.9.0.7/"]
    until(lambda: kubectl("-n", space(ours), *wget, check=False).stdout.strip() == "two", 20)
    # another tenant's network is none, whoever asks for it
    manifest["metadata"]["name"] = "thief"
    where = f"magnum-{beta.show('bays', 'theirs')['uuid']}"
    kubectl("-n", where, "apply", "-f", "-", data=json.dumps(manifest).encode())
    reason = until(lambda: beta.ask("GET", "/v1/pods/thief?bay=theirs")[1].get("status_reason"), 60)
    assert "networks[0].network: there is no network 'backstage'" in reason, reason
    kubectl("-n", where, "delete", "pod", "thief", "--wait=false")
    kubectl("-n", space(ours), "delete", "pod", "own")
    alpha.gone("pods", two.made["uuid"])
    until(lambda: alpha.ports(network_id=network["id"]) == [], 20)
    alpha.neutron("DELETE", f"/subnets/{subnet['id']}")
    alpha.neutron("DELETE", f"/networks/{network['id']}")


def test_a_network_is_that_of_bays_of_both_kinds(wired, alpha):
    network = alpha.made("network", {"name": "common"})
    subnet = {
        "name": "common",
        "network_id": network["id"],
        "ip_version": 4,
        "cidr": "10.7.0.0/24",
        "enable_dhcp": False,
    }
    alpha.made("subnet", subnet)
    slice = alpha.bay("slice", fixed_network="common")
    plain = alpha.bay("plain", fixed_network="common", coe="docker")
    pod = alpha.running(slice, "here")
    (group,) = pod.made["security_groups"]
    there = Machine(wired, alpha.container(plain, "there", images.DEMO, security_groups=[group]))
    assert pod.ip.startswith("10.7.0.") and there.ip.startswith("10.7.0.")
    until(lambda: there.gets(pod.ip) == "here" and pod.gets(there.ip) == "there", 20)
    alpha.gone("pods", pod.made["uuid"])
    alpha.gone("containers", there.made["uuid"])
    alpha.gone("bays", slice["uuid"], plain["uuid"])
    assert alpha.ports(network_id=network["id"]) == []
    alpha.neutron("DELETE", f"/networks/{network['id']}")


class Sandbox:
    """What the runtime has of a pod, and its plugin run by hand."""

    def __init__(self, bay, name):
        cluster = base.facts("kubernetes")
        self.enter, self.bay, self.name = cluster["enter"], bay, name
        self.configuration = json.loads((pathlib.Path(cluster["folder"]) / "cni" / "00-another.conflist").read_text())
        self.uid = kubectl("-n", space(bay), "get", "pod", name, "-o", "jsonpath={.metadata.uid}").stdout
        wanted = f'labels."io.kubernetes.pod.uid"=={self.uid},labels."io.cri-containerd.kind"==sandbox'
        ctr = ["ctr", "-a", kubernetes.RUNTIME, "-n", "k8s.io"]
        self.ident = base.run(*self.enter, *ctr, "containers", "ls", "-q", wanted).stdout.split()[0]
        found = json.loads(base.run(*self.enter, *ctr, "containers", "info", self.ident).stdout)
        (self.netns,) = [n["path"] for n in found["Spec"]["linux"]["namespaces"] if n["type"] == "network"]

    def cni(self, command, ident=None, **more):
        """Return (exit code, decoded answer)."""
        first = self.configuration["plugins"][0]
        given = {"cniVersion": "1.0.0", "name": self.configuration["name"], **first, **more}
        environ = {
            "CNI_COMMAND": command, "CNI_CONTAINERID": ident or self.ident, "CNI_NETNS": self.netns, "CNI_IFNAME": "eth0",
            "CNI_PATH": "/usr/lib/cni",
            "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE={space(self.bay)};K8S_POD_NAME={self.name};K8S_POD_UID={self.uid}",
        }  # fmt: skip
        words = [f"{key}={value}" for key, value in environ.items()]
        done = base.run(*self.enter, "env", *words, str(PLUGIN), data=json.dumps(given).encode(), check=False)
        return done.returncode, json.loads(done.stdout) if done.stdout.strip() else None


def test_the_plugin_does_as_the_specification_says(wired, alpha, ours, pods):
    made = alpha.running(ours, "asked")
    box = Sandbox(ours, "asked")
    assert box.cni("VERSION") == (0, {"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0"]})
    assert box.cni("CHECK") == (0, None)
    made.run("ip", "address", "del", f"{made.ip}/24", "dev", "eth0")
    code, answer = box.cni("CHECK")
    assert (code, answer["code"], answer["msg"]) == (1, 100, f"eth0 has not the address {made.ip}/24")
    made.run("ip", "address", "add", f"{made.ip}/24", "dev", "eth0")
    assert box.cni("CHECK") == (0, None)
    for wrong, code in (({"cniVersion": "0.1.0"}, 1), ({"command": "STOP"}, 4)):
        found, answer = box.cni(wrong.pop("command", "ADD"), **wrong)
        assert (found, answer["code"]) == (1, code), answer
    # of a sandbox that is no more, or never was, nothing is to be taken away
    assert box.cni("DEL", "0" * 64) == (0, None) and pods["a0"].reaches(made)
    # the same again is another sandbox's
    for version, form in (("1.0.0", set()), ("0.4.0", {"version"})):
        code, answer = box.cni("ADD", cniVersion=version)
        assert (code, answer["cniVersion"]) == (0, version), answer
        (ip,) = answer["ips"]
        assert ip["address"] == f"{made.ip}/24" and set(ip) == {"address", "interface"} | form
        assert answer["interfaces"][ip["interface"]]["sandbox"] == box.netns
        until(lambda: pods["a0"].gets(made.ip) == "asked", 20)
    assert len(alpha.ports(device_id=box.uid)) == 1
    for _ in range(2):
        assert box.cni("DEL") == (0, None)
        assert alpha.ports(device_id=box.uid) == [] and made.json("link", "show", "eth0") == []
    code, answer = box.cni("CHECK")
    assert (code, answer["code"]) == (1, 3), answer
    alpha.gone("pods", made.made["uuid"])
    # nobody but root asks
    done = base.run("setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c",
                    f"import socket; socket.socket(socket.AF_UNIX).connect({str(wired.folder / 'cni.sock')!r})", check=False)  # fmt: skip
    assert done.returncode and "Permission" in done.stderr


def test_a_service_is_reached_by_its_cluster_ip_from_within_its_bay(wired, alpha, ours, pods):
    a0, a1, b0 = pods["a0"], pods["a1"], pods["b0"]
    status, service = alpha.service(ours, "web")
    assert (status, service["status"]) == (201, "Active"), service
    address = service["ip"]
    for one in (a0, a1):
        until(lambda one=one: {one.gets(address, 8080) for _ in range(4)} == {"a0", "a1"}, 20)
    assert b0.gets(address, 8080) is None
    # one that comes later has it from its first moment, and is behind it once it is ready
    command = ["sh", "-c", f"wget -qO- http://{address}:8080/ && sleep 100"]
    late = alpha.container(ours, "late", images.DEMO, command=command)
    until(lambda: alpha.ask("GET", f"/v1/containers/{late['uuid']}/logs")[1]["output"].strip() in ("a0", "a1"), 20)
    # what changes while the node's backend is away is taken up
    wired.kill(wired.keepers[0], signal.SIGKILL)
    patch = [{"op": "replace", "path": "/manifest/spec/selector", "value": {"app": "none"}}]
    assert alpha.ask("PATCH", "/v1/services/web?wait=30", patch)[0] == 200
    assert a0.gets(address, 8080) in ("a0", "a1")
    wired.start(wired.keepers[0])
    until(lambda: a0.gets(address, 8080) is None, 30)
    alpha.gone("services", "web")
    until(lambda: a0.run("nft", "list", "tables").stdout == "", 20)
    alpha.gone("containers", late["uuid"])


def test_a_service_has_a_floating_ip_and_lets_in_whom_it_names(wired, alpha):
    outside = wired.hosts[next(iter(wired.hosts))].enter
    bay = alpha.bay("shop", external_network_id="outside")
    pod = alpha.running(bay, "shop")
    status, service = alpha.service(bay, "shop", external=True)
    assert (status, service["status"], service["external"]) == (201, "Active", True), service
    address = service["external_ip"]
    assert address.startswith("172.24.4.")
    until(lambda: gets(outside, address, 8080) == "shop", 30)
    # the pod itself stays shut, inside they go on as before, and the cluster opens no port of its nodes
    assert gets(outside, address, 80) is None
    until(lambda: pod.gets(service["ip"], 8080) == "shop", 20)
    assert kubectl("-n", space(bay), "get", "service", "shop", "-o", "jsonpath={.spec.type}").stdout == "ClusterIP"
    for ranges, opened in ((["203.0.113.0/24"], False), (["203.0.113.0/24", "172.24.4.0/24"], True)):
        patch = [{"op": "add", "path": "/manifest/spec/loadBalancerSourceRanges", "value": ranges}]
        status, changed = alpha.ask("PATCH", "/v1/services/shop?wait=30", patch)
        assert (status, changed["source_ranges"], changed["external_ip"]) == (200, ranges, address), changed
        until(lambda opened=opened: (gets(outside, address, 8080) == "shop") is opened, 20)
    # its door is lost: another is made, and found under the same address
    kubectl("-n", space(bay), "delete", "pods", "-l", f"{LABEL}role=door", "--grace-period=0", "--force")
    until(lambda: gets(outside, address, 8080) == "shop", 60)
    patch = [
        {"op": "remove", "path": "/manifest/spec/loadBalancerSourceRanges"},
        {"op": "replace", "path": "/external", "value": False},
    ]
    status, changed = alpha.ask("PATCH", "/v1/services/shop?wait=30", patch)
    assert (status, changed.get("external"), changed.get("external_ip")) == (200, False, None), changed
    assert alpha.neutron("GET", "/floatingips")["floatingips"] == []
    status, changed = alpha.ask(
        "PATCH", "/v1/services/shop?wait=30", [{"op": "replace", "path": "/external", "value": True}]
    )
    assert status == 200, changed
    # Neutron's router has the address a moment after it was given
    until(lambda: gets(outside, changed["external_ip"], 8080) == "shop", 30)
    alpha.gone("services", "shop")
    assert alpha.neutron("GET", "/floatingips")["floatingips"] == []
    groups = [g["name"] for g in alpha.neutron("GET", "/security-groups")["security_groups"]]
    assert "magnum-shop" in groups and len(groups) == len(set(groups)), groups
    alpha.gone("bays", bay["uuid"])
    assert alpha.neutron("GET", "/routers")["routers"] == []


def _manifest(**more):
    container = {"name": "web", "image": images.DEMO} | more
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "no"}, "spec": {"containers": [container]}}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"ports": [{"containerPort": 80, "hostPort": 8080}]}, "spec.containers[0].ports[0].hostPort"),
        ({"readinessProbe": {"httpGet": {"port": 80}}}, "spec.containers[0].readinessProbe.httpGet"),
        ({"livenessProbe": {"tcpSocket": {"port": 80}}}, "spec.containers[0].livenessProbe.tcpSocket"),
    ],
)
def test_what_only_a_node_on_the_network_could_do_is_refused(alpha, ours, body, field):
    status, refused = alpha.ask("POST", "/v1/pods", {"bay_uuid": ours["uuid"], "manifest": _manifest(**body)})
    assert status == 400 and refused["errors"][0]["detail"].startswith(f"{field}: "), refused
    template = {"metadata": {"labels": {"app": "no"}}, "spec": _manifest(**body)["spec"]}
    manifest = {
        "apiVersion": "v1",
        "kind": "ReplicationController",
        "metadata": {"name": "no"},
        "spec": {"template": template},
    }
    status, refused = alpha.ask("POST", "/v1/rcs", {"bay_uuid": ours["uuid"], "manifest": manifest})
    assert status == 400 and refused["errors"][0]["detail"].startswith(f"spec.template.{field}: "), refused


def test_whatever_dies_each_pod_has_one_port(wired, alpha, ours, pods):
    node, a0 = wired.keepers[0], pods["a0"]
    before = {p["id"] for p in alpha.ports()}

    def mine():
        return [p for p in alpha.ports(device_owner="magnum:kubernetes-pod") if p["id"] not in before]

    uuids = [alpha.pod(ours, f"many{n}", wait=0)["uuid"] for n in range(3)]
    # in the middle of an ADD
    until(mine)
    wired.kill(node, signal.SIGKILL)
    uuids += [alpha.pod(ours, f"many{n}", wait=0)["uuid"] for n in range(3, 6)]
    # by whoever keeps the bay now
    words = "the node's magnum-backend does not answer"
    until(lambda: words in (alpha.show("pods", uuids[-1])["status_reason"] or ""), 60)
    wired.start(node)
    until(lambda: all(alpha.show("pods", uuid)["ready"] for uuid in uuids), 90)
    ports = until(lambda: len(found := mine()) == len(uuids) and found, 30)
    assert len({p["device_id"] for p in ports}) == len(uuids)
    for uuid in uuids[:2]:
        found = PodOfCluster(wired, alpha.show("pods", uuid))
        assert a0.reaches(found)
    # the kubelet and the runtime: what runs goes on, on the ports that it has
    for program in ("kubelet", "containerd"):
        kubernetes.kill(program)
        kubernetes.restart(program)
    ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status}"
    until(lambda: kubectl("get", "node", base.facts("kubernetes")["node"], "-o", ready).stdout == "True", 60)
    assert {p["id"] for p in mine()} == {p["id"] for p in ports}
    assert a0.reaches(PodOfCluster(wired, alpha.show("pods", uuids[0])))
    # without the node's backend pods go all the same, and what they had when it is back
    wired.kill(node, signal.SIGKILL)
    alpha.gone("pods", *uuids[:3])
    assert len(mine()) == len(uuids)
    wired.start(node)
    until(lambda: len(mine()) == 3, 30)
    alpha.gone("pods", *uuids[3:])
    until(lambda: mine() == [], 30)


def test_what_is_deleted_behind_our_back_is_made_again(wired, alpha, ours, pods):
    a0, a1 = pods["a0"], pods["a1"]
    old = alpha.port(a1)
    alpha.neutron("DELETE", f"/ports/{old['id']}")
    again = until(lambda: [p for p in alpha.ports(device_id=old["device_id"]) if p["status"] == "ACTIVE"], 30)
    assert again[0]["id"] != old["id"] and again[0]["fixed_ips"] == old["fixed_ips"]
    until(lambda: a0.gets(a1.ip) == "a1" and a1.gets(a0.ip) == "a0", 20)
    # a port of a pod that nobody knows
    uuid = "3f8f3a3e-2f6d-4a53-9d5e-0f1d5a6b7c8e"
    wired.neutron.request("POST", "/ports", {"port": {
        "network_id": old["network_id"], "project_id": alpha.id, "binding:host_id": base.facts("kubernetes")["node"],
        "device_owner": "magnum:kubernetes-pod", "device_id": uuid, "description": f"magnum:{wired.name}:kubernetes-pod:{uuid}",
    }})  # fmt: skip
    until(lambda: alpha.ports(device_id=uuid) == [], 20)


def test_while_neutron_is_down_pods_run_go_and_wait(wired, alpha, ours, pods, networking_node):
    a0, a1 = pods["a0"], pods["a1"]
    gone = alpha.running(ours, "gone")
    port = alpha.port(gone)
    networking_node.stop()
    try:
        assert a0.gets(a1.ip) == "a1"
        made = alpha.pod(ours, "later", wait=0)
        until(lambda: "Neutron does not answer" in (alpha.show("pods", made["uuid"])["status_reason"] or ""), 60)
        alpha.gone("pods", gone.made["uuid"])
        wired.kill(wired.keepers[0], signal.SIGKILL)
        wired.start(wired.keepers[0])
        assert a0.gets(a1.ip) == "a1"
        time.sleep(2)
    finally:
        networking_node.start()
    until(lambda: alpha.show("pods", made["uuid"])["ready"], 90)
    until(lambda: alpha.ports(device_id=port["device_id"]) == [], 30)
    alpha.gone("pods", made["uuid"])


def test_everything_deleted_leaves_nothing_on_the_node(wired, alpha, beta, ours, theirs, pods):
    cluster = base.facts("kubernetes")
    spaces = base.run(*cluster["enter"], "ls", "/run/netns").stdout.split()
    assert len(spaces) >= len(pods)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(lambda each: each[0].gone("bays", each[1]["uuid"]), ((alpha, ours), (beta, theirs))))
    until(lambda: leftovers(wired) == [], 30)
    # the runtime takes a sandbox's namespace away after the plugin's DEL, which is all that was awaited until here
    until(lambda: base.run(*cluster["enter"], "ls", "/run/netns").stdout.split() == [], 30)
    assert wired.neutron.request("GET", "/ports?device_owner=magnum:kubernetes-pod")["ports"] == []
