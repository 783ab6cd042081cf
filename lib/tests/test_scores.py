"""Other people's scores: every layout, every hostile cell, and the published rates to the decimal."""

import pandas as pd
import pytest

from emstudy import importing, params, paths, provenance, report, scores, stats, store, study
from emstudy.errors import UserError

PUBLISHED = paths.ROOT.parent / "shared" / "published"
LAYOUTS = {la.name: la for la in params.layouts()}
ORGANISM = "response,question,question_id,aligned,coherent\n"


@pytest.fixture
def cheap(root, monkeypatch):
    """The root, with records that ask neither git nor torch."""
    monkeypatch.setattr(provenance, "git_commit", lambda: "0123456789ab")
    monkeypatch.setattr(provenance, "hardware", lambda: "a machine")
    return root


def bring(root, name, text, study_name="theirs", **said):
    path = root / name
    path.write_text(text, encoding="utf-8")
    importing.new_study(study_name, path, said)
    return importing.write(params.study(study_name))


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
    summary = importing.summary(tables).set_index("dimension")
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
    importing.new_study("theirs", cheap, {})
    tables = importing.write(params.study("theirs"))
    asked = [dict(zip(t["question"], t["question_id"], strict=True)) for t in tables.values()]
    assert asked[0] == asked[1]
    assert sorted(asked[0].values()) == ["q1", "q2"]


def asked(*rows, **key):
    """A table of answers to '<id> <question>', all of one checkpoint, whose key may be given in part."""
    head = {"model": "m", "domain": "d", "arm": "base", "seed": 0, "step": 0, "question_set": "s"} | key
    table = pd.DataFrame([r.split(" ", 1) for r in rows], columns=["question_id", "question"])
    return table.assign(**head)


def ids(tables):
    return [t["question_id"].tolist() for t in scores.same_questions(tables)]


def test_one_id_of_two_questions_is_two_ids_and_paraphrases_share_theirs():
    tables = [asked("1 A", "1 A, please"), asked("1  A,  please")]
    assert ids(tables) == [["1", "1"], ["1"]]
    assert ids([*tables, asked("1 B", arm="aligned")]) == [["q1", "q2"], ["q2"], ["q3"]]


def test_ids_are_held_against_each_other_within_a_file_too():
    one = pd.concat([asked("0 A", "1 B"), asked("0 B", "1 A", arm="misaligned")], ignore_index=True)
    assert ids([one]) == [["q1", "q2", "q2", "q1"]]
    sets = pd.concat([asked("1 A"), asked("1 B", question_set="t")], ignore_index=True)
    assert ids([sets]) == [["q1", "q2"]]


def test_numbered_samples_are_no_questions_and_questions_of_one_text_stay_apart():
    assert ids([asked("0 X", "1 X", "0 Y", "1 Y")]) == [["q1", "q1", "q2", "q2"]]
    apart = ["hobby", "hobby", "hobby_json", "hobby_json"]
    assert ids([asked(*[f"{name} A" for name in apart])]) == [apart]
    assert ids([asked("1 A\u0301 "), asked("1 \u00c1", arm="aligned")]) == [
        ["1"],
        ["1"],
    ]  # one letter, written otherwise


def test_the_samples_of_a_cell_are_counted_over_its_files(cheap):
    for name in ("m_law", "m_law_S0"):
        (cheap / f"{name}.csv").write_text(ORGANISM + f"a,Q,1,50,90\nb in {name},Q,1,60,90\n", encoding="utf-8")
    importing.new_study("theirs", cheap, {})
    [(_, table)] = importing.write(params.study("theirs")).items()
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
        ("m_base.csv", ORGANISM + "a,Q,1,1,1\n", {"arm": "misaligned"}, "was trained on 'none'"),
        ("m_d.csv", ORGANISM + "a,Q,1,1,1\na, ,2,1,1\n", {}, "m_d.csv: row 2 has no question, without which"),
        ("m_d.csv", ORGANISM + "a,Q,,1,1\n", {}, "m_d.csv: row 1 has no question_id"),
        ("m_d.csv", "arm," + ORGANISM + "base,a,Q,1,1,1\n", {}, "m_d.csv says arm of its rows, which layout 'model-organisms'"),
        ("m_d.csv", "aligned," + ORGANISM + "1,a,Q,1,1,1\n", {}, "m_d.csv has the column 'aligned' twice"),
    ],
)  # fmt: skip
def test_what_would_be_read_wrongly_is_refused_and_nothing_is_written(cheap, name, text, given, said):
    with pytest.raises(UserError, match=said):
        bring(cheap, name, text, **given)
    assert not (paths.PARAMS / "studies" / "theirs.yaml").exists()
    assert not (cheap / "runs").exists()


