"""Keystone: the real one, in a virtual environment of its own, with users of every role in two domains.

The environment is kept beside the checkout's others and outlives ``down``. The data
are SQLite's, and one process with one thread serves: nothing is ever locked, and a
revocation counts at once. ``front`` serves the same data on another port, for a test
that wants to end a Keystone.

Users are called ``<project>-<role>`` (``alpha-member``), for the projects alpha and
beta of the domain Default and gamma of the domain other; ``system-admin`` and
``system-reader`` have their roles on the system; ``magnum`` has the role service in
the project service, ``neutron`` and ``magnum-networks`` (which works with Neutron)
have admin there too; ``admin`` made them all. Every user has a role in one project
alone. ``credentials`` are application credentials: ``whole`` of alpha-member and
``operator`` of alpha-admin are not restricted, ``lister`` of alpha-member may only
list and show containers.

Facts: ``url`` (with ``/v3``), ``port``, ``log``, ``domains`` (name → id), ``projects``
(name → id), ``users`` (name → id, password, domain, project), ``credentials`` (name →
id, secret).
"""

import collections.abc
import contextlib
import json
import os
import pathlib
import secrets
import shutil
import signal
import time
import urllib.error
import urllib.request
from typing import Any

from testbed import base, environments

NAME = "keystone"
ENVIRONMENT = environments.ROOT / ".venv-keystone"
PACKAGES = pathlib.Path(__file__).with_name("keystone-packages.txt")

DOMAINS = {"Default": "default", "other": None}
PROJECTS = {"alpha": "Default", "beta": "Default", "gamma": "other"}
ROLES = ("admin", "manager", "member", "reader")
TYPES = ("container-infra", "container")
"""Service types that clients look Magnum up by."""
CREDENTIALS: dict[str, tuple[str, list[dict[str, str]] | None]] = {
    "whole": ("alpha-member", None),
    "lister": (
        "alpha-member",
        [
            {"service": "container-infra", "method": "GET", "path": path}
            for path in ("/v1/containers", "/v1/containers/{container_id}")
        ],
    ),
    "operator": ("alpha-admin", None),
}
"""Application credentials: whose they are, and their access rules."""

_CONFIGURATION = """
[database]
connection = sqlite:///{folder}/keystone.sqlite
sqlite_synchronous = false
[token]
provider = fernet
[identity]
password_hash_rounds = 4
[fernet_tokens]
key_repository = {folder}/fernet
[fernet_receipts]
key_repository = {folder}/fernet
[credential]
key_repository = {folder}/credential
[cache]
enabled = false
[oslo_policy]
enforce_scope = true
enforce_new_defaults = true
"""


def install() -> None:
    """Have Keystone in its environment; the first time takes about a minute."""
    environments.make(ENVIRONMENT, PACKAGES.read_text().split())


def _folder() -> pathlib.Path:
    return base.FOLDER / NAME


def _manage(*words: str) -> None:
    base.run(str(ENVIRONMENT / "bin" / "keystone-manage"), "--config-file", f"{_folder()}/keystone.conf", *words)


def _prepare() -> dict[str, Any]:
    """Make the database, the keys and the admin; return the first facts."""
    folder = _folder()
    shutil.rmtree(folder, ignore_errors=True)
    for part in ("fernet", "credential"):
        (folder / part).mkdir(parents=True)
        (folder / part).chmod(0o700)
    (folder / "keystone.conf").write_text(_CONFIGURATION.format(folder=folder))
    (port,) = base.free_ports(1)
    url, password = f"http://127.0.0.1:{port}/v3", secrets.token_hex(12)
    _manage("db_sync")
    owner = ["--keystone-user", str(os.geteuid()), "--keystone-group", str(os.getegid())]
    _manage("fernet_setup", *owner)
    _manage("credential_setup", *owner)
    _manage(
        "bootstrap", "--bootstrap-password", password, "--bootstrap-region-id", "RegionOne",
        *(word for kind in ("public", "internal", "admin") for word in (f"--bootstrap-{kind}-url", url)),
    )  # fmt: skip
    return {
        "url": url, "port": port, "log": str(folder / "log"), "domains": {}, "projects": {}, "credentials": {},
        "users": {"admin": {"password": password, "domain": "Default", "project": "admin"}},
    }  # fmt: skip


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/v3", timeout=5):
        return True
    return False


