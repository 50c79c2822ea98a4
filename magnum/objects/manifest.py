"""Kubernetes v1 manifests: Pod, Service, ReplicationController, typed, checked, and with Kubernetes' defaults.

``objects.pod``, ``objects.service`` and ``objects.replication_controller`` make
their specs of what ``pod``, ``service`` and ``replication_controller`` here
return; the engines' drivers read the same structs. Create and update pass the
same checks.

Every field of a manifest is honoured or refused with Invalid naming its path.
The structs hold what some engine honours; ``REFUSED`` what none does (with the
reason), ``ONLY_KUBERNETES`` and ``ONLY_DOCKER`` what one alone does; any other
field is unknown. ``table`` renders all of it for the documentation. What needs
a privilege is honoured where policy opens it: see ``privileges``.

Rules and defaults are those of the Kubernetes API reference, v1, as of 1.20.
"""

import decimal
import ipaddress
import re
import types
import typing
from typing import Any, Literal

import msgspec

from magnum import errors

API_VERSION = "v1"


class Part(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, rename="camel", omit_defaults=True):
    """Base of every piece of a manifest."""


class Metadata(Part):
    name: str | None = None
    namespace: str | None = None
    labels: dict[str, str] = {}
    annotations: dict[str, str] = {}


class Exec(Part):
    command: list[str] = []


class HttpHeader(Part):
    name: str
    value: str = ""


class HttpGet(Part):
    port: int | str
    path: str = "/"
    host: str | None = None
    scheme: Literal["HTTP", "HTTPS"] = "HTTP"
    http_headers: list[HttpHeader] = []


class TcpSocket(Part):
    port: int | str
    host: str | None = None


class Probe(Part):
    """Times in seconds."""

    exec: Exec | None = None
    http_get: HttpGet | None = None
    tcp_socket: TcpSocket | None = None
    initial_delay_seconds: int = 0
    timeout_seconds: int = 1
    period_seconds: int = 10
    success_threshold: int = 1
    failure_threshold: int = 3


class Hook(Part):
    exec: Exec | None = None
    http_get: HttpGet | None = None


class Lifecycle(Part):
    post_start: Hook | None = None
    pre_stop: Hook | None = None


class ContainerPort(Part):
    container_port: int
    name: str | None = None
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"
    host_port: int | None = None
    host_ip: str | None = msgspec.field(default=None, name="hostIP")


class FieldRef(Part):
    field_path: str
    api_version: Literal["v1"] = "v1"


class EnvSource(Part):
    field_ref: FieldRef | None = None


class EnvVar(Part):
    name: str
    value: str | None = None
    value_from: EnvSource | None = None


Quantity = str | int | float


class Amounts(Part):
    cpu: Quantity | None = None
    memory: Quantity | None = None


class Resources(Part):
    limits: Amounts = msgspec.field(default_factory=Amounts)
    requests: Amounts = msgspec.field(default_factory=Amounts)


class Capabilities(Part):
    add: list[str] = []
    drop: list[str] = []


class SeccompProfile(Part):
    type: Literal["RuntimeDefault"]


class SecurityContext(Part):
    privileged: bool = False
    allow_privilege_escalation: bool | None = None
    capabilities: Capabilities = msgspec.field(default_factory=Capabilities)
    read_only_root_filesystem: bool = False
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_non_root: bool | None = None
    seccomp_profile: SeccompProfile | None = None


class PodSecurityContext(Part):
    run_as_user: int | None = None
    run_as_group: int | None = None
    run_as_non_root: bool | None = None
    supplemental_groups: list[int] = []
    fs_group: int | None = None
    seccomp_profile: SeccompProfile | None = None


class VolumeMount(Part):
    name: str
    mount_path: str
    read_only: bool = False
    sub_path: str | None = None


class EmptyDir(Part):
    medium: Literal["", "Memory"] = ""
    size_limit: Quantity | None = None


class HostPath(Part):
    path: str
    type: str = ""


class Volume(Part):
    name: str
    empty_dir: EmptyDir | None = None
    host_path: HostPath | None = None


class Container(Part):
    name: str
    image: str
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None
    command: list[str] = []
    args: list[str] = []
    working_dir: str | None = None
    env: list[EnvVar] = []
    ports: list[ContainerPort] = []
    resources: Resources = msgspec.field(default_factory=Resources)
    volume_mounts: list[VolumeMount] = []
    liveness_probe: Probe | None = None
    readiness_probe: Probe | None = None
    startup_probe: Probe | None = None
    lifecycle: Lifecycle = msgspec.field(default_factory=Lifecycle)
    security_context: SecurityContext = msgspec.field(default_factory=SecurityContext)
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False


class HostAlias(Part):
    ip: str
    hostnames: list[str]


class DnsOption(Part):
    name: str
    value: str | None = None


class DnsConfig(Part):
    nameservers: list[str] = []
    searches: list[str] = []
    options: list[DnsOption] = []


class PodSpec(Part):
    containers: list[Container]
    init_containers: list[Container] = []
    volumes: list[Volume] = []
    restart_policy: Literal["Always", "OnFailure", "Never"] = "Always"
    termination_grace_period_seconds: int = 30
    active_deadline_seconds: int | None = None
    dns_policy: Literal["ClusterFirst", "Default", "None"] = "ClusterFirst"
    dns_config: DnsConfig | None = None
    hostname: str | None = None
    subdomain: str | None = None
    host_aliases: list[HostAlias] = []
    share_process_namespace: bool = False
    host_network: bool = False
    host_pid: bool = msgspec.field(default=False, name="hostPID")
    host_ipc: bool = msgspec.field(default=False, name="hostIPC")
    security_context: PodSecurityContext = msgspec.field(default_factory=PodSecurityContext)
    affinity: dict[str, Any] = {}
    node_selector: dict[str, str] = {}
    tolerations: list[dict[str, Any]] = []
    topology_spread_constraints: list[dict[str, Any]] = []


