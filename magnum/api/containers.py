"""Containers: what may be asked of one over plain HTTP. Attach and interactive exec are WebSockets: ``api.sockets``."""

import re
from typing import Any

import msgspec

from magnum import errors
from magnum.api import bodies, names, routing, tunnels, verbs, views
from magnum.objects import base, container
from magnum.objects.explanation import Explanation

ROUTES = routing.Routes("containers")


class ContainerBody(bodies.Body):
    """A new container.

    ``memory`` and ``memory_swap``: bytes, or text such as ``512m``. ``cpus``: cores.
    ``command`` and ``entrypoint``: a list, or text that is split as a shell would.
    ``ports``: objects, numbers, or text as Docker has it (``8080:80/tcp``).
    ``restart_policy``: an object, or text such as ``on-failure:3``.
    ``networks``: those of Neutron that it is on, ``security_groups``: names or uuids, in a bay on Neutron alone.
    ``start``: whether it is started, too.
    """

    image: str
    bay_uuid: str
    name: str | None = None
    command: list[str] | str | None = None
    entrypoint: list[str] | str | None = None
    environment: dict[str, str] | None = None
    ports: list[container.Port | str | int] | None = None
    memory: int | str | None = None
    memory_swap: int | str | None = None
    cpus: float | None = None
    pids: int | None = None
    restart_policy: container.RestartPolicy | str | None = None
    labels: dict[str, str] | None = None
    workdir: str | None = None
    user: str | None = None
    hostname: str | None = None
    tty: bool | None = None
    stdin_open: bool | None = None
    mounts: list[container.Mount] | None = None
    stop_timeout: int | None = None
    stop_signal: str | None = None
    read_only: bool | None = None
    privileged: bool | None = None
    cap_add: list[str] | None = None
    cap_drop: list[str] | None = None
    devices: list[str] | None = None
    host_network: bool | None = None
    host_pid: bool | None = None
    host_ipc: bool | None = None
    image_pull_policy: str | None = None
    networks: list[container.Network] | None = None
    security_groups: list[str] | None = None
    start: bool | None = None


class Containers(msgspec.Struct):
    containers: list[views.Container]
    next: str | None = None


_PORT = re.compile(
    r"(?:(?:(?P<ip>[0-9.]+|\[[0-9a-fA-F:]+\]):)?(?P<host>\d{0,5}):)?(?P<port>\d{1,5})(?:/(?P<protocol>\w+))?\Z"
)


def port(value: container.Port | str | int, field: str) -> container.Port:
    """Return a port as asked for: an object, a number, or text as Docker has it. Raises Invalid."""
    if isinstance(value, container.Port):
        return value
    if isinstance(value, int):
        return container.Port(port=value)
    match = _PORT.match(value)
    if match is None:
        raise errors.Invalid("must be PORT, HOST_PORT:PORT or IP:HOST_PORT:PORT, /tcp or /udp after it", field=field)
    published = match["host"]
    return container.Port(
        port=int(match["port"]), protocol=match["protocol"] or "tcp",
        host_port=None if published is None else int(published or 0), host_ip=(match["ip"] or "").strip("[]") or None,
    )  # fmt: skip


def policy(value: container.RestartPolicy | str, field: str) -> container.RestartPolicy:
    """Return a restart policy as asked for: an object or ``name[:times]``. Raises Invalid."""
    if isinstance(value, container.RestartPolicy):
        return value
    name, colon, times = value.partition(":")
    if colon and not (times.isdigit() and len(times) < 6):
        raise errors.Invalid("must be a policy's name, with the number of tries after a colon", field=field)
    return container.RestartPolicy(name=name, maximum_retry_count=int(times or 0))


def make(call: routing.Call, body: ContainerBody) -> container.Container:
    """Return the container that ``body`` asks for. Raises Invalid, Forbidden (policy)."""
    given = {n: v for n, v in msgspec.structs.asdict(body).items() if v is not None}
    where, name = given.pop("bay_uuid"), given.pop("name", None)
    power = "running" if given.pop("start", False) else "created"
    for field in ("command", "entrypoint"):
        if field in given:
            given[field] = bodies.arguments(given[field], field)
    for field in ("memory", "memory_swap"):
        if field in given:
            given[field] = bodies.size(given[field], field)
    if "ports" in given:
        given["ports"] = [port(value, f"ports[{n}]") for n, value in enumerate(given["ports"])]
    if "restart_policy" in given:
        given["restart_policy"] = policy(given["restart_policy"], "restart_policy")
    spec = container.check(container.ContainerSpec(**given, power=power))
    for field, rule in container.privileges(spec):
        call.api.policy.enforce(call.context, rule, field=field)
    return container.Container(
        uuid=base.new_uuid(), name=names.check(name) if name else names.generate("container"),
        bay_uuid=names.ident(where, "bay"), spec=spec,
    )  # fmt: skip


