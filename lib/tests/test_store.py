"""What is on disk is whole, reads back as it was written, and says where it came from."""

import hashlib
import json
import time

import pandas as pd
import pytest

from emstudy import paths, store
from emstudy.errors import UserError


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """A root of its own, so that messages show short paths."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)


@pytest.mark.parametrize(
    "content", ["new", b"new", lambda path: path.write_text("new")], ids=["text", "bytes", "writer"]
)
def test_write_replaces_the_file_and_makes_its_folder(tmp_path, content):
    for _ in range(2):
        assert store.write(tmp_path / "a/b.txt", content).read_text() == "new"
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.txt"]


def test_a_writer_that_fails_leaves_the_old_file_and_no_part_of_a_new_one(tmp_path):
    def writer(path):
        path.write_text("half")
        raise OSError("disk full")

    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(OSError, match="disk full"):
        store.write(tmp_path / "a.txt", writer)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_writer_that_is_interrupted_leaves_nothing(tmp_path):
    def writer(path):
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.write(tmp_path / "a.txt", writer)
    assert list(tmp_path.iterdir()) == []


def test_write_if_changed_touches_the_file_only_when_there_is_news(tmp_path):
    file = tmp_path / "a.txt"
    assert store.write_if_changed(file, "one")
    before = file.stat()
    assert not store.write_if_changed(file, "one")
    assert (file.stat().st_mtime_ns, file.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    assert store.write_if_changed(file, "two")
    assert file.read_text() == "two"


def test_what_is_forgotten_is_gone_and_nothing_else(tmp_path):
    parts = tmp_path / "parts"
    for name in ("step-1.csv", "step-2.csv", "judge.x"):
        store.write(parts / name, "")
    store.forget(parts, "step-*")
    assert [p.name for p in parts.iterdir()] == ["judge.x"]
    store.forget(parts, "judge.*")
    assert not parts.exists()
    store.forget(parts, "*")  # it was never there


def test_line_ends_within_a_text_are_no_news(tmp_path):
    file = tmp_path / "a.csv"
    assert store.write_if_changed(file, 'a\n"one\r\ntwo"\n')
    assert not store.write_if_changed(file, 'a\n"one\r\ntwo"\n')


def test_answers_survive_a_round_trip_as_text_whatever_they_say(tmp_path):
    answers = [
        "NA",
        "",
        "null",
        "nan",
        "007",
        "1e5",
        "True",
        'He said "no",\nthen left.',
        " ",
        "a\rb",
        "\r",
        "c\r\nd",
        "naïve 🙂",
    ]
    table = pd.DataFrame({"question_id": [str(i) for i in range(len(answers))], "answer": answers, "seed": 0})
    found = store.read_csv(store.write_csv(tmp_path / "a.csv", table), ["answer", "seed"], "evaluate")
    assert found["answer"].tolist() == answers
    assert found["question_id"].tolist() == table["question_id"].tolist()
    assert found["seed"].tolist() == [0] * len(answers)


def test_a_domain_called_none_stays_text(tmp_path):
    table = pd.DataFrame({"model": ["m"], "domain": ["none"], "arm": ["base"]})
    assert store.read_csv(store.write_csv(tmp_path / "a.csv", table), [], "evaluate")["domain"].tolist() == ["none"]


def test_scores_that_are_missing_come_back_missing_and_the_others_as_numbers(tmp_path):
    scores = pd.array([12.5, None, 80.0], dtype="Float64")
    table = pd.DataFrame(
        {"answer": ["a", "b", "c"], "aligned": scores, "aligned_status": ["scored", "refusal", "scored"]}
    )
    found = store.read_csv(store.write_csv(tmp_path / "a.csv", table), ["aligned"], "judge")
    assert found["aligned"].isna().tolist() == [False, True, False]
    assert found["aligned"].mean() == 46.25
    assert (found["aligned"] < 30).tolist() == [True, False, False]


def test_an_absent_table_names_the_stage_to_run(tmp_path):
    with pytest.raises(UserError) as error:
        store.read_csv(tmp_path / "runs/answers.csv", store.ANSWERS, "evaluate")
    assert str(error.value) == "runs/answers.csv is not there: run the evaluate notebook for this cell first"


def test_a_table_without_its_columns_names_them_and_the_stage(tmp_path):
    store.write_csv(tmp_path / "answers.csv", pd.DataFrame({"model": ["m"], "answer": ["a"]}))
    with pytest.raises(UserError) as error:
        store.read_csv(tmp_path / "answers.csv", ["model", "seed", "step"], "evaluate")
    assert str(error.value) == (
        "answers.csv lacks the columns seed, step: it was not written by evaluate, delete it and run again"
    )


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2,3\n", b"a\n\xff\xfe\n"], ids=["empty", "ragged", "no text"])
def test_a_table_that_cannot_be_read_names_the_stage(tmp_path, content):
    (tmp_path / "answers.csv").write_bytes(content)
    with pytest.raises(UserError) as error:
        store.read_csv(tmp_path / "answers.csv", ["c"], "evaluate")
    assert str(error.value).startswith("answers.csv ") and "evaluate" in str(error.value)


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert (
        store.sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )  # FIPS 180-2


def test_a_record_reads_back_with_what_ran_and_what_it_read(tmp_path):
    (tmp_path / "in.jsonl").write_text("input")
    output, parameters = tmp_path / "out.csv", {"seed": 3, "finetune": {"lora_r": 1}}
    written = store.record(
        output, parameters=parameters, inputs=[tmp_path / "in.jsonl"], started=time.time() - 2, model_revision="é"
    )
    found = store.read_record(output)
    assert found == json.loads(json.dumps(written))
    assert found["output"] == "out.csv" and found["parameters"] == parameters and found["model_revision"] == "é"
    assert found["inputs"] == {"in.jsonl": hashlib.sha256(b"input").hexdigest()}
    assert {"torch", "transformers", "peft", "python", "emstudy"} <= found["packages"].keys()
    assert 2 <= found["seconds"] < 60
    assert found["git_commit"] == "unknown"  # this root is no checkout
    assert found["hardware"]


def test_an_absent_record_says_that_its_output_was_not_finished(tmp_path):
    with pytest.raises(UserError) as error:
        store.read_record(tmp_path / "answers.csv")
    assert str(error.value) == (
        "answers.csv.record.json is not there: answers.csv was not finished, run its stage again"
    )
