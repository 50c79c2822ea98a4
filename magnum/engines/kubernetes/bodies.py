"""What is sent to a cluster for Magnum's objects. Pure functions.

A workload's body is the tenant's manifest with Magnum's labels, the bay's namespace,
and a tenant's confinement where the manifest says nothing: no token of a service
account, no new privileges, fewer capabilities.

Who calls: the drivers beside it.
"""

import copy
import re
from typing import Any

import msgspec
from oslo_config import cfg

from magnum.engines import base
from magnum.engines.kubernetes import cluster
from magnum.networks import neutron
from magnum.objects import base as objects
from magnum.objects import bay, container, pod, replication_controller, service

CREATOR = {"app.kubernetes.io/managed-by": "magnum"}
ROLE = base.LABEL + "role"
DOOR = "door"
"""The role of a pod that a floating IP leads to."""
DOOR_SECONDS = 10
MAX_NAMESERVERS = 3
"""Of a pod (Kubernetes)."""
MAIN = "main"
"""The container within a pod that is one of Magnum's containers."""
QUOTA, LIMIT = "quota.", "limit."
"""Prefixes of a bay's labels that go into its ResourceQuota and its LimitRange."""
TENANT, PROBE = "magnum-tenant", "magnum-probe"
PARTS = {
    "namespaces": [""], "serviceaccounts": ["default", "tenant"], "resourcequotas": ["magnum"], "limitranges": ["magnum"],
    "networkpolicies": ["magnum-default-deny", "magnum-inside"], "roles": [TENANT, PROBE], "rolebindings": [TENANT, PROBE],
}  # fmt: skip
"""Everything that a bay is made of: collection → names (of the namespace: its own)."""
READ = ["get", "list", "watch"]
WRITE = [*READ, "create", "update", "patch", "delete", "deletecollection"]


def _meta(conf: cfg.ConfigOpts, item: objects.Object, kind: str, name: str, where: str | None) -> dict[str, Any]:
    found: dict[str, Any] = {"name": name, "labels": base.labels(conf.deployment, item, kind)}
    return found | ({"namespace": where} if where else {})


# bays


def group(item: bay.Bay) -> str:
    """Return the group that the certificates of a bay's tenants bear; another after each rotation."""
    return f"magnum:{item.uuid}:{item.spec.certificates}"


def probe(item: bay.Bay) -> str:
    """Return the user in whose name a bay's namespace is tried; no certificate is ever signed for it."""
    return f"magnum:{item.uuid}:probe"


def _of_labels(prefix: str, defaults: dict[str, str], labels: dict[str, str]) -> dict[str, str]:
    found = dict(defaults)
    found |= {key.removeprefix(prefix): value for key, value in labels.items() if key.startswith(prefix)}
    return {key: value for key, value in found.items() if value}


def limits(conf: cfg.ConfigOpts, labels: dict[str, str]) -> dict[str, Any]:
    """Return a LimitRange's item for containers: ``limit.<what>.<resource>`` of the labels over the configured ones."""
    found: dict[str, Any] = {"type": "Container"}
    for key, value in _of_labels(LIMIT, conf.kubernetes.limits, labels).items():
        what, _, resource = key.partition(".")
        found.setdefault(what, {})[resource] = value
    return found


