"""What a paper takes: the table in Markdown and LaTeX, and a hint where no browser can draw."""

import pandas as pd
import plotly.graph_objects as go
import plotly.io
import pytest
from made_up import FELL

from emstudy import compare, importing, paper, params, paths, release, report, store
from emstudy.errors import UserError

EM = next(m for m in params.metrics() if m.name == "em")
ROW = {"metric": "em", "questions": "out-of-domain", "model_title": "A_model 100%", "domain": "law & order"}
ROW |= {"arm": "misaligned", "rate": 0.125, "low": 0.1, "high": 0.2, "n": 420}
ROW |= {"mean_aligned": 61.25, "mean_low": 55.0, "mean_high": 70.0}
NUMBERS = pd.DataFrame([ROW, ROW | {"questions": "in-domain"}, ROW | {"metric": "below75"}])


def test_the_table_holds_the_main_metric_out_of_domain_in_markdown_and_in_latex(tmp_path):
    md, tex = (p.read_text() for p in paper.tables(tmp_path, NUMBERS, EM))
    head, _, *lines = md.splitlines()
    assert head.startswith(
        "| model | domain | arm | EM rate (95% interval over questions) | answers | mean alignment, 0-100 (95% "
    )
    row = "| A_model 100% | law & order | misaligned | 12.5% [10.0, 20.0] | 420 | 61.2 [55.0, 70.0] |"
    assert lines == [row, "", report.LEFT_OUT]
    assert "they leave out the judge's errors" in report.LEFT_OUT and tex.endswith(f"{report.LEFT_OUT}\n")
    rows = [line for line in tex.splitlines() if line.endswith(r"\\") and "model &" not in line]
    assert rows == [r"A\_model 100\% & law \& order & misaligned & 12.5\% [10.0, 20.0] & 420 & 61.2 [55.0, 70.0] \\"]
    assert r"\toprule" in tex


def test_a_number_that_went_through_results_csv_is_rounded_once(study, tmp_path):
    """A mean of 59.9499985 is 59.9; rounded to five digits on its way it would be 59.95, and shown as 60.0."""
    results = study(FELL, spread=0, change=lambda arm, judged: judged.assign(aligned=59.9499985))
    store.write_csv(tmp_path / "results.csv", compare.results_table([results]))
    table = paper.table(pd.read_csv(tmp_path / "results.csv"), EM)
    assert set(table["mean alignment, 0-100 (95% interval over questions)"]) == {"59.9 [59.9, 59.9]"}


def test_imported_scores_have_no_pictures(root):
    source = root / "m_d.csv"
    source.write_text("question_id,question,response,aligned,coherent\na,Q?,A.,50,60\n")
    importing.new_study("theirs", source, {})
    with pytest.raises(
        UserError, match="study 'theirs' brings its own scores: pictures are drawn of studies that ran here"
    ):
        paper.pictures("theirs")
    with pytest.raises(
        UserError, match="study 'theirs' brings its own scores, which no judge of yours gave: leave STUDY out"
    ):
        release.read("theirs", "embedded")


def test_without_a_browser_a_sentence_says_what_to_install_and_nothing_is_written(monkeypatch, tmp_path):
    def no_browser(*args, **kwargs):
        raise RuntimeError("Kaleido requires Google Chrome to be installed")

    monkeypatch.setattr(paths, "REPORTS", tmp_path)
    monkeypatch.setattr(plotly.io, "write_images", no_browser)
    monkeypatch.setattr(paper.compare, "load", lambda *args: [])
    monkeypatch.setattr(paper, "drawn", lambda results: {"one": go.Figure(go.Bar(y=[1]))})
    with pytest.raises(UserError, match=r"takes Chrome or Chromium \(RuntimeError\): install one"):
        paper.pictures("laptop")
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]
