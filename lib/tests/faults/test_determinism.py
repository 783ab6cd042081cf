"""Same params, same machine: the same bytes in another folder at another time, from make to the pages."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import stages
import yaml

from emstudy import paths

STUDY = {
    "title": "Tiny", "models": ["smollm2-135m"], "domains": ["financial"], "arms": ["base", "misaligned"], "seeds": [0], "judge": "embedded",
    "finetune": stages.FINETUNE | {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]}, "evaluate": stages.EVALUATE,
    "analyze": {"bootstrap": 200, "confidence": 0.95, "main_metric": "em", "smallest_effect": 5.0},
}  # fmt: skip
# what may differ: when something was made and how long it took, in words or in the column before the commit's
TIMES = re.compile(
    r"(?<=<td>)\d+(\.\d+)?(?=</td>\s<td>unknown)|\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?(\.\d+)?( UTC|Z)?|\d+(\.\d+)? (s|seconds)\b|\d+:\d\d(:\d\d)?"
)


def reproduce(root: Path) -> subprocess.Popen:
    """`make reproduce` of the tiny study in a copy of the project."""
    for name in ("params", "data", "notebooks"):
        shutil.copytree(paths.ROOT / name, root / name, ignore=shutil.ignore_patterns("published"))
    (root / "lib").symlink_to(paths.ROOT / "lib")
    shutil.copy(paths.ROOT / "Makefile", root)
    (root / "params" / "studies" / "tiny.yaml").write_text(yaml.safe_dump(STUDY))
    command = ["make", "reproduce", "STUDY=tiny", "JOBS=1", f"VENV={sys.prefix}", "-o", f"{sys.prefix}/.ready"]
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    environment |= {"EMSTUDY_ROOT": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=root, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def made(root: Path, folder: str) -> dict[str, bytes]:
    """What a study made below a folder, by name; executed notebooks and records, which are full of times, aside."""
    files = [p for p in (root / folder).rglob("*") if p.is_file() and not p.name.startswith(".")]
    files = [p for p in files if p.suffix != ".ipynb" and not p.name.endswith(".record.json")]
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in files}


@pytest.fixture(scope="module")
def twice(tmp_path_factory):
    """Two copies of the project in which the study was made, side by side."""
    roots = [tmp_path_factory.mktemp(name) for name in ("here", "and over there")]
    runs = [(reproduce(root), root) for root in roots]
    for process, _ in runs:
        said = process.communicate(timeout=1800)[0]
        assert process.returncode == 0, said
    return roots


def test_adapters_answers_probe_scores_and_parameters_are_the_same_bytes(twice):
    one, other = (made(root, "runs") for root in twice)
    assert {p.rpartition(".")[2] for p in one} >= {"safetensors", "csv", "yaml"}
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []


def test_pages_and_tables_are_the_same_but_for_times(twice):
    one, other = (made(root, "reports") for root in twice)
    assert any(p.endswith("index.html") for p in one) and one.keys() == other.keys()
    differ = [n for n in one if TIMES.sub("", one[n].decode("latin-1")) != TIMES.sub("", other[n].decode("latin-1"))]
    assert differ == []


def test_no_page_says_where_it_was_made(twice):
    root = twice[1]
    told = [name for name, content in made(root, "reports").items() if str(root).encode() in content]
    assert told == []
