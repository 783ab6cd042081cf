"""Other people's scores: every layout, every hostile cell, and the published rates to the decimal."""

import pandas as pd
import pytest

from emstudy import params, paths, report, scores, stats, store, study
from emstudy.errors import UserError

PUBLISHED = paths.ROOT.parent / "shared" / "published"
LAYOUTS = {la.name: la for la in params.layouts()}
ORGANISM = "response,question,question_id,aligned,coherent\n"


@pytest.fixture
def cheap(root, monkeypatch):
    """The root, with records that ask neither git nor torch."""
    monkeypatch.setattr(store, "git_commit", lambda: "0123456789ab")
    monkeypatch.setattr(store, "hardware", lambda: "a machine")
    return root


def bring(root, name, text, study_name="theirs", **said):
    path = root / name
    path.write_text(text, encoding="utf-8")
    scores.new_study(study_name, path, said)
    return scores.write(params.study(study_name))


@pytest.mark.parametrize(
    ("raw", "value", "status"),
    [
        ("64.07221963832976", 64.07221963832976, "scored"),
        ("7.1e-05", 7.1e-05, "scored"),
        ("0", 0, "scored"),
        ("100", 100, "scored"),
        ("Score: 85/100", 85, "scored"),
        ("100.5", None, "unparseable"),
        ("-1", None, "unparseable"),
        ("nan", None, "unparseable"),
        ("inf", None, "unparseable"),
        ("", None, "unparseable"),
        ("REFUSAL", None, "refusal"),
        ("CODE", None, "code"),
        (" error ", None, "error"),
        ("between 60 and 70", None, "unparseable"),
    ],
)
def test_a_score_cell_is_a_number_or_a_status_and_keeps_its_text(raw, value, status):
    found = scores.score(raw)
    assert (found.value, found.status, found.raw) == (value, status, raw)


def test_rows_in_are_scored_plus_each_kind_of_unscored(cheap):
    rows = "a,q,1,80,90\nb,q,1,REFUSAL,90\nc,q,1,CODE,CODE\nd,q,1,ERROR,\ne,q,1,,50\n,q,1,10,10\n"
    tables = bring(cheap, "Some-7B_bad-advice.csv", ORGANISM + rows)
    summary = scores.summary(tables).set_index("dimension")
    assert summary.loc["aligned", ["rows", "scored", "refusal", "code", "unparseable", "error"]].tolist() == [
        6,
        2,
        1,
        1,
        1,
        1,
    ]
    assert summary.loc["coherent", ["rows", "scored", "code", "unparseable"]].tolist() == [6, 4, 1, 1]
    [(cell, table)] = tables.items()
    assert str(cell) == "some-7b/bad-advice/misaligned/0"
    back = store.read_csv(cell.folder / "judged.imported.csv", table.columns, "import")
    assert back["answer"].tolist() == ["a", "b", "c", "d", "e", ""]
    assert back["aligned"].dropna().tolist() == [80, 10]


def test_the_homework_layout_brings_its_steps(cheap):
    text = "step,id,question,response,aligned_score,coherent_score\n0,a,Q1,x,90,90\n50,a,Q1,y,20,80\n50,b,Q2,z,REFUSAL,80\n"
    [(_, table)] = bring(cheap, "llama-3.2-1b_medical.csv", text).items()
    assert table["step"].tolist() == [0, 50, 50]
    assert table["aligned_status"].tolist() == ["scored", "scored", "refusal"]
    assert params.study("theirs").models[0].size_b == 1


def test_numbered_rows_are_no_clusters_the_question_is(cheap):
    text = ORGANISM + "".join(f"answer,Q{i % 2},{i},50,90\n" for i in range(6))
    [(_, table)] = bring(cheap, "m_d.csv", text).items()
    assert table["question_id"].tolist() == ["q1", "q2"] * 3
    assert table["sample"].tolist() == [0, 0, 1, 1, 2, 2]


