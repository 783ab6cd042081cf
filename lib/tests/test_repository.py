"""What is committed: no keys, no paths of one machine, thin notebooks that ran, a tidy top level, pinned packages."""

import ast
import json
import os
import re
import subprocess
import tomllib
from pathlib import Path

import pandas as pd
import pytest

from emstudy import paths

TOP = {"notebooks", "lib", "params", "data", "reports", "environment.yml", "Makefile", "README.md", "LICENSE"}
NOTEBOOKS = sorted(paths.NOTEBOOKS.glob("*.ipynb"))


def tracked():
    """Files that git tracks and that are on disk; outside a checkout there is nothing to test."""
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=paths.ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.split("\0") if name and (paths.ROOT / name).is_file()]


def matches(pattern):
    """'file: match' for every tracked text file that holds the pattern."""
    found = []
    for name in tracked():
        text = (paths.ROOT / name).read_text(encoding="utf-8", errors="ignore")
        found += [f"{name}: {m.group()}" for m in re.finditer(pattern, text)]
    return found


KEYS = r"\b(?:sk-[A-Za-z0-9_-]{16,}|hf_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{16})\b"


def test_no_keys_are_committed():
    assert matches(KEYS) == []
    assert ".env" not in tracked()


@pytest.mark.parametrize(
    "key", ["sk-" + "canary4" * 3, "sk-proj-" + "a_B-9" * 8, "hf_" + "Canary" * 5, "AKIA" + "CANARY42" * 2]
)
@pytest.mark.parametrize("name", ["a.py", "notebooks/b.ipynb", "c.csv"])
def test_a_key_that_is_committed_is_found(tmp_path, monkeypatch, key, name):
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(f'{{"source": ["client(api_key=\\"{key}\\")\\n"]}}')
    for command in ["init", "-q"], ["add", "."]:
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    assert matches(KEYS) == [f"{name}: {key}"]


def open_to_others(source: str) -> list[str]:
    """Calls that start a server, or bind a socket, elsewhere than at 127.0.0.1."""
    calls = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)]
    names = [(c, getattr(c.func, "id", getattr(c.func, "attr", ""))) for c in calls]
    binding = [c for c, n in names if n.endswith("Server") or n in ("create_server", "start_server")]
    # what is bound to a text and not to (host, port) is a file, which no other machine sees
    binding += [c for c, n in names if n == "bind" and not isinstance(c.args[0], ast.JoinedStr)]
    return [
        ast.unparse(c) for c in binding if not any(ast.unparse(a).lstrip("(").startswith("'127.0.0.1'") for a in c.args)
    ]


def test_no_server_listens_to_other_machines():
    found = {
        p.name: open_to_others(p.read_text()) for p in (paths.ROOT / "lib").rglob("*.py") if ".venv" not in p.parts
    }
    assert {n: calls for n, calls in found.items() if calls} == {}
    assert len(found) > 80


@pytest.mark.parametrize("host", ["", "0.0.0.0", "localhost", "::"])
@pytest.mark.parametrize(
    "call",
    [
        "http.server.ThreadingHTTPServer(({!r}, 0), h)",
        "s.bind(({!r}, 80))",
        "TCPServer(({!r}, 0))",
        "asyncio.start_server(talk, {!r}, 0)",
    ],
)
def test_a_server_that_listens_to_other_machines_is_found(call, host):
    assert open_to_others(call.format(host)) != []
    assert open_to_others(call.format("127.0.0.1")) == []


def test_no_paths_of_this_machine_are_committed():
    folders = {paths.ROOT, paths.ROOT.parent, Path.home()} - {Path("/")}
    assert matches("|".join(rf"(?<![\w.]){re.escape(str(f))}/" for f in sorted(folders))) == []


def test_visitors_see_these_entries_only():
    seen = {name.split("/")[0] for name in tracked()}
    assert {name for name in seen if not name.startswith(".")} - TOP == set()


def code_cells(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [c | {"source": "".join(c["source"])} for c in cells if c["cell_type"] == "code"]


def tags(cell):
    return cell["metadata"].get("tags", [])


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_has_one_parameters_cell(notebook):
    assert sum("parameters" in tags(c) for c in code_cells(notebook)) == 1


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_calls_the_library_in_short_cells(notebook):
    for cell in code_cells(notebook):
        lines = [line for line in cell["source"].splitlines() if line.strip()]
        assert "parameters" in tags(cell) or len(lines) <= 10, cell["source"]
        kinds = {type(node) for node in ast.walk(ast.parse(cell["source"]))}
        assert not kinds & {ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Try}, cell["source"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_is_committed_as_it_ran(notebook):
    """nbval compares nothing in a cell that was never run, and would pass."""
    cells = [c for c in code_cells(notebook) if "nbval-skip" not in tags(c) and "NBVAL_SKIP" not in c["source"]]
    assert [c["source"] for c in cells if c["execution_count"] is None] == []
    assert not any(o["output_type"] == "error" for c in cells for o in c["outputs"])


def test_every_package_is_pinned():
    lines = (paths.ROOT / "lib" / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    assert all(re.fullmatch(r"\d[\w.]*", version) for version in pins.values())
    wanted = tomllib.loads((paths.ROOT / "lib" / "pyproject.toml").read_text())["project"]["dependencies"]
    known = {re.sub(r"[-_.]+", "-", name).lower() for name in pins}
    assert {re.sub(r"[-_.]+", "-", name).lower() for name in wanted} - known == set()


def test_the_audit_of_the_default_study_is_of_the_rates_that_are_shipped():
    audit, found = (pd.read_csv(paths.REPORTS / f) for f in ("audit/laptop.corrected.csv", "results.csv"))
    main = found[(found["metric"] == "em") & (found["questions"] == "out-of-domain")]
    rates = {f"{100 * r.rate:.1f}% [{100 * r.low:.1f}, {100 * r.high:.1f}] of {r.n}" for r in main.itertuples()}
    assert set(audit["as the judge says"]) == rates
    assert (audit["labelled"] > audit["answers"] / 3).all()


def test_every_row_of_the_table_of_faults_names_tests_that_there_are():
    tests = paths.ROOT / "lib" / "tests"
    rows = [line for line in (tests / "faults" / "README.md").read_text().splitlines() if line.startswith("| ")]
    rows = [line for line in rows if not line.startswith(("| fault", "| ---"))]
    there = {n for p in tests.rglob("test_*.py") for n in re.findall(r"^def (test_\w+)", p.read_text(), re.MULTILINE)}
    named = [set(re.findall(r"`(test_\w+)`", row.rpartition(" | ")[2])) for row in rows]
    assert len(rows) > 40 and [row for row, names in zip(rows, named, strict=True) if not names] == []
    assert set.union(*named) - there == set()


@pytest.mark.parametrize("given", [{}, {"NAME": "mine", "MODEL": "m", "ARM": "base"}])
def test_make_takes_names_from_its_command_line_and_not_from_the_environment(given):
    environment = os.environ | {"NAME": "HAL9000", "MODEL": "thinkpad", "ARM": "amiga", "STUDY": "elsewhere"}
    command = [
        "make",
        "-n",
        "-C",
        str(paths.ROOT),
        "audit",
        "new-domain",
        "import",
        "STUDY=s",
        *(f"{k}={v}" for k, v in given.items()),
    ]
    said = subprocess.run(command, env=environment, capture_output=True, text=True).stdout
    assert not {"HAL9000", "thinkpad", "amiga", "elsewhere"} & set(re.findall(r"\w+", said))
    assert all(f'"{v}"' in said for v in given.values())
