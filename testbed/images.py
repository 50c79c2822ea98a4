"""Images made on the spot from the system's static busybox, since no registry may be in reach.

``load(url)`` gives an engine both: ``DEMO`` (a shell, wget, httpd …) and
``PAUSE`` (waits; the sandbox of a pod). The test bed and ``quickstart`` call it.
The archive follows the image format that ``docker save`` writes.
"""

import hashlib
import io
import json
import os
import pathlib
import shutil
import tarfile

from testbed import base

DEMO = "magnum-demo:1"
PAUSE = "magnum-pause:1"
PAUSE_COMMAND = ["/bin/busybox", "sleep", "2147483647"]
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "ppc64le", "s390x": "s390x"}


def install() -> None:
    """Have a static busybox."""
    base.apt({"busybox-static": "/bin/busybox"})


def _add(tar: tarfile.TarFile, name: str, data: bytes = b"", *, kind: bytes = tarfile.REGTYPE, mode: int = 0o644,
         link: str = "") -> None:  # fmt: skip
    info = tarfile.TarInfo(name)
    info.size, info.type, info.mode, info.linkname = len(data), kind, mode, link
    tar.addfile(info, io.BytesIO(data))


def _layer(applets: bool) -> bytes:
    binary = pathlib.Path(shutil.which("busybox", path="/bin:/usr/bin") or "/bin/busybox").read_bytes()
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        _add(tar, "bin", kind=tarfile.DIRTYPE, mode=0o755)
        _add(tar, "bin/busybox", binary, mode=0o755)
        if applets:
            for folder, mode in (("etc", 0o755), ("root", 0o700), ("tmp", 0o1777), ("var", 0o755), ("www", 0o755)):
                _add(tar, folder, kind=tarfile.DIRTYPE, mode=mode)
            _add(tar, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n")
            _add(tar, "etc/group", b"root:x:0:\nnogroup:x:65534:\n")
            for name in base.run("/bin/busybox", "--list").stdout.split():
                if name != "busybox":
                    _add(tar, f"bin/{name}", kind=tarfile.SYMTYPE, mode=0o777, link="busybox")
    return out.getvalue()


def archive(more: list[tuple[str, list[str]]] | None = None) -> bytes:
    """Return both images in one archive, the same bytes for the same busybox; with ``more``, (tag, command) of like ones."""
    out = io.BytesIO()
    manifest = []
    with tarfile.open(fileobj=out, mode="w") as tar:
        for tag, command, applets in (
            (DEMO, ["sh"], True), (PAUSE, PAUSE_COMMAND, False), *((tag, command, True) for tag, command in more or []),
        ):  # fmt: skip
            layer = _layer(applets)
            config = json.dumps({
                "architecture": ARCHITECTURES.get(os.uname().machine, os.uname().machine), "os": "linux",
                "created": "2026-01-01T00:00:00Z",
                # What waits has nothing to tidy, and pid 1 ignores a TERM that it does not handle.
                "config": {"Cmd": command, "Env": ["PATH=/bin"]} | ({} if applets else {"StopSignal": "SIGKILL"}),
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(layer).hexdigest()}"]},
                "history": [{"created": "2026-01-01T00:00:00Z", "created_by": "magnum test bed"}],
            }).encode()  # fmt: skip
            name = hashlib.sha256(config).hexdigest()
            _add(tar, f"{name}.json", config)
            _add(tar, f"{name}/layer.tar", layer)
            manifest.append({"Config": f"{name}.json", "RepoTags": [tag], "Layers": [f"{name}/layer.tar"]})
        _add(tar, "manifest.json", json.dumps(manifest).encode())
    return out.getvalue()


def load(url: str) -> None:
    """Have both images at the engine that answers at ``url``."""
    if base.run("docker", "-H", url, "image", "inspect", DEMO, PAUSE, check=False).returncode:
        base.run("docker", "-H", url, "load", data=archive())
