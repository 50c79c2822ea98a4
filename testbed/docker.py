"""Docker engines, each a host of its own on this one machine.

A host is a process that holds a network and a mount namespace, with its own
``/run``; a veth joins it to a common bridge. Its engine has its own socket, data
and cgroup. Whoever plays a program of that host starts it by ``enter``, and
reaches brokers and databases at ``address`` (the bridge's), which the root
namespace has. ``down`` ends the holder, and the kernel takes interfaces, rules
and mounts with it.

Facts: ``bridge``, ``address``, ``cidr`` and ``hosts``, a list of ``name``,
``address``, ``socket``, ``url``, ``enter`` (the words before a command) and
``log``.
"""

import concurrent.futures
import contextlib
import ipaddress
import os
import pathlib
import shutil
import signal
import time
from typing import Any

from testbed import base, images

NAME = "docker"
BRIDGE = f"mtb{base.TAG}"
CGROUP = f"magnum-testbed-{base.TAG}"
SOCKET_PATH_MAX = 100
"""The kernel takes 107 bytes of a socket's path."""


def install() -> None:
    """Have Docker, nftables and conntrack (for the services of bays) and the tools that make hosts."""
    base.apt(
        {"docker.io": "dockerd", "iptables": "iptables", "nftables": "nft", "conntrack": "conntrack",
         "iproute2": "ip", "util-linux": "nsenter"}
    )  # fmt: skip
    images.install()


def _cidr() -> ipaddress.IPv4Network:
    """Return a /24 that this machine has no route to, the same each time if it can."""
    routes = [
        ipaddress.ip_network(words[0], strict=False)
        for line in base.run("ip", "-4", "route").stdout.splitlines()
        if (words := line.split()) and words[0][0].isdigit()
    ]
    for turn in range(256):
        found = ipaddress.IPv4Network(f"10.213.{(int(base.TAG, 16) + turn) % 256}.0/24")
        if not any(found.overlaps(route) for route in routes):
            return found
    raise base.Failed("every 10.213.x.0/24 is in use on this machine")


def _network() -> ipaddress.IPv4Network:
    """Have the bridge and return its network. Hosts of the same /24 of another test bed would meet, so one lock for all."""
    with base.lock(pathlib.Path("/tmp/magnum-testbed-net.lock")):
        shown = base.run("ip", "-4", "-o", "addr", "show", "dev", BRIDGE, check=False).stdout.split()
        if "inet" in shown:
            return ipaddress.IPv4Network(shown[shown.index("inet") + 1], strict=False)
        cidr = _cidr()
        base.run("ip", "link", "delete", BRIDGE, check=False)
        base.run("ip", "link", "add", BRIDGE, "type", "bridge")
        base.run("ip", "addr", "add", f"{cidr[1]}/24", "dev", BRIDGE)
        base.run("ip", "link", "set", BRIDGE, "up")
    # Any dockerd of the root namespace drops what is forwarded, and bridged frames pass there.
    _forward("-I")
    return cidr


def _forward(how: str) -> bool:
    rule = [how, "FORWARD", *(["1"] if how == "-I" else []), "-i", BRIDGE, "-o", BRIDGE, "-j", "ACCEPT"]
    return base.run("iptables", "-w", *rule, check=False).returncode == 0


def _enter(holder: int) -> list[str]:
    return ["nsenter", f"--target={holder}", "--net", "--mount", "--"]


def _link(name: str) -> str:
    """Return the name of a host's veth in the root namespace."""
    return f"{BRIDGE}h{name.removeprefix('host')}"


def _socket(name: str) -> pathlib.Path:
    path = base.FOLDER / NAME / name / "docker.sock"
    return path if len(str(path)) < SOCKET_PATH_MAX else pathlib.Path(f"/tmp/{CGROUP}-{name}.sock")


DISK = "400m"
"""Size of a small host's disk."""


