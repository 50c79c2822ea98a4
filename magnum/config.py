"""Every option of Magnum, in one place, with units.

Read by ``cmd``, which hands the loaded configuration to whoever needs it:
nothing here is global. ``magnum-manage sample config`` writes the sample,
``docs/`` renders the reference from the same lists.
"""

import os
import socket
from typing import Any

from oslo_config import cfg

DEFAULT_OPTS: list[cfg.Opt] = [
    cfg.StrOpt("transport_url", default="amqp://guest:guest@127.0.0.1:5672/", secret=True,
               help="RabbitMQ: amqp://user:password@host:port[,host2:port2]/vhost (amqps:// for TLS). "
               "local:// joins programs within one process and is what magnum-standalone uses."),
    cfg.StrOpt("host_user", default="", regex=r"^$|^[^{}]+\{host\}[^{}]*$",
               help="The broker's users that backends have, one each, with {host} for the host's name: magnum-host-{host}. "
               "Conductors then take what is said of a host from its own user alone, and backends nothing from each other. "
               "Same on conductors and backends; empty: all programs share a user."),
    cfg.StrOpt("host", default=socket.gethostname(), sample_default="this machine's host name",
               help="Name of this machine in Magnum; must be unique among backends and must not change."),
    cfg.StrOpt("deployment", default="default", regex=r"^[a-z0-9][a-z0-9-]{0,62}$",
               help="Name of this installation. Engine objects bear it as a label; those of another are never touched."),
    cfg.StrOpt("state_dir", default="/var/lib/magnum", help="Folder for what a program keeps on its machine."),
    cfg.BoolOpt("debug", default=False, help="Log at DEBUG."),
    cfg.BoolOpt("log_json", default=False, help="Log lines as JSON objects instead of text."),
    cfg.PortOpt("metrics_port", default=0, min=0,
                help="Port at which the conductor or a backend answers Prometheus; 0: none. The api's are at its /metrics."),
    cfg.HostAddressOpt("metrics_host", default="127.0.0.1", help="Address for that."),
    cfg.StrOpt("log_file", help="File to log to instead of standard error."),
]  # fmt: skip

API_OPTS: list[cfg.Opt] = [
    cfg.HostAddressOpt("host", default="127.0.0.1", help="Address to listen on."),
    cfg.PortOpt("port", default=9511, help="Port to listen on."),
    cfg.IntOpt("workers", default=1, min=1, help="Processes that serve the port."),
    cfg.StrOpt("public_url", help="URL that clients reach this api by; links in answers start with it. "
               "By default the request's own Host header."),
    cfg.StrOpt("auth_strategy", default="keystone", choices=["keystone", "noauth"],
               help="Who says who asks. noauth believes the X-Project-Id, X-User-Id and X-Roles headers."),
    cfg.FloatOpt("token_recheck", default=60.0, min=0,
                 help="Seconds after which Keystone is asked again about a known token; a revoked one counts so long."),
    cfg.ListOpt("allowed_domains", default=[],
                help="Ids of the domains whose users and projects are served; empty: all that Keystone knows."),
    cfg.BoolOpt("allow_noauth_anywhere", default=False,
                help="Let noauth listen on other addresses than loopback. Whoever reaches the port is then an admin."),
    cfg.FloatOpt("wait", default=10.0, min=0, help="Seconds to wait for an engine before a change is answered with 202."),
    cfg.FloatOpt("call_timeout", default=60.0, min=1, help="Seconds that a request may take in all."),
    cfg.IntOpt("max_limit", default=1000, min=1, help="Objects on a page of a list at most, and by default."),
    cfg.IntOpt("max_body", default=1024 * 1024, min=1024, help="Bytes of a request's body at most."),
    cfg.FloatOpt("body_timeout", default=30.0, min=0.1, help="Seconds for a request's body to arrive."),
    cfg.IntOpt("max_depth", default=64, min=8, help="Levels of nesting in a request's body at most."),
    cfg.IntOpt("max_requests", default=1000, min=1,
               help="Requests that a process serves at once; above it is 503. Streams are counted apart."),
    cfg.IntOpt("max_project_requests", default=200, min=1,
               help="Requests of one project that a process serves at once; above it is 429."),
    cfg.FloatOpt("max_project_rate", default=0, min=0,
                 help="Requests a second of one project that a process takes, in bursts of up to a second's worth; above it is "
                 "429. 0: as many as come."),
    cfg.IntOpt("max_calls", default=8, min=1,
               help="Calls of the conductor that a process has in hand at once; the projects whose requests wait take turns."),
    cfg.IntOpt("max_project_calls", default=1, min=1,
               help="Of these, how many one project has at most while others ask, too: many at once of one slow down everyone's."),
    cfg.IntOpt("max_streams", default=1000, min=1, help="Open event, log and WebSocket streams of a process at most."),
    cfg.HostAddressOpt("stream_host", default="127.0.0.1",
                       help="Address that backends dial for logs, attach and exec; a backend must reach it."),
    cfg.PortOpt("stream_port", default=0, min=0,
                help="Port for that, plus the worker's number; 0 takes any free one."),
    cfg.StrOpt("stream_cert", help="Certificate file (PEM) for TLS on the stream port."),
    cfg.StrOpt("stream_key", help="Its key file (PEM)."),
    cfg.ListOpt("allowed_origins", default=[],
                help="Origins from which a browser may open a WebSocket, beside the api's own."),
    cfg.BoolOpt("manifest_url_private", default=False,
                help="Let manifest_url reach loopback, link-local and private addresses."),
]  # fmt: skip

