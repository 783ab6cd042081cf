"""What is on disk is whole, reads back as it was written, and says where it came from."""

import gzip
import hashlib
import json
import time
import tracemalloc

import pandas as pd
import pytest

from emstudy import paths, provenance, seal, store
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
        "answers.csv lacks the columns seed, step: it was not written by evaluate, delete it and run evaluate again"
    )


def test_a_table_that_a_notebook_made_is_made_again_by_deleting_that(tmp_path):
    (tmp_path / "judge.mine.ipynb").touch()
    for content, said in {b"a,b\n1,": "is cut off", None: "is not there any more"}.items():
        table = tmp_path / "judged.mine.csv"
        table.write_bytes(content) if content else table.unlink()
        with pytest.raises(UserError) as error:
            store.read_csv(table, ["a"], "judge")
        assert str(error.value) == f"judged.mine.csv {said}: delete judge.mine.ipynb and run again"


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2,3\n", b"a\n\xff\xfe\n"], ids=["empty", "ragged", "no text"])
def test_a_table_that_cannot_be_read_names_the_stage(tmp_path, content):
    (tmp_path / "answers.csv").write_bytes(content)
    with pytest.raises(UserError) as error:
        store.read_csv(tmp_path / "answers.csv", ["c"], "evaluate")
    assert str(error.value).startswith("answers.csv ") and "evaluate" in str(error.value)


def test_a_packed_table_that_unpacks_without_end_is_refused_in_bounded_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "MOST_BYTES", 1_000_000)
    with gzip.open(tmp_path / "answers.csv.gz", "wb") as packed:
        packed.write(b"a\n" + b"1" * 999_998)
    assert len(store.table(tmp_path / "answers.csv.gz", "run again", dtype=str)) == 1
    with gzip.open(tmp_path / "answers.csv.gz", "wb") as packed:
        for _ in range(60):
            packed.write(b"a\n" + b"1" * 999_998)
    tracemalloc.start()
    with pytest.raises(
        UserError, match=r"^answers.csv.gz is not a readable CSV \(it unpacks to more than 1,000,000 bytes\): delete"
    ):
        store.read_csv(tmp_path / "answers.csv.gz", ["a"], "evaluate")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5_000_000


@pytest.mark.parametrize("name", ["x.csv.zip", "x.csv.bz2", "x.csv.xz"])
def test_a_table_packed_otherwise_is_not_unpacked(tmp_path, name):
    table = pd.DataFrame({"a": range(5)})
    table.to_csv(tmp_path / name, index=False)
    with pytest.raises(UserError, match=rf"^{name} is not a readable CSV|^{name} lacks the columns a"):
        store.read_csv(tmp_path / name, ["a"], "evaluate")


def test_a_seal_is_what_sha256sum_checks_and_names_a_file_that_changed(tmp_path):
    for name in ("b.bin", "a.bin", "c.txt"):
        (tmp_path / name).write_bytes(name.encode())
    seal.write(tmp_path, "*.bin")
    seal.check(tmp_path, "do that")
    assert (tmp_path / "SHA256SUMS").read_text() == "".join(
        f"{hashlib.sha256(n.encode()).hexdigest()}  {n}\n" for n in ("a.bin", "b.bin")
    )
    (tmp_path / "c.txt").write_text("not sealed")
    seal.check(tmp_path, "do that")
    for damage in (lambda p: p.write_bytes(b"b.bim"), lambda p: p.unlink()):
        damage(tmp_path / "b.bin")
        with pytest.raises(UserError, match=r"^b.bin is not what was written there: do that$"):
            seal.check(tmp_path, "do that")
    (tmp_path / "SHA256SUMS").unlink()
    seal.check(tmp_path, "do that")  # nobody sealed it


def test_sha256_is_that_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert (
        store.sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )  # FIPS 180-2


def test_a_record_reads_back_with_what_ran_and_what_it_read(tmp_path):
    (tmp_path / "in.jsonl").write_text("input")
    output, parameters = tmp_path / "out.csv", {"seed": 3, "finetune": {"lora_r": 1}}
    written = provenance.write(
        output, parameters=parameters, inputs=[tmp_path / "in.jsonl"], started=time.time() - 2, model_revision="é"
    )
    found = provenance.read(output)
    assert found == json.loads(json.dumps(written))
    assert found["output"] == "out.csv" and found["parameters"] == parameters and found["model_revision"] == "é"
    assert found["inputs"] == {"in.jsonl": hashlib.sha256(b"input").hexdigest()}
    assert {"torch", "transformers", "peft", "python", "emstudy"} <= found["packages"].keys()
    assert 2 <= found["seconds"] < 60
    assert found["git_commit"] == "unknown"  # this root is no checkout
    assert found["hardware"]


def test_an_absent_record_says_that_its_output_was_not_finished(tmp_path):
    with pytest.raises(UserError) as error:
        provenance.read(tmp_path / "answers.csv")
    assert str(error.value) == (
        "answers.csv.record.json is not there: answers.csv was not finished, run its stage again"
    )


def test_rows_longer_than_the_header_are_refused_and_not_shifted(tmp_path):
    """A comma at the end of every row: pandas takes the first column for an index and each column for the one before it."""
    file = tmp_path / "scores.csv"
    file.write_text("response,aligned,coherent\nYes.,10,90,\nNo.,20,80,\n")
    with pytest.raises(UserError, match=r"scores.csv.*more fields than its header"):
        store.table(file, "mend it")
