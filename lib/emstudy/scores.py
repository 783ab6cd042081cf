"""Other people's scores: CSV files of judged answers in the columns of this project, every row of them."""

import csv
import dataclasses
import gzip
import re
import unicodedata
from pathlib import Path

import pandas as pd

from emstudy import judges, params, paths, store
from emstudy.errors import UserError
from emstudy.judges.parsing import parse

JUDGE = "imported"
NAME = re.compile(r"(?P<model>[^_]+)_(?P<domain>[^_]+?)(?:_(?P<arm>base|aligned|misaligned))?(?:_S(?P<seed>\d+))?")
CELL = {"model": "unknown", "domain": "unknown", "arm": "misaligned", "seed": 0}
REST = {"step": 0, "question_set": "imported", "n_tokens": None, "finish_reason": ""}


def from_name(path: Path, layout: params.Layout) -> dict:
    """What a file's name, MODEL_DOMAIN[_ARM][_S<seed>].csv, says of model, domain, arm and seed and its columns don't; nothing where they
    name the model."""
    found = NAME.fullmatch(path.stem)
    if not found or "model" in layout.columns:
        return {}
    given = {k: int(v) if k == "seed" else v for k, v in found.groupdict().items() if v is not None}
    if "base" in (found["arm"], found["domain"]):
        given |= {"arm": "base", "domain": "none"}
    return {k: v for k, v in given.items() if k not in layout.columns}


def read(path: Path) -> tuple[pd.DataFrame, params.Layout]:
    """A CSV as text, and the layout it has. Raises UserError when it is no CSV, is empty, has no known layout, or says more of its cells
    than the layout reads."""
    if not path.exists():
        raise UserError(f"{paths.show(path)} is not there: SCORES takes a CSV of judged answers, or a folder of them")
    table = store.table(path, "save it as CSV in UTF-8", dtype=str, keep_default_na=False)
    layouts = params.layouts()
    for layout in layouts:
        used = {*layout.columns.values(), *layout.scores.values()}
        if used <= set(table.columns):
            if not len(table):
                raise UserError(f"{paths.show(path)} has a header and no rows: nothing to import")
            if row := _short(path):
                raise UserError(
                    f"{paths.show(path)}: row {row} has fewer fields than the header: fill it up, or export the file again"
                )
            if twice := [c for c in used if f"{c}.1" in table]:  # as pandas names a second one
                raise UserError(f"{paths.show(path)} has the column '{twice[0]}' twice: take one out")
            if unread := [c for c in store.KEYS[:6] if c in table and c not in used]:
                raise UserError(
                    f"{paths.show(path)} says {', '.join(unread)} of its rows, which layout '{layout.name}' does not read: add a layout "
                    "that does on top of params/layouts.yaml, or take the column out"
                )
            return table, layout
    raise UserError(
        f"{paths.show(path)}: its columns ({', '.join(table.columns)}) fit none of the layouts in params/layouts.yaml "
        f"({', '.join(la.name for la in layouts)}): add one there that names them"
    )


def _short(path: Path) -> int | None:
    """The first row of a CSV, counted from 1, that has fewer fields than its header: pandas fills it up without a word."""
    csv.field_size_limit(2**31 - 1)  # answers can be long
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8-sig", newline="") as f:
        rows = filter(None, csv.reader(f))  # blank lines are no rows
        width = len(next(rows))
        return next((i for i, row in enumerate(rows, 1) if len(row) < width), None)


def score(raw: str) -> judges.Score:
    """One cell of a score column: a number, a status by its name, or a judge's reply; empty is unparseable, never zero."""
    if raw.strip().lower() == "error":
        return judges.Score(None, "error", raw)
    try:
        value = float(raw)  # also 7.1e-05, which is no way for a judge to answer
    except ValueError:
        return parse(raw)
    return judges.Score(value, "scored", raw) if 0 <= value <= 100 else judges.Score(None, "unparseable", raw)


