"""Programs of Magnum as processes: started, asked, killed and started again. Used by the live tests."""

import contextlib
import http.client
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request

from prometheus_client import parser

from testbed import base, images, postgresql, rabbitmq
from tests import commands

SECONDS = 90.0
TENANTS_SECRET = "what-a-tenant-tells-its-container"
"""A value of an environment that no log may have."""
BIN = pathlib.Path(sys.executable).parent


def until(what, seconds=SECONDS):
    """Return the first true answer of ``what``; what it raises of the network is no answer."""
    end = time.monotonic() + seconds
    found = None
    while not found:
        assert time.monotonic() < end, f"not within {seconds} s: {found!r}"
        with contextlib.suppress(OSError):
            found = what()
        if not found:
            time.sleep(0.1)
    return found


def keystone_authtoken(front=None):
    """Return the options by which Magnum itself asks Keystone: the test bed's own, or a ``front`` of it."""
    facts = base.facts("keystone")
    user, url = facts["users"]["magnum"], front.url if front else facts["url"]
    return {
        "www_authenticate_uri": url, "auth_url": url, "auth_type": "password", "username": "magnum",
        "password": user["password"], "user_domain_name": user["domain"], "project_name": user["project"],
        "project_domain_name": user["domain"], "region_name": front.region if front else "RegionOne",
    }  # fmt: skip


def neutron_options(**more):
    """Return (options of all, options by the test bed's name of a host) with which backends work with its Neutron.

    ``more``: further options of ``[neutron]``.
    """
    facts = base.facts("keystone")
    user = facts["users"]["magnum-networks"]
    options = {
        "auth_type": "password", "auth_url": facts["url"], "username": "magnum-networks", "password": user["password"],
        "user_domain_name": user["domain"], "project_name": user["project"], "project_domain_name": user["domain"],
        "region_name": "RegionOne", **more,
    }  # fmt: skip
    hosts = base.facts("neutron")["hosts"]
    each = {
        name: {"neutron": {"agent_host": name, "ovsdb_connection": known["ovsdb"]}} for name, known in hosts.items()
    }
    with contextlib.suppress(base.Failed):
        cluster = base.facts("kubernetes")
        # a backend of the node is there; this one is not
        each[cluster["node"]]["neutron"]["network_namespace"] = f"/proc/{cluster['inner']}/ns/net"
        each[cluster["node"]]["kubernetes"] = {"service_cidr": cluster["services"]}
    doors = {"door_image": images.PAUSE, "door_command": ",".join(images.PAUSE_COMMAND)}
    return {"neutron": options, "kubernetes": doors}, each


