"""MariaDB: one server on loopback; every test makes databases of its own in it.

Facts: ``url`` (of the server; a database's name goes after it), ``port``, ``socket``, ``log``.
"""

import secrets
import signal

from testbed import base

NAME = "mariadb"
USER = "magnum"


def install() -> None:
    base.apt({"mariadb-server": "mariadbd"})


def up(hosts: int) -> None:
    if base.pid(NAME):
        return
    folder = base.FOLDER / NAME
    data, secret, log = folder / "data", folder / "password", folder / "log"
    if not (data / "mysql").exists():
        data.mkdir(parents=True, exist_ok=True)
        secret.write_text(secrets.token_hex(16))
        base.run(
            "mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root", "--skip-test-db",
            "--auth-root-authentication-method=normal",
        )  # fmt: skip
    try:
        port = base.facts(NAME)["port"]
    except base.Failed:
        (port,) = base.free_ports(1)
    grants = folder / "grants.sql"
    grants.write_text(
        f"CREATE USER IF NOT EXISTS '{USER}'@'127.0.0.1' IDENTIFIED BY '{secret.read_text()}';\n"
        f"GRANT ALL ON *.* TO '{USER}'@'127.0.0.1';\n"
    )
    base.start(
        NAME,
        ["mariadbd", "--no-defaults", f"--datadir={data}", "--user=root", "--bind-address=127.0.0.1",
         f"--port={port}", f"--socket={folder / 's'}", f"--pid-file={folder / 'mariadb.pid'}", "--skip-name-resolve",
         f"--init-file={grants}", "--innodb-flush-log-at-trx-commit=2", "--innodb-buffer-pool-size=64M"],
        log,
    )  # fmt: skip
    url = f"mysql://{USER}:{secret.read_text()}@127.0.0.1:{port}/"
    base.write_facts(NAME, {"url": url, "port": port, "log": str(log)})
    base.wait(lambda: _run("SELECT 1", check=False) == 0, "MariaDB", log=log, daemon=NAME)


def _run(statement: str, *, check: bool = True) -> int:
    found = base.facts(NAME)
    secret = (base.FOLDER / NAME / "password").read_text()
    return base.run(
        "mariadb", "--no-defaults", "-h127.0.0.1", f"-P{found['port']}", f"-u{USER}", f"-p{secret}", "-e", statement,
        check=check,
    ).returncode  # fmt: skip


def stop(*, kill: bool = False) -> None:
    """End the server and keep its data; ``kill``: as a crash does. ``up`` brings it back, at the same port."""
    base.stop(NAME, number=signal.SIGKILL if kill else signal.SIGTERM)


def down() -> None:
    base.stop(NAME)
    base.drop(NAME)


def status() -> str:
    return "up" if base.pid(NAME) else "down"


def database(name: str) -> str:
    """Make an empty database and return its URL; one of that name is dropped first."""
    _run(f"DROP DATABASE IF EXISTS `{name}`")
    _run(f"CREATE DATABASE `{name}` CHARACTER SET utf8mb4")
    return f"{base.facts(NAME)['url']}{name}"
