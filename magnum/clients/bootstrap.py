"""What Keystone must know of Magnum: its service, endpoints and user. Made once, and again without harm.

Called by ``magnum-manage keystone bootstrap``; an admin's session asks. API: Identity v3.
"""

from typing import Any

import msgspec
from keystoneauth1 import adapter, exceptions

from magnum import errors

TYPES = ("container-infra", "container")
"""Service types that clients look Magnum up by; the second is what the oldest know."""
INTERFACES = ("public", "internal", "admin")


class Wanted(msgspec.Struct, kw_only=True):
    """``urls``: interface → URL. ``password`` None: that of a user who is there stays."""

    urls: dict[str, str]
    region: str
    user: str
    password: str | None
    project: str
    domain: str
    role: str


class Done(msgspec.Struct, kw_only=True):
    """What was made, changed or found, a line each; ``made_user``: whether the user is new."""

    lines: list[str] = []
    made_user: bool = False


class _Keystone:
    def __init__(self, session: Any, done: Done) -> None:
        self._client = adapter.Adapter(session, service_type="identity", interface="public", min_version="3")
        self.done = done

    def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Return the decoded answer. Raises EngineError with Keystone's words, Unauthenticated, Unavailable."""
        try:
            answer = self._client.request(path, method, json=body)
        except (exceptions.Unauthorized, exceptions.Forbidden) as error:
            raise errors.Unauthenticated(f"Keystone refuses: {error}") from None
        except (exceptions.ConnectFailure, exceptions.RetriableConnectionFailure) as error:
            raise errors.Unavailable(str(error)) from None
        except exceptions.ClientException as error:
            raise errors.EngineError(f"Keystone: {method} {path}: {error}") from None
        return answer.json() if answer.content else None

    def have(self, plural: str, wanted: dict[str, Any], keys: tuple[str, ...]) -> tuple[dict[str, Any], bool]:
        """Return (what has the ``keys`` of ``wanted``, whether it was made now)."""
        query = "&".join(f"{key}={wanted[key]}" for key in keys)
        single = plural[:-1]
        there: list[dict[str, Any]] = self.ask("GET", f"/{plural}?{query}")[plural]
        name = wanted.get("type") or wanted.get("name") or wanted.get("interface")
        if there:
            self.done.lines.append(f"{single} {name}: is there")
            return there[0], False
        made: dict[str, Any] = self.ask("POST", f"/{plural}", {single: wanted})[single]
        self.done.lines.append(f"{single} {name}: made")
        return made, True


def run(session: Any, wanted: Wanted) -> Done:
    """Have what ``wanted`` says. ``session``: keystoneauth1's, of an admin.

    Raises NotFound (domain), Unauthenticated, Unavailable, EngineError.
    """
    done = Done()
    keystone = _Keystone(session, done)
    domains = keystone.ask("GET", f"/domains?name={wanted.domain}")["domains"]
    if not domains:
        raise errors.NotFound(f"Keystone has no domain {wanted.domain!r}")
    domain = domains[0]["id"]
    project, _ = keystone.have("projects", {"name": wanted.project, "domain_id": domain}, ("name", "domain_id"))
    role, _ = keystone.have("roles", {"name": wanted.role}, ("name",))
    person: dict[str, Any] = {"name": wanted.user, "domain_id": domain}
    if wanted.password is not None:
        person["password"] = wanted.password
    user, done.made_user = keystone.have("users", person, ("name", "domain_id"))
    if not done.made_user and wanted.password is not None:
        keystone.ask("PATCH", f"/users/{user['id']}", {"user": {"password": wanted.password}})
        done.lines.append(f"user {wanted.user}: password set")
    keystone.ask("PUT", f"/projects/{project['id']}/users/{user['id']}/roles/{role['id']}")
    done.lines.append(f"user {wanted.user}: has the role {wanted.role} in project {wanted.project}")
    regions = {region["id"] for region in keystone.ask("GET", "/regions")["regions"]}
    if wanted.region not in regions:
        keystone.ask("POST", "/regions", {"region": {"id": wanted.region}})
        done.lines.append(f"region {wanted.region}: made")
    for kind in TYPES:
        service, _ = keystone.have("services", {"type": kind, "name": "magnum"}, ("type",))
        for interface in INTERFACES:
            place = {
                "service_id": service["id"], "interface": interface, "region_id": wanted.region,
                "url": wanted.urls[interface],
            }  # fmt: skip
            found, _ = keystone.have("endpoints", place, ("service_id", "interface", "region_id"))
            if found["url"] != place["url"]:
                keystone.ask("PATCH", f"/endpoints/{found['id']}", {"endpoint": {"url": place["url"]}})
                done.lines.append(f"endpoint {interface} of {kind}: now {place['url']}")
    return done
