"""Manifests of any bytes: either read, or refused by a sentence that names the field; never anything else.

atheris makes them, led by what each new one reached in our code. By hand, for as long as wanted:
``python tests/unit/test_fuzz.py docs/examples -max_total_time=3600``.
"""

import pathlib
import subprocess
import sys

HERE = pathlib.Path(__file__).resolve()
EXAMPLES = HERE.parents[2] / "docs" / "examples"
RUNS = 15_000


def test_no_manifest_is_more_than_refused(tmp_path):
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for number, example in enumerate(sorted(EXAMPLES.glob("*.yaml"))):
        # one byte says what is read of the rest
        for first in range(4):
            (corpus / f"{number}-{first}").write_bytes(bytes([first]) + example.read_bytes().split(b"\n---")[0])
    argv = [sys.executable, str(HERE), str(corpus), f"-runs={RUNS}", "-seed=1", "-max_len=4096", "-timeout=20"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "Done" in done.stderr and "cov:" in done.stderr, done.stderr[-1000:]


def _fuzz():
    import atheris

    with atheris.instrument_imports(include=["magnum.objects"]):
        from magnum import errors
        from magnum.objects import document, pod, replication_controller, service

    readers = (
        document.load, lambda text: pod.check(pod.parse(text, "n")[1], "docker"),
        lambda text: service.check(service.parse(text, "n")[1], "docker"), lambda text: replication_controller.parse(text, "n"),
    )  # fmt: skip

    def one(data):
        text = data[1:].decode("utf-8", "surrogateescape" if data[:1] > b"\x80" else "replace")
        try:
            readers[(data[0] if data else 0) % len(readers)](text)
        except (errors.Invalid, errors.TooLarge) as error:
            assert error.detail and str(error)

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()


if __name__ == "__main__":
    _fuzz()
