"""What every engine does with pods, by one suite."""

import subprocess

import pytest

from magnum import errors
from tests import wanted

SERVE = "mkdir -p /tmp/www; echo hello > /tmp/www/index.html; httpd -f -p 8080 -h /tmp/www"


def _sh(name, script="sleep 1000", **fields):
    return {"name": name, "command": ["sh", "-c"], "args": [script], **fields}


def _ready(item):
    return item.state.ready


def _status(item, name):
    found = [*item.state.container_statuses, *item.state.init_container_statuses]
    return next(status for status in found if status["name"] == name)


def _restarts(name, count):
    return lambda item: _status(item, name)["restartCount"] >= count


async def _exec(pod, member, script):
    asked = wanted.asked("exec", command=["sh", "-c", script], member=member)
    session = await pod.driver.stream(pod.item, asked)
    try:
        found = await wanted.output(session)
        return (found[1] + found[2]).decode().strip()
    finally:
        await session.close()


async def _logs(pod, member, **fields):
    session = await pod.driver.stream(pod.item, wanted.asked("logs", member=member, **fields))
    try:
        return (await wanted.output(session))[1].decode()
    finally:
        await session.close()


def _condition(item, kind):
    return next(c["status"] for c in item.state.conditions if c["type"] == kind)


async def test_containers_share_what_a_pod_shares(engine):
    bay = await wanted.bay(engine)
    env = [
        {"name": "NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "APP", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}},
        {"name": "ALL", "value": "$(NAME) at $(IP), not $$(NAME) or $(OTHER)"},
    ]
    mounts = [{"name": "disk", "mountPath": "/disk"}, {"name": "memory", "mountPath": "/memory"}]
    limited = {"limits": {"memory": "64Mi", "cpu": "500m"}, "requests": {"cpu": "250m"}}
    pod = wanted.pod(
        engine, bay, name="shared", volumes=[
            {"name": "disk", "emptyDir": {}}, {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}}],
        initContainers=[_sh("first", "echo one > /disk/first", volumeMounts=mounts),
                        _sh("second", "cat /disk/first > /memory/second", volumeMounts=mounts)],
        containers=[
            _sh("web", SERVE, env=env, volumeMounts=mounts, resources=limited, workingDir="/tmp",
                securityContext={"runAsUser": 1000, "readOnlyRootFilesystem": False}),
            _sh("side", volumeMounts=[mounts[0] | {"readOnly": True}], securityContext={"readOnlyRootFilesystem": True}),
        ],
    )  # fmt: skip
    await pod.settle(_ready)
    item = pod.item
    assert (item.status, item.status_reason, item.state.phase) == ("Running", None, "Running")
    assert {c["type"]: c["status"] for c in item.state.conditions} == dict.fromkeys(
        ("PodScheduled", "Initialized", "ContainersReady", "Ready"), "True"
    )
    assert _status(item, "first")["state"]["terminated"]["reason"] == "Completed"
    ip = item.state.pod_ip
    assert await _exec(pod, "web", "echo $ALL") == f"shared at {ip}, not $(NAME) or $(OTHER)"
    assert await _exec(pod, "web", "echo $APP; pwd; id -u; hostname") == "shared\n/tmp\n1000\nshared"
    assert await _exec(pod, "web", "cat /disk/first /memory/second") == "one\none"
    assert await _exec(pod, "web", "echo mine > /disk/web && echo mine > /memory/web && echo ok") == "ok"
    assert (
        await _exec(pod, "side", "cat /disk/web; wget -qO- http://127.0.0.1:8080/; hostname -i") == f"mine\nhello\n{ip}"
    )
    assert "Read-only" in await _exec(pod, "side", "echo x > /disk/side")
    assert "Read-only" in await _exec(pod, "side", "echo x > /x")
    assert await _exec(pod, "web", "cat /sys/fs/cgroup/memory.max 2>/dev/null || cat /sys/fs/cgroup/memory/memory.limit_in_bytes"
                       ) == str(64 * 2**20)  # fmt: skip
    # the same again changes nothing
    before = item.state.members
    assert (await pod.apply()).state["members"] == before
    await pod.remove()
    assert [seen for seen in await engine.seen() if seen.kind == "pod"] == []


async def test_the_seam_says_which_container(engine):
    bay = await wanted.bay(engine)
    pod = wanted.pod(engine, bay, containers=[_sh("a", "echo of a; sleep 1000"), _sh("b", "echo of b; sleep 1000")])
    await pod.settle(_ready)
    assert await _logs(pod, "a") == "of a\n"
    assert await _logs(pod, "b") == "of b\n"
    with pytest.raises(errors.Invalid, match="a, b"):
        await _logs(pod, None)
    with pytest.raises(errors.NotFound, match="no container 'c'"):
        await _logs(pod, "c")
    with pytest.raises(errors.NotFound, match="no run before"):
        await _logs(pod, "a", previous=True)
    await pod.remove()


