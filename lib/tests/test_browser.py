"""The browser's data: each answer once, in reading order, scores that are numbers only when they are, the same bytes every time."""

import base64
import gzip
import json
import re

import made_up
import pandas as pd
import pytest

from emstudy import browser, paths, report

HOSTILE = "</script><!--<script>alert(1)</script><img src=x onerror=alert(1)> \u202e\x00\x1b[31m"


@pytest.fixture
def judged():
    """All three arms of the made-up study; one answer is hostile, one refused, one huge."""
    rows = [made_up.judged_rows(arm, 50, 6, 10) for arm in report.ARMS]
    table = pd.concat(rows, ignore_index=True).sample(frac=1, random_state=0, ignore_index=True)
    table.loc[0, "answer"] = HOSTILE
    table.loc[1, ["aligned", "aligned_status"]] = [None, "refusal"]
    table.loc[2, "answer"] = "long " * 200_000
    return table


def read(column):
    """A packed column's values, row by row."""
    return [column["of"][i] for i in column["at"]]


def unpacked(html):
    """What a page finds in its data blocks, by their names."""
    found = dict(re.findall(r'<script type="application/gzip" data-part="(\w+)">([A-Za-z0-9+/=]*)</script>', html))
    return {part: json.loads(gzip.decompress(base64.b64decode(data))) for part, data in found.items()}


def test_every_answer_is_there_once_with_arms_side_by_side_in_reading_order(judged):
    columns = browser.pack(judged, ["aligned", "coherent"], "financial")["columns"]
    assert len(columns["answer"]["at"]) == len(judged)
    assert list(dict.fromkeys(q[0] for q in columns["question"]["of"])) == ["general", "values", "financial"]
    assert len(columns["question"]["of"]) == len(made_up.QUESTIONS)
    first = [i for i, q in enumerate(read(columns["question"])) if q == columns["question"]["of"][0]]
    assert list(dict.fromkeys(read(columns["arm"])[i] for i in first)) == report.ARMS
    cells = zip(*(read(columns[c]) for c in ("arm", "step", "last")), strict=True)
    last = {(arm, step) for arm, step, is_last in cells if is_last}
    assert last == {("base", 0), ("misaligned", 8), ("aligned", 8)}


def test_a_score_is_a_number_only_when_it_was_scored(judged):
    aligned = read(browser.pack(judged, ["aligned"], None)["scores"]["aligned"])
    assert aligned.count("refusal") == 1
    assert sorted(v for v in aligned if v != "refusal") == sorted(judged["aligned"].dropna())


def test_model_text_is_made_visible_and_huge_text_is_cut_before_it_is_packed(judged):
    html = browser.block(browser.pack(judged, ["aligned"], None))
    answers = unpacked(html)["columns"]["answer"]["of"]
    assert report.visible(HOSTILE) in answers and HOSTILE not in answers
    assert max(map(len, answers)) < 4100 and any("more characters]" in a for a in answers)
    assert "alert(1)" not in html and html.count("<script") == 3


def test_the_same_answers_give_the_same_bytes_at_another_time(judged, monkeypatch):
    packed = browser.pack(judged, ["aligned"], None)
    before = browser.block(packed)
    monkeypatch.setattr("time.time", lambda: 2e9)
    assert browser.block(packed) == before


def test_answers_judged_again_are_the_same_bytes_in_the_page_beside_other_scores(judged):
    pages = [
        browser.block(browser.pack(judged.assign(aligned=judged["aligned"] / k), ["aligned"], None)) for k in (1, 2)
    ]
    columns, scores = (
        [re.search(rf'data-part="{part}">([^<]+)<', p).group(1) for p in pages] for part in ("columns", "scores")
    )
    assert columns[0] == columns[1] and scores[0] != scores[1]


def test_a_page_of_2400_real_answers_grows_by_less_than_400_kb():
    table = report.beside(paths.reports("laptop-seeds"), "git checkout").sample(2400, random_state=0)
    assert len(table) == 2400
    assert len(browser.block(browser.pack(table, ["aligned", "coherent"], "medical"))) < 400_000


def test_the_script_writes_text_only():
    script = (browser.ASSETS / "browser.js").read_text()
    others = r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(|Function\(|fetch\(|https?:"
    assert "textContent" in script and not re.search(others, script)