class Pod(Part):
    api_version: str
    kind: str
    spec: PodSpec
    metadata: Metadata = msgspec.field(default_factory=Metadata)


class ServicePort(Part):
    port: int
    name: str | None = None
    protocol: Literal["TCP", "UDP", "SCTP"] = "TCP"
    target_port: int | str | None = None
    node_port: int | None = None


class ClientIp(Part):
    timeout_seconds: int = 10800


class AffinityConfig(Part):
    client_ip: ClientIp = msgspec.field(default_factory=ClientIp, name="clientIP")


class ServiceSpec(Part):
    """``LoadBalancer`` is what Kubernetes makes of it without a cloud: a ``NodePort`` with no address of its own.

    In a bay on Neutron with an external network it has a floating IP instead.
    """

    ports: list[ServicePort] = []
    selector: dict[str, str] = {}
    type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    cluster_ip: Literal["None", ""] = msgspec.field(default="", name="clusterIP")
    session_affinity: Literal["None", "ClientIP"] = "None"
    session_affinity_config: AffinityConfig = msgspec.field(default_factory=AffinityConfig)
    publish_not_ready_addresses: bool = False
    load_balancer_source_ranges: list[str] = []


class Service(Part):
    api_version: str
    kind: str
    spec: ServiceSpec
    metadata: Metadata = msgspec.field(default_factory=Metadata)


class PodTemplate(Part):
    spec: PodSpec
    metadata: Metadata = msgspec.field(default_factory=Metadata)


class ReplicationControllerSpec(Part):
    template: PodTemplate
    replicas: int = 1
    selector: dict[str, str] = {}
    min_ready_seconds: int = 0


class ReplicationController(Part):
    api_version: str
    kind: str
    spec: ReplicationControllerSpec
    metadata: Metadata = msgspec.field(default_factory=Metadata)


# Paths are those of a Pod; a template's are the same under spec.template. "*container*" stands for
# spec.containers[] and spec.initContainers[]; "*metadata*" for every metadata, "*probe*" and "*hook*" for each of theirs.

_SERVER = "is set by the server"
_NO_KIND = "no such object exists here"
_PLACED = "hosts are chosen by Magnum"

REFUSED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "status": (_SERVER, ({},)),
    **{f"*metadata*.{name}": (_SERVER, ({}, [])) for name in (
        "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds", "generation",
        "selfLink", "managedFields", "ownerReferences")},
    "*metadata*.generateName": ("give a name", ("",)),
    "*metadata*.finalizers": ("deletion is Magnum's", ([],)),
    "*metadata*.clusterName": ("a bay is the cluster", ("",)),
    "*container*.envFrom": (_NO_KIND, ([],)),
    "*container*.env[].valueFrom.configMapKeyRef": (_NO_KIND, ()),
    "*container*.env[].valueFrom.secretKeyRef": (_NO_KIND, ()),
    "*container*.env[].valueFrom.resourceFieldRef": ("not supported", ()),
    "*container*.env[].valueFrom.fileKeyRef": ("not supported", ()),
    **{f"*container*.resources.{name}.ephemeral-storage": ("not supported", ()) for name in ("limits", "requests")},
    "*container*.resources.claims": ("not supported", ([],)),
    "*container*.resizePolicy": ("not supported", ([],)),
    "*container*.restartPolicy": ("not supported", ()),
    "*container*.restartPolicyRules": ("not supported", ([],)),
    "*container*.terminationMessagePath": ("not supported", ()),
    "*container*.terminationMessagePolicy": ("not supported", ()),
    "*container*.volumeDevices": ("not supported", ([],)),
    "*container*.volumeMounts[].mountPropagation": ("not supported", ("None",)),
    "*container*.volumeMounts[].recursiveReadOnly": ("not supported", ("Disabled",)),
    "*container*.volumeMounts[].subPathExpr": ("not supported", ("",)),
    "*container*.securityContext.procMount": ("not supported", ("Default",)),
    "*container*.securityContext.seLinuxOptions": ("not supported", ({},)),
    "*container*.securityContext.windowsOptions": ("not supported", ({},)),
    "*container*.securityContext.appArmorProfile": ("not supported", ()),
    "*container*.securityContext.seccompProfile.localhostProfile": ("not supported", ()),
    "*probe*.grpc": ("not supported", ()),
    "*probe*.terminationGracePeriodSeconds": ("not supported", ()),
    "*hook*.tcpSocket": ("not supported", ()),
    "*hook*.sleep": ("not supported", ()),
    "*container*.lifecycle.stopSignal": ("not supported", ()),
    **{f"spec.volumes[].{name}": (_NO_KIND, ()) for name in (
        "configMap", "secret", "persistentVolumeClaim", "ephemeral", "projected", "downwardAPI")},
    **{f"spec.volumes[].{name}": ("not supported", ()) for name in (
        "awsElasticBlockStore", "azureDisk", "azureFile", "cephfs", "cinder", "csi", "fc", "flexVolume", "flocker",
        "gcePersistentDisk", "gitRepo", "glusterfs", "image", "iscsi", "nfs", "photonPersistentDisk", "portworxVolume",
        "quobyte", "rbd", "scaleIO", "storageos", "vsphereVolume")},
    "spec.securityContext.sysctls": ("not supported", ([],)),
    "spec.securityContext.fsGroupChangePolicy": ("not supported", ()),
    "spec.securityContext.supplementalGroupsPolicy": ("not supported", ("Merge",)),
    "spec.securityContext.seLinuxOptions": ("not supported", ({},)),
    "spec.securityContext.seLinuxChangePolicy": ("not supported", ()),
    "spec.securityContext.windowsOptions": ("not supported", ({},)),
    "spec.securityContext.appArmorProfile": ("not supported", ()),
    "spec.securityContext.seccompProfile.localhostProfile": ("not supported", ()),
    "spec.nodeName": (_PLACED, ("",)),
    "spec.schedulerName": (_PLACED, ("default-scheduler",)),
    "spec.schedulingGates": (_PLACED, ([],)),
    "spec.serviceAccount": (_NO_KIND, ("", "default")),
    "spec.serviceAccountName": (_NO_KIND, ("", "default")),
    "spec.automountServiceAccountToken": ("a pod is given no token", (False,)),
    "spec.imagePullSecrets": (_NO_KIND, ([],)),
    "spec.enableServiceLinks": ("services are found by name", (False,)),
    "spec.ephemeralContainers": ("not supported", ([],)),
    "spec.hostUsers": ("not supported", (True,)),
    "spec.os": ("not supported", ({"name": "linux"},)),
    "spec.overhead": ("not supported", ({},)),
    "spec.preemptionPolicy": ("not supported", ()),
    "spec.priority": ("not supported", (0,)),
    "spec.priorityClassName": (_NO_KIND, ("",)),
    "spec.readinessGates": ("not supported", ([],)),
    "spec.resourceClaims": ("not supported", ([],)),
    "spec.resources": ("limit the containers", ({},)),
    "spec.runtimeClassName": (_NO_KIND, ("",)),
    "spec.setHostnameAsFQDN": ("not supported", (False,)),
    "spec.hostnameOverride": ("not supported", ()),
    "spec.workloadRef": ("not supported", ()),
}  # fmt: skip
"""Known fields that no engine honours: path → (why, values that ask for nothing and may stand)."""