async def test_a_container_that_ends_runs_again_with_waits(engine):
    bay = await wanted.bay(engine)
    pod = wanted.pod(engine, bay, containers=[_sh("web", "echo run; touch /mark; sleep 0.3; exit 3")])
    await pod.settle(_restarts("web", 2))
    status = _status(pod.item, "web")
    assert status["lastState"]["terminated"]["exitCode"] == 3
    await pod.settle(lambda item: "waiting" in _status(item, "web")["state"])
    assert _status(pod.item, "web")["state"]["waiting"]["reason"] == "CrashLoopBackOff"
    assert pod.item.status == "Running"
    assert not pod.item.state.ready
    assert "CrashLoopBackOff" in pod.item.status_reason
    assert "exited with code 3" in pod.item.status_reason
    assert await _logs(pod, "web", previous=True) == "run\n"
    await pod.remove()


async def test_restart_policies(engine):
    bay = await wanted.bay(engine)

    def pod(policy, script):
        return wanted.pod(engine, bay, name=policy.lower(), restartPolicy=policy, containers=[_sh("job", script)])

    good = pod("OnFailure", "exit 0")
    await good.settle(lambda item: item.status == "Succeeded")
    assert _status(good.item, "job")["state"]["terminated"]["reason"] == "Completed"
    assert _condition(good.item, "Ready") == "False"
    await good.remove()
    bad = pod("Never", "exit 4")
    await bad.settle(lambda item: item.status == "Failed")
    assert (bad.item.status_reason, _status(bad.item, "job")["restartCount"]) == ("exited with code 4", 0)
    await bad.remove()
    again = pod("OnFailure", "exit 1")
    await again.settle(_restarts("job", 1))
    await again.remove()
    broken = wanted.pod(
        engine, bay, restartPolicy="Never", initContainers=[_sh("first", "exit 2")], containers=[_sh("b")]
    )
    await broken.settle(lambda item: item.status == "Failed")
    assert "first: exited with code 2" in broken.item.status_reason
    await broken.remove()


async def test_probes(engine):
    bay = await wanted.bay(engine)
    quick = {"periodSeconds": 1, "failureThreshold": 1}
    pod = wanted.pod(
        engine, bay, containers=[
            _sh("web", SERVE, ports=[{"name": "http", "containerPort": 8080}],
                startupProbe={"tcpSocket": {"port": "http"}, "periodSeconds": 1, "failureThreshold": 30},
                readinessProbe=quick | {"httpGet": {"port": "http", "path": "/index.html"}}),
            _sh("cell", livenessProbe=quick | {"exec": {"command": ["test", "!", "-e", "/tmp/ill"]}}),
        ],
    )  # fmt: skip
    await pod.settle(_ready)
    await _exec(pod, "web", "mv /tmp/www/index.html /tmp/www/gone.html")
    await pod.settle(lambda item: not item.state.ready and "404" in item.status_reason)
    assert pod.item.status == "Running"
    assert _status(pod.item, "web")["restartCount"] == 0
    await _exec(pod, "web", "mv /tmp/www/gone.html /tmp/www/index.html")
    await pod.settle(_ready)
    await _exec(pod, "cell", "touch /tmp/ill")
    await pod.settle(_restarts("cell", 1))
    # a new run begins with the image's files
    await pod.settle(_ready)
    assert _status(pod.item, "web")["restartCount"] == 0
    await pod.remove()


async def test_hooks_and_grace(engine):
    bay = await wanted.bay(engine)
    volume = {"volumeMounts": [{"name": "v", "mountPath": "/v"}]}
    hooks = {
        "postStart": {"exec": {"command": ["sh", "-c", "echo started >> /v/log"]}},
        "preStop": {"exec": {"command": ["sh", "-c", "echo stopping >> /v/log"]}},
    }
    quiet = "trap 'exit 0' TERM; while :; do sleep 0.1; done"
    polite = "trap 'echo term >> /v/log; exit 0' TERM; while :; do sleep 0.1; done"
    pod = wanted.pod(
        engine, bay, terminationGracePeriodSeconds=4, volumes=[{"name": "v"}],
        containers=[_sh("web", polite, lifecycle=hooks, **volume), _sh("reader", quiet, **volume)],
    )  # fmt: skip
    await pod.settle(_ready)
    assert await _exec(pod, "reader", "cat /v/log") == "started"
    reader = pod.item.state.members["reader"]
    pod.item.spec.manifest["spec"]["containers"][0]["env"] = [{"name": "NEW", "value": "1"}]
    pod.item.generation += 1
    if engine.name == "docker":
        # a changed container is ended politely and begins anew; the others go on
        await pod.settle(lambda item: _restarts("web", 1)(item) and item.state.ready)
        assert await _exec(pod, "reader", "cat /v/log") == "started\nstopping\nterm\nstarted"
        assert pod.item.state.members["reader"] == reader
    else:
        # a cluster changes little of a pod that it has
        await pod.settle(lambda item: item.state.ready and item.state.members["reader"] != reader)
        assert await _exec(pod, "reader", "cat /v/log") == "started"
        reader = pod.item.state.members["reader"]
    assert await _exec(pod, "web", "echo $NEW") == "1"
    # what the pod is as a whole cannot change in place: it is made anew
    pod.item.spec.manifest["spec"]["terminationGracePeriodSeconds"] = 1
    pod.item.generation += 1
    await pod.settle(lambda item: item.state.ready and item.state.members["reader"] != reader)
    await pod.remove()


