"""Manifests as clients bring them: text in the body, or a URL that is fetched here, within limits.

A URL is http(s), at most ``document.MAX_BYTES`` long in what it gives, answered
within seconds, and its host no loopback, link-local, private or otherwise special
address; the address that was checked is the one that is connected to, and every
redirect is checked again. Called by the handlers of pods, services and rcs.
"""

import asyncio
import ipaddress
import socket
import urllib.parse
from typing import Any

import aiohttp
import jsonpatch
import jsonpointer
from aiohttp import abc, resolver

from magnum import errors
from magnum.api import bodies, names, routing
from magnum.objects import document

FIELD = "manifest_url"
FETCH_SECONDS = 10.0
MAX_REDIRECTS = 5


class ManifestBody(bodies.Body):
    """``manifest`` (YAML or JSON text, or the object itself) or ``manifest_url``; ``bay_uuid``: name or uuid."""

    bay_uuid: str
    manifest: str | dict[str, Any] | None = None
    manifest_url: str | None = None
    name: str | None = None


async def text(call: routing.Call, body: ManifestBody) -> str:
    """Return the manifest's text. Raises Invalid, TooLarge."""
    if (body.manifest is None) == (body.manifest_url is None):
        raise errors.Invalid("give manifest or manifest_url, one of them", field="manifest")
    if body.manifest_url is not None:
        return await fetch(body.manifest_url, private=call.api.conf.api.manifest_url_private)
    if isinstance(body.manifest, dict):
        return routing.encode(body.manifest).decode()
    return body.manifest or ""


def allow(call: routing.Call, asked: list[tuple[str, str]]) -> None:
    """Raise Invalid naming the first field of ``asked`` (field, policy rule) that the asker may not have."""
    for field, rule in asked:
        try:
            call.api.policy.enforce(call.context, rule, field=field)
        except errors.Forbidden as error:
            raise errors.Invalid("not allowed by policy", field=field, rule=rule) from error


def given_name(body: ManifestBody) -> str | None:
    return names.check(body.name) if body.name is not None else None


def value(given: Any, parse: Any, name: str) -> dict[str, Any]:
    """Return the manifest of a JSON Patch's value, text or object. Raises Invalid, TooLarge."""
    if isinstance(given, dict):
        given = routing.encode(given).decode()
    if not isinstance(given, str):
        raise errors.Invalid("must be a manifest's text or object", field="manifest")
    _, spec = parse(given, name)
    found: dict[str, Any] = spec.manifest
    return found


def patched(item: Any, steps: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the manifest of ``item`` after a JSON Patch of it, to be checked. Raises Invalid."""
    # steps of other fields are the conductor's to check
    mine = [step for step in steps if step["path"].startswith("/manifest")]
    try:
        changed = jsonpatch.JsonPatch(mine).apply({"manifest": item.spec.manifest, "name": item.name})
    except (jsonpatch.JsonPatchException, jsonpointer.JsonPointerException, TypeError, KeyError) as error:
        raise errors.Invalid(f"the patch cannot be applied: {str(error)[:200]}", field="manifest") from None
    found = changed.get("manifest") if isinstance(changed, dict) else None
    if not isinstance(found, dict):
        raise errors.Invalid("must be an object", field="manifest")
    return found


def allowed(address: str) -> bool:
    """Return whether ``address`` is one of the public internet's."""
    found = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_global and not (mapped or found).is_multicast


class _Resolver(abc.AbstractResolver):
    """Resolves as the system does and keeps what is not to be reached out of the answer."""

    def __init__(self, private: bool) -> None:
        self._private = private
        self._inner = resolver.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[abc.ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        kept = [one for one in found if self._private or allowed(one["host"])]
        if found and not kept:
            raise _Refused(f"{host} is not on the public internet")
        return kept

    async def close(self) -> None:
        await self._inner.close()


class _Refused(OSError):
    """The address may not be reached."""


async def fetch(url: str, *, private: bool) -> str:
    """Return what ``url`` gives, as text. Raises Invalid (field ``manifest_url``), TooLarge."""
    connector = aiohttp.TCPConnector(resolver=_Resolver(private), use_dns_cache=False, force_close=True)
    timeout = aiohttp.ClientTimeout(total=FETCH_SECONDS)
    try:
        async with aiohttp.ClientSession(connector=connector, timeout=timeout, trust_env=False) as session:
            for _ in range(MAX_REDIRECTS + 1):
                _check(url, private)
                async with session.get(url, allow_redirects=False) as response:
                    if response.status in (301, 302, 303, 307, 308) and "location" in response.headers:
                        url = urllib.parse.urljoin(url, response.headers["location"])
                        continue
                    if response.status != 200:
                        raise errors.Invalid(f"answered {response.status}", field=FIELD)
                    return await _read(response)
            raise errors.Invalid(f"redirects more than {MAX_REDIRECTS} times", field=FIELD)
    except _Refused as error:
        raise errors.Invalid(str(error), field=FIELD) from None
    except TimeoutError:
        raise errors.Invalid(f"did not answer within {FETCH_SECONDS:g} s", field=FIELD) from None
    except (aiohttp.ClientError, OSError, ValueError, asyncio.IncompleteReadError) as error:
        cause = error.__cause__ if isinstance(error.__cause__, _Refused) else None
        raise errors.Invalid(str(cause or f"cannot be fetched: {type(error).__name__}"), field=FIELD) from None


def _check(url: str, private: bool) -> None:
    try:
        parsed = urllib.parse.urlsplit(url)
        host, _ = parsed.hostname, parsed.port
    except ValueError:
        raise errors.Invalid("is no URL", field=FIELD) from None
    if parsed.scheme not in ("http", "https") or not host:
        raise errors.Invalid("must begin with http:// or https:// and name a host", field=FIELD)
    if parsed.username or parsed.password:
        raise errors.Invalid("must not hold a user's name or password", field=FIELD)
    try:
        literal = str(ipaddress.ip_address(host))
    except ValueError:
        return
    # a connector does not ask its resolver about these
    if not private and not allowed(literal):
        raise errors.Invalid(f"{host} is not on the public internet", field=FIELD)


async def _read(response: aiohttp.ClientResponse) -> str:
    data = await response.content.read(document.MAX_BYTES + 1)
    while len(data) <= document.MAX_BYTES and (more := await response.content.read(document.MAX_BYTES)):
        data += more
    if len(data) > document.MAX_BYTES:
        raise errors.TooLarge(f"gives more than {document.MAX_BYTES} bytes", field=FIELD)
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise errors.Invalid("gives something that is not UTF-8", field=FIELD) from None