def start(port: int, name: str = NAME, settings: dict[str, str] | None = None) -> None:
    """Serve the data at ``port`` as the daemon ``name``. Raises Failed.

    ``settings``: variables that are options, as oslo.config reads them (``OS_TOKEN__EXPIRATION``).
    """
    folder = _folder()
    log = folder / ("log" if name == NAME else f"{name}.log")
    if base.pid(name) is None:
        # a connection that is kept open would be reset by the server some time
        argv = [
            str(ENVIRONMENT / "bin" / "pyuwsgi"), "--master", "--die-on-term", "--need-app", "--lazy-apps",
            "--http-socket", f"127.0.0.1:{port}", "--module", "keystone.wsgi.api:application",
            "--add-header", "Connection: close", "--buffer-size", "65535",
            *(["--disable-logging"] if name == NAME else []),
        ]  # fmt: skip
        files = {"OS_KEYSTONE_CONFIG_FILES": f"{folder}/keystone.conf", "OS_KEYSTONE_CONFIG_DIR": str(folder)}
        # without a cache a validation is some hundred statements; others on the same data see what this one is told
        # when theirs has run out
        cache = {"OS_CACHE__ENABLED": "true", "OS_CACHE__BACKEND": "dogpile.cache.memory"}
        if name != NAME:
            cache["OS_CACHE__EXPIRATION_TIME"] = "3"
        base.start(name, argv, log, files | cache | (settings or {}), folder)
    base.wait(lambda: _answers(port), name, log=log, daemon=name)


class Front:
    """Another Keystone on the same data, which a test may end and start again.

    Who asks it and wants to go on asking it says ``region``: the catalogue has it there.
    """

    def __init__(self, name: str, settings: dict[str, str] | None) -> None:
        (self.port,) = base.free_ports(1)
        self.url = f"http://127.0.0.1:{self.port}/v3"
        self.region = self.daemon = f"{NAME}-{name}"
        self._settings = settings

    def start(self) -> None:
        start(self.port, self.daemon, self._settings)

    def stop(self) -> None:
        base.stop(self.daemon)

    def pause(self, *, paused: bool = True) -> None:
        """Have it take requests and answer none, or go on. Raises Failed."""
        leader = base.pid(self.daemon)
        if leader is None:
            raise base.Failed(f"{self.daemon} does not run")
        os.killpg(leader, signal.SIGSTOP if paused else signal.SIGCONT)

    def asked(self, line: str) -> int:
        """Return how many requests it was sent that begin with ``line``: ``GET /v3/auth/tokens``."""
        return (_folder() / f"{self.daemon}.log").read_text(errors="replace").count(f"] {line}")


@contextlib.contextmanager
def front(name: str, settings: dict[str, str] | None = None) -> collections.abc.Iterator[Front]:
    """Give another Keystone, up; ``settings`` as of ``start``."""
    made = Front(name, settings)
    try:
        made.start()
        _region(made.region)
        enlist("identity", "keystone", made.url, made.region)
        yield made
    finally:
        made.stop()


def request(
    method: str, path: str, body: Any = None, *, token: str | None = None, subject: str | None = None
) -> tuple[Any, dict[str, str]]:
    """Return (decoded body, headers) of a request to the Identity API, by default as the admin. Raises Failed.

    ``subject``: a token that the request is about.
    """
    found = base.facts(NAME)
    headers = {"Content-Type": "application/json", "X-Auth-Token": token or _admin(found)}
    if subject is not None:
        headers["X-Subject-Token"] = subject
    return _send(found["url"], method, path, body, headers)


def _send(url: str, method: str, path: str, body: Any, headers: dict[str, str]) -> tuple[Any, dict[str, str]]:
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(f"{url}{path}", data, headers, method=method)
    try:
        with urllib.request.urlopen(asked, timeout=60) as answer:
            raw = answer.read()
            return json.loads(raw) if raw else None, {k.lower(): v for k, v in answer.headers.items()}
    except urllib.error.HTTPError as error:
        raise base.Failed(f"{method} {path}: {error.code} {error.read().decode(errors='replace')[:500]}") from None


ISSUED: list[str] = []
"""The tokens given to this process."""

_admins: dict[str, tuple[float, str]] = {}


def _admin(found: dict[str, Any]) -> str:
    """Return a token of the admin, who is asked for one every ten minutes."""
    password = found["users"]["admin"]["password"]
    since, token = _admins.get(password, (0.0, ""))
    if not token or time.monotonic() - since > 600:
        token = _issue(found, _password(found, "admin"), _project("admin", "Default"))
        _admins[password] = time.monotonic(), token
    return token