CONDUCTOR_OPTS: list[cfg.Opt] = [
    cfg.FloatOpt("host_grace", default=30.0, min=0,
                 help="Seconds that a host may be down before replication controllers replace its pods."),
    cfg.FloatOpt("sweep_interval", default=1.0, min=0.1,
                 help="Seconds between looks for hosts gone down and operations past their deadline."),
    cfg.FloatOpt("operation_timeout", default=600.0, min=1,
                 help="Seconds after which an unfinished change is given up and its object says so."),
    cfg.IntOpt("log_days", default=90, min=1, help="Days that rows of the log are kept."),
    cfg.IntOpt("prefetch", default=64, min=1, help="Calls in hand at most."),
]  # fmt: skip

BACKEND_OPTS: list[cfg.Opt] = [
    cfg.ListOpt("engines", default=["docker"], help="Engines of this machine, by the names of their entry points (magnum.engines)."),
    cfg.DictOpt("labels", default={}, help="Labels of this host (zone:a,disk:ssd) that bay models may ask for."),
    cfg.StrOpt("address", help="Address at which other hosts of a bay reach this one. By default that of the route out."),
    cfg.FloatOpt("beat_interval", default=2.0, min=0.1, help="Seconds between two signs of life."),
    cfg.FloatOpt("down_after", default=10.0, min=0.5,
                 help="Seconds without a sign of life after which a host is down. Same on conductor and backends."),
    cfg.FloatOpt("resync_interval", default=60.0, min=1,
                 help="Seconds between two whole comparisons of what is wanted with what the engine has."),
    cfg.IntOpt("concurrency", default=16, min=1, help="Objects worked on at the same time."),
    cfg.IntOpt("prefetch", default=64, min=1, help="Calls in hand at most."),
    cfg.StrOpt("stream_ca", help="CA file (PEM) by which the api's stream port is known, if it has TLS."),
]  # fmt: skip

DATABASE_OPTS: list[cfg.Opt] = [
    cfg.StrOpt("connection", default="sqlite:////var/lib/magnum/magnum.sqlite", secret=True,
               help="postgresql://user:password@host/name, mysql://user:password@host/name or sqlite:///path. "
               "Magnum adds the asynchronous driver itself."),
    cfg.IntOpt("pool_size", default=10, min=1, help="Connections kept open."),
    cfg.IntOpt("max_overflow", default=20, min=0, help="Connections opened beyond them under load."),
]  # fmt: skip