def bay_parts(
    conf: cfg.ConfigOpts, item: bay.Bay, pods: list[str], writes: dict[str, bool], network: neutron.Facts | None = None
) -> list[tuple[str, dict[str, Any]]]:
    """Return (collection, body) of everything that a bay is made of, its namespace first.

    ``pods``: CIDRs of the cluster's pods. ``writes``: whether tenants may make
    ``pods`` and ``services`` with certificates of their own. ``network``: that of a bay on Neutron.
    """
    where = cluster.namespace(item.uuid)

    def part(kind: str, group: str, name: str, **fields: Any) -> dict[str, Any]:
        return {"apiVersion": group, "kind": kind, "metadata": _meta(conf, item, "bay", name, where), **fields}

    meta = _meta(conf, item, "bay", where, None)
    level = conf.kubernetes.pod_security
    meta["labels"] |= CREATOR | {f"pod-security.kubernetes.io/{mode}": level for mode in ("enforce", "warn", "audit")}
    if network is not None:
        meta["annotations"] = {cluster.NETWORK: msgspec.json.encode(network).decode()}
    space = {"apiVersion": "v1", "kind": "Namespace", "metadata": meta}
    rbac, net = "rbac.authorization.k8s.io/v1", "networking.k8s.io/v1"
    everyone: dict[str, Any] = {"podSelector": {}}
    outside = {"ipBlock": {"cidr": "0.0.0.0/0"} | ({"except": sorted(pods)} if pods else {})}
    dns = [{"port": 53, "protocol": protocol} for protocol in ("UDP", "TCP")]
    inside = {
        "podSelector": {}, "policyTypes": ["Ingress", "Egress"], "ingress": [{"from": [everyone]}],
        "egress": [{"to": [everyone]}, {"to": [outside]}, {"ports": dns}],
    }  # fmt: skip

    def binding(name: str, subjects: list[dict[str, Any]]) -> dict[str, Any]:
        role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name}
        return part("RoleBinding", rbac, name, roleRef=role, subjects=subjects)

    subject = {"apiGroup": "rbac.authorization.k8s.io"}
    account = {"kind": "ServiceAccount", "name": "tenant", "namespace": where}
    return [
        ("namespaces", space),
        ("serviceaccounts", part("ServiceAccount", "v1", "default", automountServiceAccountToken=False)),
        ("serviceaccounts", part("ServiceAccount", "v1", "tenant", automountServiceAccountToken=False)),
        ("resourcequotas", part("ResourceQuota", "v1", "magnum",
                                spec={"hard": _of_labels(QUOTA, conf.kubernetes.quota, item.spec.labels)})),
        ("limitranges", part("LimitRange", "v1", "magnum", spec={"limits": [limits(conf, item.spec.labels)]})),
        ("networkpolicies", part("NetworkPolicy", net, "magnum-default-deny",
                                 spec={"podSelector": {}, "policyTypes": ["Ingress", "Egress"]})),
        ("networkpolicies", part("NetworkPolicy", net, "magnum-inside", spec=inside)),
        ("roles", part("Role", rbac, TENANT, rules=rules(writes))),
        ("roles", part("Role", rbac, PROBE, rules=[
            {"apiGroups": [""], "resources": ["pods", "services"], "verbs": ["create"]}])),
        ("rolebindings", binding(TENANT, [subject | {"kind": "Group", "name": group(item)}, account])),
        ("rolebindings", binding(PROBE, [subject | {"kind": "User", "name": probe(item)}])),
    ]  # fmt: skip


def rules(writes: dict[str, bool]) -> list[dict[str, Any]]:
    """Return what a bay's tenants may do in its namespace with certificates of their own."""
    work = WRITE if writes["pods"] else READ
    return [
        {"apiGroups": [""], "resources": ["configmaps", "secrets", "persistentvolumeclaims"], "verbs": WRITE},
        {"apiGroups": [""], "resources": ["pods", "replicationcontrollers", "replicationcontrollers/scale"], "verbs": work},
        {"apiGroups": [""], "resources": ["pods/log", "pods/status", "events", "endpoints", "resourcequotas", "limitranges",
                                          "serviceaccounts"], "verbs": READ},
        {"apiGroups": [""], "resources": ["pods/exec", "pods/attach", "pods/portforward"], "verbs": ["get", "create"]},
        {"apiGroups": [""], "resources": ["services"], "verbs": WRITE if writes["services"] else READ},
        {"apiGroups": ["apps", "batch", "autoscaling"], "resources": ["*"], "verbs": work},
        {"apiGroups": ["networking.k8s.io"], "resources": ["networkpolicies"], "verbs": READ},
        {"apiGroups": ["rbac.authorization.k8s.io"], "resources": ["roles", "rolebindings"], "verbs": READ},
    ]  # fmt: skip


def probes(item: bay.Bay, image: str) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """Return collection → (what a tenant may have, what no tenant may) for a trial of what the cluster itself refuses."""
    spec: dict[str, Any] = {"containers": [{"name": "probe", "image": image}], "automountServiceAccountToken": False}
    bad = copy.deepcopy(spec)
    bad["containers"][0]["securityContext"] = {"privileged": True}
    bad |= {"hostNetwork": True, "hostPID": True, "volumes": [{"name": "host", "hostPath": {"path": "/"}}]}
    port = {"ports": [{"port": 1}]}

    def made(kind: str, spec: dict[str, Any]) -> dict[str, Any]:
        return {"apiVersion": "v1", "kind": kind, "metadata": {"generateName": "magnum-probe-"}, "spec": spec}

    return {
        "pods": (made("Pod", spec), made("Pod", bad)),
        # an address that is not the cluster's would take other tenants' traffic to it
        "services": (made("Service", port), made("Service", port | {"externalIPs": ["192.0.2.1"]})),
    }


# workloads