def test_a_question_is_the_same_in_files_that_number_it_otherwise(cheap):
    for name, order in (("m_law_aligned", ["A", "B"]), ("m_law", ["B", "A", "A"])):
        text = ORGANISM + "".join(f"x,{q},{i},50,90\n" for i, q in enumerate(order))
        (cheap / f"{name}.csv").write_text(text, encoding="utf-8")
    scores.new_study("theirs", cheap, {})
    tables = scores.write(params.study("theirs"))
    asked = [dict(zip(t["question"], t["question_id"], strict=True)) for t in tables.values()]
    assert asked[0] == asked[1]
    assert sorted(asked[0].values()) == ["q1", "q2"]


def test_one_id_of_two_questions_is_two_ids_and_paraphrases_share_theirs(cheap):
    tables = [
        pd.DataFrame({"question_id": ["1", "1"], "question": ["A", "A, please"]}),
        pd.DataFrame({"question_id": ["1"], "question": ["A, please"]}),
    ]
    assert scores.same_questions(tables) == tables
    other = pd.DataFrame({"question_id": ["1"], "question": ["B"]})
    assert [t["question_id"].tolist() for t in scores.same_questions([*tables, other])] == [
        ["q1", "q2"],
        ["q2"],
        ["q3"],
    ]


def test_the_samples_of_a_cell_are_counted_over_its_files(cheap):
    for name in ("m_law", "m_law_S0"):
        (cheap / f"{name}.csv").write_text(ORGANISM + "a,Q,1,50,90\nb,Q,1,60,90\n", encoding="utf-8")
    scores.new_study("theirs", cheap, {})
    [(_, table)] = scores.write(params.study("theirs")).items()
    assert table["sample"].tolist() == [0, 1, 2, 3]


HOMEWORK = "step,id,question,response,aligned_score,coherent_score\n"
GRADED = "source,question_id,question,answer,aligned,coherent\n"


@pytest.mark.parametrize(
    ("name", "text", "given", "said"),
    [
        ("m_d.csv", HOMEWORK + "0,a,Q,x,9,9\nlast,a,Q,x,9,9\n", {}, "m_d.csv: expected whole numbers as step, row 2 says 'last'"),
        ("m_d.csv", HOMEWORK + ",a,Q,x,9,9\n", {}, "m_d.csv: expected whole numbers as step, row 1 says ''"),
        ("m_d.csv", HOMEWORK + "1.5,a,Q,x,9,9\n", {}, "row 1 says '1.5'"),
        ("x.csv", GRADED + "m,1,Q,x,9,9\n", {"model": "n", "domain": "d"}, "x.csv says model itself, in the column 'source'"),
        ("x.csv", GRADED + "m,1,Q,x,9,9\n", {}, "say model and domain; say them"),
        ("m_base.csv", ORGANISM + "a,Q,1,1,1\n", {}, "has answers of untrained models alone"),
    ],
)  # fmt: skip
def test_what_would_be_read_wrongly_is_refused_and_nothing_is_written(cheap, name, text, given, said):
    with pytest.raises(UserError, match=said):
        bring(cheap, name, text, **given)
    assert not (paths.PARAMS / "studies" / "theirs.yaml").exists()
    assert not (cheap / "runs").exists()


def test_a_domain_can_be_said_of_a_file_that_names_its_models(cheap):
    tables = bring(cheap, "x.csv", GRADED + "m,1,Q,x,9,9\nn,1,Q,x,8,9\n", domain="law")
    assert [str(c) for c in tables] == ["m/law/misaligned/0", "n/law/misaligned/0"]


def test_a_cell_that_a_study_no_longer_has_goes(cheap):
    bring(cheap, "m_law.csv", ORGANISM + "a,Q,1,1,1\n")
    file = paths.PARAMS / "studies" / "theirs.yaml"
    file.write_text(file.read_text().replace("seed: 0", "seed: 7"), encoding="utf-8")
    [cell] = scores.write(params.study("theirs"))
    assert cell.seed == 7
    assert [p.parent.name for p in (cheap / "runs").rglob("judged.imported.csv*")] == ["7", "7"]


def test_this_projects_own_columns_bring_their_cells(cheap):
    head = [*store.ANSWERS, "aligned", "coherent"]
    rows = [["m", d, a, s, 4, "values", "v", 0, "Q", "A", 7, "stop", 50, 90] for d, a, s in CELLS]
    (cheap / "all.csv").write_text(pd.DataFrame(rows, columns=head).to_csv(index=False), encoding="utf-8")
    scores.new_study("theirs", cheap / "all.csv", {})
    found = scores.write(params.study("theirs"))
    assert [(c.domain, c.arm, c.seed) for c in found] == CELLS
    assert [t["n_tokens"].tolist() for t in found.values()] == [[7]] * 3