SERVICE_REFUSED: dict[str, tuple[str, tuple[Any, ...]]] = {
    "spec.allocateLoadBalancerNodePorts": ("not supported", (True,)),
    "spec.clusterIPs": ("addresses are chosen by Magnum", ([], ["None"])),
    "spec.externalIPs": ("addresses are chosen by Magnum", ([],)),
    "spec.externalName": ("not supported", ("",)),
    "spec.externalTrafficPolicy": ("not supported", ("Cluster",)),
    "spec.healthCheckNodePort": ("not supported", (0,)),
    "spec.internalTrafficPolicy": ("not supported", ("Cluster",)),
    "spec.ipFamilies": ("not supported", (["IPv4"],)),
    "spec.ipFamily": ("not supported", ("IPv4",)),
    "spec.ipFamilyPolicy": ("not supported", ("SingleStack",)),
    "spec.loadBalancerClass": ("not supported", ()),
    "spec.loadBalancerIP": ("addresses are chosen by Magnum", ("",)),
    "spec.ports[].appProtocol": ("not supported", ("",)),
    "spec.topologyKeys": ("not supported", ([],)),
    "spec.trafficDistribution": ("not supported", ()),
    "status": REFUSED["status"],
    **{path: why for path, why in REFUSED.items() if path.startswith("*metadata*")},
}
"""The same, of a Service."""

ONLY_KUBERNETES: dict[str, tuple[Any, ...]] = {
    "spec.affinity": ({},),
    "spec.nodeSelector": ({},),
    "spec.tolerations": ([],),
    "spec.topologySpreadConstraints": ([],),
    "spec.activeDeadlineSeconds": (),
    "spec.subdomain": ("",),
    "spec.hostAliases": ([],),
    "spec.securityContext.fsGroup": (),
    "*container*.volumeMounts[].subPath": ("",),
    "spec.minReadySeconds": (0,),
    "spec.publishNotReadyAddresses": (False,),
}
"""Fields that a Docker bay refuses: path → values that may stand."""

ONLY_DOCKER: dict[str, tuple[Any, ...]] = {
    "*container*.ports[].hostPort": (0,),
    "*container*.ports[].hostIP": ("",),
}
"""Fields that a Kubernetes bay refuses."""

_STARS = (
    ("*container*", ("spec.containers[]", "spec.initContainers[]")),
    ("*metadata*", ("metadata",)),
    ("*probe*", tuple(f"*container*.{p}" for p in ("livenessProbe", "readinessProbe", "startupProbe"))),
    ("*hook*", ("*container*.lifecycle.postStart", "*container*.lifecycle.preStop")),
)


def _expand(paths: dict[str, Any]) -> dict[str, Any]:
    """Return ``paths`` with their stars written out."""
    for star, meant in reversed(_STARS):
        paths = {path.replace(star, m): why for path, why in paths.items() for m in (meant if star in path else ("",))}
    return paths


def _rules(
    refused: dict[str, tuple[str, tuple[Any, ...]]], engine: str | None
) -> dict[str, tuple[str, tuple[Any, ...]]]:
    """Return normalised path → (why, harmless values) of what ``engine`` (None: every engine) refuses."""
    rules = dict(refused)
    others = {"docker": (ONLY_KUBERNETES, "Docker"), "kubernetes": (ONLY_DOCKER, "Kubernetes")}
    if engine in others:
        paths, title = others[engine]
        rules |= {path: (f"not supported on {title} bays", values) for path, values in paths.items()}
    return _expand(rules)


