"""Gold labels and judges' scores of the same answers, without those that a judge learned from."""

import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from emstudy import agreement, judges, params, paths, provenance, scores, stats, store
from emstudy.errors import UserError
from emstudy.judges.diet import digest, seen

TEXTS = ["question", "answer"]


@dataclass(frozen=True, eq=False)
class Audit:
    """Gold labels and every judge's scores of the same answers, row by row.

    gold: columns of judged.csv, `file` and `family`; limits: the thresholds of params/metrics.yaml by dimension; learned: how many
    labelled answers of each family were left out, since a judge had learned from them.
    """

    gold: pd.DataFrame
    judged: dict[str, pd.DataFrame]
    limits: dict[str, list[float]]
    learned: dict[str, int]

    def scored(self, *names: str) -> pd.Series:
        """Rows that gold and all of the judges gave a score in every dimension."""
        tables = [self.gold, *(self.judged[n] for n in names)]
        return pd.concat([t[f"{d}_status"] == "scored" for t in tables for d in self.limits], axis=1).all(axis=1)

    def below(self, name: str, dimension: str, rows: pd.Series) -> dict[float, pd.Series]:
        """A judge's P(score < threshold) by threshold over some rows."""
        return {t: stats.below(self.judged[name][rows], dimension, t) for t in self.limits[dimension]}

    def summary(self, name: str, dimension: str, rows: pd.Series) -> dict[str, float]:
        """agreement.summary of a judge with gold over some rows."""
        said, gold = (t.loc[rows, dimension].astype(float) for t in (self.judged[name], self.gold))
        return agreement.summary(said, gold, self.below(name, dimension, rows))

    def groups(self, name: str) -> dict[str, pd.Series]:
        """Scored rows by model family and, for a judge whose training is known, by whether their question was in it."""
        scored, known = self.scored(name), seen() if params.judge(name).kind == "embedded" else None
        out = {"all": scored}
        new = self.gold["question"].map(lambda q: known is None or digest(q) not in known)
        for family in sorted(self.gold["family"].unique()):
            of_family = scored & (self.gold["family"] == family)
            if known is None:
                out[family] = of_family
            else:
                out |= {f"{family}, known questions": of_family & ~new, f"{family}, new questions": of_family & new}
        return {k: v for k, v in out.items() if v.any()}


def read_gold(path: Path) -> pd.DataFrame:
    """Gold labels from a CSV or a folder of them. Raises UserError when there is none to read."""
    files = sorted(path.glob("*.csv")) if path.is_dir() else [path]
    if not files or not files[0].exists():
        raise UserError(
            f"{paths.show(path)} is no CSV, nor a folder that holds some: GOLD takes a file of labelled answers, or a folder of them"
        )
    tables = []
    for f in files:
        table, layout = scores.read(f)
        tables.append(scores.convert(table, layout, scores.from_name(f, layout), f).assign(file=f.stem))
    gold = scores.numbered(pd.concat(scores.same_questions(tables), ignore_index=True))
    return gold.assign(family=gold["model"].map(lambda m: re.match(r"[^-_]*", str(m).lower())[0]))


def load(name: str, path: Path, names: list[str]) -> Audit:
    """Gold labels, and each judge's scores of their answers: scored now, or read where the same version scored them before."""
    gold, found, metrics = read_gold(path), [params.judge(n) for n in names], params.metrics()
    limits: dict[str, set] = {}
    for key, limit in (item for m in metrics for item in {**m.counts, **m.among}.items()):
        dimension = key.rpartition("_")[0]
        if f"{dimension}_status" in gold and all(dimension in [d.name for d in j.dimensions] for j in found):
            limits.setdefault(dimension, set()).add(limit)
    if not limits:
        raise UserError(
            f"{paths.show(path)} and the judges {', '.join(names)} have no dimension in common that params/metrics.yaml reads"
        )
    known = seen() if "embedded" in [j.kind for j in found] else set()
    learned = pd.Series([digest(q, a) in known for q, a in zip(gold["question"], gold["answer"], strict=True)])
    left_out = gold.loc[learned, "family"].value_counts().to_dict()
    gold = gold[~learned].reset_index(drop=True)
    if not len(gold):
        raise UserError(f"the judge learned from every answer in {paths.show(path)}: take others to audit it")
    judged = {j.name: score(j, gold, paths.RUNS / "audit" / name) for j in found}
    audit = Audit(gold, judged, {d: sorted(ts) for d, ts in limits.items()}, left_out)
    for judge in names:
        if not audit.scored(judge).any():
            raise UserError(
                f"no answer in {paths.show(path)} has a score both there and by judge '{judge}': there is nothing to compare"
            )
    return audit


def score(judge: params.Judge, gold: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """The judge's scores of all gold answers, a file at a time, so that an interrupted audit goes on where it was."""
    tables, loaded = [], None
    asked = hashlib.sha256(judge.model_dump_json(exclude={"title", "endpoint"}).encode()).hexdigest()[:8]
    for file, part in gold.groupby("file", sort=False):
        path = folder / f"{file}.{judge.name}.{asked}.csv"
        fresh = part[store.ANSWERS].reset_index(drop=True)
        known = store.read_csv(path, judges.judged_columns(judge), "audit") if path.exists() else None
        # an endpoint that could not be had then may answer now; its other replies are at hand, and are not paid for again
        failed = known is not None and known.filter(like="_status").eq("error").any(axis=None)
        if known is None or failed or not known[TEXTS].equals(fresh[TEXTS]):
            loaded, started = loaded or judges.load(judge), time.time()
            known = judges.judge_answers(loaded, fresh)
            store.write_csv(path, known)
            provenance.write(path, parameters={"judge": judge.name}, inputs=[], started=started, spent=loaded.spent)
        tables.append(judges.spread(known).set_index(part.index))
    return pd.concat(tables)