def _password(found: dict[str, Any], user: str) -> dict[str, Any]:
    known = found["users"][user]
    whom = {"name": user, "domain": {"name": known["domain"]}, "password": known["password"]}
    return {"methods": ["password"], "password": {"user": whom}}


def _project(project: str, domain: str) -> dict[str, Any]:
    return {"project": {"name": project, "domain": {"name": domain}}}


def _issue(found: dict[str, Any], identity: dict[str, Any], scope: Any) -> str:
    body: dict[str, Any] = {"auth": {"identity": identity}}
    if scope is not None:
        body["auth"]["scope"] = scope
    _, headers = _send(found["url"], "POST", "/auth/tokens", body, {"Content-Type": "application/json"})
    ISSUED.append(headers["x-subject-token"])
    return ISSUED[-1]


def secret_words() -> set[str]:
    """Return what no log may have: the passwords of all, the credentials' secrets, and the tokens given to this process."""
    found = base.facts(NAME)
    return {
        *(user["password"] for user in found["users"].values()),
        *(credential["secret"] for credential in found["credentials"].values()),
        *ISSUED,
    }  # fmt: skip


def join(user: str, project: str, role: str) -> None:
    """Have a ``user`` with ``role`` in ``project``, made if there is none. Raises Failed."""
    found = base.facts(NAME)
    if user not in found["users"]:
        _user(found, user, PROJECTS[project], project)
        base.write_facts(NAME, found)
    request("PUT", _assignment(found, user, project, role))


def leave(user: str, project: str, role: str) -> None:
    """Take the ``role`` in ``project`` from ``user``. Raises Failed."""
    request("DELETE", _assignment(base.facts(NAME), user, project, role))


def _assignment(found: dict[str, Any], user: str, project: str, role: str) -> str:
    ident = _ensure("roles", {"name": role}, "name")["id"]
    return f"/projects/{found['projects'][project]}/users/{found['users'][user]['id']}/roles/{ident}"


def _user(found: dict[str, Any], name: str, domain: str, project: str, *paths: str) -> None:
    password = secrets.token_hex(12)
    wanted = {"name": name, "domain_id": found["domains"][domain], "password": password}
    if project:
        wanted["default_project_id"] = found["projects"][project]
    made = _ensure("users", wanted, "name", "domain_id")
    for path in paths:
        request("PUT", path.format(made["id"]))
    found["users"][name] = {"id": made["id"], "password": password, "domain": domain, "project": project}


def token(user: str, scope: str = "project", url: str | None = None) -> str:
    """Return a token of ``user``: for its ``project``, for the ``system``, or ``unscoped``. Raises Failed.

    ``url``: of a front that is to give it.
    """
    found = base.facts(NAME)
    found["url"] = url or found["url"]
    known = found["users"][user]
    scopes: dict[str, Any] = {
        "project": _project(known["project"], known["domain"]), "system": {"system": {"all": True}}, "unscoped": "unscoped",
    }  # fmt: skip
    return _issue(found, _password(found, user), scopes[scope])


def credential_token(name: str) -> str:
    """Return a token by the application credential ``name``. Raises Failed."""
    found = base.facts(NAME)
    identity = {"methods": ["application_credential"], "application_credential": found["credentials"][name]}
    return _issue(found, identity, None)


def revoke(revoked: str) -> None:
    """Take a token back. Raises Failed."""
    request("DELETE", "/auth/tokens", subject=revoked)


def environ(user: str, url: str | None = None, region: str = "RegionOne") -> dict[str, str]:
    """Return the variables by which OpenStack's command lines are ``user``. ``url``: of another Keystone."""
    found = base.facts(NAME)
    known = found["users"][user]
    return {
        "OS_AUTH_URL": url or found["url"], "OS_IDENTITY_API_VERSION": "3", "OS_USERNAME": user,
        "OS_PASSWORD": known["password"], "OS_PROJECT_NAME": known["project"], "OS_TENANT_NAME": known["project"],
        "OS_USER_DOMAIN_NAME": known["domain"], "OS_PROJECT_DOMAIN_NAME": known["domain"],
        "OS_REGION_NAME": region,
    }  # fmt: skip


def credential_environ(name: str, region: str = "RegionOne") -> dict[str, str]:
    """Return the variables by which OpenStack's command lines use an application credential."""
    found = base.facts(NAME)
    known = found["credentials"][name]
    return {
        "OS_AUTH_TYPE": "v3applicationcredential", "OS_AUTH_URL": found["url"], "OS_IDENTITY_API_VERSION": "3",
        "OS_APPLICATION_CREDENTIAL_ID": known["id"], "OS_APPLICATION_CREDENTIAL_SECRET": known["secret"],
        "OS_REGION_NAME": region,
    }  # fmt: skip