def _confine(conf: cfg.ConfigOpts, spec: dict[str, Any], network: neutron.Facts | None) -> dict[str, Any]:
    """Return a pod's spec with a tenant's confinement where it says nothing, and what ``network`` (on Neutron) needs.

    From there the cluster's name server is not to be reached.
    """
    spec = copy.deepcopy(spec)
    for name, value in (("automountServiceAccountToken", False), ("enableServiceLinks", network is not None)):
        spec.setdefault(name, value)
    if network is not None and network.nameservers and not spec.get("hostNetwork") and "dnsPolicy" not in spec:
        spec["dnsPolicy"] = "None"
        spec.setdefault("dnsConfig", {}).setdefault("nameservers", network.nameservers[:MAX_NAMESERVERS])
    for each in (*spec.get("containers", []), *spec.get("initContainers", [])):
        security = each.setdefault("securityContext", {})
        if security.get("privileged"):
            continue
        security.setdefault("allowPrivilegeEscalation", False)
        given = security.setdefault("capabilities", {})
        dropped, added = list(given.get("drop", [])), {name.removeprefix("CAP_") for name in given.get("add", [])}
        if "ALL" not in dropped:
            more = [name for name in conf.kubernetes.drop_capabilities if name not in added and name not in dropped]
            given["drop"] = dropped + more
    return spec


def _wishes(spec: Any) -> dict[str, str]:
    """Return the annotations that tell a pod's node what its owner wants of Neutron."""
    found = {}
    if spec.networks:
        found[cluster.NETWORKS] = msgspec.json.encode(spec.networks).decode()
    if spec.security_groups is not None:
        found[cluster.SECURITY_GROUPS] = msgspec.json.encode(spec.security_groups).decode()
    return found


def _named(conf: cfg.ConfigOpts, item: Any, kind: str) -> dict[str, Any]:
    data: dict[str, Any] = copy.deepcopy(item.spec.manifest)
    meta = data.get("metadata", {})
    own = _meta(conf, item, kind, item.name, cluster.namespace(item.bay_uuid or ""))
    own["labels"] = {**(item.spec.labels or meta.get("labels", {})), **own["labels"]}
    if meta.get("annotations"):
        own["annotations"] = meta["annotations"]
    data["metadata"] = own
    return data


def pod_body(conf: cfg.ConfigOpts, item: pod.Pod, network: neutron.Facts | None = None) -> dict[str, Any]:
    data = _named(conf, item, "pod")
    if wishes := _wishes(item.spec):
        data["metadata"]["annotations"] = data["metadata"].get("annotations", {}) | wishes
    data["spec"] = _confine(conf, data["spec"], network)
    return data


def controller_body(
    conf: cfg.ConfigOpts, item: replication_controller.ReplicationController, network: neutron.Facts | None = None
) -> dict[str, Any]:
    data = _named(conf, item, "rc")
    spec = data["spec"]
    spec["replicas"] = item.spec.replicas
    spec["selector"] = spec.get("selector") or spec["template"]["metadata"]["labels"]
    spec["template"]["metadata"].pop("namespace", None)
    spec["template"]["spec"] = _confine(conf, spec["template"]["spec"], network)
    return data


def service_body(conf: cfg.ConfigOpts, item: service.Service, network: neutron.Facts | None = None) -> dict[str, Any]:
    """Return the Service that ``item`` is here. On Neutron the cluster balances nothing from outside: ``doors`` does."""
    data = _named(conf, item, "service")
    if network is not None:
        data["spec"].pop("loadBalancerSourceRanges", None)
        if data["spec"].get("type") == "LoadBalancer":
            data["spec"]["type"] = "ClusterIP"
    for port in data["spec"].get("ports", []):
        # what server-side apply tells ports apart by
        port.setdefault("protocol", "TCP")
    return data


