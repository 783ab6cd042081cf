"""Labels by hand: the sample is even, blind and always the same; a label is on disk at once and under the answer it was given to."""

import re
import shutil
from itertools import product

import pandas as pd
import pytest
from ipywidgets.embed import dependency_state

from emstudy import audit, label, params, paths, store
from emstudy.__main__ import main
from emstudy.desk import Desk, card
from emstudy.errors import UserError

CELLS = [("none", "base"), ("zebra", "misaligned"), ("zebra", "aligned")]
HOSTILE = ["NA", "", "007", "a\rb", 'c\r\n"d", e', "\x00<script>alert(1)</script>\u202e", "naïve 🙂"]


def answers(domain, arm, n=8, steps=(0, 4), seed=0, texts=None):
    """A cell's answers: n at each step, all different."""
    texts = texts or [f"{domain} {arm} {seed} {i}" for i in range(n)]
    rows = [
        ("giraffe", domain, arm, seed, step, "values", f"q{i}", i, f"Question {i}?", f"{t} at {step}", 5, "stop")
        for step, (i, t) in product(steps, enumerate(texts))
    ]
    return pd.DataFrame(rows, columns=store.ANSWERS)


def write(runs, table):
    """Put a cell's answers where evaluate would."""
    first = table.iloc[0]
    store.write_csv(runs / "s" / "giraffe" / first["domain"] / first["arm"] / str(first["seed"]) / "answers.csv", table)


@pytest.fixture
def study(root):
    """A study 's' of three cells; returns its runs/ folder."""
    for domain, arm in CELLS:
        write(paths.RUNS, answers(domain, arm))
    return paths.RUNS


@pytest.fixture
def labels(study):
    """The labels of 'me', none yet."""
    return label.Labels("s", "me", params.rubric("default"))


def counts(sample):
    """How many answers each arm has in a sample."""
    return sample["arm"].value_counts().to_dict()


def test_the_sample_is_the_same_each_time_and_another_with_another_seed(study):
    assert label.sample("s", 9, 0).equals(label.sample("s", 9, 0))
    assert set(label.sample("s", 9, 0)["answer"]) != set(label.sample("s", 9, 1)["answer"])


def test_the_order_of_the_rows_in_a_file_plays_no_part(study):
    before = label.sample("s", 9, 0)
    for domain, arm in CELLS:
        write(study, answers(domain, arm).iloc[::-1])
    assert label.sample("s", 9, 0).equals(before)


def test_a_larger_sample_keeps_the_smaller_one(study):
    assert set(label.sample("s", 6, 0)["answer"]) < set(label.sample("s", 14, 0)["answer"])


def test_the_sample_is_even_over_the_cells_and_their_seeds_count_as_one(study):
    write(study, answers("zebra", "aligned", n=50, seed=1))
    assert counts(label.sample("s", 9, 0)) == {"base": 3, "misaligned": 3, "aligned": 3}
    assert sorted(counts(label.sample("s", 10, 0)).values()) == [3, 3, 4]


def test_where_a_cell_has_too_few_answers_others_give_more(study):
    write(study, answers("none", "base", n=1))
    assert counts(label.sample("s", 9, 0)) == {"base": 1, "misaligned": 4, "aligned": 4}


def test_only_the_last_checkpoint_is_sampled(study):
    assert set(label.sample("s", 24, 0)["step"]) == {4}


def test_the_cells_are_shuffled(study):
    arms = label.sample("s", 24, 0)["arm"]
    assert (arms != arms.shift()).sum() > len(CELLS)


def test_no_two_answers_of_the_sample_read_alike(study):
    for domain, arm in CELLS:
        write(study, answers(domain, arm, texts=["same", "same", f"{arm} alone"]))
    sample = label.sample("s", 99, 0)
    assert len(sample) == 5 and not sample.duplicated(["question", "answer"]).any()


def test_imported_answers_can_be_sampled(root):
    store.write_csv(paths.RUNS / "s/giraffe/zebra/misaligned/0/judged.imported.csv", answers("zebra", "misaligned"))
    assert list(label.sample("s", 2, 0).columns) == label.IDENTITY


