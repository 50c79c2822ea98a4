"""Neutron: the real server, and on two hosts of the test bed the real agent with Open vSwitch, tenants' packets in tunnels.

Each of the two hosts (``docker``'s first), and the node of ``kubernetes`` if that is up, has an Open vSwitch of its own, whose
packets go through processes (the ``netdev`` datapath), so that no kernel module is
needed, and the agent with its firewall of connection-tracking flows. Tenants'
networks are vxlan; what goes from one host to the other crosses a tunnel over the
common bridge: with this datapath a tunnel's own address is on a bridge of Open vSwitch, ``br-tunnel``, with a link of its own. The first host has the agent of routers too, with the outside network
``outside`` on its bridge ``br-ex``: who is in that host's namespace is outside.

The server is two processes, the API and what agents call, with MariaDB's data and
RabbitMQ's queues; both are loopback's. Nothing of it has a token of a tenant.

Facts: ``url``, ``external`` (the outside network's name), ``outside`` (its CIDR), and ``hosts``: name → ``ovsdb``, the
connection by which a backend of that host tells Open vSwitch of its interfaces.
"""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import shutil
import signal
import urllib.error
import urllib.request
import uuid
from typing import Any

from testbed import base, docker, environments, keystone, kubernetes, mariadb, rabbitmq

NAME = "neutron"
NEEDS = ("docker", "keystone", "mariadb", "rabbitmq")
ENVIRONMENT = environments.ROOT / ".venv-neutron"
PACKAGES = pathlib.Path(__file__).with_name("neutron-packages.txt")
HOSTS = 2
TUNNELS = "198.51.100"
"""Of the tunnels' ends (TEST-NET-2, RFC 5737): nothing else has such an address."""
EXTERNAL, OUTSIDE, GATEWAY = "outside", "172.24.4.0/24", "172.24.4.1"
BUDGET = {"network": 100, "subnet": 100, "port": 500, "router": 50, "security_group": 100, "security_group_rule": 1000,
          "floatingip": 50}  # fmt: skip

_SERVER = """\
[DEFAULT]
core_plugin = ml2
service_plugins = router
auth_strategy = keystone
api_paste_config = {environment}/etc/neutron/api-paste.ini
state_path = {folder}/state
transport_url = {transport}
notify_nova_on_port_status_changes = false
notify_nova_on_port_data_changes = false
rpc_workers = 1
rpc_state_report_workers = 0
agent_down_time = 75
dhcp_agent_notification = false
[database]
connection = {database}
max_pool_size = 20
[keystone_authtoken]
www_authenticate_uri = {keystone}
auth_url = {keystone}
auth_type = password
username = neutron
password = {password}
project_name = service
user_domain_name = Default
project_domain_name = Default
service_token_roles_required = true
[oslo_concurrency]
lock_path = {folder}/lock
[oslo_policy]
enforce_scope = true
enforce_new_defaults = true
[oslo_messaging_notifications]
driver = noop
[agent]
root_helper = env
[quotas]
{quotas}
"""

_ML2 = """\
[ml2]
type_drivers = flat,vxlan,local
tenant_network_types = vxlan
mechanism_drivers = openvswitch
extension_drivers = port_security
[ml2_type_flat]
flat_networks = physnet1
[ml2_type_vxlan]
vni_ranges = 1:1000
[securitygroup]
enable_security_group = true
"""

_AGENT = """\
[DEFAULT]
host = {host}
[ovs]
datapath_type = netdev
ovsdb_timeout = 30
ovsdb_connection = unix:{switch}/db.sock
of_listen_port = 6653
local_ip = {address}
bridge_mappings = physnet1:br-ex
vhostuser_socket_dir = {switch}
[agent]
tunnel_types = vxlan
polling_interval = 1
report_interval = 10
root_helper = env
[securitygroup]
firewall_driver = openvswitch
enable_security_group = true
"""

_L3 = """\
[DEFAULT]
host = {host}
interface_driver = openvswitch
agent_mode = legacy
enable_metadata_proxy = false
ovs_use_veth = false
[agent]
report_interval = 10
root_helper = env
[ovs]
ovsdb_connection = unix:{switch}/db.sock
"""


def install() -> None:
    """Have Open vSwitch and Neutron in its environment; the first time takes about a minute."""
    for name in NEEDS:
        _part(name).install()
    base.apt({"openvswitch-switch": "ovs-vswitchd", "conntrack": "conntrack", "iptables": "iptables"})
    environments.make(ENVIRONMENT, PACKAGES.read_text().split())


def _part(name: str) -> Any:
    return {"docker": docker, "keystone": keystone, "mariadb": mariadb, "rabbitmq": rabbitmq}[name]


def _folder() -> pathlib.Path:
    return base.FOLDER / NAME