_ENGINES: tuple[str | None, ...] = (None, "docker", "kubernetes")
_POD_RULES = {engine: _rules(REFUSED, engine) for engine in _ENGINES}
_SERVICE_RULES = {engine: _rules(SERVICE_REFUSED, engine) for engine in _ENGINES}
_CONTROLLER_RULES = {
    engine: {path: why for path, why in rules.items() if path.startswith(("metadata", "status", "spec.minReady"))}
    | {f"spec.template.{path}": why for path, why in rules.items() if path not in ("status", "spec.minReadySeconds")}
    for engine, rules in _POD_RULES.items()
}


def _refuse(data: Any, rules: dict[str, tuple[str, tuple[Any, ...]]], path: str, general: str) -> Any:
    """Return ``data`` without fields that ask for nothing; raise Invalid for one that is refused."""
    if isinstance(data, list):
        return [_refuse(item, rules, f"{path}[{n}]", f"{general}[]") for n, item in enumerate(data)]
    if not isinstance(data, dict):
        return data
    kept = {}
    for key, value in data.items():
        where, known = (f"{path}.{key}", f"{general}.{key}") if path else (key, key)
        if known in rules:
            why, harmless = rules[known]
            if not any(type(value) is type(h) and value == h for h in harmless):
                raise errors.Invalid(why, field=where)
            continue
        kept[key] = _refuse(value, rules, where, known)
    return kept


_TYPES = {"str": "a string", "int": "an integer", "bool": "true or false", "object": "a mapping", "array": "a list",
          "float": "a number", "null": "absent"}  # fmt: skip


def _foreign(error: msgspec.ValidationError) -> errors.Invalid:
    """Return ours for msgspec's, whose text is ``what - at `$.path```."""
    what, _, where = str(error).partition(" - at `$")
    path = where.rstrip("`").lstrip(".").partition("[...]")[0]
    if match := re.fullmatch(r"Object contains unknown field `(.*)`", what, re.DOTALL):
        return errors.Invalid("unknown field", field=f"{path}.{match[1]}" if path else match[1])
    if match := re.fullmatch(r"Object missing required field `(.*)`", what):
        return errors.Invalid("is required", field=f"{path}.{match[1]}" if path else match[1])
    if match := re.fullmatch(r"Expected `(.*)`, got `(.*)`", what):
        wanted = " or ".join(_TYPES.get(name, name) for name in match[1].split(" | ") if name != "null")
        inside = "values must be" if "[...]" in where else "must be"
        return errors.Invalid(f"{inside} {wanted}, not {_TYPES.get(match[2], match[2])}", field=path or "manifest")
    if match := re.fullmatch(r"Invalid enum value (.*)", what):
        return errors.Invalid(f"{match[1]} is not one of the values it takes", field=path or "manifest")
    return errors.Invalid(what, field=path or "manifest")


T = typing.TypeVar("T", Pod, Service, ReplicationController)


def _convert(data: dict[str, Any], cls: type[T], rules: dict[str, tuple[str, tuple[Any, ...]]]) -> T:
    kind = cls.__name__
    if data.get("apiVersion") != API_VERSION:
        raise errors.Invalid(f"must be {API_VERSION}", field="apiVersion")
    if data.get("kind") != kind:
        raise errors.Invalid(f"must be {kind}", field="kind")
    try:
        return msgspec.convert(_refuse(data, rules, "", ""), cls)
    except msgspec.ValidationError as error:
        raise _foreign(error) from None