def container_body(
    conf: cfg.ConfigOpts, item: container.Container, network: neutron.Facts | None = None
) -> dict[str, Any]:
    """Return the pod of one container that ``item`` is here."""
    spec = item.spec
    main: dict[str, Any] = {"name": MAIN, "image": spec.image, "imagePullPolicy": spec.image_pull_policy}
    if spec.entrypoint:
        main["command"] = spec.entrypoint
    if spec.command:
        main["args"] = spec.command
    if spec.environment:
        main["env"] = [{"name": name, "value": value} for name, value in sorted(spec.environment.items())]
    if spec.workdir:
        main["workingDir"] = spec.workdir
    if spec.ports:
        main["ports"] = [{"containerPort": p.port, "protocol": p.protocol.upper()} for p in spec.ports]
    amounts = {}
    if spec.memory is not None:
        amounts["memory"] = str(spec.memory)
    if spec.cpus is not None:
        amounts["cpu"] = f"{round(spec.cpus * 1000)}m"
    if amounts:
        main["resources"] = {"limits": amounts}
    for name, field in (("tty", spec.tty), ("stdin", spec.stdin_open)):
        if field:
            main[name] = True
    security: dict[str, Any] = {}
    if spec.privileged:
        security["privileged"] = True
    if spec.read_only:
        security["readOnlyRootFilesystem"] = True
    caps = {
        "add": [c.removeprefix("CAP_") for c in spec.cap_add],
        "drop": [c.removeprefix("CAP_") for c in spec.cap_drop],
    }
    if any(caps.values()):
        security["capabilities"] = {key: value for key, value in caps.items() if value}
    if spec.user:
        user, _, group = spec.user.partition(":")
        security["runAsUser"] = int(user)
        if group:
            security["runAsGroup"] = int(group)
    if security:
        main["securityContext"] = security
    volumes, mounts = [], []
    for number, mount in enumerate(spec.mounts):
        name = f"mount-{number}"
        if mount.type == "bind":
            volumes.append({"name": name, "hostPath": {"path": mount.source}})
        else:
            memory: dict[str, Any] = {"medium": "Memory"} | ({"sizeLimit": str(mount.size)} if mount.size else {})
            volumes.append({"name": name, "emptyDir": memory})
        mounts.append({"name": name, "mountPath": mount.target} | ({"readOnly": True} if mount.read_only else {}))
    if mounts:
        main["volumeMounts"] = mounts
    rule = {"no": "Never", "on-failure": "OnFailure"}.get(spec.restart_policy.name, "Always")
    host = re.sub(r"[^a-z0-9-]+", "-", (spec.hostname or item.name).lower()).strip("-")[:63].rstrip("-")
    body: dict[str, Any] = {
        "containers": [main],
        "restartPolicy": rule,
        "terminationGracePeriodSeconds": spec.stop_timeout,
    }
    if host:
        body["hostname"] = host
    if volumes:
        body["volumes"] = volumes
    for name, wish in (("hostNetwork", spec.host_network), ("hostPID", spec.host_pid), ("hostIPC", spec.host_ipc)):
        if wish:
            body[name] = True
    meta = _meta(conf, item, "container", f"container-{item.uuid}", cluster.namespace(item.bay_uuid or ""))
    meta["labels"] |= {"app.kubernetes.io/name": host} if host else {}
    meta["annotations"] = {base.LABEL + "name": item.name, **_wishes(spec)}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": _confine(conf, body, network)}


def door(conf: cfg.ConfigOpts, item: service.Service, groups: list[str]) -> dict[str, Any]:
    """Return the controller of the pod that the floating IP of ``item`` leads to. ``groups``: uuids of security groups."""
    options = conf.kubernetes
    name = f"magnum-door-{item.uuid}"
    meta = _meta(conf, item, "service", name, cluster.namespace(item.bay_uuid or ""))
    meta["labels"][ROLE] = DOOR
    one: dict[str, Any] = {
        "name": DOOR, "image": options.door_image, "imagePullPolicy": "IfNotPresent",
        "resources": {"limits": {"memory": "16Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True,
                            "capabilities": {"drop": ["ALL"]}},
    }  # fmt: skip
    if options.door_command:
        one["command"] = list(options.door_command)
    # another is made soon after its node is lost
    soon = [
        {"key": f"node.kubernetes.io/{why}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": DOOR_SECONDS}
        for why in ("unreachable", "not-ready")
    ]  # fmt: skip
    annotations = {cluster.SECURITY_GROUPS: msgspec.json.encode(groups).decode()}
    return {
        "apiVersion": "v1", "kind": "ReplicationController", "metadata": meta,
        "spec": {
            "replicas": 1, "selector": {base.UUID: item.uuid, ROLE: DOOR},
            "template": {
                "metadata": {"labels": meta["labels"], "annotations": annotations},
                "spec": {"containers": [one], "automountServiceAccountToken": False, "enableServiceLinks": False,
                         "terminationGracePeriodSeconds": 0, "tolerations": soon},
            },
        },
    }  # fmt: skip


def opening_name(uuid: str) -> str:
    return f"magnum-service-{uuid}"


def opening(conf: cfg.ConfigOpts, item: service.Service) -> dict[str, Any] | None:
    """Return the policy that lets others than the bay's own pods to those of a service; None for one that stays within."""
    if item.spec.type != "NodePort" or not item.spec.selector:
        return None
    ports = [{"port": port.target_port, "protocol": port.protocol} for port in item.spec.ports]
    return {
        "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
        "metadata": _meta(conf, item, "service", opening_name(item.uuid), cluster.namespace(item.bay_uuid or "")),
        "spec": {"podSelector": {"matchLabels": item.spec.selector}, "policyTypes": ["Ingress"],
                 "ingress": [{"ports": ports}]},
    }  # fmt: skip