def _run(program: str) -> str:
    return str(ENVIRONMENT / "bin" / program)


def _files() -> list[str]:
    return ["--config-file", f"{_folder()}/neutron.conf", "--config-file", f"{_folder()}/ml2.ini"]


def _prepare() -> dict[str, Any]:
    """Make the server's data and configuration; return the first facts."""
    folder = _folder()
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("state", "lock"):
        (folder / part).mkdir(parents=True)
    (port,) = base.free_ports(1)
    facts = base.facts("keystone")
    broker = base.facts("rabbitmq")
    # agents are on hosts, which reach the broker at the bridge's address
    transport = (
        rabbitmq.vhost(NAME).replace("amqp://", "rabbit://").replace("127.0.0.1", base.facts("docker")["address"])
    )
    assert str(broker["port"]) in transport
    (folder / "neutron.conf").write_text(_SERVER.format(
        environment=ENVIRONMENT, folder=folder, transport=transport, keystone=facts["url"],
        database=mariadb.database(NAME).replace("mysql://", "mysql+pymysql://"),
        password=facts["users"]["neutron"]["password"],
        quotas="\n".join(f"quota_{name} = {number}" for name, number in BUDGET.items()),
    ))  # fmt: skip
    (folder / "ml2.ini").write_text(_ML2)
    base.run(_run("neutron-db-manage"), *_files(), "upgrade", "heads")
    return {"port": port, "url": f"http://127.0.0.1:{port}", "external": EXTERNAL, "outside": OUTSIDE, "hosts": {}}


def start() -> None:
    """Have the server up: the API, and what agents call. Raises Failed."""
    folder, port = _folder(), base.facts(NAME)["port"]
    if base.pid(f"{NAME}-rpc") is None:
        base.start(f"{NAME}-rpc", [_run("neutron-rpc-server"), *_files()], folder / "rpc.log", _environment())
    if base.pid(NAME) is None:
        # a connection that is kept open would be reset by the server some time. No threads: a process' first requests
        # load its policies, and of two at once one was seen to be answered as if there were no network
        argv = [
            _run("pyuwsgi"), "--master", "--die-on-term", "--need-app", "--lazy-apps", "--enable-threads",
            "--http-socket", f"127.0.0.1:{port}", "--module", "neutron.wsgi.api:application", "--processes", "3",
            "--add-header", "Connection: close", "--buffer-size", "65535", "--disable-logging",
        ]  # fmt: skip
        files = {"OS_NEUTRON_CONFIG_DIR": str(folder), "OS_NEUTRON_CONFIG_FILES": "neutron.conf;ml2.ini"}
        base.start(NAME, argv, folder / "log", files, folder)
    base.wait(lambda: _answers(port), NAME, log=folder / "log", daemon=NAME)


def stop() -> None:
    """End the server; agents, interfaces and flows stay as they are. ``start`` brings it back."""
    base.stop(NAME)
    base.stop(f"{NAME}-rpc")


def _environment() -> dict[str, str]:
    return {"PATH": f"{ENVIRONMENT / 'bin'}:{base.search_path()}"}


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5):
        return True
    return False


def _switch(host: dict[str, Any]) -> pathlib.Path:
    """Return the folder of a host's Open vSwitch: its database, sockets and logs."""
    return _folder() / host["name"]


def _link(number: int) -> str:
    """Return the name of the outer end of a machine's way to the others' tunnels."""
    return f"{docker.BRIDGE}t{number}"


def _vsctl(host: dict[str, Any], *words: str, check: bool = True) -> str:
    return base.run("ovs-vsctl", f"--db=unix:{_switch(host)}/db.sock", "--timeout=10", *words, check=check).stdout


