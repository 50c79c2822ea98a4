"""Tenants who ask Magnum and Neutron, their workloads as a host's root sees them, and what a deployment leaves anywhere."""

import functools
import json

from testbed import base, kubernetes
from tests.deployment import Deployment, keystone_authtoken, neutron_options, until

SERVE = ["sh", "-c", "mkdir -p /www; hostname > /www/index.html; exec httpd -f -p 80 -h /www"]
MODEL = {"network_driver": "neutron", "external_network_id": "outside", "dns_nameserver": "192.0.2.53"}


def on_neutron(name, folder, hosts, identity, networking, keepers=0, **of_node):
    """Return a deployment that works with the test bed's Neutron and Keystone, asked as ``alpha-admin`` by default.

    ``of_node``: options of ``[kubernetes]`` of the first of ``keepers``, which is the backend of the cluster's node.
    """
    asked = functools.cache(identity.token)
    more, each = neutron_options(check_interval=1)
    if keepers:
        each[base.facts("kubernetes")["node"]]["kubernetes"].update(of_node)
    found = Deployment(
        name, folder, hosts, {"api": {"auth_strategy": "keystone"}, "keystone_authtoken": keystone_authtoken(), **more},
        headers=lambda: {"X-Auth-Token": asked("alpha-admin")}, each=each, keepers=keepers,
    )  # fmt: skip
    found.neutron = networking
    return found


class Tenant:
    """Someone who asks Magnum and Neutron with a token of Keystone's."""

    def __init__(self, cloud, identity, project):
        self.cloud, self.networking, self.project = cloud, cloud.neutron, project
        self.id = base.facts("keystone")["projects"][project]
        self.token = functools.cache(lambda: identity.token(f"{project}-member"))

    def ask(self, method, path, body=None):
        return self.cloud.request(method, path, body, {"X-Auth-Token": self.token()})

    def neutron(self, method, path, body=None):
        return self.networking.send(method, path, body, self.token())

    def made(self, kind, body):
        (found,) = self.neutron("POST", f"/{kind.replace('_', '-')}s", {kind: body}).values()
        return found

    def ports(self, **filters):
        query = "&".join(f"{key}={value}" for key, value in filters.items())
        return self.neutron("GET", f"/ports?{query}")["ports"]

    def show(self, plural, ident):
        return self.ask("GET", f"/v1/{plural}/{ident}")[1]

    def model(self, name, **model):
        status, made = self.ask("POST", "/v1/baymodels", {"name": name, **MODEL, **model})
        assert status == 201, made
        return made

    def bay(self, name, nodes=1, **model):
        body = {"name": name, "baymodel_id": self.model(name, **model)["uuid"], "node_count": nodes}
        status, made = self.ask("POST", "/v1/bays?wait=60", body)
        assert (status, made["status"]) == (201, "CREATE_COMPLETE"), made
        return made

    def container(self, bay, name, image, **more):
        body = {
            "bay_uuid": bay["uuid"],
            "name": name,
            "image": image,
            "command": SERVE,
            "start": True,
            "memory": "16m",
            "stop_timeout": 0,
            **more,
        }
        status, made = self.ask("POST", "/v1/containers?wait=60", body)
        assert (status, made["status"]) == (201, "Running"), made["status_reason"]
        return made

    def pod(self, bay, name, image, **more):
        container = {"name": "web", "image": image, "command": SERVE, "ports": [{"containerPort": 80}],
                     "readinessProbe": {"httpGet": {"port": 80}, "periodSeconds": 1}}  # fmt: skip
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "web"}},
                    "spec": {"containers": [container], "terminationGracePeriodSeconds": 0}}  # fmt: skip
        status, made = self.ask("POST", "/v1/pods?wait=60", {"bay_uuid": bay["uuid"], "manifest": manifest, **more})
        assert status in (201, 202), made
        return until(lambda: (found := self.show("pods", made["uuid"]))["ready"] and found)

    def service(self, bay, name, **more):
        spec = {"selector": {"app": "web"}, "ports": [{"port": 8080, "targetPort": 80}], **more.pop("spec", {})}
        manifest = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}
        return self.ask("POST", "/v1/services?wait=60", {"bay_uuid": bay["uuid"], "manifest": manifest, **more})

    def gone(self, plural, *idents):
        for ident in idents:
            status, body = self.ask("DELETE", f"/v1/{plural}/{ident}?wait=60")
            assert status == 204, body


