"""Keystone: whose token is this? The rules are keystonemiddleware's own, run off the event loop.

What is added here is memory: a token that was found good is known until it
expires, asked for again every ``[api] token_recheck`` seconds (so that a
revocation counts), and asked for once however many requests bring it at the
same time. While Keystone is away, known tokens go on and new ones are
Unavailable: never refused, never let through. Tokens that nobody knows wait in a
queue with an end, apart from the others: whoever makes them up by the thousand
holds up strangers alone, and not for long.

Who calls: ``api.auth``. Blocking work runs in threads; keystonemiddleware and
what it imports are loaded by the first ``Validator`` alone.
"""

import asyncio
import concurrent.futures
import datetime
import hashlib
import time
from typing import Any

import msgspec
import structlog
from oslo_config import cfg

from magnum import errors, logs

LOG = structlog.get_logger(__name__)

MAX_KNOWN = 50_000
"""Tokens remembered; the oldest go first."""
PATIENCE = 1.0
"""Seconds that a request with a known token waits for Keystone's word on it; the word counts for the next one then."""
THREADS = 8
"""Tokens that Keystone is asked about at once: so many new ones, and so many known ones beside them."""
MAX_STRANGERS = 100
"""New tokens that wait for Keystone's word at most."""
AWAY_SECONDS = 5.0
"""Until a known token is asked for again while Keystone is away."""
RETRIES, CONNECT_SECONDS = 1, 5
"""Where the operator says nothing: new tokens are told soon that Keystone is away."""


class Identity(msgspec.Struct, frozen=True, kw_only=True):
    """What a good token says. ``expires_at`` in Unix seconds. ``access_rules`` of an application credential, if any."""

    user_id: str
    user_name: str
    user_domain_id: str
    project_id: str
    project_name: str
    project_domain_id: str
    roles: tuple[str, ...]
    system_scope: str
    expires_at: float
    restricted: dict[str, Any] | None = None
    """The parts of the token that access rules are checked by; None without such rules."""


class _Known:
    """A token that was found good, and when to ask again (monotonic seconds)."""

    __slots__ = ("identity", "recheck_at")

    def __init__(self, identity: Identity, recheck_at: float) -> None:
        self.identity = identity
        self.recheck_at = recheck_at


class _Request:
    """As much of a request as keystonemiddleware's check of access rules reads."""

    def __init__(self, method: str, path: str, service_token: str | None) -> None:
        self.method = method
        self.path = path
        self.service_token = service_token