def _host(host: dict[str, Any], number: int, before: dict[str, Any]) -> dict[str, str]:
    """Have the switch and agents of machine ``number`` (from 1) up and return its facts. Raises Failed.

    ``before``: its facts of last time. What served a machine of the same name that has gone is ended.
    """
    first = number == 1
    name, enter, folder = host["name"], host["enter"], _switch(host)
    if before.get("enter", enter) != enter:
        _end(name)
    folder.mkdir(parents=True, exist_ok=True)
    of_it = {"OVS_RUNDIR": str(folder), "OVS_DBDIR": str(folder), "OVS_LOGDIR": str(folder)}
    if base.pid(f"{NAME}-{name}-ovsdb") is None:
        for stale in ("conf.db", ".conf.db.~lock~", "db.sock"):
            (folder / stale).unlink(missing_ok=True)
        base.run("ovsdb-tool", "create", f"{folder}/conf.db", "/usr/share/openvswitch/vswitch.ovsschema")
        base.start(
            f"{NAME}-{name}-ovsdb",
            [*enter, "ovsdb-server", f"{folder}/conf.db", f"--remote=punix:{folder}/db.sock", f"--unixctl={folder}/ovsdb.ctl"],
            folder / "ovsdb.log", of_it,
        )  # fmt: skip
        base.wait((folder / "db.sock").exists, f"{name}'s switch database", 30, folder / "ovsdb.log")
        _vsctl(host, "--no-wait", "init")
        _vsctl(
            host,
            "--no-wait",
            "set",
            "Open_vSwitch",
            ".",
            f"external_ids:system-id={name}",
            f"external_ids:hostname={name}",
        )
    if base.pid(f"{NAME}-{name}-switch") is None:
        base.start(
            f"{NAME}-{name}-switch",
            [*enter, "ovs-vswitchd", f"unix:{folder}/db.sock", "--disable-system", f"--unixctl={folder}/switch.ctl"],
            folder / "switch.log", of_it,
        )  # fmt: skip
    address = f"{TUNNELS}.{number}"
    link = _link(number)
    if base.run(*enter, "ip", "link", "show", "underlay", check=False).returncode:
        base.run("ip", "link", "delete", link, check=False)
        base.run(
            "ip", "link", "add", link, "type", "veth", "peer", "name", "underlay", "netns", enter[1].partition("=")[2]
        )
        base.run("ip", "link", "set", link, "master", docker.BRIDGE, "up")
        base.run(*enter, "ip", "link", "set", "underlay", "up")
    _vsctl(host, "--may-exist", "add-br", "br-tunnel", "--", "set", "bridge", "br-tunnel", "datapath_type=netdev",
           "--", "--may-exist", "add-port", "br-tunnel", "underlay")  # fmt: skip
    base.run(*enter, "ip", "addr", "replace", f"{address}/24", "dev", "br-tunnel")
    base.run(*enter, "ip", "link", "set", "br-tunnel", "up")
    _vsctl(host, "--may-exist", "add-br", "br-ex", "--", "set", "bridge", "br-ex", "datapath_type=netdev")
    if first:
        base.run(*enter, "ip", "addr", "replace", f"{GATEWAY}/24", "dev", "br-ex")
    base.run(*enter, "ip", "link", "set", "br-ex", "up")
    words = {"host": name, "switch": folder, "address": address}
    (folder / "agent.ini").write_text(_AGENT.format(**words))
    (folder / "l3.ini").write_text(_L3.format(**words))
    agents = {"agent": ("neutron-openvswitch-agent", "Agent initialized successfully")}
    if first:
        agents["l3"] = ("neutron-l3-agent", "L3 agent started")
    for daemon, (program, word) in agents.items():
        if base.pid(f"{NAME}-{name}-{daemon}") is None:
            log = folder / f"{daemon}.log"
            log.unlink(missing_ok=True)
            argv = [*enter, _run(program), *_files()[:2], "--config-file", f"{folder}/{daemon}.ini"]
            base.start(f"{NAME}-{name}-{daemon}", argv, log, of_it | _environment())
            _says(log, word, f"{name}'s {program}", f"{NAME}-{name}-{daemon}")
            if daemon == "agent":
                _first_ports(host, log)
    return {"ovsdb": f"unix:{folder}/db.sock", "enter": enter}


def _says(log: pathlib.Path, word: str, what: str, daemon: str) -> None:
    base.wait(lambda: word in log.read_text(errors="replace"), what, 90, log, daemon)


def _first_ports(host: dict[str, Any], log: pathlib.Path) -> None:
    """Have a new agent see two ports come, one after the other, and go. Raises Failed.

    With the second ports that it meets, an agent deletes flows with cookies that are not its own: what an earlier one left.
    The flows that let in the members of a group have such a cookie after an update of a port's rules (Neutron 29.0,
    ``OVSFirewallDriver.update_cookie_context``), so of the first ones one could be out of another's reach for good.
    """
    daemon = f"{NAME}-{host['name']}-agent"
    for name, word in (("first", "ports processed"), ("second", "cleanup stale flows")):
        _vsctl(host, "add-port", "br-int", name, "--", "set", "interface", name, "type=internal",
               f"external_ids:iface-id={uuid.uuid4()}", "external_ids:attached-mac=fa:16:3e:00:00:01")  # fmt: skip
        _says(log, word, f"{host['name']}'s {name} port", daemon)
    _vsctl(host, "del-port", "br-int", "first", "--", "del-port", "br-int", "second")


def request(method: str, path: str, body: Any = None, *, user: str = "magnum-networks") -> Any:
    """Return the decoded body of an answer of the Networking API to ``user`` of the test bed's Keystone. Raises Failed."""
    return send(method, path, body, keystone.token(user))


