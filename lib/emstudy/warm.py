"""Kernels that start at once: one process imports what notebooks need, and forks of it become their kernels.

As a script, which needs nothing but Python itself, this file is what Jupyter takes for the kernel: it asks that process for a fork,
lives as long as the fork does, and takes it along when it ends.
"""

import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

ADDRESS = "EMSTUDY_WARM"  # where the process listens
# what takes seconds to import and looks not at where it is, as plotly does
HEAVY = ["emstudy.finetune", "emstudy.evaluate", "emstudy.judges.embedded", "emstudy.suspects", "ipykernel.kernelapp"]


def run(command: list[str]) -> int:
    """Run a command, `make` in the end, whose notebooks get their kernels here; returns its exit status."""
    kernels: dict[socket.socket, int] = {}
    with tempfile.TemporaryDirectory(prefix="em-") as folder, socket.socket(socket.AF_UNIX) as door:
        door.bind(f"{folder}/kernels")
        door.listen()
        work = subprocess.Popen(command, env={**os.environ, ADDRESS: f"{folder}/kernels"}, close_fds=False)
        # Ctrl-C reaches the command too, and what becomes of its kernels is its affair
        signal.signal(signal.SIGINT, lambda *_: None)
        signal.signal(signal.SIGTERM, lambda *_: work.terminate())
        while work.poll() is None:
            for ready in select.select([door, *kernels], [], [], 0.2)[0]:
                if ready is door:
                    asking = door.accept()[0]
                    if request := _read(asking):
                        kernels[asking] = _fork(*request, [door, asking, *kernels])
                else:  # whoever asked for it has ended
                    os.kill(kernels[ready], signal.SIGKILL)
            for asking, kernel in list(kernels.items()):
                if os.waitpid(kernel, os.WNOHANG)[0]:
                    del kernels[asking]
                    asking.close()
        for kernel in kernels.values():
            os.kill(kernel, signal.SIGKILL)
    return work.returncode


def _read(asking: socket.socket) -> list | None:
    """What somebody asks for: a connection file, a folder, an environment; None when they have ended meanwhile."""
    asking.settimeout(10)
    try:
        return json.loads(asking.makefile().readline())
    except (OSError, ValueError):
        asking.close()
        return None


def _fork(file: str, folder: str, environment: dict[str, str], ours: list[socket.socket]) -> int:
    """Make a kernel; it lets go of our sockets. Returns its process number."""
    for name in HEAVY:  # at the first kernel: there may be nothing to run
        with suppress(Exception):  # what is broken is said where a notebook imports it
            importlib.import_module(name)
    gc.freeze()  # a collection would write to memory that is shared
    server = os.getpid()
    if kernel := os.fork():
        return kernel
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        os.setsid()
        for one in ours:
            one.close()
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in range(3):  # what cells print comes as messages
            os.dup2(nothing, stream)
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(environment)
        importlib.import_module("ipykernel.kernelapp").launch_new_instance(
            argv=["-f", file, f"--IPKernelApp.parent_handle={server}"]
        )
    finally:
        os._exit(0)


def stand_in(file: str) -> None:
    """Ask for a kernel with this connection file; where nobody forks any more, become one."""
    parent = os.getppid()
    with socket.socket(socket.AF_UNIX) as server:
        try:
            server.connect(os.environ[ADDRESS])
        except OSError:
            os.execv(sys.executable, [sys.executable, "-m", "ipykernel_launcher", "-f", file])
        server.sendall(json.dumps([file, str(Path.cwd()), dict(os.environ)]).encode() + b"\n")
        server.settimeout(1)
        while os.getppid() == parent:
            try:
                if not server.recv(1):
                    return
            except TimeoutError:
                continue


if __name__ == "__main__":
    stand_in(sys.argv[1])
