"""Commands of an unmodified command line, each in a fork of one interpreter that has imported it already.

The second or two that such a client needs to import what it is made of is spent once, and not for every command.
``Commands`` is the tests' side. The other is this file, run by the client's own Python: standard library only.
"""

import atexit
import functools
import importlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import threading

SECONDS = 120
"""How long a command may take."""


@functools.cache
def magnum():
    """Return the commands of python-magnumclient."""
    return Commands(os.environ["MAGNUM_TEST_CLIENT"], "magnumclient.shell:main", ["keystoneauth1.identity"])


@functools.cache
def openstack():
    """Return the commands of python-openstackclient with the plug-in of the newest python-magnumclient."""
    imports = [
        "magnumclient.osc.v1.clusters", "keystoneauth1.identity", "openstackclient.identity.v3.user",
        "openstackclient.compute.v2.server", "openstackclient.network.v2.network", "openstackclient.image.v2.image",
    ]  # fmt: skip
    return Commands(os.environ["MAGNUM_TEST_OPENSTACK"], "openstackclient.shell:main", imports)


class Commands:
    """Runs the commands of ``program``, a script in the environment that has it.

    ``main``: what it calls, as ``module:function``. ``imports``: modules that its commands import when they run.
    """

    def __init__(self, program, main, imports):
        self._program = pathlib.Path(program)
        self._argv = [str(self._program.parent / "python"), __file__, str(program), main, *imports]
        self._process = None
        self._lock = threading.Lock()

    def __call__(self, *words, env, cwd=None):
        """Return what ``subprocess.run`` would of the command with ``words``: a command killed as too slow ends by SIGALRM."""
        with self._lock:
            if self._process is None:
                self._process = subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                atexit.register(self._close)
            asked = {"words": words, "env": dict(env), "cwd": str(cwd or os.getcwd())}
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            done = json.loads(self._process.stdout.readline())
        return subprocess.CompletedProcess([str(self._program), *words], done["code"], done["out"], done["err"])

    def _close(self):
        with self._process:
            self._process.stdin.close()


def _be(program, main, asked, out, err):
    """Be the command, in the fork that is its own."""
    signal.alarm(SECONDS)
    os.environ.clear()
    os.environ.update(asked["env"])
    os.chdir(asked["cwd"])
    os.dup2(out.fileno(), 1)
    os.dup2(err.fileno(), 2)
    sys.argv = [program, *asked["words"]]
    code = 0
    try:
        code = main()
    except SystemExit as ending:
        code = ending.code
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    if isinstance(code, str):
        print(code, file=sys.stderr)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def _serve(program, main, *imports):
    # what asks is told by a descriptor of its own: that of stdout is the commands'
    answers = os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    module, _, function = main.partition(":")
    for name in imports:
        importlib.import_module(name)
    main = getattr(importlib.import_module(module), function)
    questions = os.fdopen(os.dup(0))
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    for line in questions:
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            child = os.fork()
            if not child:
                _be(program, main, json.loads(line), out, err)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            told = {"code": code}
            for name, file in (("out", out), ("err", err)):
                file.seek(0)
                told[name] = file.read().decode(errors="replace")
        answers.write(json.dumps(told) + "\n")
        answers.flush()


if __name__ == "__main__":
    # the folder of this file is no place of the client's
    sys.path.pop(0)
    _serve(*sys.argv[1:])