def ask(port, method, path, headers, body=None):
    """Return (status, headers, decoded body) of an api's answer; of what is no JSON, or a stream, the head alone."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    data = None if body is None else json.dumps(body)
    connection.request(method, path, data, {"Content-Type": "application/json", **headers})
    answer = connection.getresponse()
    kind = answer.headers.get("Content-Type") or ""
    raw = b"" if answer.status == 101 or "event-stream" in kind else answer.read()
    answer.close()
    connection.close()
    return answer.status, answer.headers, json.loads(raw) if raw and kind.startswith("application/json") else None


class Deployment:
    """An api, a conductor and a backend a host, over RabbitMQ and PostgreSQL, with names that nobody else has."""

    headers = dict
    """Called for those of a request that brings none."""
    max_body = 2**20
    """Bytes, as configured by default."""

    def __init__(self, name, folder, hosts, more=None, headers=dict, keepers=0, each=None, own_users=False):
        """``more``: group → option → value, over the usual ones; ``headers`` is called for those of every request.

        ``each``: the test bed's name of a host → options of its backend, likewise.

        ``own_users``: backends have a user each at the broker.

        ``keepers``: backends that have the test bed's cluster and no engine of their own. The first is the
        backend of the cluster's node, with the options of that.
        """
        self.name = name
        self.headers = headers
        self.folder = folder
        self.hosts = {f"{name}-{host.name}": host for host in hosts}
        self.keepers = [f"{name}-keeper{number}" for number in range(1, keepers + 1)]
        self.processes = {}
        self.host_urls = {}
        self.port, *ports = base.free_ports(2 + len(self.hosts) + len(self.keepers))
        self.url = f"http://127.0.0.1:{self.port}"
        self.metrics_ports = dict(zip(["conductor", *self.hosts, *self.keepers], ports, strict=True))
        settings = {
            "DEFAULT": {"transport_url": rabbitmq.vhost(name), "deployment": name, "host": name,
                        "state_dir": folder / "state", "metrics_port": self.metrics_ports["conductor"]},
            "database": {"connection": postgresql.database(name)},
            "api": {"port": self.port, "auth_strategy": "noauth"},
            "backend": {"beat_interval": 0.5, "down_after": 6},
            "conductor": {"host_grace": 3},
            "docker": {
                "pause_image": images.PAUSE, "pause_command": ",".join(images.PAUSE_COMMAND), "restart_backoff": 0.5,
                "swarm_managers": ",".join(host.address for host in hosts), "swarm_token_file": folder / "swarm-tokens",
            },
        }  # fmt: skip
        for group, options in (more or {}).items():
            settings.setdefault(group, {}).update(options)
        self.settings = settings
        self._write("magnum.conf", settings)
        for host_name, host in self.hosts.items():
            more = {"DEFAULT": {"host": host_name, "state_dir": folder / host_name,
                                "metrics_port": self.metrics_ports[host_name]}, "docker": {"url": host.url},
                    "backend": {"address": host.address}}  # fmt: skip
            if own_users:
                self.host_urls[host_name] = more["DEFAULT"]["transport_url"] = rabbitmq.host_user(host_name, name)
            for group, options in (each or {}).get(host.name, {}).items():
                more.setdefault(group, {}).update(options)
            self._write(f"{host_name}.conf", more)
        for keeper in self.keepers:
            facts = base.facts("kubernetes")
            options = {
                "DEFAULT": {"host": keeper, "state_dir": folder / keeper, "metrics_port": self.metrics_ports[keeper]},
                "backend": {"engines": "kubernetes"},
                "kubernetes": {"clusters": f"main:{facts['kubeconfig']}", "client_ca": f"main:{facts['tenants_ca']}",
                               "client_ca_key": f"main:{facts['tenants_ca_key']}"},
            }  # fmt: skip
            for group, more in (each or {}).get(facts["node"], {}).items() if keeper == self.keepers[0] else ():
                options.setdefault(group, {}).update(more)
            self._write(f"{keeper}.conf", options)
        done = self.manage("db", "upgrade")
        assert done.returncode == 0, done.stderr

    def _write(self, name, settings):
        lines = []
        for group, options in settings.items():
            lines += [f"[{group}]", *(f"{key} = {value}" for key, value in options.items())]
        (self.folder / name).write_text("\n".join(lines) + "\n")

    def manage(self, *words, env=None):
        argv = [str(BIN / "magnum-manage"), "--config-file", str(self.folder / "magnum.conf"), *words]
        return subprocess.run(argv, env=env, capture_output=True, text=True)

    @property
    def programs(self):
        return ["conductor", "api", *self.hosts, *self.keepers]

    def words(self, name):
        """Return the words before the command that starts a program: where it is to run."""
        return []

    def environment(self, name):
        """Return what the environment of a program has beside this process' own."""
        return {}

    def start(self, *names, crash_at=""):
        """Start programs (all by default): ``conductor``, ``api``, or a host's name for its backend."""
        for name in names or self.programs:
            binary = name if name in ("conductor", "api") else "backend"
            argv = [*self.words(name), str(BIN / f"magnum-{binary}"), "--config-file", str(self.folder / "magnum.conf")]
            if binary == "backend":
                argv += ["--config-file", str(self.folder / f"{name}.conf")]
            env = os.environ | self.environment(name) | ({"MAGNUM_CRASH_AT": crash_at} if crash_at else {})
            with open(self.folder / f"{name}.log", "ab") as out:
                self.processes[name] = subprocess.Popen(argv, stdout=out, stderr=out, env=env)

    def ready(self):
        """Return once every host is up and requests are served."""
        until(lambda: self.request("GET", "/healthcheck")[0] == 200)
        until(lambda: {h["name"] for h in self.request("GET", "/v1/hosts")[1]["hosts"] if h["status"] == "up"}
              >= {*self.hosts, *self.keepers})  # fmt: skip

    def kill(self, name, number=signal.SIGKILL):
        """End a program; return its exit code."""
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(60)

    def died(self, name):
        """Wait for a program to die by itself."""
        assert self.processes[name].wait(SECONDS) == -signal.SIGKILL
        del self.processes[name]

    def must_not_tell(self, secrets=()):
        """Raise AssertionError if any log has one of ``secrets``, a password of the configuration or a tenant's secret."""
        urls = (
            self.settings["DEFAULT"]["transport_url"], self.settings["database"]["connection"], *self.host_urls.values()
        )  # fmt: skip
        passwords = [found for url in urls if (found := urllib.parse.urlsplit(url).password)]
        assert passwords
        secrets = {*secrets, *passwords, TENANTS_SECRET}
        logs = sorted(self.folder.rglob("*.log"))
        assert logs
        for log in logs:
            text = log.read_text(errors="replace")
            told = [word for word in secrets if word in text]
            assert not told, f"{log} tells {len(told)} secrets, the first {told[0][:6]}…"

    def stop(self):
        """End all programs in the order that lets each finish; return their exit codes."""
        return {name: self.kill(name, signal.SIGTERM) for name in ["api", *self.hosts, *self.keepers, "conductor"]
                if name in self.processes}  # fmt: skip

    def request(self, method, path, body=None, headers=None, timeout=90):
        """Return (status, decoded body). Raises OSError if the api is away or dies."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            f"{self.url}{path}", data,
            {"Content-Type": "application/json", **(self.headers() if headers is None else headers)}, method=method,
        )  # fmt: skip
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                raw, status = answer.read(), answer.status
        except urllib.error.HTTPError as error:
            raw, status = error.read(), error.code
        return status, json.loads(raw) if raw else None

    def metrics(self, name):
        """Return what a program tells Prometheus: (name, labels as a frozenset of pairs) → value."""
        url = f"{self.url}/metrics" if name == "api" else f"http://127.0.0.1:{self.metrics_ports[name]}/metrics"
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read().decode()
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in parser.text_string_to_metric_families(text) for sample in family.samples
        }  # fmt: skip

    def at(self, port):
        """Return ``request`` for an api on another port."""
        other = Deployment.__new__(Deployment)
        other.url = f"http://127.0.0.1:{port}"
        other.headers = self.headers
        return other.request

    @contextlib.contextmanager
    def _another(self, binary, name, settings, answers, *words):
        """Give the process of one more program, with ``settings`` over the usual ones, once ``answers()`` is true."""
        self._write(f"{name}.conf", settings)
        files = [w for each in ("magnum", name) for w in ("--config-file", self.folder / f"{each}.conf")]
        with open(self.folder / f"{name}.log", "ab") as out:
            process = subprocess.Popen([str(BIN / binary), *files, *words], stdout=out, stderr=out)
        try:
            until(answers)
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0

    @contextlib.contextmanager
    def another_api(self, name, more, *words):
        """Give (port, process) of one more api, which answers, with ``more`` settings: group → option → value."""
        (port,) = base.free_ports(1)
        settings = {group: dict(options) for group, options in more.items()}
        settings.setdefault("api", {})["port"] = port
        answers = self.at(port)
        with self._another("magnum-api", name, settings, lambda: answers("GET", "/healthcheck")[0], *words) as process:
            yield port, process

    def another_conductor(self):
        """Return a context that gives the process of one more conductor, which has beaten by then."""
        name = f"{self.name}-second"

        def beats():
            programs = self.request("GET", "/v1/mservices")[1]["mservices"]
            return any(p["host"] == name and p["state"] == "up" for p in programs)

        return self._another("magnum-conductor", name, {"DEFAULT": {"host": name, "metrics_port": 0}}, beats)

    def environ(self, project="default"):
        """Return what the command lines need in their environment."""
        return os.environ | {
            "OS_AUTH_URL": f"{self.url}/identity/v3", "OS_USERNAME": "admin", "OS_PASSWORD": "any",
            "OS_PROJECT_NAME": project, "OS_TENANT_NAME": project, "OS_USER_DOMAIN_ID": "default",
            "OS_PROJECT_DOMAIN_ID": "default",
        }  # fmt: skip

    def client(self, *words, project="default"):
        """Return what the unmodified python-magnumclient printed."""
        done = commands.magnum()(*words, env=self.environ(project))
        return done.stdout + done.stderr

    def engine_objects(self, uuid, what="container"):
        """Return how many engine objects on all hosts bear an object's uuid."""
        count = 0
        for host in self.hosts.values():
            argv = ["docker", "-H", host.url, what, "ls", "-q", "--filter", f"label=org.openstack.magnum.uuid={uuid}"]
            argv += ["-a"] if what == "container" else []
            count += len(subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split())
        return count