DOCKER_OPTS: list[cfg.Opt] = [
    cfg.StrOpt("url", default="unix:///var/run/docker.sock",
               help="Where the Docker Engine answers: unix:///path or tcp://host:port (mutual TLS needed)."),
    cfg.StrOpt("tls_ca", help="CA file (PEM) that the engine's certificate is checked by."),
    cfg.StrOpt("tls_cert", help="Client certificate file (PEM)."),
    cfg.StrOpt("tls_key", help="Client key file (PEM)."),
    cfg.FloatOpt("timeout", default=60.0, min=1, help="Seconds for an answer of the engine (pulls and streams aside)."),
    cfg.FloatOpt("pull_timeout", default=600.0, min=1, help="Seconds for an image pull."),
    cfg.DictOpt("registry_auth", default={}, secret=True,
                help="registry:user/password pairs for pulls, comma separated."),
    cfg.IntOpt("default_pids", default=4096, min=1, help="Processes of a container that asks for no limit."),
    cfg.StrOpt("default_memory", default="1g", help="Memory of a container that asks for no limit (b, k, m, g; 0: none)."),
    cfg.ListOpt("drop_capabilities", default=["NET_RAW", "MKNOD", "AUDIT_WRITE", "SYS_CHROOT", "SETFCAP"],
                help="Capabilities that a tenant's containers do not have, of Docker's default set."),
    cfg.StrOpt("pause_image", default="registry.k8s.io/pause:3.10", help="Image of a pod's sandbox container."),
    cfg.ListOpt("pause_command", default=[], help="Its command, if the image's own is not wanted."),
    cfg.FloatOpt("restart_backoff", default=10.0, min=0.1,
                 help="Seconds before the second new run of a pod's container that ended; doubled with each."),
    cfg.FloatOpt("restart_backoff_max", default=300.0, min=0.1, help="The most that this wait grows to, in seconds."),
    cfg.StrOpt("bay_cidr", default="10.96.0.0/12",
               help="Addresses that bays' networks are cut from, one bridge network a bay and host."),
    cfg.IntOpt("bay_prefix", default=24, min=16, max=29, help="Prefix length of a bay's network on one host."),
    cfg.StrOpt("service_cidr", default="172.30.0.0/16", help="Addresses for the virtual IPs of services."),
    cfg.ListOpt("swarm_managers", default=[],
                help="Hosts (address or address:port) that manage the swarm which bays on several hosts need; the first "
                "forms it. Empty: the operator does."),
    cfg.StrOpt("swarm_token_file",
               help="File with the swarm's join tokens (lines 'worker TOKEN', 'manager TOKEN'), written by the first "
               "manager where there is none."),
    cfg.StrOpt("node_port_range", default="30000-32767", help="Ports of hosts that NodePort services may take."),
    cfg.HostAddressOpt("publish_ip", default="0.0.0.0", help="Address of the host at which containers' ports are published."),
]  # fmt: skip

KUBERNETES_OPTS: list[cfg.Opt] = [
    cfg.DictOpt("clusters", default={},
                help="Clusters that bays are slices of: name:kubeconfig, comma separated. A name means the same cluster on "
                "every host; hosts with the same cluster keep its bays for each other."),
    cfg.FloatOpt("timeout", default=30.0, min=1, help="Seconds for an answer of an API server (watches and streams aside)."),
    cfg.StrOpt("pod_security", default="baseline", choices=["privileged", "baseline", "restricted"],
               help="Level of Pod Security admission that bays' namespaces ask for."),
    cfg.ListOpt("drop_capabilities", default=["NET_RAW", "MKNOD", "AUDIT_WRITE", "SYS_CHROOT", "SETFCAP"],
                help="Capabilities that a tenant's containers do not have, of the runtime's default set."),
    cfg.DictOpt("quota", default={"pods": "250", "services": "100", "services.nodeports": "50",
                                  "replicationcontrollers": "100", "secrets": "250", "configmaps": "250"},
                help="ResourceQuota of a bay; a bay's labels quota.<resource> go before."),
    cfg.DictOpt("limits", default={"default.memory": "1Gi", "defaultRequest.memory": "32Mi", "defaultRequest.cpu": "10m"},
                help="LimitRange of a bay's containers; a bay's labels limit.<what>.<resource> go before."),
    cfg.DictOpt("client_ca", default={},
                help="cluster:file pairs of a CA (PEM) that the cluster's API server takes clients' certificates of. With it "
                "Magnum signs for tenants what openstack coe cluster config asks for; without, the cluster's own signer does, "
                "which takes a request as it is."),
    cfg.DictOpt("client_ca_key", default={}, help="cluster:file pairs of those CAs' keys (PEM)."),
    cfg.IntOpt("certificate_days", default=30, min=1, help="Days that a tenant's certificate is good for."),
    cfg.StrOpt("cni_socket",
               help="Unix socket at which this backend answers magnum-cni, if its machine is a node whose pods are to be on "
               "networks of Neutron, such as /run/magnum/cni.sock."),
    cfg.StrOpt("service_cidr", default="10.96.0.0/12",
               help="Addresses of the clusters' services (--service-cluster-ip-range of their API servers)."),
    cfg.StrOpt("door_image", default="registry.k8s.io/pause:3.10",
               help="Image of the pod that a service's floating IP leads to, in a bay on Neutron: anything that waits."),
    cfg.ListOpt("door_command", default=[], help="Its command, if the image's own is not wanted."),
    cfg.StrOpt("probe_image", default="registry.k8s.io/pause:3.10",
               help="Image named in the trial of what a cluster refuses of tenants; it is never run."),
]  # fmt: skip

