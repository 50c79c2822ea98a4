"""What is sent to a cluster and what its answers mean, without one."""

import pytest

from magnum import config, errors
from magnum.engines.kubernetes import bodies, pod
from magnum.objects import base, bay, container, manifest, service
from magnum.objects import pod as pods

CONF = config.load([])


def _bay(**spec):
    return bay.Bay(uuid=base.new_uuid(), project_id="p", spec=bay.BaySpec(baymodel_id="m", engine="kubernetes", **spec))


def _pod(**spec):
    data = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a", "labels": {"app": "a"}}, "spec": spec}
    return pods.Pod(uuid=base.new_uuid(), name="a", project_id="p", bay_uuid=base.new_uuid(), spec=pods.of(data)[1])


def _parts(item, writes=True):
    found = bodies.bay_parts(CONF, item, ["10.0.0.0/16"], {"pods": writes, "services": writes})
    return {(collection, body["metadata"]["name"]): body for collection, body in found}


def test_a_bay_is_made_of_what_is_looked_for_later():
    item = _bay()
    names = {c: sorted(n for k, n in _parts(item) if k == c) for c, _ in _parts(item)}
    space = f"magnum-{item.uuid}"
    assert names == {c: sorted(n or space for n in wanted) for c, wanted in bodies.PARTS.items()}
    for body in _parts(item).values():
        assert body["metadata"]["labels"]["org.openstack.magnum.uuid"] == item.uuid


def test_labels_of_a_bay_go_before_the_configured_quota_and_limits():
    parts = _parts(_bay(labels={"quota.pods": "7", "quota.secrets": "", "limit.max.cpu": "2", "other": "x"}))
    hard = parts["resourcequotas", "magnum"]["spec"]["hard"]
    assert hard["pods"] == "7" and "secrets" not in hard and "other" not in hard
    (limits,) = parts["limitranges", "magnum"]["spec"]["limits"]
    assert limits["max"] == {"cpu": "2"} and limits["default"] == {"memory": "1Gi"}


def test_a_rotation_changes_whom_the_binding_means():
    item = _bay()

    def subject():
        return _parts(item)["rolebindings", bodies.TENANT]["subjects"][0]["name"]

    before = subject()
    bay.act(item, "rotate", "kubernetes")
    assert subject() != before and subject().startswith(f"magnum:{item.uuid}:")
    with pytest.raises(errors.NotSupported):
        bay.act(bay.Bay(uuid="u", spec=bay.BaySpec(baymodel_id="m")), "rotate", "docker")


def test_tenants_make_nothing_where_the_cluster_would_let_them_make_anything():
    for writes in (True, False):
        rules = _parts(_bay(), writes)["roles", bodies.TENANT]["rules"]
        for resource in ("pods", "services"):
            (verbs,) = [rule["verbs"] for rule in rules if resource in rule["resources"]]
            assert ("create" in verbs) == writes
        assert not any(set(rule["resources"]) & {"roles", "networkpolicies", "resourcequotas"} and "create" in rule["verbs"]
                       for rule in rules)  # fmt: skip


def test_policies_keep_the_clusters_other_pods_out():
    inside = _parts(_bay())["networkpolicies", "magnum-inside"]["spec"]
    assert inside["ingress"] == [{"from": [{"podSelector": {}}]}]
    assert {"to": [{"ipBlock": {"cidr": "0.0.0.0/0", "except": ["10.0.0.0/16"]}}]} in inside["egress"]


def test_a_pod_is_confined_where_its_manifest_says_nothing():
    item = _pod(
        containers=[{"name": "plain", "image": "i"},
                    {"name": "own", "image": "i", "securityContext": {"capabilities": {"add": ["NET_RAW"], "drop": ["ALL"]}}},
                    {"name": "root", "image": "i", "securityContext": {"privileged": True}}],
    )  # fmt: skip
    body = bodies.pod_body(CONF, item)
    plain, own, root = (c["securityContext"] for c in body["spec"]["containers"])
    assert plain["allowPrivilegeEscalation"] is False and "NET_RAW" in plain["capabilities"]["drop"]
    assert own["capabilities"] == {"add": ["NET_RAW"], "drop": ["ALL"]}
    assert root == {"privileged": True}
    assert body["spec"]["automountServiceAccountToken"] is False
    assert body["metadata"]["namespace"] == f"magnum-{item.bay_uuid}"
    assert body["metadata"]["labels"]["app"] == "a"
    assert "securityContext" not in item.spec.manifest["spec"]["containers"][0]


