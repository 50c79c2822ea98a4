"""Neutron's Networking API v2.0, asked as Magnum itself: tenants' networks, ports, groups and floating IPs.

keystoneauth finds the endpoint, has the token and asks for another when it has
expired; it blocks, so every call is a thread's. What is read of an answer is what
the structs here have. References: https://docs.openstack.org/api-ref/network/v2/

Who calls: ``networks.neutron``. keystoneauth is loaded by the first ``Client`` alone.
"""

import asyncio
import concurrent.futures
import contextlib
from typing import Any, TypeVar

import msgspec
from oslo_config import cfg

from magnum import errors

GROUP = "neutron"
THREADS = 8
"""Calls in hand at most; Neutron's own workers are seldom more."""

T = TypeVar("T")


class _Answer(msgspec.Struct, kw_only=True):
    id: str
    name: str | None = None
    project_id: str = ""
    description: str | None = None
    created_at: str = ""


class Network(_Answer, kw_only=True):
    """``external``: floating IPs can be had of it. ``shared``: every project may use it. ``mtu`` in bytes."""

    shared: bool = False
    mtu: int = 1500
    external: bool = msgspec.field(default=False, name="router:external")
    subnets: list[str] = []


class Route(msgspec.Struct, kw_only=True):
    destination: str
    nexthop: str


class Subnet(_Answer, kw_only=True):
    network_id: str
    cidr: str
    ip_version: int = 4
    gateway_ip: str | None = None
    dns_nameservers: list[str] = []
    host_routes: list[Route] = []


class FixedIp(msgspec.Struct, kw_only=True):
    subnet_id: str
    ip_address: str


class Port(_Answer, kw_only=True):
    """``vif_type`` is how the host's agent wants the interface plugged (``ovs``, or ``binding_failed``)."""

    network_id: str
    mac_address: str
    status: str = ""
    fixed_ips: list[FixedIp] = []
    device_id: str = ""
    device_owner: str = ""
    security_groups: list[str] = []
    host: str = msgspec.field(default="", name="binding:host_id")
    vif_type: str = msgspec.field(default="", name="binding:vif_type")
    vif_details: dict[str, Any] = msgspec.field(default={}, name="binding:vif_details")


class Gateway(msgspec.Struct, kw_only=True):
    network_id: str


class Router(_Answer, kw_only=True):
    external_gateway_info: Gateway | None = None


class Rule(_Answer, kw_only=True):
    direction: str = "ingress"
    ethertype: str = "IPv4"
    protocol: str | None = None
    port_range_min: int | None = None
    port_range_max: int | None = None
    remote_ip_prefix: str | None = None
    remote_group_id: str | None = None


class SecurityGroup(_Answer, kw_only=True):
    security_group_rules: list[Rule] = []


class FloatingIp(_Answer, kw_only=True):
    floating_ip_address: str = ""
    port_id: str | None = None


KINDS: dict[type, str] = {
    Network: "networks", Subnet: "subnets", Port: "ports", Router: "routers", SecurityGroup: "security-groups",
    Rule: "security-group-rules", FloatingIp: "floatingips",
}  # fmt: skip
"""Struct → the collection's path; in bodies it is written with underscores."""


def register(conf: cfg.ConfigOpts) -> None:
    """Have keystoneauth's options under ``[neutron]``: how Magnum itself asks, and where Neutron is."""
    from keystoneauth1 import loading

    loading.register_auth_conf_options(conf, GROUP)
    loading.register_session_conf_options(conf, GROUP)
    loading.register_adapter_conf_options(conf, GROUP)
    conf.set_default("service_type", "network", group=GROUP)
    conf.set_default("timeout", 30, group=GROUP)


def configured(conf: cfg.ConfigOpts) -> bool:
    """Return whether the operator says how Neutron is asked; keystoneauth, which knows the option, is not loaded for it."""
    probe = cfg.ConfigOpts()
    probe.register_opt(cfg.StrOpt("auth_type"), group=GROUP)
    probe(args=[], project="magnum", default_config_files=conf.default_config_files, default_config_dirs=[])
    return bool(probe.neutron.auth_type)


