"""memcached: one, on loopback, for what processes may share and lose.

Facts: ``address`` (``host:port``), ``log``.
"""

import contextlib
import os
import pwd
import socket

from testbed import base

NAME = "memcached"


def install() -> None:
    base.apt({"memcached": "memcached"})


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 2) as connection:
        connection.sendall(b"version\r\n")
        return connection.recv(64).startswith(b"VERSION")
    return False


def up(hosts: int = 0) -> None:
    """Have it up, empty if it was not. Raises Failed."""
    if status() == "up":
        return
    base.stop(NAME)
    (port,) = base.free_ports(1)
    log = base.FOLDER / NAME / "log"
    owner = pwd.getpwuid(os.geteuid()).pw_name
    argv = ["memcached", "-l", "127.0.0.1", "-p", str(port), "-U", "0", "-m", "16", "-u", owner]
    base.start(NAME, argv, log)
    base.wait(lambda: _answers(port), NAME, log=log, daemon=NAME)
    base.write_facts(NAME, {"address": f"127.0.0.1:{port}", "log": str(log)})


def down() -> None:
    base.stop(NAME)
    base.drop(NAME)


def status() -> str:
    with contextlib.suppress(base.Failed):
        if base.pid(NAME) and _answers(int(base.facts(NAME)["address"].rpartition(":")[2])):
            return "up"
    return "down"