def test_a_service_that_is_reached_from_outside_opens_its_pods_alone():
    data = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": {
        "type": "NodePort", "selector": {"app": "a"}, "ports": [{"port": 80, "targetPort": "http"}]}}  # fmt: skip
    item = service.Service(uuid="u", bay_uuid="b", spec=service.of(data)[1])
    spec = bodies.opening(CONF, item)["spec"]
    assert spec["podSelector"] == {"matchLabels": {"app": "a"}}
    assert spec["ingress"] == [{"ports": [{"port": "http", "protocol": "TCP"}]}]
    item.spec.type = "ClusterIP"
    assert bodies.opening(CONF, item) is None


def test_a_container_is_a_pod_of_one():
    spec = container.ContainerSpec(
        image="i", command=["a", "b"], entrypoint=["e"], environment={"K": "v"}, memory=2**26, cpus=0.25, user="5:6",
        restart_policy=container.RestartPolicy(name="on-failure"), stop_timeout=3, workdir="/w", read_only=True,
        mounts=[container.Mount(type="tmpfs", target="/t", size=1024)],
    )  # fmt: skip
    item = container.Container(uuid="u", name="My_Name", bay_uuid="b", spec=container.check_on(spec, "kubernetes"))
    found = bodies.container_body(CONF, item)["spec"]
    main = found["containers"][0]
    assert (main["command"], main["args"], main["workingDir"]) == (["e"], ["a", "b"], "/w")
    assert main["resources"]["limits"] == {"memory": str(2**26), "cpu": "250m"}
    assert (main["securityContext"]["runAsUser"], main["securityContext"]["runAsGroup"]) == (5, 6)
    assert found["volumes"] == [{"name": "mount-0", "emptyDir": {"medium": "Memory", "sizeLimit": "1024"}}]
    assert (found["restartPolicy"], found["terminationGracePeriodSeconds"], found["hostname"]) == (
        "OnFailure",
        3,
        "my-name",
    )


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"pids": 5}, "pids"),
        ({"memory_swap": 2**30}, "memory_swap"),
        ({"devices": ["/dev/x"]}, "devices"),
        ({"ports": [container.Port(port=80, host_port=80)]}, "ports[0].host_port"),
        ({"mounts": [container.Mount(type="volume", source="v", target="/v")]}, "mounts[0].type"),
        ({"user": "someone"}, "user"),
        ({"restart_policy": container.RestartPolicy(name="on-failure", maximum_retry_count=3)},
         "restart_policy.maximum_retry_count"),
    ],
)  # fmt: skip
def test_what_a_cluster_cannot_do_for_a_container_is_refused_by_name(fields, field):
    spec = container.check(container.ContainerSpec(image="i", **fields))
    with pytest.raises(errors.Invalid) as raised:
        container.check_on(spec, "kubernetes")
    assert raised.value.field == field
    assert container.check_on(spec, "docker") is spec


def test_ports_of_hosts_are_refused_on_clusters_alone():
    spec = {"containers": [{"name": "a", "image": "i", "ports": [{"containerPort": 80, "hostPort": 80}]}]}
    data = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": spec}
    assert manifest.pod(data, None, "docker")
    with pytest.raises(errors.Invalid) as raised:
        manifest.pod(data, None, "kubernetes")
    assert raised.value.field == "spec.containers[0].ports[0].hostPort"


@pytest.mark.parametrize(
    ("status", "words"),
    [
        ({"phase": "Pending"}, None),
        ({"containerStatuses": [{"name": "a", "state": {"waiting": {"reason": "ContainerCreating"}}}]}, None),
        ({"containerStatuses": [{"name": "a", "state": {"waiting": {"reason": "ImagePullBackOff", "message": "m"}}}]},
         "ImagePullBackOff: m"),
        ({"containerStatuses": [{"name": "a", "state": {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}}]},
         "OOMKilled, exited with code 137"),
        ({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes"}]},
         "Unschedulable: 0/3 nodes"),
        ({"phase": "Failed", "reason": "Evicted", "message": "low on memory"}, "Evicted: low on memory"),
    ],
)  # fmt: skip
def test_what_troubles_a_pod_is_told_in_the_clusters_words(status, words):
    assert pod.trouble(status, False) == words
