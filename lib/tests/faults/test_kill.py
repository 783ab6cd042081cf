"""kill -9, SIGTERM and Ctrl-C at random moments: what has its final name is whole, what was done is not done again, the end is the same."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import stages
import yaml

from emstudy import paths

SIGNALS = [signal.SIGKILL, signal.SIGTERM, signal.SIGINT]
KILLS = {"finetune": 9, "evaluate": 8, "judge": 6, "render": 3}
ADAPTER, PART = "/adapter/step-", "/parts/"
MADE = {"evaluate": PART + "step-", "judge": PART + "judge."}  # what a stage leaves for a rerun to go on from


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """(folder, seconds) of a run of all stages that nobody disturbed; seconds by stage."""
    folder, seconds = tmp_path_factory.mktemp("undisturbed"), {}
    stages.start("finetune", tmp_path_factory.mktemp("warm")).join()  # imports and the model's cache are not timed
    for name in stages.STAGES:
        started, process = time.time(), stages.start(name, folder)
        process.join()
        assert process.exitcode == 0
        seconds[name] = time.time() - started
    return folder, seconds


def wait(process, seconds):
    """Wait, at most so long; True when it has ended by itself."""
    process.join(seconds)
    return process.exitcode is not None


def test_a_stage_that_is_killed_again_and_again_ends_like_one_that_was_left_alone(undisturbed, tmp_path):
    whole, seconds = stages.files(undisturbed[0]), undisturbed[1]
    draw, landed, resumed = random.Random(0), 0, 0
    for name, kills in KILLS.items():
        count = 0
        while count < kills:
            before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*") if p.is_file() and PART in str(p)}
            process = stages.start(name, tmp_path)
            if not wait(process, draw.uniform(0, seconds[name])):
                os.kill(process.pid, SIGNALS[landed % len(SIGNALS)])
                process.join()
            if process.exitcode == 0:  # it was quicker: the next one begins anew, and is killed earlier
                seconds[name] *= 0.9
                for path in [p for p in tmp_path.rglob("*") if MADE.get(name, "none") in str(p)]:
                    path.unlink()
                continue
            left = stages.files(tmp_path)
            assert {k: v for k, v in left.items() if whole.get(k) != v} == {}
            assert all(p.stat().st_mtime_ns == t for p, t in before.items())  # what was there was not made again
            resumed += any(n.count(ADAPTER) or PART in n for n in left)
            count, landed = count + 1, landed + 1
        process = stages.start(name, tmp_path)
        process.join()
        assert process.exitcode == 0
    assert landed >= 25 and resumed > 10
    assert stages.files(tmp_path) == whole
    assert not [p for p in tmp_path.rglob("*") if "/trainer/" in str(p)]


def test_training_goes_on_from_its_last_checkpoint_with_the_same_losses(undisturbed, tmp_path):
    folder = tmp_path / "runs" / stages.CELL.folder.relative_to(paths.RUNS)
    process, first = stages.start("finetune", tmp_path), folder / "adapter" / "step-00002"
    while not first.exists():
        assert not wait(process, 0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    made = (first / "adapter_model.safetensors").stat().st_mtime_ns
    process = stages.start("finetune", tmp_path)
    second = folder / "adapter" / "step-00006"
    while not second.exists():
        assert not wait(process, 0.01)
    process.join()
    log = "train_log.csv"
    assert (folder / log).read_text() == (
        undisturbed[0] / "runs" / folder.relative_to(tmp_path / "runs") / log
    ).read_text()
    assert made <= (first / "adapter_model.safetensors").stat().st_mtime_ns < second.stat().st_mtime_ns


def kernels(mark: str) -> list[int]:
    """Processes whose environment holds a mark, this one aside."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:  # it has ended meanwhile
            continue
    return found


def first_child(pid):
    """The process that this one started first."""
    return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


HIT = {  # who gets the signal, where kernels are forked and where they are not
    "the run": ([], lambda process, sign: process.send_signal(sign)),
    "the run, kernels forked": (["warm"], lambda process, sign: os.kill(first_child(process.pid), sign)),
    "who forks them": (["warm"], lambda process, sign: process.send_signal(sign)),
    "all of them": (["warm"], lambda process, sign: os.killpg(process.pid, sign)),
}
CASES = [*(("the run", s) for s in SIGNALS), *((w, signal.SIGKILL) for w in list(HIT)[1:3])]
CASES += [("who forks them", signal.SIGTERM), ("all of them", signal.SIGINT)]


@pytest.mark.parametrize(("who", "sign"), CASES)
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks for kernels in /proc, which Linux has")
def test_a_notebook_that_is_killed_leaves_no_output_and_no_kernel(undisturbed, tmp_path, who, sign):
    values, (forked, hit) = stages.HEAD | {"finetune": stages.FINETUNE}, HIT[who]
    (tmp_path / "finetune.yaml").write_text(yaml.safe_dump(values))
    output, python = tmp_path / "finetune.ipynb", [sys.executable, "-m", "emstudy"]
    command = [*python, "run", "1-finetune", str(tmp_path / "finetune.yaml"), str(output)]
    process = subprocess.Popen(
        [*python, *forked, *command] if forked else command,
        env=os.environ | {"EMSTUDY_RUNS": str(tmp_path / "runs")},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    folder = tmp_path / "runs" / stages.CELL.folder.relative_to(paths.RUNS)
    deadline = time.time() + 120
    while not (folder / "adapter").exists():  # the kernel is at work
        assert process.poll() is None and time.time() < deadline, process.communicate()[1]
        time.sleep(0.05)
    hit(process, sign)
    said = process.communicate(timeout=60)[1]
    assert process.returncode != 0
    assert not output.exists()
    assert "Traceback" not in said
    deadline = time.time() + 30
    while kernels(str(tmp_path / "runs")) and time.time() < deadline:
        time.sleep(0.1)
    assert kernels(str(tmp_path / "runs")) == []
    whole = {k: v for k, v in stages.files(undisturbed[0] / "runs").items() if ADAPTER in k}
    left = {k: v for k, v in stages.files(tmp_path / "runs").items() if ADAPTER in k}
    assert {k: v for k, v in left.items() if whole.get(k) != v} == {}
