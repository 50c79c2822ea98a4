"""Which test beds there are on this machine, so that what one leaves behind whose processes were killed is taken away.

A file a test bed, by its tag, with the folder that it is in.
"""

import contextlib
import os
import pathlib
import subprocess
import sys

from testbed import base

FOLDER = pathlib.Path("/var/tmp/magnum-testbeds")


def enter() -> None:
    """Say that this test bed is there, and take down those of which no process lives: what they left is in its way."""
    if os.geteuid():
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    for entry in FOLDER.iterdir():
        folder = pathlib.Path(entry.read_text())
        if entry.name == base.TAG or any(base.lives(file) for file in folder.glob("pids/*")):
            continue
        base.say(f"a test bed in {folder} has died: removing what is left of it")
        environ = os.environ | {"MAGNUM_TESTBED_DIR": str(folder)}
        done = subprocess.run([sys.executable, "-m", "testbed", "down"], env=environ, capture_output=True, text=True)
        if done.returncode:
            base.say(done.stdout + done.stderr)
    (FOLDER / base.TAG).write_text(str(base.FOLDER))


def leave() -> None:
    """Say that this test bed is there no more."""
    with contextlib.suppress(OSError):
        (FOLDER / base.TAG).unlink()
