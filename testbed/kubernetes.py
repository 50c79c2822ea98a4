"""A Kubernetes cluster of one real node, all of it in namespaces of its own behind one veth.

etcd, kube-apiserver with RBAC, controller-manager, scheduler, kube-proxy, containerd,
a kubelet and a name server for services live in one network, mount and process namespace; its first process
is the holder. Ending the holder ends everything: pods, rules and mounts included.
Pods and services are reachable from this machine by routes through the veth.

Facts: ``kubeconfig`` (an administrator's), ``url``, ``folder``, ``enter`` (the
words before a command within), ``pods`` and ``services`` (CIDRs), ``version``,
``node``, ``tenants_ca`` and ``tenants_ca_key`` (a CA that the API server takes
clients' certificates of, beside the cluster's own), ``pids`` (program → its pid
file's name, for tests that end one: ``restart`` starts it again).
"""

import contextlib
import ipaddress
import json
import os
import pathlib
import shlex
import shutil
import signal
import time
from typing import Any

from testbed import base, images, kubernetes_build

NAME = "kubernetes"
NODE = "node1"
LINK = f"mtk{base.TAG}"
CGROUP = f"magnum-testbed-{base.TAG}-k8s"
RUNTIME = "/run/containerd/magnum.sock"
PROGRAMS = ("etcd", "apiserver", "controllers", "scheduler", "proxy", "containerd", "kubelet", "dns", "names")
RULES = "https://kubernetes.default.svc"


def install() -> None:
    """Have the programs: packages, and Kubernetes' own built if they are nowhere."""
    base.apt({
        "etcd-server": "etcd", "containerd": "containerd", "runc": "runc", "containernetworking-plugins": "/usr/lib/cni/bridge",
        "iptables": "iptables", "conntrack": "conntrack", "openssl": "openssl", "iproute2": "ip", "util-linux": "nsenter",
        "tini": "tini", "dnsmasq-base": "dnsmasq", "curl": "curl", "kubernetes-client": "kubectl", "procps": "sysctl",
    })  # fmt: skip
    images.install()
    kubernetes_build.folder()


def _program(name: str) -> str:
    found = kubernetes_build.folder()
    return str(found / name) if found else name


