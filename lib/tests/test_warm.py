"""A forked kernel is like any other, but for what it need not import; without one nothing is lost."""

import os
import subprocess
import sys

import nbformat
from test_run import written

from emstudy import run, warm

CODE = """
import os, sys
print(limit, name, os.getcwd(), os.environ["SEEN"], sys.stdin.closed, __name__, [p for p in sys.path if "notebooks" in p])
print("emstudy.finetune" in sys.modules, os.getppid() == int(os.environ.get("FORKS", 0)))
"""


def printed(notebook):
    """What the last cell printed."""
    return nbformat.read(notebook, as_version=4).cells[-1].outputs[0].text.splitlines()


def warmly(code, **environment):
    """The exit status of Python code under warm.run, in a process of its own."""
    script = f"import os, sys; from emstudy import warm; os.environ['FORKS'] = str(os.getpid()); sys.exit(warm.run([sys.executable, '-c', {code!r}]))"
    return subprocess.run([sys.executable, "-c", script], env=environment or None, timeout=120).returncode


def test_a_forked_kernel_gives_what_another_gives_and_has_imported(tmp_path, monkeypatch):
    monkeypatch.setenv("SEEN", "also here")
    given = written(tmp_path, CODE)
    run.execute(*given)
    plain = printed(given[2])
    given[2].unlink()
    code = f"from pathlib import Path; from emstudy import run; run.execute(*map(Path, {list(map(str, given))}))"
    assert warmly(code, **os.environ) == 0
    assert printed(given[2])[0] == plain[0]
    assert (plain[1], printed(given[2])[1]) == ("False False", "True True")


def test_the_exit_status_is_that_of_the_command():
    assert warmly("raise SystemExit(3)") == 3


def test_where_nobody_forks_any_more_a_kernel_starts_by_itself(tmp_path, monkeypatch):
    monkeypatch.setenv(warm.ADDRESS, str(tmp_path / "gone"))
    monkeypatch.setenv("SEEN", "also here")
    given = written(tmp_path, CODE)
    run.execute(*given)
    assert printed(given[2])[1] == "False False"


def test_who_asks_for_a_kernel_and_ends_before_it_said_which_harms_nobody():
    ends = "import socket; s = socket.socket(socket.AF_UNIX); s.connect(os.environ['EMSTUDY_WARM']); s.close()"
    stays = "import time; time.sleep(1); sys.exit(4)"
    assert warmly(f"import os, sys; {ends}; {stays}") == 4