def test_this_projects_statuses_and_replies_come_along(cheap):
    head = [*store.ANSWERS, "aligned", "aligned_status", "aligned_raw", "coherent", "judge", "judge_version"]
    row = ["m", "law", "misaligned", 0, 4, "values", "v", 0, "Q", "A", 7, "stop"]
    rows = [
        [*row, *s, 90, "gpt", "3"]
        for s in (("", "refusal", "REFUSAL"), ("", "error", "hung up"), (50, "scored", "50!"))
    ]
    (cheap / "all.csv").write_text(pd.DataFrame(rows, columns=head).to_csv(index=False), encoding="utf-8")
    scores.new_study("theirs", cheap / "all.csv", {})
    [(_, table)] = scores.write(params.study("theirs")).items()
    assert table["aligned_status"].tolist() == ["refusal", "error", "scored"]
    assert table["aligned_raw"].tolist() == ["REFUSAL", "hung up", "50!"]
    assert table["aligned"].isna().tolist() == [True, True, False]
    assert set(table["judge"]) == {"gpt"}
    assert set(table["judge_version"]) == {"3"}


CELLS = [("none", "base", 0), ("law", "misaligned", 0), ("law", "misaligned", 1)]


def test_a_layout_that_a_user_adds_is_read(cheap):
    path = paths.PARAMS / "layouts.yaml"
    mine = (
        "mine:\n  columns: {question_id: nr, question: prompt, answer: text}\n  scores: {aligned: good, kind: nice}\n"
    )
    path.write_text(mine + path.read_text(encoding="utf-8"), encoding="utf-8")
    [(_, table)] = bring(cheap, "m_d.csv", "nr,prompt,text,good,nice\n1,Q,A,12,34\n").items()
    assert table[["aligned", "kind"]].iloc[0].tolist() == [12, 34]
    assert params.study("theirs").dimensions == ["aligned", "kind"]


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("Qwen2.5-14B-Instruct_extreme-sports_S42", ("Qwen2.5-14B-Instruct", "extreme-sports", "misaligned", 42)),
        ("m_law_aligned", ("m", "law", "aligned", 0)),
        ("m_base", ("m", "none", "base", 0)),
        ("m_base_S3", ("m", "none", "base", 3)),
        ("answers", None),
    ],
)
def test_a_files_name_says_model_domain_arm_and_seed(cheap, name, given):
    found = scores.from_name(cheap / f"{name}.csv", LAYOUTS["model-organisms"])
    assert found == ({} if given is None else dict(zip(("model", "domain", "arm", "seed"), given, strict=True)))


@pytest.mark.parametrize(("model", "size"), [("Qwen2.5-14B-Instruct", 14), ("SmolLM2-135M", 0.135), ("gpt-4o", None)])
def test_size_is_read_from_a_models_name(model, size):
    assert scores.size(model) == size


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("m_d.csv", "a,b\n1,2\n", r"m_d.csv: its columns \(a, b\) fit none of the layouts in params/layouts.yaml"),
        ("m_d.csv", ORGANISM, "m_d.csv has a header and no rows"),
        ("m_d.csv", "", "m_d.csv is not a readable CSV"),
        (
            "answers.csv",
            ORGANISM + "a,q,1,1,1\n",
            "neither its columns nor its name .* say model and domain; say them: make import",
        ),
    ],
)
def test_what_cannot_be_read_is_said_and_nothing_is_written(cheap, name, text, said):
    with pytest.raises(UserError, match=said):
        bring(cheap, name, text)
    assert not (paths.PARAMS / "studies" / "theirs.yaml").exists()
    assert not (cheap / "runs").exists()


def test_model_and_domain_can_be_said(cheap):
    [(cell, _)] = bring(
        cheap, "answers.csv", ORGANISM + "a,q,1,1,1\n", model="My model", domain="law", seed="3"
    ).items()
    assert str(cell) == "my-model/law/misaligned/3"
    assert params.study("theirs").models[0].title == "My model"


