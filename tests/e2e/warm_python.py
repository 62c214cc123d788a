"""A `python` whose stages begin with the heavy libraries loaded: most of the time that one of the tiny model takes.

A server loads them once, and nothing of ours; every `python -m stages.<name>` is forked off it, with the arguments,
directory, environment and streams of whoever called. All other commands go to the interpreter itself.
"""

import contextlib
import importlib
import json
import logging
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

LOADED = ("numba", "pydantic", "scipy.cluster.hierarchy", "scipy.stats", "torch", "transformers.modeling_utils", "zarr")
CLIENT = """#!{python} -IS
import json, os, socket, sys
if sys.argv[1:2] != ["-m"] or not sys.argv[2].startswith("stages."):
    os.execv("{python}", ["{python}", *sys.argv[1:]])
called = {{"arguments": sys.argv[2:], "directory": os.getcwd(), "environment": dict(os.environ)}}
with socket.socket(socket.AF_UNIX) as server:
    server.connect("{address}")
    socket.send_fds(server, [b"\\0"], [0, 1, 2])
    server.sendall(json.dumps(called).encode())
    server.shutdown(socket.SHUT_WR)
    ended = server.recv(1)
sys.exit(ended[0] if ended else "the stage was killed")
"""


@contextlib.contextmanager
def warm_python() -> Iterator[Path]:
    """Give a directory with that `python`, while its server runs."""
    root = Path(tempfile.mkdtemp())  # a short path: a socket's may have a hundred characters
    (root / "bin").mkdir()
    client = root / "bin/python"
    client.write_text(CLIENT.format(python=sys.executable, address=root / "socket"))
    client.chmod(0o755)
    with subprocess.Popen([sys.executable, __file__, str(root / "socket")], stdout=subprocess.PIPE) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield root / "bin"
        finally:
            server.kill()
            shutil.rmtree(root)


def serve(address: str) -> None:
    """Fork a stage for every caller, until killed."""
    for name in LOADED:
        importlib.import_module(name)
    ours = {name for name in sys.modules if name.partition(".")[0] in ("neuronrank", "stages")}
    assert not ours, ours  # a repository's own files are what is tested
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the stages
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen()
        print("ready", flush=True)
        while True:
            caller, _ = listener.accept()
            with caller:
                if os.fork() == 0:
                    caller.sendall(bytes([_run(caller)]))
                    os._exit(0)


def _run(caller: socket.socket) -> int:
    """Run a stage as the interpreter would and return its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, *_ = socket.recv_fds(caller, 1, 3)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    with caller.makefile("rb") as sent:
        called = json.loads(sent.read())
    os.chdir(called["directory"])
    os.environ.clear()
    os.environ.update(called["environment"])
    sys.path[:1] = [called["directory"], *called["environment"]["PYTHONPATH"].split(os.pathsep)]
    module, *arguments = called["arguments"]
    sys.argv = sys.orig_argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        logging.exception(module)
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    serve(sys.argv[1])