class Cluster:
    """The one cluster of this test bed: its addresses, files and programs."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.folder = base.FOLDER / NAME
        link = ipaddress.IPv4Network(f"10.214.{number}.0/30")
        self.host, self.address = str(link[1]), str(link[2])
        self.pods, self.services = f"10.215.{number}.0/24", f"10.216.{number}.0/24"
        self.url = f"https://{self.address}:6443"

    # what it trusts

    def _key(self, name: str) -> None:
        base.run(
            "openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", f"{self.folder}/pki/{name}.key"
        )

    def _authority(self, name: str) -> None:
        self._key(name)
        base.run("openssl", "req", "-x509", "-new", "-key", f"{self.folder}/pki/{name}.key", "-subj", f"/CN={name}",
                 "-days", "3650", "-out", f"{self.folder}/pki/{name}.crt")  # fmt: skip

    def _certificate(self, name: str, subject: str, names: str = "") -> None:
        pki = self.folder / "pki"
        self._key(name)
        (pki / f"{name}.ext").write_text(
            "extendedKeyUsage=serverAuth,clientAuth\n" + (f"subjectAltName={names}\n" if names else "")
        )
        base.run("openssl", "req", "-new", "-key", f"{pki}/{name}.key", "-subj", subject, "-out", f"{pki}/{name}.csr")
        base.run("openssl", "x509", "-req", "-in", f"{pki}/{name}.csr", "-CA", f"{pki}/ca.crt", "-CAkey", f"{pki}/ca.key",
                 "-CAcreateserial", "-days", "3650", "-extfile", f"{pki}/{name}.ext", "-out", f"{pki}/{name}.crt")  # fmt: skip

    def trust(self) -> None:
        """Have all keys, certificates and kubeconfigs."""
        pki = self.folder / "pki"
        if (self.folder / "admin.kubeconfig").exists():
            return
        pki.mkdir(parents=True, exist_ok=True)
        self._authority("ca")
        self._authority("tenants")
        (pki / "clients.crt").write_text((pki / "ca.crt").read_text() + (pki / "tenants.crt").read_text())
        first = ipaddress.IPv4Network(self.services)[1]
        own = "DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc"
        self._certificate("apiserver", "/CN=kube-apiserver", f"IP:{self.address},IP:127.0.0.1,IP:{first},{own}")
        self._certificate("kubelet", f"/O=system:nodes/CN=system:node:{NODE}", f"IP:{self.address},DNS:{NODE}")
        for name, subject in (
            ("controllers", "/CN=system:kube-controller-manager"), ("scheduler", "/CN=system:kube-scheduler"),
            ("proxy", "/CN=system:kube-proxy"), ("admin", "/O=system:masters/CN=admin"),
        ):  # fmt: skip
            self._certificate(name, subject)
        self._key("accounts")
        base.run("openssl", "ec", "-in", f"{pki}/accounts.key", "-pubout", "-out", f"{pki}/accounts.pub")
        for name in ("controllers", "scheduler", "proxy", "kubelet", "admin"):
            (self.folder / f"{name}.kubeconfig").write_text(json.dumps({
                "apiVersion": "v1", "kind": "Config", "current-context": "testbed",
                "contexts": [{"name": "testbed", "context": {"cluster": "testbed", "user": name}}],
                "clusters": [{"name": "testbed", "cluster": {"server": self.url, "certificate-authority": f"{pki}/ca.crt"}}],
                "users": [{"name": name, "user": {"client-certificate": f"{pki}/{name}.crt", "client-key": f"{pki}/{name}.key"}}],
            }, indent=1))  # fmt: skip

    # where it lives

    def holder(self) -> int:
        """Have the namespaces and return their first process, as seen from here."""
        name = f"{NAME}-holder"
        folder = self.folder
        outer = base.pid(name)
        if outer is None:
            base.run("ip", "link", "delete", LINK, check=False)
            (folder / "log").mkdir(parents=True, exist_ok=True)
            # look-ups of hosts that only clouds have must fail at once
            (folder / "resolv.conf").write_text("nameserver 127.0.0.1\n")
            ready = folder / "ready"
            ready.unlink(missing_ok=True)
            script = (
                "set -e; for d in /run /var/log/pods /var/log/containers /var/lib/cni /var/lib/kubelet; do mkdir -p $d; "
                "mount -t tmpfs t $d; done; mkdir -p /run/netns /run/lock /run/containerd; "
                'mount --bind "$1/resolv.conf" /etc/resolv.conf; mount --make-rshared /; ip link set lo up; '
                'touch "$1/ready"; exec tini -- sleep infinity'
            )
            outer = base.start(
                name, ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
                       "--propagation", "private", "--", "sh", "-c", script, "sh", str(folder)],
                folder / "log" / "holder",
            )  # fmt: skip
            base.wait(ready.exists, "the cluster's namespaces", 30, folder / "log" / "holder", name)
        children = pathlib.Path(f"/proc/{outer}/task/{outer}/children")
        base.wait(lambda: children.read_text().split(), "the cluster's first process", 10)
        return int(children.read_text().split()[0])

    def connect(self, inner: int) -> None:
        """Join the namespaces to this machine."""
        if base.run("ip", "link", "show", LINK, check=False).returncode == 0:
            return
        base.run("ip", "link", "add", LINK, "type", "veth", "peer", "name", "eth0", "netns", str(inner))
        base.run("ip", "addr", "add", f"{self.host}/30", "dev", LINK)
        base.run("ip", "link", "set", LINK, "up")
        for network in (self.pods, self.services):
            base.run("ip", "route", "replace", network, "via", self.address)
        for words in (
            ["ip", "addr", "add", f"{self.address}/30", "dev", "eth0"], ["ip", "link", "set", "eth0", "up"],
            ["ip", "route", "add", "default", "via", self.host], ["ip", "route", "add", "unreachable", "169.254.0.0/16"],
            ["sysctl", "-qw", "net.ipv4.ip_forward=1"],
        ):  # fmt: skip
            base.run(*self.enter(inner), *words)

    def enter(self, inner: int) -> list[str]:
        return ["nsenter", f"--target={inner}", "--net", "--mount", "--pid", "--"]

    # its programs

    def command(self, name: str) -> list[str]:
        """Return the command line of a program of the cluster."""
        pki, folder = self.folder / "pki", self.folder
        kubeconfigs = [
            f"--{what}kubeconfig={folder}/{name}.kubeconfig" for what in ("", "authentication-", "authorization-")
        ]
        if name == "etcd":
            client, peer = "http://127.0.0.1:2379", "http://127.0.0.1:2380"
            return ["etcd", "--name=one", f"--data-dir={folder}/etcd", f"--listen-client-urls={client}",
                    f"--advertise-client-urls={client}", f"--listen-peer-urls={peer}", f"--initial-advertise-peer-urls={peer}",
                    f"--initial-cluster=one={peer}", "--log-level=warn"]  # fmt: skip
        if name == "apiserver":
            return [
                _program("kube-apiserver"), "--etcd-servers=http://127.0.0.1:2379", f"--advertise-address={self.address}",
                "--bind-address=0.0.0.0", "--secure-port=6443", f"--tls-cert-file={pki}/apiserver.crt",
                f"--tls-private-key-file={pki}/apiserver.key", f"--client-ca-file={pki}/clients.crt",
                "--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction,PodSecurityPolicy",
                f"--service-cluster-ip-range={self.services}", "--allow-privileged=true",
                f"--service-account-issuer={RULES}", f"--service-account-key-file={pki}/accounts.pub",
                f"--service-account-signing-key-file={pki}/accounts.key",
                f"--kubelet-client-certificate={pki}/admin.crt", f"--kubelet-client-key={pki}/admin.key",
                f"--kubelet-certificate-authority={pki}/ca.crt", "--kubelet-preferred-address-types=InternalIP",
                f"--requestheader-client-ca-file={pki}/ca.crt", "--requestheader-allowed-names=front-proxy", "--profiling=false",
            ]  # fmt: skip
        if name == "controllers":
            return [
                _program("kube-controller-manager"), *kubeconfigs, f"--service-account-private-key-file={pki}/accounts.key",
                f"--root-ca-file={pki}/ca.crt", f"--cluster-signing-cert-file={pki}/ca.crt",
                f"--cluster-signing-key-file={pki}/ca.key", "--use-service-account-credentials=true", "--leader-elect=false",
                "--kube-api-qps=500", "--kube-api-burst=1000", "--port=0",
            ]  # fmt: skip
        if name == "scheduler":
            return [_program("kube-scheduler"), *kubeconfigs, "--leader-elect=false", "--kube-api-qps=500",
                    "--kube-api-burst=1000", "--port=0"]  # fmt: skip
        if name == "proxy":
            return [_program("kube-proxy"), f"--kubeconfig={folder}/proxy.kubeconfig", "--proxy-mode=iptables",
                    f"--cluster-cidr={self.pods}", f"--hostname-override={NODE}", "--conntrack-max-per-core=0",
                    "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
                    "--healthz-bind-address=127.0.0.1:10256", "--metrics-bind-address=127.0.0.1:10249"]  # fmt: skip
        if name == "containerd":
            return ["containerd", "--config", f"{folder}/containerd.toml"]
        if name == "dns":
            return ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--user=root",
                    "--pid-file=", "--log-facility=-", f"--hostsdir={folder}/names", "--local=/cluster.local/",
                    "--bind-interfaces", f"--listen-address={self.address}"]  # fmt: skip
        if name == "names":
            # dnsmasq takes up each new file by itself
            columns = "custom-columns=N:.metadata.namespace,S:.metadata.name,A:.spec.clusterIP"
            script = (
                f"while :; do kubectl --kubeconfig={folder}/admin.kubeconfig get services -A --watch --no-headers -o {columns} | "
                f'while read n s a; do [ "$a" = None ] || echo "$a $s.$n.svc.cluster.local" > {folder}/names/$n.$s; done; '
                "sleep 0.2; done"
            )
            return ["sh", "-c", script]
        return [_program("kubelet"), f"--config={folder}/kubelet.json", f"--kubeconfig={folder}/kubelet.kubeconfig",
                f"--root-dir={folder}/kubelet", f"--cert-dir={pki}", f"--hostname-override={NODE}", f"--node-ip={self.address}",
                "--register-node=true", "--container-runtime=remote", f"--container-runtime-endpoint=unix://{RUNTIME}"]  # fmt: skip

    def start(self, name: str, inner: int) -> None:
        """Start a program unless it runs."""
        if base.pid(f"{NAME}-{name}") is None:
            # nsenter forks to enter the process namespace and waits: ending it would leave the program, so exec'd by a shell
            argv = " ".join(shlex.quote(word) for word in self.command(name))
            script = f"echo $$ > {shlex.quote(str(self.folder / 'run' / name))}; exec {argv}"
            (self.folder / "run").mkdir(exist_ok=True)
            base.start(f"{NAME}-{name}", [*self.enter(inner), "sh", "-c", script], self.folder / "log" / name)

    def kill(self, name: str, inner: int, number: int = signal.SIGKILL) -> None:
        """End a program of the cluster and wait until it is gone."""
        own = (self.folder / "run" / name).read_text().strip()
        base.run(*self.enter(inner), "kill", f"-{int(number)}", own, check=False)
        end = time.monotonic() + 30
        while base.pid(f"{NAME}-{name}") and time.monotonic() < end:
            time.sleep(0.02)

    def configure(self) -> None:
        """Write what containerd, the kubelet and the network plugin read."""
        folder = self.folder
        for each in ("cni", "names", "plugins"):
            (folder / each).mkdir(parents=True, exist_ok=True)
        for program in pathlib.Path("/usr/lib/cni").iterdir():
            with contextlib.suppress(FileExistsError):
                (folder / "plugins" / program.name).symlink_to(program)
        (folder / "cni" / "10-testbed.conflist").write_text(json.dumps({
            "cniVersion": "0.4.0", "name": "testbed", "plugins": [
                {"type": "bridge", "bridge": "pods0", "isGateway": True, "ipMasq": True, "hairpinMode": True, "ipam": {
                    "type": "host-local", "dataDir": f"{folder}/cni/addresses", "ranges": [[{"subnet": self.pods}]],
                    "routes": [{"dst": "0.0.0.0/0"}]}},
                {"type": "portmap", "capabilities": {"portMappings": True}},
            ],
        }))  # fmt: skip
        # restrict_oom_score_adj: the root of a container or of some machines may not lower a process's score
        (folder / "containerd.toml").write_text(f"""
