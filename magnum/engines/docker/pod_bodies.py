"""What Docker is asked to create for a pod: its sandbox and each run of its containers, as bodies of requests.

Pure functions of the typed manifest and the configuration. Names, labels and
hashes that the driver finds its own by again are made here too.

Who calls: ``engines.docker.pod``.
"""

import hashlib
import re
from typing import Any

import msgspec
from oslo_config import cfg

from magnum.engines import base
from magnum.engines.docker import container as containers
from magnum.networks import docker as networks
from magnum.networks import names
from magnum.objects import manifest, pod

CONTAINER = base.LABEL + "container"
"""The name of a run's container; absent on the sandbox."""
ATTEMPT = base.LABEL + "attempt"
"""How many runs of the container were before."""
BACKOFF = base.LABEL + "backoff"
"""Seconds to wait after the end of this run before the next."""
HASH = base.LABEL + "hash"
"""What of the manifest the engine object was made from."""

VOLUMES = "/volumes"
"""Where the sandbox holds the pod's volumes, so that one in memory outlives every run."""

Fields = dict[str, str]
"""Values of ``fieldRef``: field path → text."""


def name_of(uuid: str, container: str = "", attempt: int = 0) -> str:
    """Return the engine's name of a pod's sandbox, or of a run of one of its containers."""
    return f"magnum-{uuid}-{container}-{attempt}" if container else f"magnum-{uuid}"


def volume_name(uuid: str, volume: str) -> str:
    return f"magnum-{uuid}-{volume}"


def _hash(*parts: Any) -> str:
    return hashlib.sha256(msgspec.json.encode(parts, order="deterministic")).hexdigest()[:16]


def sandbox_hash(found: manifest.Pod) -> str:
    """Return what changes when a changed manifest means a new pod: all but how its containers run."""
    bare = msgspec.to_builtins(found.spec) | {"containers": None}
    shape = [(c.name, c.ports) for c in found.spec.containers]
    return _hash(bare, shape)


def container_hash(container: manifest.Container) -> str:
    """Return what changes when a changed manifest means a new run of ``container``."""
    return _hash(container)


def fields(item: pod.Pod, found: manifest.Pod, pod_ip: str, host_ip: str) -> Fields:
    """Return every value that ``fieldRef`` may name."""
    metadata = found.metadata
    values = {
        "metadata.name": item.name, "metadata.namespace": metadata.namespace or "default", "metadata.uid": item.uuid,
        "spec.nodeName": item.host or "", "status.hostIP": host_ip, "status.podIP": pod_ip,
    }  # fmt: skip
    for kind, mapping in (("labels", metadata.labels), ("annotations", metadata.annotations)):
        values |= {f"metadata.{kind}['{key}']": value for key, value in mapping.items()}
    return values


_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")


def expand(text: str, variables: dict[str, str]) -> str:
    """Return ``text`` with ``$(NAME)`` replaced where NAME is known and ``$$`` by ``$``, as Kubernetes does.

    https://kubernetes.io/docs/tasks/inject-data-application/define-interdependent-environment-variables/
    """

    def value(match: re.Match[str]) -> str:
        if match[1] is None:
            return "$"
        return variables.get(match[1], match[0])

    return _REFERENCE.sub(value, text)


def environment(container: manifest.Container, values: Fields) -> dict[str, str]:
    """Return the container's variables; one may refer to those before it."""
    found: dict[str, str] = {}
    for variable in container.env:
        source = variable.value_from.field_ref if variable.value_from else None
        if source is not None:
            found[variable.name] = values.get(source.field_path, "")
        else:
            found[variable.name] = expand(variable.value or "", found)
    return found


def pull_policy(container: manifest.Container) -> str:
    """Return when the image is pulled: by default always for ``latest``, else if it is absent."""
    if container.image_pull_policy:
        return container.image_pull_policy
    name, at, _ = container.image.partition("@")
    tag = name.rpartition("/")[2].partition(":")[2]
    return "Always" if not at and tag in ("", "latest") else "IfNotPresent"