def send(method: str, path: str, body: Any, token: str) -> Any:
    """As ``request``, with a token."""
    headers = {"Content-Type": "application/json", "X-Auth-Token": token}
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(f"{base.facts(NAME)['url']}/v2.0{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            raw = answer.read()
            return json.loads(raw) if raw else None
    except urllib.error.HTTPError as error:
        raise base.Failed(f"{method} {path}: {error.code} {error.read().decode(errors='replace')[:500]}") from None


def _seed() -> None:
    """Have the outside network, which every project may use."""
    if request("GET", f"/networks?name={EXTERNAL}")["networks"]:
        return
    network = request("POST", "/networks", {"network": {
        "name": EXTERNAL, "router:external": True, "provider:network_type": "flat", "provider:physical_network": "physnet1",
    }})["network"]  # fmt: skip
    request("POST", "/subnets", {"subnet": {
        "network_id": network["id"], "ip_version": 4, "cidr": OUTSIDE, "gateway_ip": GATEWAY, "enable_dhcp": False,
        "allocation_pools": [{"start": "172.24.4.10", "end": "172.24.4.250"}],
    }})  # fmt: skip


def up(hosts: int = 0) -> None:
    """Have Neutron up on the first two hosts and the cluster's node, if there is one, and whatever it needs. Raises Failed."""
    for name in NEEDS:
        if (name == "docker" and len(_engines()) < HOSTS) or _part(name).status() != "up":
            _part(name).up(HOSTS)
    found: dict[str, Any] = {}
    with contextlib.suppress(base.Failed):
        found = base.facts(NAME)
    # a broker or a database that was made anew has nothing of it
    mark = [base.facts(name)["port"] for name in ("keystone", "mariadb", "rabbitmq")]
    if found.get("mark") != mark:
        down()
        found = _prepare() | {"mark": mark}
        base.write_facts(NAME, found)
    start()
    keystone.enlist("network", NAME, found["url"])
    with concurrent.futures.ThreadPoolExecutor() as pool:
        machines = [*_engines()[:HOSTS], *_nodes()]
        known = found["hosts"]
        facts = list(pool.map(_host, machines, range(1, 9), [known.get(m["name"], {}) for m in machines]))
    _seed()
    base.write_facts(
        NAME, {**found, "hosts": {m["name"]: f for m, f in zip(machines, facts, strict=True)}, "whole": True}
    )


def _nodes() -> list[dict[str, Any]]:
    """Return the cluster's node as ``docker`` tells of a host, if it is up."""
    if kubernetes.status() != "up":
        return []
    facts = base.facts("kubernetes")
    # of its namespaces the network alone: what runs there is to be seen, and ended, from here
    return [{"name": facts["node"], "enter": ["nsenter", f"--target={facts['inner']}", "--net", "--"]}]


def _engines() -> list[dict[str, Any]]:
    with contextlib.suppress(base.Failed):
        found: list[dict[str, Any]] = base.facts("docker")["hosts"]
        return found
    return []


def down() -> None:
    """End the server, the agents, what they started, and the switches; drop the data."""
    stop()
    _end()
    _end_inmates()
    for number in range(1, HOSTS + 2):
        base.run("ip", "link", "delete", _link(number), check=False)
    base.drop(NAME)


def _end(host: str = "") -> None:
    """End the agents and the switch of a machine, of all by default."""
    names = sorted(path.name for path in (base.FOLDER / "pids").glob(f"{NAME}-{host}-*" if host else f"{NAME}-*"))
    # an agent that has failed takes no SIGTERM
    for name in sorted(names, key=lambda n: n.endswith(("-ovsdb", "-switch"))):
        if name.endswith("-switch"):
            for bridge in ("br-int", "br-tun", "br-ex", "br-tunnel"):
                socket = _folder() / name.removeprefix(f"{NAME}-").removesuffix("-switch") / "db.sock"
                base.run(
                    "ovs-vsctl", f"--db=unix:{socket}", "--timeout=5", "--if-exists", "del-br", bridge, check=False
                )
        base.stop(
            name,
            0 if not name.endswith("-switch") else 10,
            signal.SIGKILL if not name.endswith("-switch") else signal.SIGTERM,
        )


def _end_inmates() -> None:
    """End what agents started and left (daemons of privileged calls): processes with our folder on their command line."""
    mark = str(_folder()).encode()
    for path in pathlib.Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if mark in (path / "cmdline").read_bytes() and b"privsep-helper" in (path / "cmdline").read_bytes():
                os.kill(int(path.name), signal.SIGKILL)


def status() -> str:
    with contextlib.suppress(base.Failed):
        found = base.facts(NAME)
        daemons = [
            NAME,
            f"{NAME}-rpc",
            *(f"{NAME}-{n}-{d}" for n in found["hosts"] for d in ("ovsdb", "switch", "agent")),
        ]
        if found.get("whole") and all(base.pid(name) for name in daemons) and _answers(found["port"]):
            return "up"
    return "down"
