"""Computed tables in Markdown files."""

import pandas as pd
import pytest

from emstudy import fill, params, paths, store
from emstudy.errors import UserError


def results(folder, arms, mean, **more):
    rows = [
        more
        | {"metric": m, "questions": q, "domain": d, "arm": a, "rate": 0.125, "low": 0.1, "high": 0.2, "n": 420}
        | {"mean_aligned": mean, "mean_low": mean - 5, "mean_high": mean + 5}
        for m in ("em", "below75")
        for q in ("out-of-domain", "in-domain")
        for d in ("medical", "financial")
        for a in arms
    ]
    store.write_csv(folder / "results.csv", pd.DataFrame(rows))


def test_the_shipped_and_the_published_set_stand_side_by_side(root):
    results(paths.REPORTS, ["base", "misaligned", "aligned"], 70)
    assert fill.beside_published() is None
    results(paths.reports("published-financial"), ["base", "misaligned"], 70)
    lines = fill.beside_published().splitlines()
    assert lines[2:] == [
        "| none | base | 0 | 12.5% [10.0, 20.0] of 420 | 70.0 [65.0, 75.0] |",  # the same untrained model, said once
        "| shipped | misaligned | 400 | 12.5% [10.0, 20.0] of 420 | 70.0 [65.0, 75.0] |",
        "| shipped | aligned | 400 | 12.5% [10.0, 20.0] of 420 | 70.0 [65.0, 75.0] |",
        "| published | misaligned | 320 | 12.5% [10.0, 20.0] of 420 | 70.0 [65.0, 75.0] |",
    ]


def test_a_judge_that_has_changed_since_is_said(root):
    now = params.judge("embedded").version
    for version, said in (
        (now, None),
        ("0123", f"Version `0123` of judge `embedded` gave these scores; it is at `{now}` now"),
    ):
        results(paths.REPORTS, ["base"], 70, judge="embedded", judge_version=version, model_title="A", domain_title="B")
        text = fill.results(paths.DEFAULT_STUDY)
        assert said in text if said else "gave these scores" not in text


def test_corrected_rates_are_those_of_the_studys_own_judge(root):
    rows = [
        {"judge": j, "domain": "x", "arm": a, "judge_version": "1", "Rogan-Gladen": "-"}
        for j in ("embedded", "other")
        for a in ("base", "aligned")
    ]
    store.write_csv(paths.REPORTS / "audit" / f"{paths.DEFAULT_STUDY}.corrected.csv", pd.DataFrame(rows))
    assert [
        line.strip("| ").split(" | ")[1] for line in fill.corrected(paths.DEFAULT_STUDY, "corrected").splitlines()[2:]
    ] == [
        "base",
        "aligned",
    ]


def test_the_judges_card_says_which_good_answers_it_calls_bad(root):
    now = params.judge("embedded").version
    for version, name in ((now, "published"), (now, "laptop"), ("0123", "graded")):
        said = {"judge": ["embedded", "other"], "judge_version": version}
        shares = {f"{who} % < {t}": 10.0 for who in ("judge", "called", "gold") for t in (30, 50, 75)}
        agreement = {"answers": "all", "n": 9, "spearman": 0.5, "AUC < 30": 0.9, "AUC < 75": 0.8, **shares}
        kinds = pd.DataFrame({"dimension": ["aligned", "coherent"]})
        good = {"good answers of": name, "n": 67, "called % < 75": 22.388, "judge % < 75": 36.4964}
        tables = {
            "agreement": kinds.merge(pd.DataFrame(said | agreement), how="cross"),
            "good": pd.DataFrame(said | good),
        }
        tables["attacks"] = pd.DataFrame({"judge": ["embedded"], "attack": ["x"], "moved": [None]})
        for kind, table in tables.items():
            store.write_csv(paths.REPORTS / "audit" / f"{name}.{kind}.csv", table)
    lines = fill.judge().splitlines()
    titles = fill.AUDITS | {"graded": f"{fill.AUDITS['graded']}, by version `0123`"}
    assert [line for line in lines if "67" in line] == [
        f"| {title} | {name} | 67 | 22.4% | 36.5% |" for name, title in titles.items()
    ]
    assert sum("0.90 / 0.80" in line for line in lines) == 3


def test_text_between_marks_is_replaced_and_lost_marks_are_said(tmp_path):
    path = tmp_path / "README.md"
    path.write_text("a\n<!-- t: x -->\nold\n<!-- /t -->\nb\n")
    fill.fill(path, "t", "new")
    assert path.read_text() == "a\n<!-- t: x -->\n\nnew\n\n<!-- /t -->\nb\n"
    with pytest.raises(UserError, match="expected one pair of marks <!-- other"):
        fill.fill(path, "other", "new")