def sandbox(
    conf: cfg.ConfigOpts, item: pod.Pod, found: manifest.Pod, hosts: names.Names, nameservers: list[str] | None = None
) -> dict[str, Any]:
    """Return the body of ``POST /containers/create`` for what holds the pod's namespaces, ports and volumes.

    ``nameservers``: those of a bay on Neutron, where Docker is not to give it a network; None of any other.
    """
    spec, bay = found.spec, item.bay_uuid or ""
    marks = base.labels(conf.deployment, item, "pod")
    wired = nameservers is not None and not spec.host_network
    network = "host" if spec.host_network else "none" if wired else networks.network_name(bay)
    host: dict[str, Any] = {
        "NetworkMode": network,
        "IpcMode": "host" if spec.host_ipc else "shareable",
        "SecurityOpt": ["no-new-privileges"],
        "CapDrop": ["ALL"],
        "ReadonlyRootfs": False,
        "PidsLimit": 64 if not spec.share_process_namespace else conf.docker.default_pids,
        "RestartPolicy": {"Name": "no"},
        "Mounts": [_volume(item, marks, v, f"{VOLUMES}/{v.name}") for v in spec.volumes if v.empty_dir is not None],
    }
    if spec.host_pid:
        host["PidMode"] = "host"
    if wired:
        host["Dns"] = nameservers
    if spec.dns_config is not None:
        host["Dns"] = spec.dns_config.nameservers
        host["DnsSearch"] = spec.dns_config.searches
        host["DnsOptions"] = [f"{o.name}:{o.value}" if o.value else o.name for o in spec.dns_config.options]
    body: dict[str, Any] = {
        "Image": conf.docker.pause_image,
        "Labels": marks | {HASH: sandbox_hash(found)} | base.memo(item),
        "StopTimeout": spec.termination_grace_period_seconds,
    }
    if conf.docker.pause_command:
        body["Cmd"] = list(conf.docker.pause_command)
        body["Entrypoint"] = []
    if not spec.host_network:
        host["Mounts"].append(hosts.mount(bay))
        body["Hostname"] = spec.hostname or item.name[:63].rstrip("-.")
    if not spec.host_network and not wired:
        body["NetworkingConfig"] = {"EndpointsConfig": {network: {"Aliases": [item.name]}}}
        ports = [p for c in spec.containers for p in c.ports]
        bindings: dict[str, list[dict[str, str]]] = {}
        for port in ports:
            if port.host_port is not None:
                bindings.setdefault(f"{port.container_port}/{port.protocol.lower()}", []).append(
                    {"HostIp": port.host_ip or str(conf.docker.publish_ip), "HostPort": str(port.host_port)}
                )
        body["ExposedPorts"] = {f"{p.container_port}/{p.protocol.lower()}": {} for p in ports}
        host["PortBindings"] = bindings
    body["HostConfig"] = host
    return body


def _volume(item: pod.Pod, marks: dict[str, str], volume: manifest.Volume, target: str) -> dict[str, Any]:
    """Return the mount of an ``emptyDir``: a volume of the engine that is the pod's own."""
    options: dict[str, Any] = {"NoCopy": True, "Labels": marks}
    assert volume.empty_dir is not None
    if volume.empty_dir.medium == "Memory":
        size = manifest.size(volume.empty_dir.size_limit)
        how = "mode=1777" + (f",size={size}" if size else "")
        options["DriverConfig"] = {"Name": "local", "Options": {"type": "tmpfs", "device": "tmpfs", "o": how}}
    return {"Type": "volume", "Source": volume_name(item.uuid, volume.name), "Target": target, "VolumeOptions": options}


def limits(conf: cfg.ConfigOpts, resources: manifest.Resources) -> dict[str, Any]:
    """Return ``HostConfig``'s limits; no swap, as Kubernetes gives none."""
    memory = manifest.size(resources.limits.memory)
    memory = containers.bytes_of(conf.docker.default_memory) if memory is None else memory
    asked = manifest.size(resources.requests.memory) or 0
    host: dict[str, Any] = {
        "Memory": memory, "MemorySwap": memory, "PidsLimit": conf.docker.default_pids,
        "MemoryReservation": asked if not memory or asked <= memory else memory,
        "NanoCpus": round((manifest.cores(resources.limits) or 0) * 1_000_000_000),
    }  # fmt: skip
    share = manifest.cores(resources.requests) or manifest.cores(resources.limits)
    if share:
        # the kernel's least is 2
        host["CpuShares"] = max(2, round(share * 1024))
    return host


