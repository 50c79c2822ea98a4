"""RabbitMQ: one broker that all may use, each by a virtual host of its own, and private ones for tests that end theirs.

A broker is a node with its own name, ports, port mapper (epmd), cookie and
data, so several of them, and one of the machine's own, stand side by side. It
listens on all addresses, since hosts of the test bed reach it at their bridge's;
its only user has a password made for it.

Facts: ``url`` (virtual host ``/``), ``tls_url`` and ``ca`` (the file that knows
its certificate), ``user``, ``password``, ``port``, ``tls_port``, ``node``, ``pid``,
``log``.
"""

import contextlib
import os
import pathlib
import re
import secrets
import signal
import socket
import subprocess
import urllib.parse
from typing import Any

from testbed import base

NAME = "rabbitmq"
BIN = "/usr/lib/rabbitmq/bin"
"""The scripts themselves: the wrappers on the PATH change the user and drop the environment."""

_CERTIFICATE = """
[req]
distinguished_name = name
prompt = no
x509_extensions = extensions
[name]
CN = localhost
[extensions]
subjectAltName = DNS:localhost,IP:127.0.0.1
basicConstraints = critical,CA:TRUE
"""


def install() -> None:
    base.apt({"rabbitmq-server": f"{BIN}/rabbitmq-server", "openssl": "openssl"})


def _folder(name: str) -> pathlib.Path:
    return base.FOLDER / name


def _environment(name: str, settings: dict[str, Any]) -> dict[str, str]:
    folder = _folder(name)
    return {
        "HOME": str(folder),  # the cookie is there
        "LANG": "C.UTF-8",
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "ERL_EPMD_PORT": str(settings["epmd_port"]),
        "RABBITMQ_NODENAME": settings["node"],
        "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
        "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "none.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
        "RABBITMQ_LOG_BASE": str(folder / "log"),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_DIST_PORT": str(settings["distribution_port"]),
        # a node that waits for work must not spin: others need the processors
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} "
        "+sbwt none +sbwtdcpu none +sbwtdio none",
        "RABBITMQ_CTL_ERL_ARGS": "+sbwt none +S 1",
    }


def _prepare(name: str) -> dict[str, Any]:
    """Make the folder of a new broker and return its facts, but for the pid."""
    folder = _folder(name)
    folder.mkdir(parents=True, exist_ok=True)
    port, tls_port, epmd_port, distribution_port = base.free_ports(4)
    password = secrets.token_hex(12)
    (folder / "certificate.conf").write_text(_CERTIFICATE)
    base.run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "3650",
        "-config", f"{folder}/certificate.conf", "-keyout", f"{folder}/key.pem", "-out", f"{folder}/ca.pem",
    )  # fmt: skip
    cookie = folder / ".erlang.cookie"
    cookie.write_text(secrets.token_hex(16))
    cookie.chmod(0o400)
    (folder / "enabled_plugins").write_text("[].\n")
    (folder / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = 0.0.0.0:{port}\n"
        f"listeners.ssl.1 = 0.0.0.0:{tls_port}\n"
        f"ssl_options.cacertfile = {folder}/ca.pem\n"
        f"ssl_options.certfile = {folder}/ca.pem\n"
        f"ssl_options.keyfile = {folder}/key.pem\n"
        "ssl_options.verify = verify_none\n"
        "default_user = magnum\n"
        f"default_pass = {password}\n"
        "log.file.level = info\n"
        "disk_free_limit.absolute = 50MB\n"
    )
    return {
        "url": f"amqp://magnum:{password}@127.0.0.1:{port}/",
        "tls_url": f"amqps://magnum:{password}@127.0.0.1:{tls_port}/",
        "ca": str(folder / "ca.pem"),
        "user": "magnum",
        "password": password,
        "port": port,
        "tls_port": tls_port,
        "epmd_port": epmd_port,
        "distribution_port": distribution_port,
        "node": f"{name}-{base.TAG}@localhost",
        "log": str(folder / "stdout"),
    }