def register(url: str, region: str = "RegionOne") -> None:
    """Say in the catalogue that Magnum is at ``url``; a deployment of a test's own takes a region of its own."""
    _region(region)
    for kind in TYPES:
        enlist(kind, "magnum", url, region)


def _region(name: str) -> None:
    with contextlib.suppress(base.Failed):
        request("POST", "/regions", {"region": {"id": name}})


def enlist(kind: str, name: str, url: str, region: str = "RegionOne") -> None:
    """Say in the catalogue that the service ``name`` of type ``kind`` is at ``url``. Raises Failed."""
    service = _ensure("services", {"type": kind, "name": name}, "type")
    for interface in ("public", "internal", "admin"):
        wanted = {"service_id": service["id"], "interface": interface, "region_id": region, "url": url}
        made = _ensure("endpoints", wanted, "service_id", "interface", "region_id")
        if made["url"] != url:
            request("PATCH", f"/endpoints/{made['id']}", {"endpoint": {"url": url}})


def _ensure(plural: str, wanted: dict[str, Any], *keys: str) -> dict[str, Any]:
    """Return what has the ``keys`` of ``wanted``, made if there is none."""
    query = "&".join(f"{key}={wanted[key]}" for key in keys)
    there: list[dict[str, Any]] = request("GET", f"/{plural}?{query}")[0][plural]
    single = plural[:-1]
    made: dict[str, Any] = there[0] if there else request("POST", f"/{plural}", {single: wanted})[0][single]
    return made


def _seed(found: dict[str, Any]) -> None:
    """Make everyone, and keep the facts as they come to be known."""
    for name, known in DOMAINS.items():
        found["domains"][name] = known or _ensure("domains", {"name": name}, "name")["id"]
    roles = {name: _ensure("roles", {"name": name}, "name")["id"] for name in (*ROLES, "service")}
    for name, domain in {**PROJECTS, "service": "Default", "admin": "Default"}.items():
        wanted = {"name": name, "domain_id": found["domains"][domain]}
        found["projects"][name] = _ensure("projects", wanted, "name", "domain_id")["id"]

    for project, domain in PROJECTS.items():
        for role in ROLES:
            path = f"/projects/{found['projects'][project]}/users/{{}}/roles/{roles[role]}"
            _user(found, f"{project}-{role}", domain, project, path)
    for role in ("admin", "reader"):
        _user(found, f"system-{role}", "Default", "", f"/system/users/{{}}/roles/{roles[role]}")
    service = f"/projects/{found['projects']['service']}/users/{{}}/roles"
    _user(found, "magnum", "Default", "service", f"{service}/{roles['service']}")
    for name in ("neutron", "magnum-networks"):
        _user(found, name, "Default", "service", *(f"{service}/{roles[role]}" for role in ("admin", "service")))
    base.write_facts(NAME, found)
    register("http://127.0.0.1:9511/v1")
    for name, (owner, rules) in CREDENTIALS.items():
        wanted: dict[str, Any] = {"name": name, "secret": secrets.token_hex(16)}
        if rules is not None:
            wanted["access_rules"] = rules
        body = {"application_credential": wanted}
        path = f"/users/{found['users'][owner]['id']}/application_credentials"
        made, _ = request("POST", path, body, token=token(owner))
        found["credentials"][name] = {"id": made["application_credential"]["id"], "secret": wanted["secret"]}
    base.write_facts(NAME, {**found, "whole": True})


def up(hosts: int = 0) -> None:
    """Have Keystone up, with everyone in it; what a start before this one left half made is made anew. Raises Failed."""
    found: dict[str, Any] = {}
    with contextlib.suppress(base.Failed):
        found = base.facts(NAME)
    whole = bool(found.get("whole"))
    if not whole:
        base.stop(NAME)
        found = _prepare()
        base.write_facts(NAME, found)
    start(found["port"])
    if not whole:
        _seed(found)


def down() -> None:
    """End Keystone and the fronts that a test left; drop the data."""
    for path in [*(base.FOLDER / "pids").glob(f"{NAME}-*")]:
        base.stop(path.name)
    base.stop(NAME)
    base.drop(NAME)


def status() -> str:
    with contextlib.suppress(base.Failed):
        found = base.facts(NAME)
        if base.pid(NAME) and found.get("whole") and _answers(found["port"]):
            return "up"
    return "down"
