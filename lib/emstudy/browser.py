"""A browser of judged answers for a model x domain's page: every answer, packed so small that the page carries it itself."""

import base64
import gzip
import json
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from IPython.display import HTML, display

from emstudy import report
from emstudy.report import Results

ASSETS = Path(__file__).with_name("page")


def show(results: Results) -> None:
    """Display all answers to be filtered, searched and read side by side; nothing is fetched, and model text stays text."""
    dimensions = [d.name for d in results.judge.dimensions]
    display(HTML(block(pack(results.judged, dimensions, results.domain.question_set))))


def pack(judged: pd.DataFrame, dimensions: list[str], own: str | None) -> dict:
    """The answers as columns, in reading order: out-of-domain questions first, then by question, arm, seed, step and sample.

    A score is a number only where its status is 'scored', and the status itself otherwise.
    """
    order = {arm: i for i, arm in enumerate(report.ARMS)}
    rows = judged.assign(own=judged["question_set"] == own, rank=judged["arm"].map(order), last=False)
    rows.loc[report.last_step(judged).index, "last"] = True
    rows = rows.sort_values(["own", "question_set", "question_id", "rank", "seed", "step", "sample"])
    asked = zip(*(rows[c].map(report.visible) for c in ("question_set", "question_id", "question")), strict=True)
    columns = {c: rows[c].tolist() for c in ("arm", "seed", "step", "last", "sample")}
    columns |= {c: rows[c].map(report.visible).tolist() for c in ("answer", "finish_reason")}
    scores = {d: [score(*s) for s in zip(rows[d], rows[f"{d}_status"], strict=True)] for d in dimensions}
    return {
        "columns": {name: encode(values) for name, values in (columns | {"question": list(asked)}).items()},
        "scores": {report.visible(d): encode(values) for d, values in scores.items()},
    }


def score(value: float, status: str) -> float | str:
    """What stands in a score's place: the number where there is one, the status where there is none."""
    return float(value) if status == "scored" and pd.notna(value) else report.visible(status)


def encode(values: Iterable) -> dict:
    """A column as its distinct values and, for each row, the place of its value among them."""
    places = {v: i for i, v in enumerate(dict.fromkeys(values))}
    return {"of": list(places), "at": [places[v] for v in values]}


def block(packed: dict) -> str:
    """The HTML of one browser: style, controls, data and script, all of it inside one element.

    Answers and scores are packed apart, and no time with them: answers judged again are the same bytes in the page.
    """
    data = "".join(
        f'<script type="application/gzip" data-part="{part}">{squeeze(packed[part])}</script>' for part in packed
    )
    parts = [ASSETS / f"browser.{kind}" for kind in ("css", "html", "js")]
    style, controls, script = (p.read_text(encoding="utf-8") for p in parts)
    return f'<div class="browse"><style>{style}</style>{controls}{data}<script>{script}</script></div>'


def squeeze(part: dict) -> str:
    """A part of the data as text that a page can carry."""
    plain = json.dumps(part, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    return base64.b64encode(gzip.compress(plain, mtime=0)).decode()