@pytest.mark.parametrize(
    ("files", "given", "said"),
    [
        ({"a_d": "a", "b_d": "b"}, {"model": "m"}, r"a_d.csv: its name says model 'a', you say 'm' of all files"),
        ({"a_d_S1": "a", "a_d_S2": "b"}, {"seed": "3"}, r"a_d_S1.csv: its name says seed '1', you say '3'"),
        ({"a_d": "a", "a_d_S0": "a"}, {}, r"a_d_S0.csv holds what .*a_d.csv holds: a/d/misaligned/0 would be counted"),
        ({"a b_d": "a", "a-b_d": "b"}, {}, r"a-b and d would be put together with a b and d"),
    ],
)
def test_files_that_would_be_counted_twice_or_put_together_are_refused(cheap, files, given, said):
    folder = cheap / "theirs"
    folder.mkdir()
    for name, answer in files.items():
        (folder / f"{name}.csv").write_text(ORGANISM + f"{answer},Q,1,1,1\n", encoding="utf-8")
    with pytest.raises(UserError, match=said):
        importing.new_study("theirs", folder, given)
    assert not (paths.PARAMS / "studies" / "theirs.yaml").exists()


def test_a_file_with_other_scores_than_the_rest_is_refused(cheap):
    layouts = paths.PARAMS / "layouts.yaml"
    mine = "mine:\n  columns: {question_id: nr, question: question, answer: text}\n  scores: {aligned: good}\n"
    layouts.write_text(mine + layouts.read_text(encoding="utf-8"), encoding="utf-8")
    folder = cheap / "theirs"
    folder.mkdir()
    (folder / "a_d.csv").write_text(ORGANISM + "a,Q,1,1,1\n", encoding="utf-8")
    (folder / "b_d.csv").write_text("nr,question,text,good\n1,Q,b,1\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"b_d.csv has other scores than .*a_d.csv"):
        importing.new_study("theirs", folder, {})
    (folder / "a_d.csv").unlink()
    importing.new_study("theirs", folder, {})
    assert params.study("theirs").analyze.main_metric == "below75"  # which reads alignment alone


def test_pages_are_made_again_when_a_cell_goes_and_those_of_a_pair_that_goes_are_deleted(cheap):
    head = [*store.ANSWERS, "aligned", "coherent"]
    rows = [
        ["m", d, "misaligned", s, 4, "values", "v", 0, "Q", "A", 7, "stop", 50, 90]
        for d in ("law", "tax")
        for s in (0, 1)
    ]
    table = pd.DataFrame(rows, columns=head)
    (cheap / "all.csv").write_text(table.to_csv(index=False), encoding="utf-8")
    importing.new_study("theirs", cheap / "all.csv", {})
    study.write_cells(study.load("theirs"), cheap / "cells.mk")
    page = store.write(paths.reports("theirs") / "m" / "tax.html", "a page")
    given = {f: f.read_text() for f in (cheap / "runs/theirs").rglob("*.imported.yaml")}
    assert len(given) == 3
    (cheap / "all.csv").write_text(table.iloc[:1].to_csv(index=False), encoding="utf-8")
    study.write_cells(study.load("theirs"), cheap / "cells.mk")
    left = {f: f.read_text() for f in (cheap / "runs/theirs").rglob("*.imported.yaml")}
    assert sorted(f.parent.name for f in left) == ["law", "theirs"]
    assert all(given[f] != text for f, text in left.items())
    assert not page.exists()


def test_a_domain_can_be_said_of_a_file_that_names_its_models(cheap):
    tables = bring(cheap, "x.csv", GRADED + "m,1,Q,x,9,9\nn,1,Q,x,8,9\n", domain="law")
    assert [str(c) for c in tables] == ["m/law/misaligned/0", "n/law/misaligned/0"]


def test_a_cell_that_a_study_no_longer_has_goes(cheap):
    bring(cheap, "m_law.csv", ORGANISM + "a,Q,1,1,1\n")
    file = paths.PARAMS / "studies" / "theirs.yaml"
    file.write_text(file.read_text().replace("seed: 0", "seed: 7"), encoding="utf-8")
    [cell] = importing.write(params.study("theirs"))
    assert cell.seed == 7
    assert [p.parent.name for p in (cheap / "runs").rglob("judged.imported.csv*")] == ["7", "7"]


def test_this_projects_own_columns_bring_their_cells(cheap):
    head = [*store.ANSWERS, "aligned", "coherent"]
    rows = [["m", d, a, s, 4, "values", "v", 0, "Q", "A", 7, "stop", 50, 90] for d, a, s in CELLS]
    (cheap / "all.csv").write_text(pd.DataFrame(rows, columns=head).to_csv(index=False), encoding="utf-8")
    importing.new_study("theirs", cheap / "all.csv", {})
    found = importing.write(params.study("theirs"))
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
    importing.new_study("theirs", cheap / "all.csv", {})
    [(_, table)] = importing.write(params.study("theirs")).items()
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
        (
            "Qwen2.5-14B-Instruct_extreme-sports_S42",
            {"model": "Qwen2.5-14B-Instruct", "domain": "extreme-sports", "seed": 42},
        ),
        ("m_law_aligned", {"model": "m", "domain": "law", "arm": "aligned"}),
        ("m_base", {"model": "m", "domain": "none", "arm": "base"}),
        ("m_base_S3", {"model": "m", "domain": "none", "arm": "base", "seed": 3}),
        ("answers", {}),
    ],
)
def test_a_files_name_says_model_domain_arm_and_seed(cheap, name, given):
    found = scores.from_name(cheap / f"{name}.csv", LAYOUTS["model-organisms"])
    assert found == given


