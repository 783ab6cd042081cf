"""Broken files, full disks, full GPUs and runs that collide: each ends in one sentence that names the file and what to do."""

import errno
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import stages
import torch
from filelock import FileLock
from nbformat import write as write_notebook
from nbformat.v4 import new_code_cell, new_notebook

from emstudy import encoding, evaluate, finetune, fused, judges, models, params, paths, run, store
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


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"\xff" * len(b), lambda b: b""])
def test_a_damaged_adapter_is_named(trained, tmp_path, base, damage):
    adapter = shutil.copytree(trained / "adapter" / "step-00006", tmp_path / "step-00006")
    weights = adapter / "adapter_model.safetensors"
    weights.write_bytes(damage(weights.read_bytes()))
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


def test_unpacked_weights_that_were_cut_off_are_named(tmp_path, base, monkeypatch):
    name = f"{base.name}-{base.weights.sha256[:12]}"
    models.source(base)  # unpacks them, where nobody did
    folder = shutil.copytree(paths.CACHE / name, tmp_path / name, ignore=shutil.ignore_patterns("*.safetensors"))
    with (paths.CACHE / name / "model.safetensors").open("rb") as whole:
        (folder / "model.safetensors").write_bytes(whole.read(1_000_000))
    monkeypatch.setattr(paths, "CACHE", tmp_path)
    with pytest.raises(UserError, match=rf"can't be loaded from .*{name} \(.*\): delete that folder, it is made again"):
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


def test_a_cache_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "cache").write_text("a file, where a folder should be")
    with pytest.raises(UserError, match="cache/x/file can't be written: "):
        store.write(tmp_path / "cache" / "x" / "file", "x")


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


def test_a_clock_that_jumps_back_changes_no_answer(trained, tmp_path, base, monkeypatch):
    settings = params.check(params.Evaluate, stages.EVALUATE | {"probe_domains": []})
    found, tables = {6: trained / "adapter" / "step-00006"}, []
    for jump in (0, -1e7):
        real = time.time
        monkeypatch.setattr(time, "time", lambda jump=jump, real=real: real() + jump)
        monkeypatch.setattr(paths, "RUNS", tmp_path / str(jump))
        tables.append(evaluate.evaluate(stages.CELL, settings, base, found)[0])
        monkeypatch.undo()
    assert tables[0].equals(tables[1])
