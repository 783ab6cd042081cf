"""Studies of other people's scores: from files to cells, and nothing is dropped, counted twice or put together on the way."""

import re
import time
from pathlib import Path

import pandas as pd
import yaml

from emstudy import judges, params, paths, provenance, stats, store
from emstudy.errors import UserError
from emstudy.scores import CELL, JUDGE, convert, from_name, numbered, read, same_questions


def slug(text: str) -> str:
    """A name as params and folders write it: lower case, digits, dots and dashes."""
    return re.sub(r"[^a-z0-9.-]+", "-", str(text).lower()).strip("-.")


def cells(study: params.ImportedStudy) -> dict[params.Cell, tuple[pd.DataFrame, list[Path]]]:
    """The judged answers of every cell of a study, and the files they come from.

    Raises UserError where rows would be counted twice, put together though they are apart, or shown on no page.
    """
    files = [paths.ROOT / entry.file for entry in study.scores]
    said = [{k: v for k, v in e.model_dump().items() if k != "file" and v is not None} for e in study.scores]
    tables = [convert(*read(path), cell, path) for path, cell in zip(files, said, strict=True)]
    for path, table in zip(files, tables, strict=True):
        if {*table.columns} != {*tables[0].columns}:
            raise UserError(
                f"{paths.show(path)} has other scores than {paths.show(files[0])}, and a page shows one kind: import it as a study of its own"
            )
    parts: dict[params.Cell, list] = {}
    names: dict[params.Cell, tuple] = {}
    once: dict[tuple, Path] = {}
    for path, table in zip(files, same_questions(tables), strict=True):
        digest = store.sha256(path)
        for key, part in table.groupby(["model", "domain", "arm", "seed"], sort=False):
            values = dict(zip(CELL, [slug(key[0]), slug(key[1]), key[2], int(key[3])], strict=True))
            values |= {"domain": "none"} if values["arm"] == "base" else {}
            cell = params.check(params.Cell, {"study": study.name, **values}, paths.show(path))
            if (other := names.setdefault(cell, key[:2])) != key[:2]:
                raise UserError(
                    f"{paths.show(path)}: {' and '.join(key[:2])} would be put together with {' and '.join(other)}, as {cell}: "
                    "name them so that they differ in letters and digits, or keep the base arm's answers once"
                )
            if (other := once.setdefault((cell, digest), path)) is not path:
                raise UserError(
                    f"{paths.show(path)} holds what {paths.show(other)} holds: {cell} would be counted twice"
                )
            parts.setdefault(cell, []).append((part.assign(model=cell.model, domain=cell.domain), path))
    if lost := [c for c in parts if c.arm != "base" and c.domain == "none"]:
        raise UserError(
            f"study '{study.name}': {lost[0]} was trained on 'none', which is the base arm's domain: name its own"
        )
    if not pairs(list(parts)):
        raise UserError(
            f"study '{study.name}' has answers of untrained models alone, and a page is about a training domain: add files of trained models"
        )
    return {c: (numbered(pd.concat([t for t, _ in f], ignore_index=True)), [p for _, p in f]) for c, f in parts.items()}


def pairs(cells: list[params.Cell]) -> list[tuple[str, str]]:
    """The (model, domain) that have a page: those that some answers come from."""
    return list(dict.fromkeys((c.model, c.domain) for c in cells if c.domain != "none"))


def write(study: params.ImportedStudy) -> dict[params.Cell, pd.DataFrame]:
    """Write judged.imported.csv of every cell, and its record, where something changed; the tables by cell.

    What is there of cells and pages that the study had before it was edited goes: other pages would read it, or link to it.
    """
    out, name = {}, f"judged.{JUDGE}.csv"
    for cell, (table, files) in cells(study).items():
        started, path = time.time(), cell.folder / name
        if store.write_if_changed(path, store.csv_text(table)) or not provenance.beside(path).exists():
            provenance.write(path, parameters=cell.model_dump(), inputs=files, started=started)
        out[cell] = table
    kept = {cell.folder for cell in out}
    for path in (paths.RUNS / study.name).glob(f"*/*/*/*/{name}"):
        if path.parent not in kept:
            store.forget(path.parent, f"{name}*")
    shown = set(pairs(list(out)))
    stale = [*(paths.RUNS / study.name).glob(f"*/*/analyze.{JUDGE}.*"), *paths.reports(study.name).glob("*/*.html")]
    for path in stale:
        model, domain = (
            (path.parent.parent.name, path.parent.name) if path.suffix != ".html" else (path.parent.name, path.stem)
        )
        if (model, domain) not in shown:
            path.unlink()
    return out


def new_study(name: str, scores: Path, given: dict) -> Path:
    """Write params/studies/<name>.yaml for a CSV or a folder of CSVs; given holds model, domain, arm and seed where a user says them.

    Raises UserError when neither the columns, nor the user, nor the file's name say model and domain.
    """
    files = sorted(p for p in scores.iterdir() if p.suffix.lower() == ".csv") if scores.is_dir() else [scores]
    if not files:
        raise UserError(f"{paths.show(scores)} holds no CSV")
    entries, models, domains, dimensions = [], {}, {}, set()
    for path in files:
        table, layout = read(path)
        named = from_name(path, layout)
        if clash := [k for k in named if len(files) > 1 and slug(named[k]) != slug(given.get(k, named[k]))]:
            raise UserError(
                f"{paths.show(path)}: its name says {clash[0]} '{named[clash[0]]}', you say '{given[clash[0]]}' of all files of the folder: "
                "rename it, or import it alone"
            )
        usual = {k: CELL[k] for k in ("arm", "seed") if k not in layout.columns and "model" not in layout.columns}
        cell = {**usual, **named, **given}
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
    main = next((m.name for m in params.metrics() if stats.dimensions(m) <= dimensions), "em")
    study = {
        "title": f"Imported scores: {scores.stem}",
        "scores": entries,
        "models": [{"name": m, "title": t, "size_b": size(t)} for m, t in models.items()],
        "domains": [{"name": d, "title": t, "question_set": None} for d, t in domains.items()],
        "judge_title": "scores as imported",
        "dimensions": sorted(dimensions),
        "analyze": {"bootstrap": 4000, "confidence": 0.95, "main_metric": main, "smallest_effect": 5.0},
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
