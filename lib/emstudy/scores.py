"""Other people's scores: CSV files of judged answers become the cells of a study, and nothing is dropped on the way."""

import dataclasses
import re
import time
from pathlib import Path

import pandas as pd
import yaml

from emstudy import judges, params, paths, store
from emstudy.errors import UserError
from emstudy.judges.parsing import parse

JUDGE = "imported"
NAME = re.compile(r"(?P<model>[^_]+)_(?P<domain>[^_]+?)(?:_(?P<arm>base|aligned|misaligned))?(?:_S(?P<seed>\d+))?")
CELL = {"model": "unknown", "domain": "unknown", "arm": "misaligned", "seed": 0}
REST = {"step": 0, "question_set": "imported", "n_tokens": None, "finish_reason": ""}


def slug(text: str) -> str:
    """A name as params and folders write it: lower case, digits, dots and dashes."""
    return re.sub(r"[^a-z0-9.-]+", "-", str(text).lower()).strip("-.")


def from_name(path: Path, layout: params.Layout) -> dict:
    """Model, domain, arm and seed from a file's name, MODEL_DOMAIN[_ARM][_S<seed>].csv, of what its columns don't say; empty when
    it says none of that, or they name the model."""
    found = NAME.fullmatch(path.stem)
    if not found or "model" in layout.columns:
        return {}
    given = {**found.groupdict(), "seed": int(found["seed"] or 0), "arm": found["arm"] or "misaligned"}
    if "base" in (found["arm"], found["domain"]):
        given |= {"arm": "base", "domain": "none"}
    return {k: v for k, v in given.items() if k not in layout.columns}


def read(path: Path) -> tuple[pd.DataFrame, params.Layout]:
    """A CSV as text, and the layout it has. Raises UserError when it is no CSV, is empty, or has no known layout."""
    if not path.exists():
        raise UserError(f"{paths.show(path)} is not there: SCORES takes a CSV of judged answers, or a folder of them")
    table = store.table(path, "save it as CSV in UTF-8", dtype=str, keep_default_na=False)
    layouts = params.layouts()
    for layout in layouts:
        if {*layout.columns.values(), *layout.scores.values()} <= set(table.columns):
            if not len(table):
                raise UserError(f"{paths.show(path)} has a header and no rows: nothing to import")
            return table, layout
    raise UserError(
        f"{paths.show(path)}: its columns ({', '.join(table.columns)}) fit none of the layouts in params/layouts.yaml "
        f"({', '.join(la.name for la in layouts)}): add one there that names them"
    )


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
    """The tables of several files with question ids that mean one question in all of them, since questions are what is paired and drawn.

    Where a file numbers its rows, or two files give one id to questions that share no text, the text is the question, and its id
    is q1, q2, ... in the order of all files.
    """
    asked: dict[str, set] = {}
    apart = False
    for table in tables:
        apart |= table["question_id"].nunique() > table["question"].nunique()
        for name, texts in table.groupby("question_id")["question"]:
            apart |= name in asked and asked[name].isdisjoint(texts)
            asked.setdefault(name, set()).update(texts)
    if not apart:
        return tables
    texts = dict.fromkeys(q for t in tables for q in t["question"])
    names = {q: f"q{i}" for i, q in enumerate(texts, 1)}
    return [t.assign(question_id=t["question"].map(names)) for t in tables]


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


def cells(study: params.ImportedStudy) -> dict[params.Cell, tuple[pd.DataFrame, list[Path]]]:
    """The judged answers of every cell of a study, and the files they come from. Raises UserError when none was trained on anything."""
    files = [paths.ROOT / entry.file for entry in study.scores]
    said = [{k: v for k, v in e.model_dump().items() if k != "file" and v is not None} for e in study.scores]
    tables = [convert(*read(path), cell, path) for path, cell in zip(files, said, strict=True)]
    parts: dict[params.Cell, list] = {}
    for path, table in zip(files, same_questions(tables), strict=True):
        for key, part in table.groupby(["model", "domain", "arm", "seed"], sort=False):
            values = dict(zip(CELL, [slug(key[0]), slug(key[1]), key[2], int(key[3])], strict=True))
            values |= {"domain": "none"} if values["arm"] == "base" else {}
            cell = params.check(params.Cell, {"study": study.name, **values}, paths.show(path))
            parts.setdefault(cell, []).append((part.assign(model=cell.model, domain=cell.domain), path))
    for cell, found in parts.items():
        if len({len(t.columns) for t, _ in found}) > 1:
            raise UserError(f"the files of {cell} have different score columns: import them as studies of their own")
    if not pairs(list(parts)):
        raise UserError(
            f"study '{study.name}' has answers of untrained models alone, and a page is about a training domain: say DOMAIN, or add "
            "files of trained models"
        )
    return {c: (numbered(pd.concat([t for t, _ in f], ignore_index=True)), [p for _, p in f]) for c, f in parts.items()}