NEUTRON_OPTS: list[cfg.Opt] = [
    cfg.StrOpt("agent_host",
               help="What Neutron's agent calls this machine, where ports are bound to. By default [DEFAULT] host."),
    cfg.StrOpt("ovsdb_connection", default="unix:/var/run/openvswitch/db.sock",
               help="Database of this machine's Open vSwitch (ovs-vsctl's --db), which interfaces are plugged into."),
    cfg.StrOpt("network_namespace",
               help="File of the network namespace that the bridges of this machine's Open vSwitch are in, such as "
               "/proc/1/ns/net for a backend in a container. By default the Docker Engine's, or the backend's own."),
    cfg.StrOpt("bay_cidr", default="10.244.0.0/24",
               help="Addresses of a bay's own network, the same for all: tenants' networks may overlap."),
    cfg.ListOpt("dns_nameservers", default=[], help="Name servers of bays whose model names none."),
    cfg.FloatOpt("active_timeout", default=30.0, min=1,
                 help="Seconds for Neutron's agent to make a port ACTIVE before its workload starts."),
    cfg.FloatOpt("check_interval", default=15.0, min=0.5,
                 help="Seconds between looks for ports that nobody wants any more, or that are gone."),
]  # fmt: skip
"""How Neutron is asked is keystoneauth's to say: ``auth_type``, ``auth_url``, ``region_name`` and so on."""

AUDIT_OPTS: list[cfg.Opt] = [
    cfg.BoolOpt("log", default=True, help="Log a line for each request that changes something, and for each refusal."),
    cfg.BoolOpt("notifications", default=False,
                help="Send the same as CADF events over AMQP, in the envelope of oslo.messaging's notifications (2.0)."),
    cfg.StrOpt("exchange", default="openstack", help="Exchange of the notifications (control_exchange of its consumers)."),
    cfg.StrOpt("topic", default="notifications", help="Topic of the notifications; their queue is <topic>.info."),
    cfg.BoolOpt("durable", default=False, help="Declare exchange and queue durable (amqp_durable_queues of its consumers)."),
]  # fmt: skip

QUOTA_OPTS: list[cfg.Opt] = [
    cfg.IntOpt("bays", default=20, min=-1, help="Bays of a project (-1: no limit; so below)."),
    cfg.IntOpt("nodes", default=200, min=-1, help="Nodes of a project's bays in all."),
    cfg.IntOpt("pods", default=1000, min=-1, help="Pods of a project."),
    cfg.IntOpt("services", default=200, min=-1, help="Services of a project."),
    cfg.IntOpt("containers", default=1000, min=-1, help="Containers of a project."),
    cfg.IntOpt("memory", default=-1, min=-1, help="Bytes of memory that a project's containers ask for in all."),
    cfg.IntOpt("cpus", default=-1, min=-1, help="Cores that a project's containers ask for in all."),
]  # fmt: skip

TRACING_OPTS: list[cfg.Opt] = [
    cfg.URIOpt("endpoint", schemes=["http", "https"],
               help="OpenTelemetry collector that traces go to over OTLP/HTTP, such as http://127.0.0.1:4318. Empty: none."),
    cfg.FloatOpt("ratio", default=1.0, min=0, max=1,
                 help="Share of the requests that are traced; one whose client traces it is traced as the client says."),
]  # fmt: skip

GROUPS: dict[str, list[cfg.Opt]] = {
    "DEFAULT": DEFAULT_OPTS, "api": API_OPTS, "conductor": CONDUCTOR_OPTS, "backend": BACKEND_OPTS,
    "database": DATABASE_OPTS, "docker": DOCKER_OPTS,
    "kubernetes": KUBERNETES_OPTS, "neutron": NEUTRON_OPTS, "quotas": QUOTA_OPTS, "audit": AUDIT_OPTS, "tracing": TRACING_OPTS,
}  # fmt: skip

DEFAULT_FILE = "/etc/magnum/magnum.conf"


def list_opts() -> list[tuple[str, list[cfg.Opt]]]:
    """Return (group, options) of all, for oslo.config's sample generator."""
    return list(GROUPS.items())


def load(files: list[str] | None = None, **overrides: Any) -> cfg.ConfigOpts:
    """Return the configuration read from ``files`` (by default ``/etc/magnum/magnum.conf`` if it is there).

    ``overrides``: ``group__option=value`` (``option=value`` for DEFAULT), for
    command-line switches and tests. Raises oslo.config's errors, which name the
    option.
    """
    conf = cfg.ConfigOpts()
    for group, options in GROUPS.items():
        conf.register_opts(options, group=None if group == "DEFAULT" else group)
    if files is None:
        files = [DEFAULT_FILE] if os.path.exists(DEFAULT_FILE) else []
    conf(args=[], project="magnum", default_config_files=files, default_config_dirs=[])
    for name, value in overrides.items():
        group_name, _, option = name.rpartition("__")
        conf.set_override(option, value, group=group_name or None)
    # values are read when they are asked for; a wrong one is to be told at the start
    for group, options in GROUPS.items():
        for each in options:
            conf[each.dest] if group == "DEFAULT" else conf[group][each.dest]
    return conf