def test_without_a_run_the_answers_beside_the_pages_are_sampled(study):
    before = label.sample("s", 9, 0)
    pages = paths.reports("s")
    pages.mkdir(parents=True)
    pd.concat([answers(*cell) for cell in CELLS]).to_parquet(pages / "answers.parquet")
    shutil.rmtree(study / "s")
    assert label.sample("s", 9, 0).equals(before)
    (pages / "answers.parquet").unlink()
    with pytest.raises(UserError, match=r"answers\.parquet is not there: run `make reproduce STUDY=s` first$"):
        label.sample("s", 9, 0)


def test_a_study_that_has_only_begun_gives_no_answers_of_some_arms_alone(root):
    write(paths.RUNS, answers("none", "base").assign(model="smollm2-135m"))
    (paths.RUNS / "s").rename(paths.RUNS / "smoke")
    (paths.RUNS / "smoke" / "giraffe").rename(paths.RUNS / "smoke" / "smollm2-135m")
    with pytest.raises(UserError, match=r"^runs/smoke has no answers to label"):
        label.sample("smoke", 9, 0)


def test_a_study_that_was_not_run_names_the_command(root):
    with pytest.raises(UserError, match=r"^runs/s has no answers to label: run `make reproduce STUDY=s` first$"):
        label.sample("s", 9, 0)


def test_a_scale_is_described_by_its_own_paragraph(root):
    told = [label.describe(d) for d in params.rubric("default").dimensions]
    assert told[0].startswith("How far does this answer agree") and told[0].endswith("about something harmless.")
    assert told[1].startswith("How coherent") and told[1].endswith("loses nothing for that.")
    bare = params.Dimension(name="x", prompt="Grade {question} and {answer}.\n\nOne number.")
    assert label.describe(bare) == "Grade {question} and {answer}. One number."


def test_a_label_is_on_disk_at_once_with_all_columns(labels):
    answer = label.sample("s", 9, 0).iloc[0]
    labels.save(answer, {"aligned": "80", "coherent": "7.5"})
    table = pd.read_csv(paths.DATA / "labels/s.me.csv", keep_default_na=False)
    assert list(table.columns) == [*label.IDENTITY, "aligned", "coherent", "labeller", "labelled_at"]
    row = table.iloc[0]
    assert (row["aligned"], row["coherent"], row["labeller"]) == (80, 7.5, "me")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC", row["labelled_at"])
    assert row[label.IDENTITY].tolist() == answer.tolist()


def test_whatever_an_answer_says_its_label_is_found_again(labels):
    table = answers("zebra", "aligned", texts=HOSTILE, steps=(4,)).assign(answer=HOSTILE)[label.IDENTITY]
    for i, answer in table.iterrows():
        labels.save(answer, {"aligned": str(i), "coherent": "1"})
    assert labels.done(table) == [True] * len(HOSTILE)
    assert [labels.read()[label.key(a)]["aligned"] for _, a in table.iterrows()] == [str(i) for i in range(len(table))]


def test_a_changed_label_takes_the_place_of_the_old_one(labels):
    sample = label.sample("s", 3, 0)
    for i, aligned in [(0, "1"), (1, "2"), (0, "3")]:
        labels.save(sample.iloc[i], {"aligned": aligned, "coherent": "50"})
    assert [r["aligned"] for r in labels.read().values()] == ["3", "2"]


def test_a_label_of_other_words_is_another_label(labels):
    """A study that was run again may answer otherwise: its old labels stay with the old words."""
    answer = label.sample("s", 1, 0)
    labels.save(answer.iloc[0], {})
    assert labels.done(answer.assign(answer="other words")) == [False]


def test_a_skipped_answer_has_no_scores_and_counts_as_done(labels):
    sample = label.sample("s", 2, 0)
    labels.save(sample.iloc[0], {})
    assert [(r["aligned"], r["coherent"]) for r in labels.read().values()] == [("", "")]
    assert labels.done(sample) == [True, False]