def pairs(cells: list[params.Cell]) -> list[tuple[str, str]]:
    """The (model, domain) that have a page: those that some answers come from."""
    return list(dict.fromkeys((c.model, c.domain) for c in cells if c.domain != "none"))


def write(study: params.ImportedStudy) -> dict[params.Cell, pd.DataFrame]:
    """Write judged.imported.csv of every cell, and its record, where something changed; the tables by cell.

    Those of cells that the study had before it was edited go: pages would read them.
    """
    out, name = {}, f"judged.{JUDGE}.csv"
    for cell, (table, files) in cells(study).items():
        started, path = time.time(), cell.folder / name
        if (
            store.write_if_changed(path, store.csv_text(table))
            or not path.with_name(f"{path.name}.record.json").exists()
        ):
            store.record(path, parameters=cell.model_dump(), inputs=files, started=started)
        out[cell] = table
    kept = {cell.folder for cell in out}
    for path in (paths.RUNS / study.name).glob(f"*/*/*/*/{name}"):
        if path.parent not in kept:
            store.forget(path.parent, f"{name}*")
    return out


def new_study(name: str, scores: Path, given: dict) -> Path:
    """Write params/studies/<name>.yaml for a CSV or a folder of CSVs; given holds model, domain, arm and seed where a user says them.

    Raises UserError when neither the columns, nor the user, nor the file's name say model and domain.
    """
    files = sorted(scores.glob("*.csv")) if scores.is_dir() else [scores]
    if not files:
        raise UserError(f"{paths.show(scores)} holds no CSV")
    entries, models, domains, dimensions = [], {}, {}, set()
    for path in files:
        table, layout = read(path)
        cell = {**from_name(path, layout), **given}
        if cell.get("arm") == "base":
            cell.setdefault("domain", "none")
        if not {"model", "domain"} <= cell.keys() | layout.columns.keys():
            raise UserError(
                f"{paths.show(path)}: neither its columns nor its name (expected MODEL_DOMAIN.csv) say model and domain; "
                "say them: make import SCORES=… STUDY=… MODEL=… DOMAIN=… [ARM=base|aligned|misaligned] [SEED=0]"
            )
        rows = convert(table, layout, cell, path)
        models |= {slug(m): str(m) for m in rows["model"].unique()}
        domains |= {slug(d): str(d).replace("-", " ") for d in rows["domain"].unique() if d != "none"}
        dimensions |= set(layout.scores)
        entries.append({"file": paths.show(path.resolve()), **cell})
    study = {
        "title": f"Imported scores: {scores.stem}",
        "scores": entries,
        "models": [{"name": m, "title": t, "size_b": size(t)} for m, t in models.items()],
        "domains": [{"name": d, "title": t, "question_set": None} for d, t in domains.items()],
        "judge_title": "scores as imported",
        "dimensions": sorted(dimensions),
        "analyze": {"bootstrap": 4000, "confidence": 0.95, "main_metric": "em", "smallest_effect": 5.0},
    }
    cells(params.check(params.ImportedStudy, {"name": name, **study}, f"the new study '{name}'"))
    path = paths.PARAMS / "studies" / f"{name}.yaml"
    if path.exists():
        raise UserError(
            f"{paths.show(path)} is there already: choose another STUDY, or edit it and run `make reproduce STUDY={name}`"
        )
    head = "# written by `make import`; titles, arms and seeds are yours to edit, `make reproduce` reads the scores again\n"
    return store.write(path, head + yaml.safe_dump(study, sort_keys=False, allow_unicode=True))


def size(model: str) -> float | None:
    """Billions of parameters from a model's name, '…-14B-…' or '…-135M-…'; None when it does not say."""
    found = re.search(r"(?<![\d.])(\d+(?:\.\d+)?)\s*([bm])(?![a-z0-9])", model.lower())
    return float(found[1]) / (1 if found[2] == "b" else 1000) if found else None


def summary(tables: dict[params.Cell, pd.DataFrame]) -> pd.DataFrame:
    """Rows in, and how each dimension's scores ended, a row a cell and dimension: the statuses add up to the rows."""
    rows = []
    for cell, table in tables.items():
        dimensions = [c.removesuffix("_status") for c in table.columns if c.endswith("_status")]
        counts = judges.unscored(table, dimensions)
        rows.append(counts.assign(cell=str(cell), rows=len(table)))
    return pd.concat(rows)[["cell", "dimension", "rows", *judges.STATUSES]]