def _small(name: str, enter: list[str]) -> None:
    """Give a host a disk of its own that can be filled; what engines cannot live without when it is full is apart."""
    folder = base.FOLDER / NAME / name
    script = (
        'mkdir -p "$1/data" && mount -t tmpfs -o size="$2" tmpfs "$1/data" && for part in swarm containerd; do '
        'mkdir -p "$1/apart/$part" "$1/data/$part" && mount --bind "$1/apart/$part" "$1/data/$part" || exit 1; done'
    )
    base.run(*enter, "sh", "-c", script, "sh", str(folder), DISK)


def fill(name: str, *, full: bool) -> None:
    """Fill the disk of a small host, or free it again."""
    found = next(host for host in base.facts(NAME)["hosts"] if host["name"] == name)
    filler = base.FOLDER / NAME / name / "data" / "filler"
    script = 'cat /dev/zero > "$1"' if full else 'rm -f "$1"'
    base.run(*found["enter"], "sh", "-c", script, "sh", str(filler), check=False)


def stop(name: str) -> None:
    """End the engine of a host, as a machine that is shut down does; its containers end with it."""
    base.stop(f"{NAME}-{name}-engine", 60)


def start(name: str) -> None:
    """Have the engine of a host up again. Raises Failed."""
    _host(int(name.removeprefix("host")), ipaddress.IPv4Network(base.facts(NAME)["cidr"]))