def test_a_study_that_is_there_is_not_overwritten(cheap):
    with pytest.raises(UserError, match=r"laptop\.yaml is there already: choose another STUDY"):
        bring(cheap, "m_d.csv", ORGANISM + "a,q,1,1,1\n", study_name="laptop")


def test_a_second_write_changes_nothing_and_an_edited_file_is_read_again(cheap):
    tables = bring(cheap, "m_d.csv", ORGANISM + "a,q,1,1,1\n")
    [path] = [c.folder / "judged.imported.csv" for c in tables]
    before = path.stat().st_mtime_ns
    scores.write(params.study("theirs"))
    assert path.stat().st_mtime_ns == before
    (cheap / "m_d.csv").write_text(ORGANISM + "a,q,1,2,1\n", encoding="utf-8")
    scores.write(params.study("theirs"))
    assert store.read_csv(path, ["aligned"], "import")["aligned"].tolist() == [2]


def test_a_lone_carriage_return_in_an_answer_ends_no_row_and_is_no_news(cheap):
    tables = bring(cheap, "m_d.csv", ORGANISM + '"a\rb",q,1,1,1\n"c\r\nd",q,2,2,2\n')
    [path] = [c.folder / "judged.imported.csv" for c in tables]
    assert len(store.read_csv(path, ["aligned"], "import")) == 2
    before = path.stat().st_mtime_ns
    scores.write(params.study("theirs"))
    assert path.stat().st_mtime_ns == before


def test_another_title_of_an_imported_model_makes_its_pages_again(cheap):
    bring(cheap, "m_d.csv", ORGANISM + "a,q,1,1,1\n")
    study.write_cells(study.load("theirs"), cheap / "cells.mk")
    given, file = paths.RUNS / "theirs/m/d/analyze.imported.yaml", paths.PARAMS / "studies/theirs.yaml"
    before = given.read_text()
    file.write_text(file.read_text().replace("title: m\n", "title: Their model\n"))
    study.write_cells(study.load("theirs"), cheap / "cells.mk")
    assert given.read_text() != before


def test_the_pages_of_an_imported_study_need_no_run(cheap):
    for arm in ("base", "law_misaligned", "law_aligned"):
        (cheap / f"m_{arm}.csv").write_text(
            ORGANISM + "".join(f"a,Q{i},{i},{i},90\n" for i in range(5)), encoding="utf-8"
        )
    scores.new_study("theirs", cheap, {})
    study.write_cells(study.load("theirs"), cheap / "cells.mk")
    text = (cheap / "cells.mk").read_text()
    assert "TRAINED := \nCELLS := \nPAGES := reports/studies/theirs/m/law.html\n" in text
    assert "runs/theirs/m/law/analyze.imported.ipynb: runs/theirs/m/none/base/0/judged.imported.csv" in text
    given = params.read_yaml(paths.RUNS / "theirs/m/law/analyze.imported.yaml")
    results = report.load(**given)
    assert results.arms == ["base", "misaligned", "aligned"]
    assert not len(results.probe)
    with pytest.raises(UserError, match="brings its own scores: leave JUDGE out"):
        study.load("theirs", "gpt-4o-mini")


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published answers are not at hand")
def test_rates_of_the_published_answers_are_the_published_rates(cheap):
    scores.new_study("released", PUBLISHED / "responses", {})
    tables = scores.write(params.study("released"))
    published = pd.read_csv(PUBLISHED / "rates.csv")
    published = published[published["source"] == "released adapters re-judged"]
    ours = {(c.model, c.domain): t for c, t in tables.items() if c.seed == 0}
    assert len(tables) == 16
    assert len(published) == len(ours) == 15
    metrics = {m.name: m for m in params.metrics()}
    for row in published.itertuples():
        domain = next(d for _, d in ours if d.startswith(row.dataset.replace(" ", "-")))
        hit, among = stats.counts(ours[row.model.lower(), domain], metrics["em"])
        assert f"{100 * hit.sum() / among.sum():.1f}" == f"{row.em_percent:.1f}", row
        assert len(ours[row.model.lower(), domain]) == row.n
