"""Who asks: one strategy, chosen by ``[api] auth_strategy``, turns a request's headers into a context.

A strategy is a class registered in ``STRATEGIES``; ``api.app`` makes the one
that the configuration names and asks it once a request. What knows Keystone's
wire is ``clients.keystone``.
"""

import abc
import asyncio
import base64
import collections.abc
import ipaddress
import json
import time

from oslo_config import cfg

from magnum import context as contexts
from magnum import errors
from magnum.clients import keystone

Headers = collections.abc.Mapping[bytes, bytes]
"""A request's headers: lower-case names, raw values; no name twice."""


class Strategy(abc.ABC):
    """Says who asks."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        self.conf = conf

    async def start(self) -> None:
        """Prepare; returns at once if the far side is away. Raises Invalid for a configuration that is refused."""

    async def close(self) -> None:
        """Let go of what start took."""

    @abc.abstractmethod
    async def identify(
        self, headers: Headers, request_id: str, global_id: str, method: str, path: str
    ) -> contexts.Context:
        """Return the asker's context, with the deadline of ``[api] call_timeout``.

        ``method`` and ``path`` are those of the request, since a token may be for some requests alone.
        Raises Unauthenticated, Unavailable (nobody can say now), Invalid (a header that cannot be read).
        """

    def project(self, headers: Headers) -> str | None:
        """Return whose project the asker's is if that is known without asking anyone, else None. Raises nothing.

        To refuse by, and for nothing else: what the token allows is not looked at.
        """
        return None

    def health(self) -> str:
        """Return ``ok`` or why new askers cannot be known now."""
        return "ok"

    @property
    def challenge(self) -> str | None:
        """The ``WWW-Authenticate`` of a 401."""
        return None


def text(headers: Headers, name: bytes, default: str, limit: int = 255) -> str:
    """Return a header's value. Raises Invalid naming it if it is no printable text of at most ``limit`` characters."""
    raw = headers.get(name)
    if not raw:
        return default
    try:
        value = raw.decode()
    except UnicodeDecodeError:
        raise errors.Invalid("must be UTF-8", field=name.decode()) from None
    if len(value) > limit or not value.isprintable():
        raise errors.Invalid(f"must be printable text of at most {limit} characters", field=name.decode())
    return value


def is_loopback(address: str) -> bool:
    """Return whether only this machine reaches ``address``."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return address == "localhost"


class NoAuth(Strategy):
    """Believes the headers X-Project-Id, X-User-Id and X-Roles; without them everyone is an admin of one project.

    A token that ``api.identity`` gave says project and user where those headers do not.

    For one user on one machine, and for tests.
    """

    PROJECT = "default"
    USER = "admin"
    TOKEN = "noauth-"  # noqa: S105  the beginning of what is no secret
    ROLES = ("admin", "member", "reader")

    async def start(self) -> None:
        if not is_loopback(self.conf.api.host) and not self.conf.api.allow_noauth_anywhere:
            raise errors.Invalid(
                f"noauth makes whoever reaches {self.conf.api.host}:{self.conf.api.port} an admin: listen on loopback, "
                "or set [api] allow_noauth_anywhere",
                field="[api] host",
            )

    async def identify(
        self, headers: Headers, request_id: str, global_id: str, method: str, path: str
    ) -> contexts.Context:
        roles: tuple[str, ...] = self.ROLES
        if b"x-roles" in headers:
            roles = tuple(sorted({r.strip() for r in text(headers, b"x-roles", "").split(",") if r.strip()}))
        project, user = self._told(text(headers, b"x-auth-token", "", 8192))
        return contexts.Context(
            request_id=request_id,
            global_id=global_id,
            user_id=text(headers, b"x-user-id", user),
            project_id=text(headers, b"x-project-id", project),
            roles=roles,
            is_admin="admin" in roles,
            deadline=time.monotonic() + self.conf.api.call_timeout,
        )

    def project(self, headers: Headers) -> str | None:
        return headers.get(b"x-project-id", b"").decode(errors="replace") or None

    def _told(self, token: str) -> tuple[str, str]:
        """Return the (project, user) that a token is for."""
        if not token.startswith(self.TOKEN):
            return self.PROJECT, self.USER
        try:
            project, user = json.loads(base64.urlsafe_b64decode(token.removeprefix(self.TOKEN)))
            if not (isinstance(project, str) and isinstance(user, str) and (project + user).isprintable()):
                raise ValueError
        except ValueError:
            raise errors.Unauthenticated("the token is none of this api's") from None
        return project[:255] or self.PROJECT, user[:255] or self.USER


class Keystone(Strategy):
    """Believes X-Auth-Token as far as Keystone does; X-Service-Token says that another service passes it on."""

    TOKEN_MAX = 16384

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        super().__init__(conf)
        self._validator: keystone.Validator | None = None

    async def start(self) -> None:
        self._validator = await asyncio.to_thread(keystone.Validator, self.conf)

    async def close(self) -> None:
        if self._validator is not None:
            self._validator.close()

    async def identify(
        self, headers: Headers, request_id: str, global_id: str, method: str, path: str
    ) -> contexts.Context:
        assert self._validator is not None
        token = text(headers, b"x-auth-token", "", self.TOKEN_MAX)
        if not token:
            raise errors.Unauthenticated("the request bears no token", field="X-Auth-Token")
        service_token = text(headers, b"x-service-token", "", self.TOKEN_MAX)
        found = await self._validator.validate(token, method, path, service_token or None)
        return contexts.Context(
            request_id=request_id,
            global_id=global_id,
            user_id=found.user_id,
            user_name=found.user_name,
            project_id=found.project_id,
            project_name=found.project_name,
            roles=found.roles,
            system_scope=found.system_scope,
            is_admin="admin" in found.roles,
            deadline=time.monotonic() + self.conf.api.call_timeout,
        )

    def project(self, headers: Headers) -> str | None:
        if self._validator is None:
            return None
        return self._validator.project(headers.get(b"x-auth-token", b"").decode(errors="replace"))

    def health(self) -> str:
        return self._validator.problem if self._validator is not None else "not started"

    @property
    def challenge(self) -> str | None:
        return self._validator.challenge if self._validator is not None else None


STRATEGIES: dict[str, type[Strategy]] = {"keystone": Keystone, "noauth": NoAuth}
"""Name in the configuration → strategy."""


def make(conf: cfg.ConfigOpts) -> Strategy:
    """Return the strategy that the configuration names. Raises Invalid if this installation has none of that name."""
    name = conf.api.auth_strategy
    if name not in STRATEGIES:
        raise errors.Invalid(f"there is no strategy {name!r} here", field="[api] auth_strategy")
    return STRATEGIES[name](conf)