def _host(index: int, cidr: ipaddress.IPv4Network, *, small: bool = False) -> dict[str, Any]:
    """Have one host with its engine and images up, and return its facts."""
    name = f"host{index}"
    folder = base.FOLDER / NAME / name
    socket = _socket(name)
    (folder / "run").mkdir(parents=True, exist_ok=True)
    log, url, address = folder / "dockerd.log", f"unix://{socket}", str(cidr[10 + index])
    holder = base.pid(f"{NAME}-{name}")
    if holder is None:
        ready = folder / "run" / "ready"
        ready.unlink(missing_ok=True)
        script = 'mount --bind "$1" /run && ip link set lo up && touch /run/ready && exec sleep infinity'
        holder = base.start(
            f"{NAME}-{name}", ["unshare", "--net", "--mount", "--propagation=private", "sh", "-c", script, "sh", str(folder / "run")],
            folder / "holder.log",
        )  # fmt: skip
        base.wait(ready.exists, f"{name}'s namespaces", 30, folder / "holder.log", f"{NAME}-{name}")
        link = _link(name)
        base.run("ip", "link", "delete", link, check=False)
        base.run("ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(holder))
        base.run("ip", "link", "set", link, "master", BRIDGE, "up")
        for words in (["addr", "add", f"{address}/24", "dev", "eth0"], ["link", "set", "eth0", "up"],
                      ["route", "add", "default", "via", str(cidr[1])]):  # fmt: skip
            base.run(*_enter(holder), "ip", *words)
        if small:
            _small(name, _enter(holder))
    enter = _enter(holder)
    if base.pid(f"{NAME}-{name}-engine") is None:
        # A daemon that was killed leaves files that keep the next one from starting.
        for stale in ("docker.pid", "docker/containerd/containerd.pid"):
            (folder / "run" / stale).unlink(missing_ok=True)
        socket.unlink(missing_ok=True)
        (folder / "daemon.json").write_text("{}")
        base.start(
            f"{NAME}-{name}-engine",
            [*enter, "dockerd", f"--config-file={folder}/daemon.json", f"--data-root={folder}/data", "--exec-root=/run/docker",
             "--pidfile=/run/docker.pid", f"--host={url}", f"--cgroup-parent=/{CGROUP}/{name}",
             "--exec-opt=native.cgroupdriver=cgroupfs"],
            log,
        )  # fmt: skip
    base.wait(lambda: base.run("docker", "-H", url, "version", check=False).returncode == 0, f"{name}'s engine", 90, log,
              f"{NAME}-{name}-engine")  # fmt: skip
    images.load(url)
    return {"name": name, "address": address, "socket": str(socket), "url": url, "enter": enter, "log": str(log)}


def _healthy(hosts: int) -> bool:
    """Say whether at least so many hosts are up as the facts have it."""
    with contextlib.suppress(base.Failed):
        found = base.facts(NAME)["hosts"]
        return len(found) >= hosts and all(
            base.pid(f"{NAME}-{host['name']}") and base.pid(f"{NAME}-{host['name']}-engine") for host in found
        )
    return False


def up(hosts: int = 3, *, small: bool = False) -> None:
    """Have at least ``hosts`` hosts up; new ones have a disk that can be filled if they are to be ``small``. Raises Failed."""
    if _healthy(hosts):
        return
    if os.geteuid():
        raise base.Failed("Docker engines need root")
    with contextlib.suppress(base.Failed):
        hosts = max(hosts, len(base.facts(NAME)["hosts"]))
    cidr = _network()
    with concurrent.futures.ThreadPoolExecutor() as pool:
        found = list(pool.map(lambda index: _host(index, cidr, small=small), range(1, hosts + 1)))
    base.write_facts(NAME, {"bridge": BRIDGE, "address": str(cidr[1]), "cidr": str(cidr), "hosts": found})


def status() -> str:
    return "up" if _healthy(1) else "down"


def _groups(name: str) -> list[pathlib.Path]:
    """Return the cgroups of a host's containers, the inner ones first."""
    tops = [*pathlib.Path("/sys/fs/cgroup").glob(f"*/{CGROUP}/{name}"), pathlib.Path(f"/sys/fs/cgroup/{CGROUP}/{name}")]
    return [pathlib.Path(where) for top in tops for where, _, _ in os.walk(top, topdown=False)]


def _inmates(name: str, holder: int | None) -> set[int]:
    """Return the processes of a host: those in its containers' cgroups and those in the holder's mount namespace."""
    found: set[int] = set()
    for group in _groups(name):
        with contextlib.suppress(OSError):
            found |= {int(number) for number in (group / "cgroup.procs").read_text().split()}
    if holder is not None:
        home = os.readlink(f"/proc/{holder}/ns/mnt")
        for each in pathlib.Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if os.readlink(each / "ns" / "mnt") == home:
                    found.add(int(each.name))
        found.discard(holder)
    return found


def end(name: str) -> None:
    """End everything of a host: containers, engine, shims, holder."""
    holder = base.pid(f"{NAME}-{name}")
    end = time.monotonic() + 30
    while (found := _inmates(name, holder)) and time.monotonic() < end:
        for number in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        time.sleep(0.05)
    base.stop(f"{NAME}-{name}-engine", 0, signal.SIGKILL)
    base.stop(f"{NAME}-{name}", 0, signal.SIGKILL)
    # The kernel takes it with the namespace, but later than the process is gone.
    base.run("ip", "link", "delete", _link(name), check=False)
    for group in _groups(name):
        with contextlib.suppress(OSError):
            group.rmdir()
    _socket(name).unlink(missing_ok=True)


def down() -> None:
    """End all hosts and remove what they had. Raises Failed if data cannot be removed."""
    folder = base.FOLDER / NAME
    names = sorted(path.name for path in folder.glob("host*"))
    with concurrent.futures.ThreadPoolExecutor() as pool:
        list(pool.map(end, names))
    for top in [*pathlib.Path("/sys/fs/cgroup").glob(f"*/{CGROUP}"), pathlib.Path(f"/sys/fs/cgroup/{CGROUP}")]:
        with contextlib.suppress(OSError):
            top.rmdir()
    if shutil.which("ip", path=base.search_path()):
        base.run("ip", "link", "delete", BRIDGE, check=False)
    if shutil.which("iptables", path=base.search_path()):
        while _forward("-D"):
            pass
    base.drop(NAME)
    if folder.exists():
        raise base.Failed(f"{folder} could not be removed wholly")