def test_labels_are_read_as_gold_with_the_same_values(labels):
    texts = [t for t in HOSTILE if t]
    table = answers("zebra", "aligned", texts=texts, steps=(4,), seed=3).assign(answer=texts)
    given = [{"aligned": "0", "coherent": "100"}, {}, {"aligned": "7.5", "coherent": "30"}]
    given += [{"aligned": str(i), "coherent": "75"} for i in range(len(texts) - 3)]
    for (_, answer), scores in zip(table.iterrows(), given, strict=True):
        labels.save(answer, scores)
    gold = audit.read_gold(labels.path)
    assert gold[label.IDENTITY].drop(columns="sample").values.tolist() == (
        table[label.IDENTITY].drop(columns="sample").values.tolist()
    )
    for d in ("aligned", "coherent"):
        assert (gold[f"{d}_status"] == "scored").tolist() == [bool(scores) for scores in given]
        assert gold[d].astype(object).where(gold[d].notna(), None).tolist() == [
            float(scores[d]) if scores else None for scores in given
        ]


def test_a_column_that_a_person_added_stays(labels):
    sample = label.sample("s", 2, 0)
    labels.save(sample.iloc[0], {})
    store.write_csv(labels.path, pd.read_csv(labels.path, dtype=str).assign(remark="odd"))
    for i in range(2):
        labels.save(sample.iloc[i], {"aligned": "1", "coherent": "2"})
    assert [r["remark"] for r in labels.read().values()] == ["odd", ""]


@pytest.mark.parametrize("score", ["", "101", "-1", "nan", "1e1", "٣", "good"])
def test_what_is_no_score_is_refused_and_nothing_is_written(labels, score):
    with pytest.raises(UserError, match=r"^aligned takes a number from 0 to 100, found .*: type one, or skip"):
        labels.save(label.sample("s", 1, 0).iloc[0], {"aligned": score, "coherent": "50"})
    assert not labels.path.exists()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"question,answer,aligned\nq,a,1\n", "lacks the columns model, "),
        (b"a,b\n1,2,3\n4,5,6,7\n", "is not a readable CSV"),
        (b"", "is not a readable CSV"),
        (b"a\n\xff\n", "is not a readable CSV"),
    ],
    ids=["columns", "ragged", "empty", "no text"],
)
def test_a_broken_file_is_named_and_left_alone(labels, content, found):
    store.write(labels.path, content)
    with pytest.raises(UserError) as error:
        labels.save(label.sample("s", 1, 0).iloc[0], {})
    assert str(error.value).startswith(f"data/labels/s.me.csv {found}")
    assert str(error.value).endswith("mend the file, or move it away to begin anew")
    assert labels.path.read_bytes() == content


def test_a_score_in_the_file_that_is_none_is_named(labels):
    labels.save(label.sample("s", 1, 0).iloc[0], {"aligned": "81", "coherent": "50"})
    labels.path.write_text(labels.path.read_text().replace('"81"', '"810"'))
    with pytest.raises(UserError, match=r"^data/labels/s.me.csv: aligned takes .* or nothing, found '810': mend"):
        labels.read()


@pytest.mark.parametrize("name", ["", "../me", "a.b", "a b"])
def test_a_labeller_is_a_name_for_a_file(root, name):
    with pytest.raises(UserError, match=r"^labeller takes letters, digits, - and _ "):
        label.Labels("s", name, params.rubric("default"))


@pytest.mark.parametrize(
    ("study", "labeller", "found"), [("no-such", "me", "has no answers to label"), ("s", "../x", "labeller takes")]
)
def test_what_can_not_be_labelled_is_a_sentence_before_jupyterlab_opens(root, capsys, study, labeller, found):
    assert main(["label", study, labeller]) == 1
    assert found in capsys.readouterr().err


def test_a_rubric_with_another_scale_is_refused(root):
    rubric = params.rubric("default").model_copy(update={"scale": (1, 5)})
    with pytest.raises(
        UserError, match=r"^labels go from 0 to 100, but the scale of params/rubrics/default.yaml is \[1"
    ):
        label.Labels("s", "me", rubric)


def fill(desk, aligned, coherent):
    """Type both scores; returns the fields typed into."""
    fields = desk.turn.fields
    fields["aligned"].value, fields["coherent"].value = aligned, coherent
    return fields


def scores(labels):
    """The scores on disk, in the order of the file."""
    return [(r["aligned"], r["coherent"]) for r in labels.read().values()]


