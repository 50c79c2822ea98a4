"""Kubernetes' server programs: those on the PATH, else those in a cache, else built once from Debian's source package.

No suite of Debian ships them, but the source package holds the whole tree with
what it depends on. Two things are amended: the generated OpenAPI definitions,
which the package lacks, are generated; and the vendored ``reflect2`` 1.0.1,
which corrupts memory under Go 1.18 and later (kube-apiserver dies at the first
custom resource), gives way to Debian's own, newer one.

``folder()`` is called by ``testbed.kubernetes``. The build needs 2 GB of disk and a few minutes; 250 MB stay.
"""

import contextlib
import hashlib
import os
import pathlib
import shutil
import subprocess
import tempfile
import time

from testbed import base

PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
VERSION = "1.20.2"
COMMIT = "faecb196815e248d3ecfb03c680a4507229c2a56"
SOURCE_SHA256 = "b83c0780efb182d928dc63d46488a847f161f04e40a94b96bf5247dd671ecdfc"
"""Of the upstream tarball within the source package; apt itself checks the package's signature."""
GO = "/usr/lib/go-1.19/bin"
TAGS = "providerless dockerless"
"""Without the SDKs of clouds, and without dockershim, which would look for a Docker Engine."""


def cache() -> pathlib.Path:
    """Return the folder in which the test bed keeps what is costly to make, shared by all clones."""
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(os.environ.get("MAGNUM_TESTBED_CACHE") or pathlib.Path(home) / "magnum-testbed").absolute()


def folder() -> pathlib.Path | None:
    """Return where the programs are, None if they are on the PATH. Builds them if they are nowhere. Raises Failed."""
    if all(shutil.which(name, path=base.search_path()) for name in PROGRAMS):
        return None
    made = cache() / f"kubernetes-{VERSION}"
    if not made.exists():
        with base.lock(cache() / "lock"):
            if not made.exists():
                _build(made)
    return made