def user_of(security: manifest.SecurityContext, of_pod: manifest.PodSecurityContext, image_user: str) -> str | None:
    """Return ``User`` for Docker, None for the image's own. Raises ValueError with why it cannot run.

    ``image_user``: the image's own, needed where a rule speaks of it.
    """
    user = security.run_as_user if security.run_as_user is not None else of_pod.run_as_user
    group = security.run_as_group if security.run_as_group is not None else of_pod.run_as_group
    unprivileged = security.run_as_non_root if security.run_as_non_root is not None else of_pod.run_as_non_root
    own, _, _ = image_user.partition(":")
    if unprivileged:
        if user == 0 or (user is None and own in ("", "0", "root")):
            raise ValueError("container has runAsNonRoot and image will run as root")
        if user is None and not own.isdigit():
            raise ValueError(f"container has runAsNonRoot and image has non-numeric user ({own})")
    if user is None and group is None:
        return None
    who = str(user) if user is not None else own or "0"
    return who if group is None else f"{who}:{group}"


def needs_image(container: manifest.Container, found: manifest.Pod) -> bool:
    """Return whether ``user_of`` needs to know the image's own user."""
    both = (container.security_context, found.spec.security_context)
    return any(s.run_as_non_root or s.run_as_group is not None for s in both)


def member(
    conf: cfg.ConfigOpts, item: pod.Pod, found: manifest.Pod, container: manifest.Container, *,
    holder: str, values: Fields, attempt: int, backoff: float, image_user: str = "",
) -> dict[str, Any]:  # fmt: skip
    """Return the body of ``POST /containers/create`` for one run of ``container``; ``holder`` is the sandbox's id.

    Raises ValueError with why it cannot run (``user_of``).
    """
    spec, security = found.spec, container.security_context
    variables = environment(container, values)
    marks = base.labels(conf.deployment, item, "pod")
    shared = f"container:{holder}"
    host: dict[str, Any] = {
        **limits(conf, container.resources),
        "NetworkMode": "host" if spec.host_network else shared,
        "IpcMode": "host" if spec.host_ipc else shared,
        "ReadonlyRootfs": security.read_only_root_filesystem,
        "RestartPolicy": {"Name": "no"},
        "Mounts": [_mount(item, found, mount) for mount in container.volume_mounts],
        "GroupAdd": [str(group) for group in spec.security_context.supplemental_groups],
    }
    if spec.host_pid:
        host["PidMode"] = "host"
    elif spec.share_process_namespace:
        host["PidMode"] = shared
    if security.privileged:
        host["Privileged"] = True
    else:
        asked = {c.removeprefix("CAP_") for c in security.capabilities.add}
        unwanted = (*conf.docker.drop_capabilities, *security.capabilities.drop)
        dropped = [c for c in unwanted if c.removeprefix("CAP_") not in asked]
        host |= {"CapAdd": security.capabilities.add, "CapDrop": list(dict.fromkeys(dropped))}
        if not security.allow_privilege_escalation:
            host["SecurityOpt"] = ["no-new-privileges"]
    body: dict[str, Any] = {
        "Image": container.image,
        "Labels": marks | {
            CONTAINER: container.name, ATTEMPT: str(attempt), BACKOFF: f"{backoff:g}", HASH: container_hash(container)
        },
        "Env": [f"{key}={value}" for key, value in variables.items()],
        "Tty": container.tty, "OpenStdin": container.stdin, "StdinOnce": container.stdin_once,
        "StopTimeout": spec.termination_grace_period_seconds,
        "HostConfig": host,
    }  # fmt: skip
    if container.command:
        body["Entrypoint"] = [expand(word, variables) for word in container.command]
    if container.args:
        body["Cmd"] = [expand(word, variables) for word in container.args]
    if container.working_dir:
        body["WorkingDir"] = container.working_dir
    user = user_of(security, spec.security_context, image_user)
    if user is not None:
        body["User"] = user
    return body


def _mount(item: pod.Pod, found: manifest.Pod, mount: manifest.VolumeMount) -> dict[str, Any]:
    volume = next(v for v in found.spec.volumes if v.name == mount.name)
    made: dict[str, Any] = {"Target": mount.mount_path, "ReadOnly": mount.read_only}
    if volume.host_path is not None:
        return made | {"Type": "bind", "Source": volume.host_path.path}
    # the sandbox has made it
    return made | {
        "Type": "volume", "Source": volume_name(item.uuid, volume.name), "VolumeOptions": {"NoCopy": True}
    }  # fmt: skip
