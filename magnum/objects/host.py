"""A host: a machine that runs a backend. And a program: any process of Magnum, as ``mservices`` shows it.

Neither belongs to a project; backends and programs report themselves, admins read them.
"""

import datetime

import msgspec


class Facts(msgspec.Struct, kw_only=True):
    """What a backend says of its machine.

    ``engines``: name → version of every engine that answers now; an engine
    that does not answer is absent and ``problem`` says why. ``cpus`` in cores,
    ``memory`` and ``disk`` (free, where the engine stores) in bytes.
    ``networks``: the drivers that its bays may have beside the engine's own (``neutron``).
    ``address`` is where other hosts reach it. ``clusters``: those that answer now, by
    the names that the operator gave them, the same on every host.
    """

    engines: dict[str, str] = {}
    problem: str | None = None
    cpus: float = 0
    memory: int = 0
    disk: int = 0
    address: str = ""
    labels: dict[str, str] = {}
    containers: int = 0
    networks: list[str] = []
    clusters: dict[str, "Cluster"] = {}


class Cluster(msgspec.Struct, kw_only=True):
    """A Kubernetes cluster as a backend sees it. ``nodes``: those that are ready."""

    version: str
    nodes: int = 0


class Host(msgspec.Struct, kw_only=True):
    """A host as the database knows it. ``status``: ``up``, ``down``, or ``disabled`` by an operator.

    ``epoch`` grows each time its backend starts.
    """

    uuid: str
    name: str
    status: str = "down"
    status_reason: str | None = None
    disabled: bool = False
    epoch: int = 0
    facts: Facts = msgspec.field(default_factory=Facts)
    last_seen_at: datetime.datetime | None = None
    created_at: datetime.datetime | None = None
    updated_at: datetime.datetime | None = None


class Beat(msgspec.Struct, kw_only=True):
    """A sign of life of a program. A backend's first beat after a start has ``epoch`` 0 and is answered with its own.

    ``facts`` of a backend alone.
    """

    binary: str
    host: str
    epoch: int = 0
    facts: Facts | None = None


class Program(msgspec.Struct, kw_only=True):
    """A program as ``mservices`` shows it; names are those of python-magnumclient."""

    id: int
    host: str
    binary: str
    state: str
    report_count: int = 0
    disabled: bool = False
    disabled_reason: str | None = None
    last_seen_up: datetime.datetime | None = None
    created_at: datetime.datetime | None = None
    updated_at: datetime.datetime | None = None