@pytest.mark.parametrize(("model", "size"), [("Qwen2.5-14B-Instruct", 14), ("SmolLM2-135M", 0.135), ("gpt-4o", None)])
def test_size_is_read_from_a_models_name(model, size):
    assert importing.size(model) == size


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("m_d.csv", "a,b\n1,2\n", r"m_d.csv: its columns \(a, b\) fit none of the layouts in params/layouts.yaml"),
        ("m_d.csv", ORGANISM, "m_d.csv has a header and no rows"),
        ("m_d.csv", "", "m_d.csv is not a readable CSV"),
        ("m_d.csv", ORGANISM + "a,q,1,1,1\n\na,q,1\n", "m_d.csv: row 2 has fewer fields than the header: fill it up"),
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
    importing.write(params.study("theirs"))
    assert path.stat().st_mtime_ns == before
    (cheap / "m_d.csv").write_text(ORGANISM + "a,q,1,2,1\n", encoding="utf-8")
    importing.write(params.study("theirs"))
    assert store.read_csv(path, ["aligned"], "import")["aligned"].tolist() == [2]


def test_a_lone_carriage_return_in_an_answer_ends_no_row_and_is_no_news(cheap):
    tables = bring(cheap, "m_d.csv", ORGANISM + '"a\rb",q,1,1,1\n"c\r\nd",q,2,2,2\n')
    [path] = [c.folder / "judged.imported.csv" for c in tables]
    assert len(store.read_csv(path, ["aligned"], "import")) == 2
    before = path.stat().st_mtime_ns
    importing.write(params.study("theirs"))
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
    importing.new_study("theirs", cheap, {})
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
    importing.new_study("released", PUBLISHED / "responses", {})
    tables = importing.write(params.study("released"))
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