class Client:
    """Asks Neutron. Raises Invalid for what is configured wrongly.

    Every method raises NotFound, Conflict (in use, taken), QuotaExceeded and EngineError with Neutron's own words,
    and Unavailable when it, or Keystone, does not answer.
    """

    def __init__(self, conf: cfg.ConfigOpts) -> None:
        from keystoneauth1 import loading

        register(conf)
        try:
            auth = loading.load_auth_from_conf_options(conf, GROUP)
            session = loading.load_session_from_conf_options(conf, GROUP, auth=auth)
            self._adapter = loading.load_adapter_from_conf_options(conf, GROUP, session=session, user_agent="magnum")
        except Exception as error:
            # keystoneauth's own, of many kinds: a wrong plug-in, an option that is missing
            raise errors.Invalid(f"{type(error).__name__}: {error}", field="[neutron]") from error
        self._threads = concurrent.futures.ThreadPoolExecutor(THREADS, thread_name_prefix="neutron")

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def request(self, method: str, path: str, body: Any = None, params: Any = None) -> Any:
        """Return the decoded answer of ``/v2.0`` + ``path``, None if it is empty. ``params``: of the query, as pairs."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, self._send, method, path, body, params)

    def _send(self, method: str, path: str, body: Any, params: Any) -> Any:
        from keystoneauth1 import exceptions

        try:
            answer = self._adapter.request(
                f"/v2.0{path}", method, json=body, params=params, raise_exc=False, connect_retries=1,
                headers={"Accept": "application/json"},
            )  # fmt: skip
        except (exceptions.ConnectFailure, exceptions.DiscoveryFailure, exceptions.RetriableConnectionFailure) as error:
            raise errors.Unavailable(f"Neutron does not answer: {error}", retry_after=2) from error
        except exceptions.HttpError as error:
            if error.http_status >= 500:
                raise errors.Unavailable(f"Neutron cannot be asked: {error}", retry_after=2) from error
            raise errors.EngineError(f"Keystone does not let Magnum ask Neutron: {error}") from error
        except exceptions.ClientException as error:
            raise errors.Unavailable(f"Neutron cannot be asked: {error}", retry_after=2) from error
        if answer.status_code < 400:
            return msgspec.json.decode(answer.content) if answer.content else None
        raise _error(answer.status_code, answer.content)

    async def list(self, cls: type[T], **filters: Any) -> list[T]:
        """Return what has all of ``filters``; one with a list of values matches any of them."""
        path = KINDS[cls]
        pairs = [(name.replace("__", ":"), str(value)) for name, given in filters.items()
                 for value in (given if isinstance(given, (list, tuple, set)) else [given])]  # fmt: skip
        found = await self.request("GET", f"/{path}", params=pairs)
        return msgspec.convert(found[path.replace("-", "_")], list[cls])  # type: ignore[valid-type]

    async def get(self, cls: type[T], ident: str) -> T:
        path = KINDS[cls]
        return _one(cls, await self.request("GET", f"/{path}/{ident}"))

    async def create(self, cls: type[T], **values: Any) -> T:
        """Return what was made with ``values``; ``binding__host_id`` is ``binding:host_id``."""
        path = KINDS[cls]
        body = {_single(path): {name.replace("__", ":"): value for name, value in values.items()}}
        return _one(cls, await self.request("POST", f"/{path}", body))

    async def update(self, cls: type[T], ident: str, **values: Any) -> T:
        path = KINDS[cls]
        body = {_single(path): {name.replace("__", ":"): value for name, value in values.items()}}
        return _one(cls, await self.request("PUT", f"/{path}/{ident}", body))

    async def delete(self, cls: type, ident: str) -> None:
        """Delete; no error if there is none."""
        with contextlib.suppress(errors.NotFound):
            await self.request("DELETE", f"/{KINDS[cls]}/{ident}")

    async def interface(self, router: str, subnet: str, *, add: bool) -> None:
        """Join a router to a subnet, or part them; what is so already is no error."""
        verb = "add" if add else "remove"
        try:
            await self.request("PUT", f"/routers/{router}/{verb}_router_interface", {"subnet_id": subnet})
        except errors.NotFound:
            if add:
                raise
        except (errors.Conflict, errors.EngineError) as error:
            if not add or "already has a port" not in error.detail:
                raise

    async def allowed(self, kind: str, ident: str, project: str, action: str) -> bool:
        """Return whether an RBAC policy lets ``project`` do ``action`` (``access_as_shared``, ``access_as_external``)."""
        pairs = [("object_id", ident), ("object_type", kind), ("action", action)]
        found = await self.request("GET", "/rbac-policies", params=pairs)
        return any(policy.get("target_tenant", policy.get("target_project")) in ("*", project)
                   for policy in found["rbac_policies"])  # fmt: skip


def _single(path: str) -> str:
    return path.replace("-", "_").removesuffix("s")


def _one(cls: type[T], body: dict[str, Any]) -> T:
    (value,) = body.values()
    return msgspec.convert(value, cls)


def _error(status: int, raw: bytes) -> errors.MagnumError:
    """Return Neutron's refusal as one of ours; format: {"NeutronError": {"type", "message", "detail"}}."""
    kind, words = "", raw.decode(errors="replace")[:500]
    with contextlib.suppress(msgspec.DecodeError, AttributeError, KeyError):
        found = msgspec.json.decode(raw)["NeutronError"]
        kind, words = (found["type"], found["message"]) if isinstance(found, dict) else ("", str(found))
    if status == 404:
        return errors.NotFound(words)
    if kind == "OverQuota":
        return errors.QuotaExceeded(f"Neutron: {words}")
    if status == 409:
        return errors.Conflict(f"Neutron: {words}")
    if status >= 500 or status == 401:
        return errors.Unavailable(f"Neutron: {status} {words}", retry_after=2)
    return errors.EngineError(f"Neutron: {words}")