def _build(made: pathlib.Path) -> None:
    base.apt({"golang-1.19-go": f"{GO}/go", "dpkg-dev": "dpkg-source"})
    started = time.monotonic()

    def step(text: str) -> None:
        base.say(f"kubernetes {VERSION}: {text} ({time.monotonic() - started:.0f} s)")

    step("building from Debian's source package, once; some minutes")
    for stale in made.parent.glob("build-*"):
        shutil.rmtree(stale, ignore_errors=True)
    work = pathlib.Path(tempfile.mkdtemp(prefix="build-", dir=made.parent))
    try:
        _sources(work)
        step("sources are here")
        go = _Go(work)
        go.openapi()
        step("OpenAPI definitions are generated")
        (work / "bin").mkdir()
        for name in PROGRAMS:
            go.build(f"k8s.io/kubernetes/cmd/{name}", work / "bin" / name, _flags())
            step(f"{name} is built")
        (work / "bin").rename(made)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _sources(work: pathlib.Path) -> None:
    """Fetch and unpack the sources, by a private list that leaves the system's alone."""
    lists = []
    for path in sorted(pathlib.Path("/etc/apt/sources.list.d").glob("*.sources")):
        lists.append(path.read_text().replace("Types: deb\n", "Types: deb deb-src\n"))
    (work / "all.sources").write_text("\n\n".join(lists))
    with contextlib.suppress(FileNotFoundError):
        lines = pathlib.Path("/etc/apt/sources.list").read_text().splitlines()
        with open(work / "all.list", "w") as out:
            out.writelines(
                f"{line}\n{line.replace('deb ', 'deb-src ', 1)}\n" for line in lines if line.startswith("deb ")
            )
    (work / "parts").mkdir()
    for name in ("all.sources", "all.list"):
        if (work / name).exists() and (work / name).stat().st_size:
            (work / name).rename(work / "parts" / name)
    for each in ("lists/partial", "cache/archives/partial", "src"):
        (work / each).mkdir(parents=True)
    options = ["-q", "-o", "Dir::Etc::SourceList=/dev/null", "-o", f"Dir::Etc::SourceParts={work}/parts",
               "-o", f"Dir::State::Lists={work}/lists", "-o", f"Dir::Cache={work}/cache",
               "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3"]  # fmt: skip
    base.run("apt-get", *options, "update")
    _in(work / "src", ["apt-get", *options, "source", "--download-only", "kubernetes"])
    _in(work / "src", ["apt-get", *options, "download", "golang-github-modern-go-reflect2-dev"])
    (tarball,) = (work / "src").glob("kubernetes_*.orig.tar.gz")
    with open(tarball, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != SOURCE_SHA256:
        raise base.Failed(f"{tarball.name} has another content than version {VERSION}: {found}")
    (description,) = (work / "src").glob("kubernetes_*.dsc")
    (package,) = (work / "src").glob("golang-github-modern-go-reflect2-dev_*.deb")
    base.run("dpkg-source", "--no-check", "-x", str(description), str(work / "src" / "tree"))
    base.run("dpkg", "-x", str(package), str(work / "src" / "reflect2"))
    vendored = work / "src" / "tree" / "vendor" / "github.com" / "modern-go" / "reflect2"
    shutil.rmtree(vendored)
    shutil.copytree(
        work / "src" / "reflect2" / "usr" / "share" / "gocode" / "src" / "github.com" / "modern-go" / "reflect2",
        vendored, ignore=shutil.ignore_patterns("*_test.go"),
    )  # fmt: skip


def _in(where: pathlib.Path, argv: list[str], env: dict[str, str] | None = None) -> str:
    done = subprocess.run(argv, cwd=where, env=env, capture_output=True, text=True)
    if done.returncode:
        raise base.Failed(f"{' '.join(argv)[:300]}: {(done.stderr or done.stdout).strip()[-3000:]}")
    return done.stdout


def _flags() -> str:
    values = {"gitVersion": f"v{VERSION}", "gitMajor": "1", "gitMinor": "20", "gitTreeState": "clean",
              "gitCommit": COMMIT, "buildDate": "2021-01-13T13:20:00Z"}  # fmt: skip
    packages = [
        f"k8s.io/kubernetes/vendor/k8s.io/{name}" for name in ("component-base/version", "client-go/pkg/version")
    ]
    return " ".join(["-s -w", *(f"-X {p}.{key}={value}" for p in packages for key, value in values.items())])


class _Go:
    """Go as the tree needs it: the mode before modules, nothing fetched."""

    def __init__(self, work: pathlib.Path) -> None:
        path = work / "go" / "src" / "k8s.io"
        path.mkdir(parents=True)
        (path / "kubernetes").symlink_to(work / "src" / "tree")
        self._work = work
        self._tree = path / "kubernetes"
        self._env = os.environ | {
            "PATH": f"{GO}:{base.search_path()}", "GO111MODULE": "off", "GOFLAGS": "", "GOPROXY": "off", "CGO_ENABLED": "0",
            "GOPATH": str(work / "go"), "GOCACHE": str(work / "gocache"), "PWD": str(self._tree),
        }  # fmt: skip

    def build(self, package: str, target: pathlib.Path, flags: str = "") -> None:
        _in(
            self._tree,
            ["go", "build", "-trimpath", "-tags", TAGS, "-ldflags", flags, "-o", str(target), package],
            self._env,
        )

    def openapi(self) -> None:
        """Generate the definitions of every package that asks for some."""
        generator = self._work / "openapi-gen"
        self.build("k8s.io/kubernetes/vendor/k8s.io/kube-openapi/cmd/openapi-gen", generator)
        names = set()
        for top in ("pkg", "staging/src/k8s.io"):
            for path in (self._tree / top).rglob("*.go"):
                where = path.relative_to(self._tree).as_posix()
                if any(word in where for word in ("code-generator/", "sample-apiserver/", "zz_generated", "_test.go")):
                    continue
                if b"\n// +k8s:openapi-gen=" in path.read_bytes():
                    names.add(path.parent.relative_to(self._tree).as_posix().replace("staging/src/", "vendor/", 1))
        _in(self._tree, [
            str(generator), "--go-header-file", "hack/boilerplate/boilerplate.generatego.txt",
            "-i", ",".join(f"k8s.io/kubernetes/{name}" for name in sorted(names)),
            "-p", "k8s.io/kubernetes/pkg/generated/openapi", "-O", "zz_generated.openapi",
            "--output-base", str(self._work / "go" / "src"), "-r", str(self._work / "violations"),
        ], self._env)  # fmt: skip