version = 2
root = "{folder}/containerd"
state = "/run/containerd/state"
[grpc]
  address = "{RUNTIME}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "docker.io/library/{images.PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{folder}/plugins"
    conf_dir = "{folder}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
""")
        (folder / "kubelet.json").write_text(json.dumps({
            "kind": "KubeletConfiguration", "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "authentication": {"x509": {"clientCAFile": f"{folder}/pki/ca.crt"}, "webhook": {"enabled": True},
                               "anonymous": {"enabled": False}},
            "authorization": {"mode": "Webhook"}, "tlsCertFile": f"{folder}/pki/kubelet.crt",
            "tlsPrivateKeyFile": f"{folder}/pki/kubelet.key", "cgroupDriver": "cgroupfs", "cgroupRoot": f"/{CGROUP}",
            "failSwapOn": False, "resolvConf": "/etc/resolv.conf", "imageGCHighThresholdPercent": 100, "hairpinMode": "none",
            "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "syncFrequency": "5s", "volumeStatsAggPeriod": "0s", "nodeStatusUpdateFrequency": "1s", "registryPullQPS": 0,
            "kubeAPIQPS": 100, "kubeAPIBurst": 200, "maxPods": 250,
            "clusterDNS": [self.address], "clusterDomain": "cluster.local",
        }))  # fmt: skip
        for top in _controllers():
            (top / CGROUP).mkdir(exist_ok=True)
            if top.name == "cpuset" or (top / "cpuset.cpus").exists():
                for each in ("cpuset.cpus", "cpuset.mems"):
                    with contextlib.suppress(OSError):
                        (top / CGROUP / each).write_text((top / each).read_text())

    def works(self, name: str, inner: int) -> bool:
        """Say whether a program does its work, of those that others cannot start without."""
        # a kubelet ends if its runtime is away while it starts, and nobody here would start it again
        asked = {
            "containerd": ["ctr", "-a", RUNTIME, "version"],
            "kubelet": ["curl", "-fsS", "-m", "5", "http://127.0.0.1:10248/healthz"],
        }.get(name)
        return asked is None or base.run(*self.enter(inner), *asked, check=False).returncode == 0

    def kubectl(self, *words: str, data: bytes | None = None, check: bool = True) -> str:
        return base.run(
            "kubectl", f"--kubeconfig={self.folder}/admin.kubeconfig", *words, data=data, check=check
        ).stdout

    def healthy(self) -> bool:
        return all(base.pid(f"{NAME}-{name}") for name in PROGRAMS) and (
            self.kubectl("get", "--raw", "/readyz", check=False) == "ok"
        )


POLICIES = {
    "apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "policy/v1beta1", "kind": "PodSecurityPolicy", "metadata": {"name": "operators"}, "spec": {
            "privileged": True, "allowPrivilegeEscalation": True, "allowedCapabilities": ["*"], "volumes": ["*"],
            "hostNetwork": True, "hostPID": True, "hostIPC": True, "hostPorts": [{"min": 0, "max": 65535}],
            **{key: {"rule": "RunAsAny"} for key in ("runAsUser", "seLinux", "supplementalGroups", "fsGroup")}}},
        {"apiVersion": "policy/v1beta1", "kind": "PodSecurityPolicy", "metadata": {"name": "workloads"}, "spec": {
            "privileged": False, "allowPrivilegeEscalation": True,
            "volumes": ["configMap", "emptyDir", "projected", "secret", "downwardAPI", "persistentVolumeClaim"],
            **{key: {"rule": "RunAsAny"} for key in ("runAsUser", "seLinux", "supplementalGroups", "fsGroup")}}},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRole", "metadata": {"name": "workloads"}, "rules": [
            {"apiGroups": ["policy"], "resources": ["podsecuritypolicies"], "resourceNames": ["workloads"], "verbs": ["use"]}]},
        {"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "workloads"},
         "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "workloads"},
         "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": name}
                      for name in ("system:authenticated",)]},
    ],
}  # fmt: skip
"""What an operator of a cluster this old has in place of Pod Security admission: everyone but they makes plain pods."""


def _controllers() -> list[pathlib.Path]:
    """Return where a cgroup of the cluster is to be: each controller's tree, or the one of the unified hierarchy."""
    top = pathlib.Path("/sys/fs/cgroup")
    if (top / "cgroup.controllers").exists():
        return [top]
    return [
        path for path in top.iterdir() if path.is_dir() and not path.is_symlink() and (path / "cgroup.procs").exists()
    ]


def _cluster() -> Cluster:
    with contextlib.suppress(base.Failed):
        return Cluster(base.facts(NAME)["number"])
    routes = base.run("ip", "-4", "route").stdout
    for turn in range(256):
        number = (int(base.TAG, 16) + turn) % 256
        if not any(f"10.{second}.{number}." in routes for second in (214, 215, 216)):
            return Cluster(number)
    raise base.Failed("every 10.214.x.0 is in use on this machine")


def up(hosts: int = 0) -> None:
    """Have the cluster up, its node ready and the images there. Raises Failed."""
    with contextlib.suppress(base.Failed):
        if Cluster(base.facts(NAME)["number"]).healthy():
            return
    if os.geteuid():
        raise base.Failed("a cluster needs root")
    with base.lock(pathlib.Path("/tmp/magnum-testbed-net.lock")):
        cluster = _cluster()
        cluster.folder.mkdir(parents=True, exist_ok=True)
        cluster.trust()
        inner = cluster.holder()
        cluster.connect(inner)
    cluster.configure()
    for name in ("etcd", "containerd", "apiserver"):
        cluster.start(name, inner)
    log = cluster.folder / "log"
    base.wait(lambda: cluster.kubectl("get", "--raw", "/readyz", check=False) == "ok", "the API server", 90,
              log / "apiserver", f"{NAME}-apiserver")  # fmt: skip
    for name in ("controllers", "scheduler", "proxy", "kubelet", "dns", "names"):
        cluster.start(name, inner)
    cluster.kubectl("apply", "-f", "-", data=json.dumps(POLICIES).encode())
    ctr = [*cluster.enter(inner), "ctr", "-a", RUNTIME, "-n", "k8s.io"]
    base.wait(lambda: cluster.works("containerd", inner), "containerd", 30, log / "containerd", f"{NAME}-containerd")
    have = base.run(*ctr, "images", "ls", "-q").stdout
    if images.DEMO not in have or images.PAUSE not in have:
        archive = cluster.folder / "images.tar"
        archive.write_bytes(images.archive())
        base.run(*ctr, "images", "import", str(archive))
        archive.unlink()
    ready = '{.status.conditions[?(@.type=="Ready")].status}'
    base.wait(lambda: cluster.kubectl("get", "node", NODE, "-o", f"jsonpath={ready}", check=False) == "True",
              "the node", 90, log / "kubelet", f"{NAME}-kubelet")  # fmt: skip
    base.wait(lambda: cluster.kubectl("-n", "default", "get", "serviceaccount", "default", "-o", "name", check=False),
              "the controllers", 60, log / "controllers", f"{NAME}-controllers")  # fmt: skip
    version = json.loads(cluster.kubectl("get", "--raw", "/version"))["gitVersion"]
    base.write_facts(NAME, {
        "number": cluster.number, "kubeconfig": f"{cluster.folder}/admin.kubeconfig", "url": cluster.url,
        "folder": str(cluster.folder), "enter": cluster.enter(inner), "pods": cluster.pods, "services": cluster.services,
        "version": version, "node": NODE, "address": cluster.address, "inner": inner,
        "tenants_ca": f"{cluster.folder}/pki/tenants.crt", "tenants_ca_key": f"{cluster.folder}/pki/tenants.key",
    })  # fmt: skip


def load(archive: bytes) -> None:
    """Have the images of an archive (as ``docker save`` writes it) in the node."""
    facts = base.facts(NAME)
    path = pathlib.Path(facts["folder"]) / "more-images.tar"
    path.write_bytes(archive)
    base.run(*facts["enter"], "ctr", "-a", RUNTIME, "-n", "k8s.io", "images", "import", str(path))
    path.unlink()


def plugin(program: pathlib.Path | None, **options: Any) -> None:
    """Have pods' networks made by ``program``, with the node's own plugin as its delegate; None: by that again."""
    folder = pathlib.Path(base.facts(NAME)["folder"])
    own = json.loads((folder / "cni" / "10-testbed.conflist").read_text())
    mine = folder / "cni" / "00-another.conflist"
    if program is None:
        mine.unlink(missing_ok=True)
        return
    link = folder / "plugins" / program.name
    link.unlink(missing_ok=True)
    link.symlink_to(program)
    bridge, *rest = own["plugins"]
    # the same name: what one of the two made, the other can take away; containerd looks when a file is written to
    mine.write_text(json.dumps({
        "cniVersion": "1.0.0", "name": own["name"], "plugins": [{"type": program.name, **options, "delegate": bridge}, *rest],
    }))  # fmt: skip


def kill(name: str) -> None:
    """End one of ``PROGRAMS`` as a crash would."""
    facts = base.facts(NAME)
    Cluster(facts["number"]).kill(name, facts["inner"])


def restart(name: str) -> None:
    """Start a program that was ended, and return once it works. Raises Failed."""
    facts = base.facts(NAME)
    cluster = Cluster(facts["number"])
    cluster.start(name, facts["inner"])
    log = cluster.folder / "log" / name
    base.wait(lambda: cluster.works(name, facts["inner"]), name, 90, log, f"{NAME}-{name}")


def status() -> str:
    with contextlib.suppress(base.Failed):
        return "up" if Cluster(base.facts(NAME)["number"]).healthy() else "down"
    return "down"


def _groups() -> list[pathlib.Path]:
    """Return the cluster's cgroups, the inner ones first."""
    return [pathlib.Path(where) for top in _controllers() for where, _, _ in os.walk(top / CGROUP, topdown=False)]


def down() -> None:
    """End the cluster and remove what it had. Raises Failed if data cannot be removed."""
    folder: Any = base.FOLDER / NAME
    if shutil.which("ip", path=base.search_path()):
        base.run("ip", "link", "delete", LINK, check=False)
    base.stop(f"{NAME}-holder", 0, signal.SIGKILL)
    for name in PROGRAMS:
        base.stop(f"{NAME}-{name}", 5, signal.SIGKILL)
    end = time.monotonic() + 10
    while (left := [group for group in _groups() if group.exists()]) and time.monotonic() < end:
        for group in left:
            with contextlib.suppress(OSError):
                group.rmdir()
        time.sleep(0.05)
    base.drop(NAME)
    if folder.exists():
        raise base.Failed(f"{folder} could not be removed wholly")
