"""Judges score answers: one small interface, one file a judge."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, get_args

import pandas as pd

from emstudy import params, paths

Status = Literal["scored", "refusal", "code", "unparseable", "error"]
BELOW = '{"below": '  # how a raw reply begins that holds P(score < limit) by limit
STATUSES = list(get_args(Status))


@dataclass(frozen=True)
class Score:
    """One dimension of one answer. `value` (0-100) is there exactly when status is 'scored': nothing else becomes a number."""

    value: float | None
    status: Status
    raw: str

    def __post_init__(self):
        assert (self.value is not None) == (self.status == "scored"), self
        assert self.value is None or 0 <= self.value <= 100, self


class Judge(Protocol):
    """What a judge offers: a name, a version that changes whenever its scores could, scores, and what the last ones cost.

    spent: tokens_in, tokens_out and usd of all replies that the scores rest on, also those at hand before; empty when nothing costs.
    """

    name: str
    version: str
    spent: dict[str, float]

    def score(self, questions: list[str], answers: list[str], label: str = "judge") -> dict[str, list[Score]]:
        """Scores in the order of the answers, by dimension; label stands before the progress bar."""


def load(judge: params.Judge, seed: int = 0, keep: Path | None = None) -> Judge:
    """The judge that a YAML describes; one behind an endpoint is asked with the seed. Raises UserError when weights or key are missing.

    keep: a folder in which the embedded judge leaves what an interrupted run has found; replies of endpoints are kept anyway.
    """
    if judge.kind == "embedded":
        from emstudy.judges.embedded import EmbeddedJudge

        return EmbeddedJudge(judge, keep=keep)
    from emstudy.judges.endpoint import EndpointJudge

    return EndpointJudge(judge, seed=seed)


def judged_columns(judge: params.Judge) -> list[str]:
    """The columns that judging adds to answers.csv."""
    per_dimension = [c for d in judge.dimensions for c in (d.name, f"{d.name}_status", f"{d.name}_raw")]
    return [*per_dimension, "judge", "judge_version"]


def judge_answers(judge: Judge, answers: pd.DataFrame) -> pd.DataFrame:
    """The answers with each dimension's score, status and raw reply beside them; every row stays."""
    cells = answers[["model", "domain", "arm", "seed"]].drop_duplicates()
    names = ["/".join(map(str, c)) for c in cells.itertuples(index=False)]
    label = names[0] if len(names) == 1 else f"{len(names)} cells,"
    found = judge.score(answers["question"].tolist(), answers["answer"].tolist(), f"{label} judge")
    out = answers.copy()
    for dimension, scores in found.items():
        out[dimension] = pd.array([s.value for s in scores], dtype="Float64")
        out[f"{dimension}_status"] = [s.status for s in scores]
        out[f"{dimension}_raw"] = [s.raw for s in scores]
    return out.assign(judge=judge.name, judge_version=judge.version)


def spread(judged: pd.DataFrame) -> pd.DataFrame:
    """The judged answers with columns 'P(<dimension> < <limit>)' where raw replies hold such probabilities, NaN in rows without."""
    found = {}
    for dimension in [c.removesuffix("_raw") for c in judged.columns if c.endswith("_raw")]:
        raw = judged[f"{dimension}_raw"].astype(str)
        rows = raw[raw.str.startswith(BELOW)].map(lambda r: json.loads(r)["below"])
        table = pd.DataFrame(rows.tolist(), rows.index, dtype=float)
        found |= {f"P({dimension} < {limit})": table[limit] for limit in table}
    return judged.assign(**found)


def unscored(judged: pd.DataFrame, dimensions: list[str]) -> pd.DataFrame:
    """How many answers ended in each status, a row a dimension: rows in = the sum of a row."""
    counts = {d: judged[f"{d}_status"].value_counts().reindex(STATUSES, fill_value=0) for d in dimensions}
    return pd.DataFrame(counts).T.rename_axis("dimension").reset_index()


def failed(judged: pd.DataFrame, cell: params.Cell) -> str:
    """How many answers an endpoint gave no score for, and how to have them asked for again."""
    n = sum(judged[[c for c in judged if c.endswith("_status")]].eq("error").any(axis=1))
    if not n:
        return "no answer ended in an error"
    run = paths.show(cell.folder / f"judge.{judged['judge'].iloc[0]}.ipynb")
    return f"{n} answers ended in an error: to ask for them again, and for them alone, delete {run} and run `make reproduce` again"