def _answers(settings: dict[str, Any]) -> bool:
    """Say whether the broker takes connections: it opens its ports last."""
    with contextlib.suppress(OSError), _connect(settings["port"]), _connect(settings["tls_port"]):
        return True
    return False


def _connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=1)


def start(name: str = NAME) -> dict[str, Any]:
    """Have the broker ``name`` up, with what it kept if it was up before, and return its facts. Raises Failed."""
    try:
        settings = base.facts(name)
    except base.Failed:
        settings = _prepare(name)
    folder, environment = _folder(name), _environment(name, settings)
    log = pathlib.Path(settings["log"])
    if base.pid(f"{name}-epmd") is None:
        epmd = ["epmd", "-address", "127.0.0.1", "-port", str(settings["epmd_port"])]
        base.start(f"{name}-epmd", epmd, folder / "epmd.log", environment, folder)
    if base.pid(name) is None:
        (folder / "pid").unlink(missing_ok=True)
        settings["pid"] = base.start(name, [f"{BIN}/rabbitmq-server"], log, environment, folder)
        base.write_facts(name, settings)
    base.wait(lambda: _answers(settings), f"the broker {name}", 120, log, name)
    return settings


def stop(name: str = NAME, *, kill: bool = False) -> None:
    """End the broker and keep its data; ``kill``: without a word to anyone. ``start`` brings it back, same ports."""
    # the node is the server script's child: both are of one process group, which base.stop ends
    if kill:
        base.stop(name, 0, signal.SIGKILL)
    else:
        base.stop(name, 30)
    # a process that was killed answers until the kernel has taken its sockets
    with contextlib.suppress(base.Failed):
        settings = base.facts(name)
        base.wait(lambda: not _answers(settings), f"the end of the broker {name}", 30)


def control(*words: str, name: str = NAME) -> str:
    """Return what ``rabbitmqctl`` says to ``words`` (about a second). Raises Failed."""
    environment = os.environ | {"PATH": base.search_path()} | _environment(name, base.facts(name))
    done = subprocess.run(
        [f"{BIN}/rabbitmqctl", "--quiet", *words], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
    )  # fmt: skip
    if done.returncode:
        raise base.Failed(f"rabbitmqctl {words[0]}: {(done.stderr or done.stdout).strip()[-1000:]}")
    return done.stdout


def vhost(virtual_host: str, name: str = NAME) -> str:
    """Have an own virtual host on the broker and return its URL."""
    found = base.facts(name)
    if virtual_host not in control("list_vhosts", name=name).splitlines():
        control("add_vhost", virtual_host, name=name)
        control("set_permissions", "-p", virtual_host, found["user"], ".*", ".*", ".*", name=name)
    return f"{found['url'].rstrip('/')}/{urllib.parse.quote(virtual_host, safe='')}"


def host_user(host: str, virtual_host: str, name: str = NAME) -> str:
    """Have the user ``magnum-host-<host>``, which may do what the backend of one host does, and return its URL.

    That is: have and read the queue of its own topic, and send to topics.
    """
    found, user, password = base.facts(name), f"magnum-host-{host}", secrets.token_hex(12)
    topic = f"^backend\\.{re.escape(host)}$"
    control("add_user", user, password, name=name)
    control("set_permissions", "-p", virtual_host, user, topic, "^amq\\.default$", topic, name=name)
    return f"amqp://{user}:{password}@127.0.0.1:{found['port']}/{urllib.parse.quote(virtual_host, safe='')}"


def drop(name: str) -> None:
    """End a broker and remove all that it had."""
    stop(name)
    base.stop(f"{name}-epmd", 5)
    base.drop(name)


def up(hosts: int = 0) -> None:
    """Have the broker up. Raises Failed."""
    start()


def down() -> None:
    """End the broker, and private ones that a test left."""
    for name in sorted({NAME, *(path.name for path in base.FOLDER.glob(f"{NAME}-*") if path.is_dir())}):
        drop(name)


def status() -> str:
    with contextlib.suppress(base.Failed):
        if base.pid(NAME) and _answers(base.facts(NAME)):
            return "up"
    return "down"