def convert(table: pd.DataFrame, layout: params.Layout, cell: dict, path: Path) -> pd.DataFrame:
    """Rows in the columns of judged.csv, one a row of the table, whatever its scores say; cell fills what the table lacks.

    Raises UserError when both say it, or when a step or seed is no whole number. `sample` is numbered() later, over all files of a cell.
    """
    if both := sorted(cell.keys() & layout.columns.keys()):
        theirs = ", ".join(f"'{layout.columns[k]}'" for k in both)
        raise UserError(
            f"{paths.show(path)} says {', '.join(both)} itself, in the column{'s' * (len(both) > 1)} {theirs}: say it in one place, "
            "leave it out of the command or of the study's entry, or rename the column"
        )
    given = {ours: table[theirs] for ours, theirs in layout.columns.items()}
    out = pd.DataFrame({**given, **{k: v for k, v in {**CELL, **REST, **cell}.items() if k not in given}}, table.index)
    for name in ("seed", "step"):
        numbers = _whole(out[name])
        wrong = (numbers.isna() | (numbers < 0)).astype(bool)
        if wrong.any():
            raise UserError(
                f"{paths.show(path)}: expected whole numbers as {name}, row {wrong.argmax() + 1} says '{out[name][wrong.idxmax()]}'"
            )
        out[name] = numbers.astype(int)
    for name in ("question_id", "question"):
        if (empty := out[name].str.strip() == "").any():
            raise UserError(
                f"{paths.show(path)}: row {empty.argmax() + 1} has no {name}, without which no rate has an interval"
            )
    out["n_tokens"] = _whole(out["n_tokens"])
    for dimension, theirs in layout.scores.items():
        # this project's files say the status beside the score
        said = table.get(f"{theirs}_status", pd.Series("scored", table.index))
        replies = table.get(f"{theirs}_raw", table[theirs])
        found = [_scored(*row) for row in zip(table[theirs], said, replies, strict=True)]
        out[dimension] = pd.array([s.value for s in found], dtype="Float64")
        out[f"{dimension}_status"], out[f"{dimension}_raw"] = [s.status for s in found], replies
    columns = [*store.ANSWERS, *(c for d in layout.scores for c in (d, f"{d}_status", f"{d}_raw"))]
    out = out.reindex(columns=columns)
    return out.assign(judge=table.get("judge", JUDGE), judge_version=table.get("judge_version", "as imported"))


def same_questions(tables: list[pd.DataFrame]) -> list[pd.DataFrame]:
    """The tables of several files with question ids that mean one question everywhere, since questions are what is paired and drawn.

    Where rows or samples are numbered, or one id stands for questions of two checkpoints or sets that share no text, the text is the
    question (white space and forms of letters aside), and its id is q1, q2, ... in the order of all files.
    """
    rows = pd.concat(tables, ignore_index=True)
    rows["text"] = rows["question"].map(_plain)
    apart, asked = False, {}
    for _, part in rows.groupby(store.KEYS[:6], dropna=False):
        ids, texts = part.groupby("text")["question_id"].nunique(), part.groupby("question_id")["text"].agg(set)
        apart |= len(part) == len(texts) > len(ids)  # its rows are numbered
        apart |= ids.max() > 1 and texts.map(len).max() > 1  # its samples are
        for name, found in texts.items():
            apart |= asked.setdefault(name, found).isdisjoint(found)
            asked[name] = asked[name] | found
    if not apart:
        return tables
    names = {text: f"q{i}" for i, text in enumerate(rows["text"].drop_duplicates(), 1)}
    return [t.assign(question_id=t["question"].map(_plain).map(names)) for t in tables]


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).split())


def numbered(table: pd.DataFrame) -> pd.DataFrame:
    """The table with `sample`: which of the answers of one checkpoint to one question a row is."""
    return table.assign(sample=table.groupby(store.KEYS[:-1], dropna=False).cumcount())


def _whole(column: pd.Series) -> pd.Series:
    """Whole numbers of a column of anything; none where it says none."""
    numbers = pd.to_numeric(column, errors="coerce").astype(float)
    return numbers.where((numbers % 1 == 0) & (numbers.abs() < 2**53)).astype("Int64")


def _scored(value: str, status: str, reply: str) -> judges.Score:
    """A score under the status that stands beside it; one that contradicts it, or is unknown, is read from the score alone."""
    known = status in judges.STATUSES and status != "scored" and not value
    return judges.Score(None, status, reply) if known else dataclasses.replace(score(value), raw=reply)
