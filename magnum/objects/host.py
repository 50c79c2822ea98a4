"""A host: a machine that runs a backend. And a program: any process of Magnum, as ``mservices`` shows it.

Neither belongs to a project; backends and programs report themselves, admins read them.
"""

import base64
import datetime
import zlib
from typing import Any

import msgspec

from magnum import errors
from magnum.objects import base


class Facts(msgspec.Struct, kw_only=True):
    """What a backend says of its machine.

    ``engines``: name → version of every engine that answers now; an engine
    that does not answer is absent and ``problem`` says why. ``cpus`` in cores,
    ``memory`` and ``disk`` (free, where the engine stores) in bytes.
    ``networks``: the drivers that its bays may have beside the engine's own (``neutron``).
    ``address`` is where other hosts reach it. ``clusters``: those that answer now, by
    the names that the operator gave them, the same on every host. ``orphans``: what its engines have of this
    deployment that the conductor never heard of, the first hundred.
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
    orphans: list["Orphan"] = []


class Cluster(msgspec.Struct, kw_only=True):
    """A Kubernetes cluster as a backend sees it. ``nodes``: those that are ready."""

    version: str
    nodes: int = 0


class Orphan(msgspec.Struct, kw_only=True, frozen=True):
    """An engine object of ours that the database does not know. ``memo``: see ``remember``; ``runs``: whether it does."""

    kind: str
    uuid: str
    name: str = ""
    project_id: str = ""
    bay_uuid: str = ""
    memo: str = ""
    runs: bool = False

    def recall(self, spec: type[Any]) -> dict[str, Any]:
        """Return ``name``, ``user_id`` and ``spec`` of what ``memo`` was made of. Raises Invalid: it is none."""
        try:
            name, user, found = msgspec.json.decode(zlib.decompress(base64.b64decode(self.memo)))
            return {"name": name, "user_id": user, "spec": base.convert(found, spec)}
        except (ValueError, zlib.error, errors.Invalid) as error:
            raise errors.Invalid(
                f"what {self.kind} {self.uuid} says of its owner's wish is not readable: {error}"
            ) from None


def remember(item: base.Object) -> str:
    """Return what an engine object is to bear so that it can be adopted by a database that has forgotten it.

    The JSON of [name, user, spec], compressed (RFC 1950), base64.
    """
    spec = getattr(item, "spec", None)
    return base64.b64encode(zlib.compress(msgspec.json.encode([item.name, item.user_id, spec]))).decode()


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