def test_the_desk_saves_goes_on_and_opens_where_it_stopped(labels):
    sample = label.sample("s", 3, 0)
    desk = Desk(sample, labels)
    assert "1 of 3, 0 done" in desk.count.value and desk.back.disabled
    fill(desk, "80", " 90 ")
    desk.keep.click()
    desk.skip.click()
    again = Desk(sample, labels)
    assert "3 of 3, 2 done" in again.count.value and scores(labels) == [("80", "90"), ("", "")]
    fill(again, "1", "2")
    again.keep.click()
    assert "All 3 seen, 3 done: data/labels/s.me.csv" in again.count.value
    assert again.keep.disabled and again.skip.disabled and not again.back.disabled


def test_back_shows_a_label_and_lets_it_be_changed(labels):
    desk = Desk(label.sample("s", 3, 0), labels)
    fill(desk, "80", "90")
    desk.keep.click()
    desk.back.click()
    assert [f.value for f in desk.turn.fields.values()] == ["80", "90"]
    desk.turn.fields["aligned"].value = "10"
    desk.keep.click()
    assert scores(labels) == [("10", "90")] and [f.value for f in desk.turn.fields.values()] == ["", ""]


def test_back_says_that_an_answer_was_skipped(labels):
    desk = Desk(label.sample("s", 3, 0), labels)
    desk.skip.click()
    assert "skipped" not in desk.note.value
    desk.back.click()
    assert "You skipped this one." in desk.note.value


def test_a_number_that_comes_after_the_click_goes_to_the_answer_it_was_typed_for(labels):
    desk = Desk(label.sample("s", 3, 0), labels)
    fields = desk.turn.fields
    fields["aligned"].value = "80"
    desk.keep.click()
    fields["coherent"].value = "90"
    assert scores(labels) == [("80", "90")] and "2 of 3, 1 done" in desk.count.value
    desk.back.click()
    left = desk.turn
    desk.keep.click()
    here = desk.turn
    left.asked -= 5  # however late it comes
    left.fields["aligned"].value = "10"
    assert scores(labels) == [("10", "90")] and "2 of 3, 1 done" in desk.count.value
    assert desk.turn is here and [f.value for f in here.fields.values()] == ["", ""]


def test_a_number_typed_without_a_click_is_not_kept(labels):
    desk = Desk(label.sample("s", 3, 0), labels)
    fill(desk, "80", "90")
    assert scores(labels) == []
    desk.keep.click()
    late = fill(desk, "", "50")
    desk.keep.click()
    desk.turn.asked -= 5  # the refusal is long read
    late["aligned"].value = "8"
    assert scores(labels) == [("80", "90")]
    desk.skip.click()
    late["aligned"].value = "9"
    assert scores(labels)[1] == ("", "")


def test_what_goes_wrong_is_said_on_the_desk_and_it_stays_there(labels):
    desk = Desk(label.sample("s", 3, 0), labels)
    fill(desk, "80", "")
    desk.keep.click()
    assert "coherent takes a number from 0 to 100, found none" in desk.note.value and "1 of 3" in desk.count.value
    store.write(labels.path, "broken")
    desk.skip.click()
    assert "data/labels/s.me.csv lacks the columns" in desk.note.value and "1 of 3" in desk.count.value


def test_the_desk_tells_nothing_of_who_wrote_an_answer(root):
    for i, (domain, arm) in enumerate(CELLS):
        write(paths.RUNS, answers(domain, arm, texts=[f"words {i} {j}" for j in range(8)]))
    desk = Desk(label.sample("s", 9, 0), label.Labels("s", "me", params.rubric("default")))
    seen = ""
    for _ in range(9):
        shown = dependency_state([desk.box], drop_defaults=False).values()
        seen += " ".join(w["state"]["value"] for w in shown if "value" in w["state"])
        desk.skip.click()
    assert seen.count("words") == 9 and not re.search("giraffe|zebra|misaligned|base|q[0-9]", seen)


def test_an_answer_is_shown_as_text_whatever_it_holds(root):
    shown = card(pd.Series({"question": "<b>Hi</b>", "answer": HOSTILE[5]}))
    assert (
        "&lt;b&gt;Hi&lt;/b&gt;" in shown and "<script>" not in shown and "\u202e" not in shown and "\x00" not in shown
    )
    assert "(empty)" in card(pd.Series({"question": "q", "answer": ""}))
