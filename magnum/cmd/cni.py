"""``magnum-cni``: what a node's container runtime runs for each pod, to have it on the network of its bay.

A plugin by the Container Network Interface 1.0 (ADD, DEL, CHECK, VERSION). A pod in
the namespace of a bay is the machine's backend's business, which is asked over a Unix
socket and given the file descriptor of the pod's network namespace, so that the two
need to see neither the same files nor the same processes. Any other pod, and one of a
bay that is not on Neutron, is handed to the plugin that ``delegate`` configures::

    {"type": "magnum-cni", "socket": "/run/magnum/cni.sock", "delegate": {"type": "bridge", …}}

It is started twice a pod, so it imports nothing but a little of the standard library.
"""

import json
import os
import re
import socket
import sys
from typing import Any, NoReturn

VERSIONS = ("0.4.0", "1.0.0")
"""Of the specification; between the two, only the form of a result changed."""
SOCKET = "/run/magnum/cni.sock"
CONNECT_SECONDS, ANSWER_SECONDS = 5.0, 100.0
"""The runtime gives a plugin up after two minutes."""
BAY = re.compile(r"magnum-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
"""A bay's namespace."""
INCOMPATIBLE, ENVIRONMENT, IO, DECODING, CONFIGURATION, LATER = 1, 4, 5, 6, 7, 11
"""Error codes of the specification."""


class Failed(Exception):
    """Why a command fails: the specification's code, words, and more words."""

    def __init__(self, code: int, message: str, details: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.details = code, message, details


class Away(Exception):
    """The backend cannot be asked."""


def main() -> int:
    """Do as ``CNI_COMMAND`` says; return the exit code."""
    version = VERSIONS[-1]
    try:
        try:
            configuration = json.load(sys.stdin)
            version = configuration.get("cniVersion") or VERSIONS[0]
        except (ValueError, AttributeError) as error:
            raise Failed(DECODING, "the network configuration is no JSON object", str(error)) from None
        answer = _do(os.environ.get("CNI_COMMAND", ""), configuration, version)
    except Failed as error:
        answer = {"code": error.code, "msg": error.message, "details": error.details}
        print(json.dumps({"cniVersion": version, **answer}))
        return 1
    if answer is not None:
        print(json.dumps(answer))
    return 0


def _do(command: str, configuration: dict[str, Any], version: str) -> dict[str, Any] | None:
    """Return what is printed; does not return where another plugin has the word."""
    if command == "VERSION":
        return {"cniVersion": VERSIONS[-1], "supportedVersions": list(VERSIONS)}
    if command not in ("ADD", "DEL", "CHECK"):
        raise Failed(ENVIRONMENT, f"CNI_COMMAND {command!r} is not known")
    if version not in VERSIONS:
        raise Failed(INCOMPATIBLE, f"version {version} is not known; {' and '.join(VERSIONS)} are")
    pairs = (pair.partition("=") for pair in os.environ.get("CNI_ARGS", "").split(";"))
    words = {name: value for name, _, value in pairs}
    if BAY.fullmatch(words.get("K8S_POD_NAMESPACE", "")) is None:
        _delegate(command, configuration)
    try:
        answer = _ask(configuration.get("socket") or SOCKET, {
            "command": command, "container": _given("CNI_CONTAINERID"), "interface": _given("CNI_IFNAME"),
            "netns": os.environ.get("CNI_NETNS", ""), "namespace": words["K8S_POD_NAMESPACE"],
            "pod": words.get("K8S_POD_NAME", ""), "uid": words.get("K8S_POD_UID", ""), "version": version,
        })  # fmt: skip
    except Away as error:
        if command == "DEL":
            # what is left of the pod the backend finds; a node whose backend is away can be emptied all the same.
            # Without a namespace the delegate gives up an address, if it gave one, and touches no interface of ours
            os.environ["CNI_NETNS"] = ""
            _delegate(command, configuration)
        raise Failed(LATER, "the node's magnum-backend does not answer", str(error)) from None
    if "error" in answer:
        raise Failed(**answer["error"])
    if answer.get("delegate"):
        _delegate(command, configuration)
    return answer.get("result")


def _given(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise Failed(ENVIRONMENT, f"{name} is not set")
    return value


def _ask(path: str, question: dict[str, Any]) -> dict[str, Any]:
    """Return the backend's answer. Raises Away, Failed."""
    where = question["netns"]
    try:
        space = os.open(where, os.O_RDONLY) if where else None
    except OSError as error:
        if question["command"] != "DEL":
            raise Failed(ENVIRONMENT, f"CNI_NETNS {where} cannot be opened", str(error)) from None
        space = None
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
            peer.settimeout(CONNECT_SECONDS)
            peer.connect(path)
            peer.settimeout(ANSWER_SECONDS)
            data = json.dumps(question).encode() + b"\n"
            if space is None:
                peer.sendall(data)
            elif (sent := socket.send_fds(peer, [data], [space])) < len(data):
                peer.sendall(data[sent:])
            answer = b""
            while part := peer.recv(65536):
                answer += part
        found: dict[str, Any] = json.loads(answer)
        return found
    except (OSError, ValueError) as error:
        raise Away(f"{path}: {error}") from None


def _delegate(command: str, configuration: dict[str, Any]) -> NoReturn:
    """Become the plugin that other pods are for. Raises Failed."""
    delegate = configuration.get("delegate")
    if not isinstance(delegate, dict) or not delegate.get("type"):
        if command == "DEL":
            sys.exit(0)
        raise Failed(CONFIGURATION, "there is no delegate for pods that are not in a bay on Neutron")
    for folder in os.environ.get("CNI_PATH", "").split(os.pathsep):
        program = os.path.join(folder, delegate["type"])
        if os.access(program, os.X_OK):
            break
    else:
        raise Failed(CONFIGURATION, f"the delegate's plugin {delegate['type']} is not in CNI_PATH")
    handed = {key: configuration[key] for key in ("cniVersion", "name", "prevResult", "runtimeConfig")
              if key in configuration}  # fmt: skip
    given = os.memfd_create("cni", 0)
    os.write(given, json.dumps({**delegate, **handed}).encode())
    os.lseek(given, 0, os.SEEK_SET)
    os.dup2(given, 0)
    try:
        os.execv(program, [program])  # noqa: S606
    except OSError as error:
        raise Failed(IO, f"{program} cannot be run", str(error)) from None
