"""The fault bench as a test: 1,000 operations with every kind of fault among them, and not one violation."""

import os
import subprocess
import sys

import pytest


@pytest.mark.timeout(1500)
@pytest.mark.parametrize("database", ["postgresql", pytest.param("mariadb", marks=pytest.mark.long)])
def test_nothing_acknowledged_is_lost(database):
    # the bench has a test bed of its own
    environ = {key: value for key, value in os.environ.items() if key != "MAGNUM_TESTBED_DIR"}
    argv = [sys.executable, "-m", "testbed.faults", "--operations", "1000", "--each", "1", "--pause", "0.4",
            "--database", database]  # fmt: skip
    try:
        done = subprocess.run(argv, env=environ, capture_output=True, text=True)
        print(done.stdout)
        assert done.returncode == 0, done.stdout + done.stderr[-3000:]
        assert "violations 0" in done.stdout
    finally:
        subprocess.run([sys.executable, "-m", "testbed.faults", "down"], env=environ, capture_output=True)
