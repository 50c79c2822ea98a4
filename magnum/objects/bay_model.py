"""A bay model: the template that bays are made from (a cluster template to newer clients)."""

from typing import Any

import msgspec

from magnum import errors
from magnum.objects import base

COES = ("docker", "swarm", "kubernetes")
"""Container orchestration engines. ``swarm`` is what old clients call several Docker hosts: the same as ``docker``."""

NEUTRON = "neutron"
"""The network driver of bays whose workloads are on networks of Neutron; any other means the engine's own."""


class BayModelSpec(base.Spec):
    """What a tenant may say of bays made from it; names are those of python-magnumclient.

    ``docker_volume_size`` is in GB. ``labels`` are free text, and the quota,
    limit and host-choice options documented in ``docs/`` under *bay models*.
    """

    coe: str = "docker"
    image_id: str | None = None
    flavor_id: str | None = None
    master_flavor_id: str | None = None
    keypair_id: str | None = None
    external_network_id: str | None = None
    fixed_network: str | None = None
    fixed_subnet: str | None = None
    dns_nameserver: str | None = None
    docker_volume_size: int | None = None
    docker_storage_driver: str | None = None
    labels: dict[str, str] = {}
    http_proxy: str | None = None
    https_proxy: str | None = None
    no_proxy: str | None = None
    network_driver: str | None = None
    volume_driver: str | None = None
    tls_disabled: bool = False
    public: bool = False
    hidden: bool = False
    registry_enabled: bool = False
    insecure_registry: str | None = None
    server_type: str = "vm"
    cluster_distro: str | None = None
    apiserver_port: int | None = None
    master_lb_enabled: bool = False
    floating_ip_enabled: bool = False
    tags: str | None = None
    driver: str | None = None


class BayModelState(base.State):
    """A bay model runs nowhere."""


class BayModel(base.Object, tag="baymodel"):
    spec: BayModelSpec
    state: BayModelState = msgspec.field(default_factory=BayModelState)


def engine_of(spec: BayModelSpec) -> str:
    """Return the name of the engine that serves bays of this model: ``docker`` or ``kubernetes``."""
    return "kubernetes" if spec.coe == "kubernetes" else "docker"


def check(spec: BayModelSpec) -> BayModelSpec:
    """Return ``spec`` if it makes sense. Raises Invalid naming the field."""
    if spec.coe not in COES:
        raise errors.Invalid(f"must be one of {', '.join(COES)}, not {spec.coe!r}", field="coe")
    if spec.docker_volume_size is not None and spec.docker_volume_size < 1:
        raise errors.Invalid("must be at least 1 (GB)", field="docker_volume_size")
    if spec.apiserver_port is not None and not 1024 <= spec.apiserver_port <= 65535:
        raise errors.Invalid("must be between 1024 and 65535", field="apiserver_port")
    return spec


def patch(old: BayModel, spec: BayModelSpec) -> Any:
    """Check a changed spec. Everything but the orchestration engine may change."""
    if spec.coe != old.spec.coe:
        raise errors.Invalid("cannot be changed", field="coe")
    return check(spec)


KIND = base.Kind(
    name="baymodel", plural="baymodels", cls=BayModel, spec=BayModelSpec, state=BayModelState,
    initial="", patch=patch,
)  # fmt: skip