@ROUTES.post("/v1/containers", rule="container:create", answers={201: views.Container, 202: views.Container})
async def create(call: routing.Call, body: ContainerBody, query: bodies.Wait) -> routing.Answer:
    """Make a container, and start it if ``start`` is set."""
    return await verbs.create(call, make(call, body), query)


@ROUTES.get("/v1/containers", rule="container:list", answers={200: Containers})
async def index(call: routing.Call, query: verbs.InBay) -> routing.Answer:
    """List containers."""
    return await verbs.page(call, "container", query)


@ROUTES.get("/v1/containers/detail", rule="container:list", answers={200: Containers})
async def detail(call: routing.Call, query: verbs.InBay) -> routing.Answer:
    """The same as the list."""
    return await verbs.page(call, "container", query)


@ROUTES.get("/v1/containers/{ident}", rule="container:get", answers={200: views.Container})
async def get(call: routing.Call, ident: str, query: verbs.Which) -> routing.Answer:
    """Show a container."""
    return routing.Answer(200, verbs.show(call, await verbs.find(call, "container", ident, query)))


def _policy_of(value: Any, field: str) -> Any:
    kind = container.RestartPolicy | str
    return msgspec.to_builtins(policy(bodies.convert(value, kind, field=field), field))


@ROUTES.patch("/v1/containers/{ident}", rule="container:update", answers={200: views.Container, 202: views.Container})
async def update(call: routing.Call, ident: str, body: bodies.Patch, query: verbs.Change) -> routing.Answer:
    """Change a container's name, limits or restart policy."""
    also = {"memory": bodies.size, "memory_swap": bodies.size, "restart_policy": _policy_of}
    return await verbs.update(call, "container", ident, query, verbs.fields(body, container.ContainerSpec, also))


@ROUTES.delete("/v1/containers/{ident}", rule="container:delete", answers={202: views.Container, 204: None})
async def delete(call: routing.Call, ident: str, query: verbs.Change) -> routing.Answer:
    """Delete a container, running or not."""
    return await verbs.delete(call, "container", ident, query)


def _action(name: str, words: str) -> None:
    @ROUTES.put(
        f"/v1/containers/{{ident}}/{name}", rule=f"container:{name}",
        answers={200: views.Container, 202: views.Container},
    )  # fmt: skip
    async def action(call: routing.Call, ident: str, query: verbs.Change) -> routing.Answer:
        return await verbs.act(call, "container", ident, query, name)

    action.__name__, action.__doc__ = name, words
    ROUTES.operations[-1].function.__name__ = name


for _name, _words in {
    "start": "Start a container.",
    "stop": "Stop a container: its stop signal, and a kill after its ``stop_timeout``.",
    "reboot": "Stop a container and start it again.",
    "pause": "Freeze a container's processes.",
    "unpause": "Thaw a container's processes.",
}.items():
    _action(_name, _words)


@ROUTES.get("/v1/containers/{ident}/logs", rule="container:logs", answers={200: tunnels.Output})
async def logs(call: routing.Call, ident: str, query: tunnels.LogQuery) -> Any:
    """Read a container's output, or follow it (``follow=1``: a stream of text)."""
    item = await verbs.find(call, "container", ident, query)
    return await tunnels.logs(call, item, query)


@ROUTES.put("/v1/containers/{ident}/execute", rule="container:execute", answers={200: tunnels.Output})
async def execute(call: routing.Call, ident: str, query: tunnels.ExecuteQuery) -> routing.Answer:
    """Run a command in a running container and answer its output once it has ended."""
    item = await verbs.find(call, "container", ident, query)
    return await tunnels.execute(call, item, query)


@ROUTES.get("/v1/containers/{ident}/stats", rule="container:stats", answers={200: dict[str, Any]})
async def stats(call: routing.Call, ident: str, query: verbs.Which) -> routing.Answer:
    """Read what a running container uses now."""
    item = await verbs.find(call, "container", ident, query)
    return routing.Answer(200, await call.api.backend(tunnels.host_of(item)).stats(call.context, item))


@ROUTES.get("/v1/containers/{ident}/top", rule="container:top", answers={200: dict[str, Any]})
async def top(call: routing.Call, ident: str, query: verbs.Which) -> routing.Answer:
    """List a running container's processes."""
    item = await verbs.find(call, "container", ident, query)
    return routing.Answer(200, await call.api.backend(tunnels.host_of(item)).top(call.context, item))


@ROUTES.get("/v1/containers/{ident}/explain", rule="container:explain", answers={200: Explanation})
async def explain(call: routing.Call, ident: str, query: verbs.Which) -> routing.Answer:
    """Read why a container is not as wanted, down to the engine's own words, and its last deaths."""
    return await verbs.explain(call, "container", ident, query)


@ROUTES.get("/v1/containers/{ident}/history", rule="container:history", answers={200: verbs.Events})
async def history(call: routing.Call, ident: str, query: verbs.Which) -> routing.Answer:
    """Read what happened to a container."""
    return await verbs.history(call, "container", ident, query)
