"""What a client that insists on Keystone is told where there is none: the Identity API's token and catalogue, under noauth.

python-magnumclient's and openstack's command lines ask an Identity v3 service for a
token before anything else. With ``auth_strategy=noauth`` this api answers them itself:
any name and password are good, the token says who it is for, and ``auth.NoAuth``
believes it as it believes the headers. With Keystone these paths do not exist.

Format: the Identity API v3 (``POST /v3/auth/tokens``), as far as clients read it.
"""

import base64
import datetime
import json
from typing import Any

import msgspec

from magnum import errors
from magnum.api import auth, routing
from magnum.objects import base

ROUTES = routing.Routes("identity")


class Entity(msgspec.Struct):
    """A user, project or domain by id or name."""

    id: str | None = None
    name: str | None = None
    domain: dict[str, str] | None = None
    password: str | None = None


class Password(msgspec.Struct):
    user: Entity = msgspec.field(default_factory=Entity)


class Token(msgspec.Struct):
    id: str = ""


class Identity(msgspec.Struct):
    methods: list[str] = []
    password: Password | None = None
    token: Token | None = None


class Scope(msgspec.Struct):
    project: Entity | None = None


class Auth(msgspec.Struct):
    identity: Identity
    scope: Scope | str | None = None


class AuthBody(msgspec.Struct):
    """Who wants a token, as Identity v3 has it; more fields than are read here may be sent."""

    auth: Auth


def _check(call: routing.Call) -> None:
    if call.api.conf.api.auth_strategy != "noauth":
        raise errors.NotFound("there is nothing at this path")


def _versions(call: routing.Call) -> dict[str, Any]:
    return {
        "id": "v3.14", "status": "stable", "updated": "2020-04-07T00:00:00Z", "media-types": [],
        "links": [{"rel": "self", "href": f"{call.base_url}/identity/v3/"}],
    }  # fmt: skip


@ROUTES.get("/identity", rule=None, answers={200: dict[str, Any]}, public=True)
async def index(call: routing.Call) -> routing.Answer:
    """Say that there is a v3 (noauth alone)."""
    _check(call)
    return routing.Answer(200, {"versions": {"values": [_versions(call)]}})


@ROUTES.get("/identity/v3", rule=None, answers={200: dict[str, Any]}, public=True)
async def v3(call: routing.Call) -> routing.Answer:
    """Describe v3 (noauth alone)."""
    _check(call)
    return routing.Answer(200, {"version": _versions(call)})


@ROUTES.post("/identity/v3/auth/tokens", rule=None, answers={201: dict[str, Any]}, public=True)
async def issue(call: routing.Call, body: AuthBody) -> routing.Answer:
    """Give a token to whoever asks (noauth alone)."""
    _check(call)
    given = body.auth
    user = (given.identity.password or Password()).user
    scope = given.scope.project if isinstance(given.scope, Scope) else None
    user_id = user.name or user.id or auth.NoAuth.USER
    project = (scope.name or scope.id if scope else None) or auth.NoAuth.PROJECT
    now = base.now()
    domain = {"id": "default", "name": "Default"}
    endpoint = {"interface": "public", "region": "RegionOne", "region_id": "RegionOne", "url": f"{call.base_url}/v1"}
    body_out = {
        "token": {
            "methods": ["password"],
            "user": {"id": user_id, "name": user_id, "domain": domain, "password_expires_at": None},
            "project": {"id": project, "name": project, "domain": domain},
            "roles": [{"id": role, "name": role} for role in auth.NoAuth.ROLES],
            "catalog": [
                {"type": kind, "name": "magnum", "id": f"magnum-{kind}", "endpoints": [{"id": kind, **endpoint}]}
                for kind in ("container-infra", "container")
            ],
            "issued_at": _time(now), "expires_at": _time(now + datetime.timedelta(days=1)),
            "audit_ids": [base.new_uuid()], "is_domain": False,
        }
    }  # fmt: skip
    return routing.Answer(201, body_out, {"X-Subject-Token": encode(project, user_id)})


def encode(project: str, user: str) -> str:
    """Return the token of a user in a project: see ``auth.NoAuth``."""
    return auth.NoAuth.TOKEN + base64.urlsafe_b64encode(json.dumps([project, user]).encode()).decode()


def _time(value: datetime.datetime) -> str:
    return value.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