# Kubernetes' forms of names.

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_SERVICE_NAME = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_PORT_NAME = re.compile(r"(?=.*[a-z])(?!.*--)[a-z0-9]([-a-z0-9]{0,13}[a-z0-9])?")
_QUALIFIED = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_ENV_NAME = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")
_HEADER_NAME = re.compile(r"[-A-Za-z0-9]+")
_QUANTITY = re.compile(r"([+-]?(?:\d+\.?\d*|\.\d+))(?:[eE]([+-]?\d{1,3})|(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?)")
_SUFFIXES = {
    "n": "1e-9",
    "u": "1e-6",
    "m": "1e-3",
    "k": "1e3",
    "M": "1e6",
    "G": "1e9",
    "T": "1e12",
    "P": "1e15",
    "E": "1e18",
}
_SUFFIXES |= {f"{prefix}i": str(1024**power) for power, prefix in enumerate("KMGTPE", 1)}
FIELD_PATHS = ("metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "status.hostIP", "status.podIP")
_FIELD_KEY = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")
MAX_ANNOTATIONS = 256 * 1024


def _need(fits: object, detail: str, field: str) -> None:
    if not fits:
        raise errors.Invalid(detail, field=field)


def quantity(value: Quantity, field: str = "quantity") -> decimal.Decimal:
    """Return what a Kubernetes quantity (``100m``, ``64Mi``, ``1.5``, ``1e3``) stands for. Raises Invalid.

    https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/
    """
    match = _QUANTITY.fullmatch(str(value))
    _need(match and not isinstance(value, bool), f"{value!r} is not a quantity such as 100m or 64Mi", field)
    assert match
    number = decimal.Decimal(match[1])
    if match[2]:
        number = number.scaleb(int(match[2]))
    elif match[3]:
        number *= decimal.Decimal(_SUFFIXES[match[3]])
    _need(0 <= number < 2**63, "must be between 0 and 2^63", field)
    return number


def cores(amounts: Amounts) -> float | None:
    """Return cores, rounded up to a thousandth, None if not given."""
    if amounts.cpu is None:
        return None
    return float(quantity(amounts.cpu).quantize(decimal.Decimal("0.001"), decimal.ROUND_CEILING))


def size(value: Quantity | None) -> int | None:
    """Return whole bytes, rounded up, None if not given."""
    return None if value is None else int(quantity(value).to_integral_value(decimal.ROUND_CEILING))


def _check_labels(labels: dict[str, str], field: str, values: bool = True) -> None:
    for key, value in labels.items():
        prefix, slash, name = key.rpartition("/")
        fits = _QUALIFIED.fullmatch(name) and (not slash or (_SUBDOMAIN.fullmatch(prefix) and len(prefix) <= 253))
        _need(fits, "the key must be [prefix/]name: letters, digits, '-', '_' and '.', at most 63", f"{field}.{key}")
        if values:
            _need(
                not value or _QUALIFIED.fullmatch(value),
                "must be letters, digits, '-', '_' and '.', at most 63",
                f"{field}.{key}",
            )


def _check_metadata(metadata: Metadata, field: str = "metadata", form: re.Pattern[str] = _SUBDOMAIN) -> None:
    if metadata.name is not None:
        what = "lower case letters, digits and '-'" + (" or '.'" if form is _SUBDOMAIN else ", a letter first")
        _need(form.fullmatch(metadata.name) and len(metadata.name) <= 253, f"must be {what}", f"{field}.name")
    _need(
        metadata.namespace in (None, "", "default"),
        "a bay is a namespace of its own: leave it out or say default",
        f"{field}.namespace",
    )
    _check_labels(metadata.labels, f"{field}.labels")
    _check_labels(metadata.annotations, f"{field}.annotations", values=False)
    total = sum(len(key.encode()) + len(value.encode()) for key, value in metadata.annotations.items())
    _need(total <= MAX_ANNOTATIONS, f"must be at most {MAX_ANNOTATIONS} bytes in all", f"{field}.annotations")


def _check_port_number(number: int, field: str) -> None:
    _need(1 <= number <= 65535, "must be between 1 and 65535", field)


def _check_port(port: int | str, names: set[str], field: str) -> None:
    if isinstance(port, int):
        _check_port_number(port, field)
    else:
        _need(port in names, f"the container has no port named {port!r}", field)


def _check_http(http: HttpGet, names: set[str], field: str) -> None:
    _check_port(http.port, names, f"{field}.port")
    _need(http.path.startswith("/") and http.path.isprintable(), "must be an absolute path", f"{field}.path")
    for n, header in enumerate(http.http_headers):
        _need(_HEADER_NAME.fullmatch(header.name), "is not a header's name", f"{field}.httpHeaders[{n}].name")
        _need(header.value.isprintable(), "must be printable", f"{field}.httpHeaders[{n}].value")


def _check_probe(probe: Probe, names: set[str], once: bool, field: str) -> None:
    handlers = [h for h in (probe.exec, probe.http_get, probe.tcp_socket) if h is not None]
    _need(len(handlers) == 1, "must have one of exec, httpGet and tcpSocket", field)
    if probe.exec:
        _need(probe.exec.command, "is required", f"{field}.exec.command")
    if probe.http_get:
        _check_http(probe.http_get, names, f"{field}.httpGet")
    if probe.tcp_socket:
        _check_port(probe.tcp_socket.port, names, f"{field}.tcpSocket.port")
    _need(probe.initial_delay_seconds >= 0, "must not be negative", f"{field}.initialDelaySeconds")
    for name in ("timeout", "period"):
        _need(getattr(probe, f"{name}_seconds") >= 1, "must be at least 1", f"{field}.{name}Seconds")
    for name in ("success", "failure"):
        _need(getattr(probe, f"{name}_threshold") >= 1, "must be at least 1", f"{field}.{name}Threshold")
    _need(not once or probe.success_threshold == 1, "must be 1", f"{field}.successThreshold")


def _check_resources(resources: Resources, field: str) -> None:
    for name in ("cpu", "memory"):
        limit, request = getattr(resources.limits, name), getattr(resources.requests, name)
        if limit is not None:
            quantity(limit, f"{field}.limits.{name}")
        if request is not None:
            asked = quantity(request, f"{field}.requests.{name}")
            _need(limit is None or asked <= quantity(limit), "must not be above the limit", f"{field}.requests.{name}")
    memory = size(resources.limits.memory)
    least = 6 * 1024 * 1024
    _need(not memory or memory >= least, f"must be at least {least} bytes (6Mi)", f"{field}.limits.memory")


def _check_container(container: Container, volumes: dict[str, Volume], init: bool, field: str) -> None:
    _need(_LABEL.fullmatch(container.name), "must be lower case letters, digits and '-', at most 63", f"{field}.name")
    image = container.image
    fits = image and not any(c.isspace() or not c.isprintable() for c in image) and not image.startswith("-")
    _need(fits, "must be the name of an image", f"{field}.image")
    names: set[str] = set()
    for n, port in enumerate(container.ports):
        where = f"{field}.ports[{n}]"
        _check_port_number(port.container_port, f"{where}.containerPort")
        if port.host_port is not None:
            _check_port_number(port.host_port, f"{where}.hostPort")
        if port.name is not None:
            form = "must be lower case letters, digits and '-', a letter among them, at most 15"
            _need(_PORT_NAME.fullmatch(port.name), form, f"{where}.name")
            _need(port.name not in names, "is given twice", f"{where}.name")
            names.add(port.name)
    for n, variable in enumerate(container.env):
        where = f"{field}.env[{n}]"
        _need(_ENV_NAME.fullmatch(variable.name), "must be letters, digits, '_', '-' and '.'", f"{where}.name")
        _need("\0" not in (variable.value or ""), "must not hold a NUL", f"{where}.value")
        if variable.value_from is not None:
            _need(not variable.value, "must not be given beside valueFrom", f"{where}.value")
            _need(variable.value_from.field_ref, "must have fieldRef", f"{where}.valueFrom")
            assert variable.value_from.field_ref
            path = variable.value_from.field_ref.field_path
            known = path in FIELD_PATHS or _FIELD_KEY.fullmatch(path)
            _need(known, f"{path!r} is not supported", f"{where}.valueFrom.fieldRef.fieldPath")
    _need(not container.working_dir or container.working_dir.startswith("/"), "must be absolute", f"{field}.workingDir")
    _check_resources(container.resources, f"{field}.resources")
    paths: set[str] = set()
    for n, mount in enumerate(container.volume_mounts):
        where = f"{field}.volumeMounts[{n}]"
        _need(mount.name in volumes, f"there is no volume {mount.name!r}", f"{where}.name")
        fits = mount.mount_path.startswith("/") and ".." not in mount.mount_path.split("/")
        _need(
            fits and ":" not in mount.mount_path, "must be an absolute path without ':' and '..'", f"{where}.mountPath"
        )
        _need(mount.mount_path not in paths, "is given twice", f"{where}.mountPath")
        paths.add(mount.mount_path)
        inside = not (mount.sub_path or "").startswith("/") and ".." not in (mount.sub_path or "").split("/")
        _need(inside, "must stay inside the volume", f"{where}.subPath")
    for name in ("liveness", "readiness", "startup"):
        probe = getattr(container, f"{name}_probe")
        if probe is not None:
            _need(not init, "is not for init containers", f"{field}.{name}Probe")
            _check_probe(probe, names, name != "readiness", f"{field}.{name}Probe")
    for hook, title in ((container.lifecycle.post_start, "postStart"), (container.lifecycle.pre_stop, "preStop")):
        if hook is not None:
            where = f"{field}.lifecycle.{title}"
            _need(not init, "is not for init containers", where)
            _need((hook.exec is None) != (hook.http_get is None), "must have one of exec and httpGet", where)
            if hook.exec is not None:
                _need(hook.exec.command, "is required", f"{where}.exec.command")
            if hook.http_get is not None:
                _check_http(hook.http_get, names, f"{where}.httpGet")
    security = container.security_context
    _check_identity(security, f"{field}.securityContext")
    if security.allow_privilege_escalation is False:
        fits = not security.privileged and "SYS_ADMIN" not in {
            c.removeprefix("CAP_") for c in security.capabilities.add
        }
        _need(
            fits, "cannot be false beside privileged or SYS_ADMIN", f"{field}.securityContext.allowPrivilegeEscalation"
        )


def _check_identity(security: SecurityContext | PodSecurityContext, field: str) -> None:
    for name, title in (("run_as_user", "runAsUser"), ("run_as_group", "runAsGroup")):
        number = getattr(security, name)
        _need(number is None or 0 <= number < 2**31, "must be between 0 and 2147483647", f"{field}.{title}")
    _need(not security.run_as_non_root or security.run_as_user != 0, "is 0 beside runAsNonRoot", f"{field}.runAsUser")


def _check_volumes(spec: PodSpec, engine: str | None, prefix: str) -> dict[str, Volume]:
    volumes: dict[str, Volume] = {}
    for n, volume in enumerate(spec.volumes):
        where = f"{prefix}spec.volumes[{n}]"
        _need(_LABEL.fullmatch(volume.name), "must be lower case letters, digits and '-', at most 63", f"{where}.name")
        _need(volume.name not in volumes, "is given twice", f"{where}.name")
        _need(volume.empty_dir is None or volume.host_path is None, "must have one source", where)
        if volume.host_path is None and volume.empty_dir is None:
            volume.empty_dir = EmptyDir()
        if volume.empty_dir is not None and volume.empty_dir.size_limit is not None:
            quantity(volume.empty_dir.size_limit, f"{where}.emptyDir.sizeLimit")
            fits = engine != "docker" or volume.empty_dir.medium == "Memory"
            _need(fits, "not supported on Docker bays but with medium Memory", f"{where}.emptyDir.sizeLimit")
        if volume.host_path is not None:
            fits = volume.host_path.path.startswith("/") and ".." not in volume.host_path.path.split("/")
            _need(fits, "must be an absolute path", f"{where}.hostPath.path")
            fits = engine != "docker" or volume.host_path.type in ("", "Directory")
            _need(fits, "not supported on Docker bays", f"{where}.hostPath.type")
        volumes[volume.name] = volume
    return volumes


def _check_pod(spec: PodSpec, engine: str | None, prefix: str = "") -> None:
    _need(spec.containers, "must have at least one", f"{prefix}spec.containers")
    volumes = _check_volumes(spec, engine, prefix)
    names: set[str] = set()
    taken: set[tuple[str, int, str]] = set()
    for title, containers in (("initContainers", spec.init_containers), ("containers", spec.containers)):
        for n, container in enumerate(containers):
            where = f"{prefix}spec.{title}[{n}]"
            _check_container(container, volumes, title == "initContainers", where)
            _need(container.name not in names, "is given twice", f"{where}.name")
            names.add(container.name)
            for p, port in enumerate(container.ports):
                if port.host_port is not None:
                    key = (port.host_ip or "", port.host_port, port.protocol)
                    _need(key not in taken, "is given twice", f"{where}.ports[{p}].hostPort")
                    taken.add(key)
                    same = not spec.host_network or port.host_port == port.container_port
                    _need(same, "must be the containerPort beside hostNetwork", f"{where}.ports[{p}].hostPort")
    _check_identity(spec.security_context, f"{prefix}spec.securityContext")
    grace = spec.termination_grace_period_seconds
    _need(0 <= grace <= 3600, "must be between 0 and 3600 seconds", f"{prefix}spec.terminationGracePeriodSeconds")
    deadline = spec.active_deadline_seconds
    _need(deadline is None or deadline >= 1, "must be at least 1", f"{prefix}spec.activeDeadlineSeconds")
    if spec.hostname is not None:
        _need(_LABEL.fullmatch(spec.hostname), "must be lower case letters, digits and '-'", f"{prefix}spec.hostname")
    fits = spec.dns_policy != "None" or (spec.dns_config and spec.dns_config.nameservers)
    _need(fits, "must have nameservers beside dnsPolicy None", f"{prefix}spec.dnsConfig")
    _need(
        not (spec.share_process_namespace and spec.host_pid),
        "not beside hostPID",
        f"{prefix}spec.shareProcessNamespace",
    )


def _named(metadata: Metadata, name: str | None) -> None:
    """Settle the name: the manifest's, or the request's where that has none."""
    if name is not None and metadata.name is None:
        metadata.name = name
    _need(metadata.name, "is required", "metadata.name")
    _need(name in (None, metadata.name), f"is {name!r} in the request", "metadata.name")


def pod(data: dict[str, Any], name: str | None = None, engine: str | None = None) -> Pod:
    """Return the typed Pod of ``data`` (from ``document.load``), its name that given if it has none.

    ``engine``: ``docker`` or ``kubernetes`` refuses what that one cannot
    honour; None, what none can. Raises Invalid naming the field.
    """
    found = _convert(data, Pod, _POD_RULES[engine])
    _named(found.metadata, name)
    _check_metadata(found.metadata)
    _check_pod(found.spec, engine)
    return found


def service(data: dict[str, Any], name: str | None = None, engine: str | None = None) -> Service:
    """Return the typed Service of ``data``; as ``pod``."""
    found = _convert(data, Service, _SERVICE_RULES[engine])
    _named(found.metadata, name)
    _check_metadata(found.metadata, form=_SERVICE_NAME)
    spec = found.spec
    headless = spec.cluster_ip == "None"
    _need(spec.ports or headless, "must have at least one", "spec.ports")
    _check_labels(spec.selector, "spec.selector")
    _need(spec.selector or engine != "docker", "is required on Docker bays", "spec.selector")
    _need(not headless or spec.type == "ClusterIP", f"cannot be None with type {spec.type}", "spec.clusterIP")
    for n, cidr in enumerate(spec.load_balancer_source_ranges):
        try:
            good = ipaddress.ip_network(cidr).version == 4
        except ValueError:
            good = False
        _need(good, "must be an IPv4 network, as 192.0.2.0/24", f"spec.loadBalancerSourceRanges[{n}]")
    names: set[str] = set()
    taken: set[tuple[int, str]] = set()
    node_taken: set[tuple[int, str]] = set()
    for n, port in enumerate(spec.ports):
        where = f"spec.ports[{n}]"
        _check_port_number(port.port, f"{where}.port")
        _need(port.name or len(spec.ports) == 1, "is required with several ports", f"{where}.name")
        if port.name:
            _need(_LABEL.fullmatch(port.name), "must be lower case letters, digits and '-'", f"{where}.name")
            _need(port.name not in names, "is given twice", f"{where}.name")
            names.add(port.name)
        _need((port.port, port.protocol) not in taken, "is given twice", f"{where}.port")
        taken.add((port.port, port.protocol))
        if port.target_port is None or port.target_port == "":
            port.target_port = port.port
        if isinstance(port.target_port, int):
            _check_port_number(port.target_port, f"{where}.targetPort")
        else:
            _need(_PORT_NAME.fullmatch(port.target_port), "must be a port's name or number", f"{where}.targetPort")
        if port.node_port:
            _need(spec.type != "ClusterIP", "is for NodePort and LoadBalancer", f"{where}.nodePort")
            _check_port_number(port.node_port, f"{where}.nodePort")
            _need((port.node_port, port.protocol) not in node_taken, "is given twice", f"{where}.nodePort")
            node_taken.add((port.node_port, port.protocol))
        supported = engine != "docker" or port.protocol != "SCTP"
        _need(supported, "SCTP is not supported on Docker bays", f"{where}.protocol")
    if "sessionAffinityConfig" in data["spec"]:
        _need(spec.session_affinity == "ClientIP", "is for sessionAffinity ClientIP", "spec.sessionAffinityConfig")
    fits = 1 <= spec.session_affinity_config.client_ip.timeout_seconds <= 86400
    _need(fits, "must be between 1 and 86400 seconds", "spec.sessionAffinityConfig.clientIP.timeoutSeconds")
    return found


def replication_controller(
    data: dict[str, Any], name: str | None = None, engine: str | None = None
) -> ReplicationController:
    """Return the typed ReplicationController of ``data``; as ``pod``. Labels and selector are the template's by default."""
    found = _convert(data, ReplicationController, _CONTROLLER_RULES[engine])
    _named(found.metadata, name)
    _check_metadata(found.metadata)
    template = found.spec.template
    _check_metadata(template.metadata, "spec.template.metadata")
    _need(template.metadata.labels, "must have labels", "spec.template.metadata.labels")
    found.spec.selector = found.spec.selector or dict(template.metadata.labels)
    found.metadata.labels = found.metadata.labels or dict(template.metadata.labels)
    _check_labels(found.spec.selector, "spec.selector")
    fits = found.spec.selector.items() <= template.metadata.labels.items()
    _need(fits, "must match the template's labels", "spec.selector")
    _need(0 <= found.spec.replicas < 2**31, "must not be negative", "spec.replicas")
    _need(found.spec.min_ready_seconds >= 0, "must not be negative", "spec.minReadySeconds")
    _need(template.spec.restart_policy == "Always", "must be Always", "spec.template.spec.restartPolicy")
    _need(
        template.spec.active_deadline_seconds is None, "is for pods alone", "spec.template.spec.activeDeadlineSeconds"
    )
    _check_pod(template.spec, engine, "spec.template.")
    return found


def privileges(spec: PodSpec, prefix: str = "") -> list[tuple[str, str]]:
    """Return (field, policy rule) of everything that a pod asks for beyond a tenant's defaults.

    The rules are those of a container's same wishes. A field that the policy
    does not open is answered with Invalid ``not allowed by policy``.
    """
    asked = [
        (f"{prefix}spec.{title}", "container:host_namespaces")
        for title, wish in (("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc))
        if wish
    ]
    asked += [
        (f"{prefix}spec.volumes[{n}].hostPath", "container:host_mounts")
        for n, volume in enumerate(spec.volumes)
        if volume.host_path is not None
    ]
    for title, containers in (("initContainers", spec.init_containers), ("containers", spec.containers)):
        for n, container in enumerate(containers):
            where, security = f"{prefix}spec.{title}[{n}].securityContext", container.security_context
            if security.privileged:
                asked.append((f"{where}.privileged", "container:privileged"))
            if security.capabilities.add:
                asked.append((f"{where}.capabilities.add", "container:cap_add"))
            if security.allow_privilege_escalation:
                asked.append((f"{where}.allowPrivilegeEscalation", "container:privileged"))
    return asked


# The documentation's table.

PRIVILEGED = {
    "spec.hostNetwork": "container:host_namespaces", "spec.hostPID": "container:host_namespaces",
    "spec.hostIPC": "container:host_namespaces", "spec.volumes[].hostPath": "container:host_mounts",
    "*container*.securityContext.privileged": "container:privileged",
    "*container*.securityContext.allowPrivilegeEscalation": "container:privileged",
    "*container*.securityContext.capabilities.add": "container:cap_add",
}  # fmt: skip
NOTES = {
    "*metadata*.namespace": "default or absent: a bay is a namespace of its own",
    "*container*.resources.limits.memory": "on Docker bays `[docker] default_memory` without one",
    "spec.volumes[].emptyDir.sizeLimit": "on Docker bays with medium Memory alone",
    "spec.volumes[].hostPath.type": "on Docker bays Directory or absent",
    "spec.dnsPolicy": "on Docker bays ClusterFirst and Default both know the bay's names and the host's",
}
SERVICE_NOTES = {
    "spec.type": "LoadBalancer: a NodePort without an address of its own, as Kubernetes without a cloud",
    "spec.clusterIP": "None (headless) or absent",
    "spec.selector": "required on Docker bays",
    "spec.ports[].nodePort": "within `[docker] node_port_range`",
    "spec.ports[].protocol": "TCP and UDP on Docker bays",
}


class Row(msgspec.Struct, kw_only=True, frozen=True):
    """One field of the table: what each engine does with it, in words."""

    kind: str
    path: str
    docker: str
    kubernetes: str


def _fields(cls: Any, path: str) -> list[str]:
    """Return the paths of every leaf under a struct."""
    found: list[str] = []
    hints = typing.get_type_hints(cls)
    for field in msgspec.structs.fields(cls):
        where = f"{path}.{field.encode_name}" if path else field.encode_name
        hint, nested = hints[field.name], None
        options = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)
        for option in options:
            item = typing.get_args(option)[0] if typing.get_origin(option) is list else option
            if isinstance(item, type) and issubclass(item, Part):
                nested = _fields(item, where + ("[]" if item is not option else ""))
        found += nested if nested else [where]
    return found


def table() -> list[Row]:
    """Return a row for every field that is known: first what is honoured, in manifest order, then what never is."""
    rows: list[Row] = []
    for kind, cls, refused, notes in (
        ("Pod", Pod, REFUSED, NOTES),
        ("Service", Service, SERVICE_REFUSED, SERVICE_NOTES),
        ("ReplicationController", ReplicationController, {}, {}),
    ):
        privileged, words, only = _expand(PRIVILEGED), _expand(notes), _expand(ONLY_KUBERNETES)
        for path in _fields(cls, ""):
            if path.startswith("spec.template."):
                continue
            word = words.get(path, "")
            rule = next((rule for known, rule in privileged.items() if path.startswith(known)), None)
            text = f"honoured where policy opens `{rule}`" if rule and kind == "Pod" else "honoured"
            text += f"; {word}" if word else ""
            docker = "refused: not supported on Docker bays" if path in only else text
            kubernetes = "refused: not supported on Kubernetes bays" if path in _expand(ONLY_DOCKER) else text
            rows.append(Row(kind=kind, path=path, docker=docker, kubernetes=kubernetes))
        for path, (why, values) in _expand(refused).items():
            stand = ", ".join("`" + msgspec.json.encode(value).decode() + "`" for value in values)
            text = f"refused: {why}" + (f" ({stand} may stand)" if stand else "")
            rows.append(Row(kind=kind, path=path, docker=text, kubernetes=text))
    rows.append(Row(kind="ReplicationController", path="spec.template", docker="as a Pod", kubernetes="as a Pod"))
    return rows