class Machine:
    """A container, or a pod's sandbox, as its network namespace is seen by the host's root."""

    def __init__(self, cloud, made):
        self.made, self.host = made, cloud.hosts.get(made["host"])
        self.ip = made["pod_ip"] if "pod_ip" in made else next(iter(made["addresses"].values()))[0]

    @property
    def enter(self):
        """The words that run a command in its network namespace."""
        name = f"magnum-{self.made['uuid']}"
        pid = base.run("docker", "-H", self.host.url, "inspect", "-f", "{{.State.Pid}}", name).stdout.strip()
        return ["nsenter", f"--target={pid}", "--net", "--"]

    def run(self, *words):
        return base.run(*self.enter, *words, check=False)

    def gets(self, ip, port=80):
        return gets(self.enter, ip, port)

    def reaches(self, other, port=80):
        """Whether it is answered by ``other``: rules that name a group learn of a new member a moment after its port is up."""
        return until(lambda: self.gets(other.ip, port) == other.made["name"], 20)

    def pings(self, ip, source=None):
        words = ["-I", source] if source else []
        return self.run("busybox", "ping", "-c", "1", "-W", "1", *words, ip).returncode == 0

    def arps(self, ip):
        return self.run("busybox", "arping", "-q", "-f", "-c", "2", "-w", "2", "-I", "eth0", ip).returncode == 0

    def json(self, *words):
        return json.loads(self.run("ip", "-j", *words).stdout or "[]")


class PodOfCluster(Machine):
    """A pod on the test bed's cluster, likewise. ``made``: Magnum's view of it, or of a container."""

    @functools.cached_property
    def enter(self):
        cluster = base.facts("kubernetes")
        member = base.run(
            "kubectl", f"--kubeconfig={cluster['kubeconfig']}", "get", "pods", "-A", "-l",
            f"org.openstack.magnum.uuid={self.made['uuid']}", "-o", "jsonpath={.items[0].status.containerStatuses[0].containerID}",
        ).stdout  # fmt: skip
        tasks = base.run(*cluster["enter"], "ctr", "-a", kubernetes.RUNTIME, "-n", "k8s.io", "tasks", "ls").stdout
        (pid,) = [row.split()[1] for row in tasks.splitlines() if row.split()[0] == member.rpartition("/")[2]]
        return [*cluster["enter"], "nsenter", f"--target={pid}", "--net", "--"]


def gets(enter, ip, port=80):
    """Return what is answered over HTTP, None if nothing is within two seconds."""
    done = base.run(*enter, "busybox", "timeout", "2", "busybox", "wget", "-qO-", f"http://{ip}:{port}/", check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def unused(*tenants):
    """Return an address of the networks that bays have which no port of these tenants has: Neutron gives them at random."""
    taken = {ip["ip_address"] for one in tenants for port in one.ports() for ip in port["fixed_ips"]}
    return next(address for number in range(254, 1, -1) if (address := f"10.244.0.{number}") not in taken)


def leftovers(cloud):
    """Return everything of a deployment that is still anywhere: in Neutron, Open vSwitch, the kernel and the engines."""
    found = []
    for kind in ("networks", "subnets", "routers", "ports", "floatingips", "security-groups", "security-group-rules"):
        rows = next(iter(cloud.neutron.request("GET", f"/{kind}").values()))
        found += [
            (kind, row["id"]) for row in rows if (row.get("description") or "").startswith(f"magnum:{cloud.name}:")
        ]
    machines = {host.name: host.enter for host in cloud.hosts.values()}
    if cloud.keepers:
        cluster = base.facts("kubernetes")
        machines[cluster["node"]] = cluster["enter"]
    for name, enter in machines.items():
        ovsdb = base.facts("neutron")["hosts"][name]["ovsdb"]
        out = base.run("ovs-vsctl", f"--db={ovsdb}", "--bare", "--columns=external_ids", "list", "Interface").stdout
        found += [(name, "interface", line) for line in out.splitlines() if cloud.name in line]
        links = json.loads(base.run(*enter, "ip", "-j", "link", "show", "type", "veth").stdout or "[]")
        found += [(name, "link", one["ifname"]) for one in links if one["ifname"].startswith("tap")]
    for host in cloud.hosts.values():
        label = f"label=org.openstack.magnum.deployment={cloud.name}"
        out = base.run("docker", "-H", host.url, "ps", "-aq", "--filter", label).stdout.split()
        found += [(host.name, "container", ident) for ident in out]
        tables = base.run(*host.enter, "nft", "list", "tables").stdout.splitlines()
        found += [(host.name, "table", line) for line in tables if cloud.name in line]
    for name in (*cloud.hosts, *cloud.keepers):
        found += [(name, path.name) for path in (cloud.folder / name).glob("neutron*/*/*.json")]
    return found