class Validator:
    """Validates tokens by ``[keystone_authtoken]``. One per api process. Raises Invalid for what is configured wrongly."""

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        from keystonemiddleware import auth_token

        overrides: dict[str, Any] = {"oslo_config_config": conf}
        for group, options in auth_token.list_opts():
            conf.register_opts(options, group=group)
        conf.set_default("http_request_max_retries", RETRIES, group="keystone_authtoken")
        conf.set_default("http_connect_timeout", CONNECT_SECONDS, group="keystone_authtoken")
        if not conf.keystone_authtoken.memcached_servers:
            # the memory here is the only one: another that forgets later would hide a revocation
            overrides["token_cache_time"] = "-1"  # noqa: S105 (seconds)
            logs.hush("keystonemiddleware.auth_token", "Using the in-process token cache")
        if not conf.keystone_authtoken.service_type:
            overrides["service_type"] = "container-infra"
        if not conf.keystone_authtoken.auth_type:
            raise errors.Invalid(
                "must say how Magnum itself asks Keystone (auth_type = password, auth_url, username and so on)",
                field="[keystone_authtoken] auth_type",
            )
        try:
            self.protocol = auth_token.AuthProtocol(None, overrides)
        except Exception as error:
            # keystoneauth's own, of many kinds: a wrong plug-in, an option that is missing
            raise errors.Invalid(f"{type(error).__name__}: {error}", field="[keystone_authtoken]") from error
        self.protocol._token_cache.initialize({})
        self.recheck = conf.api.token_recheck
        self.domains = frozenset(conf.api.allowed_domains)
        self.service_roles = frozenset(conf.keystone_authtoken.service_token_roles)
        self.uri = conf.keystone_authtoken.www_authenticate_uri or conf.keystone_authtoken.auth_url or ""
        self.known: dict[bytes, _Known] = {}
        self.asking: dict[bytes, asyncio.Task[Identity]] = {}
        self.strangers = 0
        self._lanes = [concurrent.futures.ThreadPoolExecutor(THREADS, name) for name in ("new-tokens", "known-tokens")]
        self.problem = "ok"

    def close(self) -> None:
        """Ask Keystone no more."""
        for lane in self._lanes:
            lane.shutdown(wait=False, cancel_futures=True)

    @property
    def challenge(self) -> str:
        """The ``WWW-Authenticate`` header of a 401."""
        return f'Keystone uri="{self.uri}"'

    async def validate(self, token: str, method: str, path: str, service_token: str | None = None) -> Identity:
        """Return whose ``token`` it is.

        A good ``service_token`` (of a user with a role of
        ``[keystone_authtoken] service_token_roles``) lets an expired token
        count, as a service that works on for its user needs.
        Raises Unauthenticated (revoked, expired, malformed, of a domain that is
        not allowed, outside its access rules), Unavailable (Keystone is away, or too many new tokens wait for its word).
        """
        if service_token:
            service = await self._identity(service_token, allow_expired=False)
            if not self.service_roles & set(service.roles):
                raise errors.Unauthenticated("the service token has no service role")
        identity = await self._identity(token, allow_expired=bool(service_token))
        if self.domains and not {identity.user_domain_id, identity.project_domain_id or identity.user_domain_id} <= (
            self.domains
        ):
            raise errors.Unauthenticated("the token is of a domain that is not served here")
        if identity.restricted is not None:
            from keystonemiddleware.auth_token import _exceptions

            try:
                self.protocol.validate_allowed_request(_Request(method, path, service_token), identity.restricted)
            except _exceptions.InvalidToken:
                raise errors.Unauthenticated(
                    f"the application credential's access rules do not allow {method} {path}"
                ) from None
        return identity

    def project(self, token: str) -> str | None:
        """Return the project of a token that Keystone spoke for lately, None if it did not."""
        known = self.known.get(_key(token))
        if known is None or time.monotonic() >= known.recheck_at or time.time() >= known.identity.expires_at:
            return None
        return known.identity.project_id

    async def _identity(self, token: str, *, allow_expired: bool) -> Identity:
        key = _key(token, allow_expired=allow_expired)
        known = self.known.get(key)
        if known is not None:
            if time.time() >= known.identity.expires_at and not allow_expired:
                del self.known[key]
                raise errors.Unauthenticated("the token has expired")
            if time.monotonic() < known.recheck_at:
                return known.identity
        task = self.asking.get(key)
        if task is None:
            if known is None and self.strangers >= MAX_STRANGERS:
                raise errors.Unavailable(f"{self.strangers} new tokens wait to be validated already", retry_after=1)
            self.strangers += known is None
            task = asyncio.create_task(self._ask(key, token, allow_expired))
            self.asking[key] = task
            task.add_done_callback(lambda done: self._answered(key, done, known is None))
        if known is None:
            # shielded: others wait for the same answer, whatever becomes of this request
            return await asyncio.shield(task)
        # known and not expired: it goes on while Keystone is slow or away
        done, _ = await asyncio.wait({task}, timeout=PATIENCE if self.problem == "ok" else 0)
        if not done:
            return known.identity
        try:
            return task.result()
        except errors.Unavailable:
            return known.identity

    def _answered(self, key: bytes, task: asyncio.Task[Identity], stranger: bool) -> None:
        del self.asking[key]
        self.strangers -= stranger
        if not task.cancelled():
            task.exception()  # seen, even if every asker has gone

    async def _ask(self, key: bytes, token: str, allow_expired: bool) -> Identity:
        try:
            lane = self._lanes[key in self.known]
            identity = await asyncio.get_running_loop().run_in_executor(lane, self._fetch, token, allow_expired)
        except errors.Unauthenticated:
            self.known.pop(key, None)
            raise
        except errors.Unavailable as error:
            if self.problem == "ok":
                LOG.warning("Keystone does not answer; known tokens go on, new ones have to wait", reason=error.detail)
            self.problem = error.detail
            if (known := self.known.get(key)) is not None:
                known.recheck_at = time.monotonic() + min(self.recheck, AWAY_SECONDS)
            raise
        if self.problem != "ok":
            LOG.info("Keystone answers again")
            self.problem = "ok"
        while len(self.known) >= MAX_KNOWN:
            del self.known[next(iter(self.known))]
        self.known[key] = _Known(identity, time.monotonic() + self.recheck)
        return identity

    def _fetch(self, token: str, allow_expired: bool) -> Identity:
        import webob.exc
        from keystoneauth1 import access
        from keystoneauth1 import exceptions as keystone_errors
        from keystonemiddleware.auth_token import _exceptions

        try:
            data = self.protocol.fetch_token(token, allow_expired=allow_expired)
            found = access.create(body=data, auth_token=token)
            if found.will_expire_soon(stale_duration=0) and not allow_expired:
                raise errors.Unauthenticated("the token has expired")
            return _identity(data["token"], found)
        except _exceptions.InvalidToken:
            raise errors.Unauthenticated("the token is not valid") from None
        except webob.exc.HTTPServiceUnavailable:
            raise errors.Unavailable("Keystone does not answer", retry_after=1) from None
        except (keystone_errors.ClientException, _exceptions.ConfigurationError) as error:
            raise errors.Unavailable(f"tokens cannot be validated now: {type(error).__name__}", retry_after=1) from None


def _key(token: str, *, allow_expired: bool = False) -> bytes:
    return hashlib.sha256(token.encode()).digest() + (b"e" if allow_expired else b"")


def _identity(token: dict[str, Any], found: Any) -> Identity:
    """Return the identity in a token's body; format: Identity API v3, "Validate and show information for token"."""
    credential = token.get("application_credential") or {}
    expires = datetime.datetime.fromisoformat(token["expires_at"].replace("Z", "+00:00"))
    system = token.get("system") or {}
    return Identity(
        user_id=found.user_id or "",
        user_name=found.username or "",
        user_domain_id=found.user_domain_id or "",
        project_id=found.project_id or "",
        project_name=found.project_name or "",
        project_domain_id=found.project_domain_id or "",
        roles=tuple(sorted(found.role_names)),
        system_scope="all" if system.get("all") else "",
        expires_at=expires.timestamp(),
        restricted=token if credential.get("access_rules") is not None else None,
    )