async def test_what_others_break_is_mended(engine, request):
    bay = await wanted.bay(engine)
    pod = wanted.pod(engine, bay, containers=[_sh("web", SERVE)])
    await pod.settle(_ready)

    def tool(*words):
        if engine.name == "docker":
            argv = ["docker", "-H", request.getfixturevalue("docker_host").url]
        else:
            kubeconfig = request.getfixturevalue("kubernetes_cluster")["kubeconfig"]
            argv = ["kubectl", "--kubeconfig", kubeconfig, "-n", f"magnum-{bay.item.uuid}"]
        return subprocess.run([*argv, *words], check=True, capture_output=True, text=True).stdout

    async def lost(*words):
        before = pod.item.state.members["web"]
        tool(*words)
        await pod.settle(lambda item: item.state.ready and item.state.members["web"] != before)

    if engine.name == "docker":
        await lost("rm", "-f", pod.item.state.members["web"])
        await lost("rm", "-f", f"magnum-{pod.item.uuid}")
        assert await _exec(pod, "web", "hostname -i") == pod.item.state.pod_ip
        tool("restart", "-t", "0", f"magnum-{pod.item.uuid}")
        await pod.settle(_ready)
    else:
        await lost("delete", "pod", "p", "--now", "--wait=false")
        assert await _exec(pod, "web", "hostname -i") == pod.item.state.pod_ip
        tool("label", "pod", "p", "app=other", "--overwrite")
        await pod.settle(lambda item: tool("get", "pod", "p", "-o", "jsonpath={.metadata.labels.app}") == "p")
    await pod.remove()


async def test_what_cannot_run_says_why(engine):
    bay = await wanted.bay(engine)

    async def refused(reason, **container):
        pod = wanted.pod(engine, bay, containers=[{"name": "web"} | container])
        await pod.settle(lambda item: reason in (item.status_reason or ""))
        waiting = _status(pod.item, "web")["state"]["waiting"]
        assert (pod.item.status, waiting["reason"]) == ("Pending", reason)
        await pod.remove()
        return waiting["message"]

    assert "127.0.0.1:1" in await refused("ErrImagePull", image="127.0.0.1:1/absent:1")
    assert "Never" in await refused("ErrImageNeverPull", image="127.0.0.1:1/absent:1", imagePullPolicy="Never")
    words = await refused("CreateContainerConfigError", securityContext={"runAsNonRoot": True})
    assert "runAsNonRoot" in words
    pod = wanted.pod(engine, bay, containers=[{"name": "web", "command": ["no-such-command"]}])
    await pod.settle(lambda item: "no-such-command" in (item.status_reason or ""))
    assert not pod.item.state.ready
    await pod.remove()


async def test_another_driver_takes_over(engine, tmp_path):
    """A backend that dies leaves everything to the next: counts, readiness, hooks that are done."""
    bay = await wanted.bay(engine)
    period = 60 if engine.name == "docker" else 1
    probe = {"exec": {"command": ["test", "-e", "/tmp/ok"]}, "periodSeconds": period, "failureThreshold": 1}
    hook = {"postStart": {"exec": {"command": ["sh", "-c", "echo x >> /tmp/hooks; touch /tmp/ok; sleep 0.2"]}}}
    script = "[ -e /v/mark ] || { touch /v/mark; exit 1; }; sleep 1000"
    pod = wanted.pod(
        engine, bay, volumes=[{"name": "v"}],
        containers=[_sh("web", lifecycle=hook, readinessProbe=probe),
                    _sh("twice", script, volumeMounts=[{"name": "v", "mountPath": "/v"}])],
    )  # fmt: skip
    await pod.settle(lambda item: item.state.ready and _restarts("twice", 1)(item))
    other = type(engine)(engine._conf)
    try:
        await other.start()
        await wanted.answers(other)
        again = wanted.Wanted(other, pod.item)
        outcome = await again.observe()
        assert (outcome.status, outcome.state["ready"], outcome.retry_after) == ("Running", True, None)
        assert _status(again.item, "twice")["restartCount"] == 1
        assert await _exec(again, "web", "cat /tmp/hooks") == "x"
    finally:
        await other.close()
    await pod.remove()
