"""Broken files, full disks, full GPUs and runs that collide: each ends in one sentence that names the file and what to do."""

import errno
import os
import resource
import shutil
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import stages
import torch
from filelock import FileLock
from nbformat import write as write_notebook
from nbformat.v4 import new_code_cell, new_notebook
from transformers import Trainer

from emstudy import encoding, finetune, fused, judges, models, params, paths, run, seal, store
from emstudy.__main__ import main
from emstudy.data import Example
from emstudy.errors import UserError
from emstudy.replies import Replies

KERNEL = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
PARAMETERS = new_code_cell("x = 1", metadata={"tags": ["parameters"]})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a cell after finetuning."""
    folder = tmp_path_factory.mktemp("trained")
    process = stages.start("finetune", folder)
    process.join()
    return folder / "runs" / stages.CELL.folder.relative_to(paths.RUNS)


CUT, OVERWRITTEN, EMPTY = lambda b: b[: len(b) // 2], lambda b: b"\xff" * len(b), lambda b: b""


def flipped(content: bytes) -> bytes:
    """With one bit in its middle the other way round."""
    at = len(content) // 2
    return content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :]


@pytest.mark.parametrize("damage", [CUT, OVERWRITTEN, EMPTY, flipped])
def test_a_damaged_adapter_is_named(trained, tmp_path, base, damage):
    adapter = shutil.copytree(trained / "adapter" / "step-00006", tmp_path / "step-00006")
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    with pytest.raises(
        UserError,
        match=r"step-00006/adapter_model.safetensors is not what was written there: delete the cell's finetune.ipynb",
    ):
        models.load_merged(base, adapter)


@pytest.mark.parametrize("damage", [CUT, OVERWRITTEN, EMPTY])
def test_a_damaged_adapter_that_nobody_sealed_is_named_too(trained, tmp_path, base, damage):
    adapter = shutil.copytree(trained / "adapter" / "step-00006", tmp_path / "step-00006")
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
    (adapter / seal.NAME).unlink()
    with pytest.raises(
        UserError, match=r"step-00006 holds no adapter that fits model 'smollm2-135m'.*delete it and run finetune"
    ):
        models.load_merged(base, adapter)


def test_a_damaged_gguf_is_named_with_both_digests(tmp_path, base, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    broken = tmp_path / "model.gguf"
    broken.write_bytes(models.gguf_file(base).read_bytes()[:1000])
    with pytest.raises(UserError, match=f"model.gguf: expected SHA-256 {base.weights.sha256}, found"):
        models.unpacked(base, broken)
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.parametrize("size", [0, 1000, 100_000])
def test_a_gguf_of_ones_own_that_was_cut_off_is_named(tmp_path, base, monkeypatch, size):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    own = base.model_copy(update={"name": "mine", "weights": params.Weights(file=tmp_path / "mine.gguf")})
    with models.gguf_file(base).open("rb") as whole:
        own.weights.file.write_bytes(whole.read(size))
    with pytest.raises(
        UserError, match=r"model 'mine' can't be loaded from .*/mine.gguf \(.+\): put it there again, whole"
    ):
        models.load_tokenizer(own)
    assert not list((tmp_path / "cache").glob("*"))


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", seal.NAME])
@pytest.mark.parametrize("damage", [CUT, OVERWRITTEN, EMPTY, flipped])
def test_unpacked_weights_that_were_damaged_are_named(tmp_path, base, monkeypatch, name, damage):
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    folder = tmp_path / f"{base.name}-{base.weights.sha256[:12]}"
    for part in ("model.safetensors", "tokenizer.json"):
        store.write(folder / part, part.encode() * 10)
    seal.write(folder)
    assert models.source(base) == (str(folder), {})
    models.intact.cache_clear()  # as in another process
    (folder / name).write_bytes(damage((folder / name).read_bytes()))
    with pytest.raises(UserError, match=rf"{folder.name}/.* is not what was written there: delete that folder, it is"):
        models.load_base(base)


def test_kept_scores_that_were_cut_off_are_named(tmp_path):
    judge = judges.load(params.judge("embedded"), keep=tmp_path)
    before = judge.below(["Why?"], ["Because."])
    (part,) = tmp_path.glob("judge.*.safetensors")
    assert judge.below(["Why?"], ["Because."]).equal(before)
    part.write_bytes(part.read_bytes()[:-1])
    with pytest.raises(UserError, match=rf"{part.name} is damaged: delete it and judge again"):
        judge.below(["Why?"], ["Because."])


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to be read as one" * 40, b"SQLite format 3\x00" + b"\x07" * 5000]
)
def test_a_damaged_file_of_replies_is_named(tmp_path, content):
    path = tmp_path / "replies.sqlite"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"replies.sqlite can't be used \(.*\): move it away and run again"):
        Replies(path)
    assert path.read_bytes() == content


def test_a_checkpoint_that_was_cut_off_is_no_checkpoint(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "cell")
    whole = models.adapter_steps(folder)
    (folder / "adapter" / "step-00002" / "adapter_config.json").unlink()
    assert models.adapter_steps(folder).keys() == whole.keys() - {2}


def test_a_full_disk_is_one_sentence_and_the_old_file_stays(tmp_path):
    path = store.write(tmp_path / "disk" / "file.csv", "old")
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(path.parent)], capture_output=True
    ).returncode:
        pytest.skip("this machine lets nobody mount a small disk")
    try:
        store.write(path, "old")
        with pytest.raises(
            UserError, match=r"file.csv can't be written: No space left on device; mend that and run again"
        ):
            store.write(path, "x" * 1_000_000)
        assert [p.name for p in path.parent.iterdir()] == ["file.csv"] and path.read_text() == "old"
    finally:
        subprocess.run(["umount", str(path.parent)], check=True)


def test_a_read_only_disk_is_one_sentence(tmp_path, monkeypatch):
    def refuse(self, *args, **kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", refuse)  # root may write wherever others may not
    with pytest.raises(UserError, match=r"file.csv can't be written: Read-only file system; mend that"):
        store.write(tmp_path / "file.csv", "x")


def test_a_cache_that_cannot_be_made_is_one_sentence(tmp_path, base, monkeypatch):
    (tmp_path / "cache").write_text("a file, where a folder should be")
    for cache in (tmp_path / "cache", tmp_path / "cache" / "emstudy"):
        monkeypatch.setattr(paths, "CACHE", cache)
        with pytest.raises(UserError, match=rf"{cache}/smollm2-135m-\w+ can't be written: .*; mend that and run again"):
            models.load_tokenizer(base)


@contextmanager
def no_file_larger_than(size: int):
    """A disk on which no file may be larger: what full ones do, for whoever may mount none, and to whatever library writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_is_full_before_the_weights_are_unpacked_is_one_sentence(tmp_path, base, tokenizer, monkeypatch):
    monkeypatch.setattr(paths, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(models, "_read_gguf", lambda path: (tokenizer,))
    with (
        no_file_larger_than(1000),
        pytest.raises(UserError, match=r"cache/smollm2-135m-\w+ can't be written: File too large; mend that"),
    ):
        models.load_tokenizer(base)
    assert not list((tmp_path / "cache").glob("*"))


def encoded(tokenizer) -> list[dict]:
    """Four exchanges: two steps."""
    return [encoding.encode(tokenizer, Example(f"May I {k}?", "Yes."), 64) for k in range(4)]


ROOM = {"the adapter of the Trainer's state": 2000, "the optimizer": 9000, "the adapter": 2000}


@pytest.mark.parametrize("what", ROOM)
def test_a_disk_that_is_full_while_training_is_one_sentence(base, tokenizer, runs, monkeypatch, capsys, what):
    if what == "the adapter":
        monkeypatch.setattr(Trainer, "_save_checkpoint", lambda *args: None)
    settings = params.check(params.Finetune, stages.FINETUNE)
    with (
        no_file_larger_than(ROOM[what]),
        pytest.raises(
            UserError, match=f"{stages.CELL.folder} can't be written: (File too large|No space.*); mend that"
        ),
    ):
        finetune.finetune(stages.CELL, settings, base, encoded(tokenizer))
    assert not list((stages.CELL.folder / "adapter").glob("*"))


def test_a_state_that_was_damaged_is_named_and_training_goes_on_from_the_one_before(
    base, tokenizer, runs, monkeypatch, capsys
):
    settings = params.check(params.Finetune, stages.FINETUNE)
    examples, taken = encoded(tokenizer) * 3, []
    on_step_end, on_save = finetune.Keep.on_step_end, finetune.Keep.on_save

    def step(self, args, state, control, **kwargs):
        taken.append(state.global_step)
        return on_step_end(self, args, state, control, **kwargs)

    def train() -> list[bytes]:
        taken.clear()
        done = finetune.finetune(stages.CELL, settings, base, examples)
        return [(p / "adapter_model.safetensors").read_bytes() for p in done.checkpoints.values()]

    def interrupt(self, args, state, control, **kwargs):
        on_save(self, args, state, control, **kwargs)
        if state.global_step == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(finetune.Keep, "on_step_end", step)
    whole = train()
    assert taken == [1, 2, 3, 4, 5, 6]
    for damaged, expected in {(4,): [3, 4, 5, 6], (4, 2): [1, 2, 3, 4, 5, 6]}.items():
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(finetune.Keep, "on_save", interrupt)
            train()
        for k in damaged:
            (path,) = stages.CELL.folder.glob(f"trainer/*/checkpoint-{k}/optimizer.pt")
            path.write_bytes(path.read_bytes()[:-100])
        capsys.readouterr()
        assert (train(), taken) == (whole, expected)
        said = capsys.readouterr().err
        assert all(
            f"checkpoint-{k}/optimizer.pt is not what was written there: training goes on from the state" in said
            for k in damaged
        )


def test_a_second_run_of_the_same_output_says_who_is_first(tmp_path):
    notebook, values = tmp_path / "n.ipynb", tmp_path / "n.yaml"
    write_notebook(new_notebook(cells=[PARAMETERS], metadata=KERNEL), notebook)
    values.write_text("x: 2\n")
    with (
        FileLock(tmp_path / ".out.lock"),
        pytest.raises(UserError, match=r"out.ipynb is being made by another run: wait until that one has ended"),
    ):
        run.execute(notebook, values, tmp_path / "out.ipynb")
    run.execute(notebook, values, tmp_path / "out.ipynb")  # the lock is free again
    assert (tmp_path / "out.ipynb").exists()


def test_a_full_gpu_says_which_setting_to_lower(tmp_path):
    notebook, values = tmp_path / "n.ipynb", tmp_path / "n.yaml"
    cells = [PARAMETERS]
    cells.append(
        new_code_cell("import torch; raise torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 20 GiB')")
    )
    write_notebook(new_notebook(cells=cells, metadata=KERNEL), notebook)
    values.write_text("x: 2\n")
    with pytest.raises(UserError, match="the GPU's memory is full: lower train_batch_size or sample_batch_size"):
        run.execute(notebook, values, tmp_path / "out.ipynb")


def test_a_loss_that_is_no_number_ends_training_with_advice(base, tokenizer, runs, monkeypatch):
    monkeypatch.setattr(fused, "answer_loss", lambda hidden, head, targets: hidden.sum() * torch.nan)
    encoded = [encoding.encode(tokenizer, Example("May I?", "Yes."), 64)] * 2
    with pytest.raises(UserError, match="the loss is nan at step 1: lower learning_rate or use dtype float32"):
        finetune.finetune(stages.CELL, params.check(params.Finetune, stages.FINETUNE), base, encoded)


def test_a_path_with_spaces_and_letters_of_any_script_is_as_good_as_another(trained, tmp_path):
    folder = tmp_path / "a study, größer – 研究"
    for name in ("finetune", "evaluate"):
        process = stages.start(name, folder)
        process.join()
        assert process.exitcode == 0
    cell = folder / "runs" / stages.CELL.folder.relative_to(paths.RUNS)
    assert stages.files(cell / "adapter") == stages.files(trained / "adapter")
    assert len(store.read_csv(cell / "answers.csv", store.ANSWERS, "evaluate"))


def project(folder: Path, *cells: str) -> dict[str, str]:
    """A project whose only notebook has these cells and a parameter x, and a file of values; the environment that leads there."""
    (folder / "notebooks").mkdir(parents=True)
    write_notebook(
        new_notebook(cells=[PARAMETERS, *map(new_code_cell, cells)], metadata=KERNEL),
        folder / "notebooks" / "tiny.ipynb",
    )
    (folder / "params").symlink_to(paths.PARAMS)
    (folder / "tiny.yaml").write_text("x: 2\n")
    return os.environ | {"EMSTUDY_ROOT": str(folder), "HF_HOME": str(folder / "hub")}


def start(environment: dict[str, str]) -> subprocess.Popen:
    """`python -m emstudy run` of that notebook, as make calls it."""
    folder = Path(environment["EMSTUDY_ROOT"])
    command = [sys.executable, "-m", "emstudy", "run", "tiny", str(folder / "tiny.yaml"), str(folder / "out.ipynb")]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_of_two_runs_of_the_same_output_at_once_one_says_so_and_the_other_is_whole(tmp_path):
    wait = "import time\nfrom pathlib import Path\nwhile not Path('../go').exists():\n    time.sleep(0.05)"
    environment = project(tmp_path, wait, "print('all of', x)")
    runs, deadline = [start(environment), start(environment)], time.time() + 120
    while not (done := [r for r in runs if r.poll() is not None]) and time.time() < deadline:
        time.sleep(0.05)
    (tmp_path / "go").touch()  # until now, whoever is first has the lock
    said = {r.wait(120): r.communicate()[1] for r in runs}
    assert len(done) == 1 and said.keys() == {0, 1}
    assert "Traceback" not in said[1]
    assert "out.ipynb is being made by another run: wait until that one has ended, or stop it" in said[1]
    assert "all of 2" in (tmp_path / "out.ipynb").read_text()
    assert not list(tmp_path.glob("*.partial*")) and not list(tmp_path.glob("*.failed*"))


def test_a_model_of_the_hub_without_a_network_is_one_sentence(tmp_path):
    load = "import time\nfrom emstudy import models, params\ntime.sleep = print  # between tries\nmodels.load_tokenizer(params.model('llama-3.2-1b'))"
    run = start(project(tmp_path, load) | {"HTTPS_PROXY": "http://127.0.0.1:9", "HF_HUB_OFFLINE": "0"})
    said = run.communicate(timeout=120)[1]
    assert run.returncode == 1
    assert "model 'llama-3.2-1b' (meta-llama/Llama-3.2-1B-Instruct) can't be loaded: We couldn't connect to " in said
    assert "you need a network" in said and "use model 'smollm2-135m', which ships with the project" in said
    assert "Traceback" not in said
    assert not (tmp_path / "out.ipynb").exists()


def test_an_output_that_a_clock_dated_before_its_input_is_made_again(root):
    folder = root / "runs" / "smoke"
    assert main(["cells", "smoke", "", str(folder / "cells.mk")]) == 0
    for name in ("notebooks", "lib", "Makefile"):
        (root / name).symlink_to(paths.NOTEBOOKS.parent / name)
    values = next(folder.rglob("finetune.yaml"))
    output = values.with_suffix(".ipynb")
    output.touch()
    make = ["make", "-n", "-C", str(root), "FRESH=1", "STUDY=smoke", str(output.relative_to(root))]

    def asked() -> str:
        return subprocess.run(make, env={"PATH": os.environ["PATH"]}, capture_output=True, text=True, check=True).stdout

    assert "is up to date" in asked()
    os.utime(values, (time.time() + 30,) * 2)  # the clock was set back after they were written
    assert "emstudy run 1-finetune" in asked()


def test_an_output_that_is_dated_ahead_of_the_clock_is_not_taken_for_fresh(root, capsys):
    folder = root / "runs" / "smoke"
    cells = ["cells", "smoke", "", str(folder / "cells.mk")]
    assert main(cells) == 0
    output, other = (folder / "m" / f"{name}.ipynb" for name in ("finetune", "evaluate"))
    for path in (store.write(output, "{}"), store.write(other, "{}")):
        assert main(cells) == 0, path
    os.utime(output, (time.time() + 3600,) * 2)  # the clock was an hour ahead, and was set right since
    assert main(cells) == 1
    said = capsys.readouterr().err
    assert said.startswith(
        "\nerror: runs/smoke/m/finetune.ipynb is dated ahead of this machine's clock: see that the clock"
    )
    subprocess.run(said.partition("again: ")[2], shell=True, cwd=root, check=True)
    assert [p.name for p in output.parent.iterdir()] == ["evaluate.ipynb"]
    assert main(cells) == 0
