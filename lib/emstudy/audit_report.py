"""The tables and sentences of an audit: agreement, calibration, rates, run-to-run spread."""

from itertools import combinations, product
from pathlib import Path

import pandas as pd

from emstudy import agreement, audit_rates, hostile, judges, params, paths, stats, store
from emstudy.audit import Audit, score
from emstudy.tables import or_dash

TWO = "{:.2f}"


def finding(audit: Audit, found: pd.DataFrame, rates: pd.DataFrame, grader: str = "") -> list[str]:
    """The page's first lines, computed: who was audited on what, rank agreement and rates by judge, what was left out; grader: who gave gold."""
    n, files = len(audit.gold), audit.gold["file"].nunique()
    who = " and ".join(f"{k}, version {t['judge_version'].iloc[0]}," for k, t in audit.judged.items())
    lines = [f"**{who} against {n} labelled answers in {files} file{'s' * (files > 1)}.**"]
    d = next(iter(audit.limits))
    below = f"< {audit.limits[d][0]:g}"
    apart = audit_rates.off(rates).set_index(["judge", "answers", "rate"])["off by, on average"]
    for r in found[found["dimension"] == d].to_dict("records"):
        line = f"{r['judge']}, {r['answers']} ({r['n']:.0f} answers): {d} Spearman {or_dash(r['spearman'], TWO)} "
        line += (
            f"[{or_dash(r['low'], TWO)}, {or_dash(r['high'], TWO)}], AUC for {below} {or_dash(r[f'AUC {below}'], TWO)}"
        )
        key = (r["judge"], r["answers"], f"{d} {below}")
        lines.append(
            line + (f"; rates of {key[2]} are off by {apart[key]:.1f} points a file." if key in apart.index else ".")
        )
    lines.append(f"Gold was given by {grader or 'somebody whom the file does not name'}.")
    if bare := int((~audit.scored()).sum()):
        lines.append(f"Left out, since gold lacks a score from 0 to 100 for {' or '.join(audit.limits)}: {bare}.")
    if audit.learned:
        said = ", ".join(f"{count} of {family}" for family, count in audit.learned.items())
        lines.append(f"Left out, since a judge learned from them: {said}.")
    return lines


def agreements(audit: Audit) -> pd.DataFrame:
    """Judge by dimension by group of answers: agreement with gold, Spearman with its interval (low, high), which draws questions."""
    rows = []
    for name, judged in audit.judged.items():
        for d in audit.limits:
            for group, mask in audit.groups(name).items():
                clusters = audit.gold.loc[mask, "file"] + "/" + audit.gold.loc[mask, "question_id"]
                pair = judged.loc[mask, d].astype(float), audit.gold.loc[mask, d].astype(float)
                low, high = agreement.spearman_interval(*pair, clusters)
                row = {
                    "judge": name,
                    "judge_version": judged["judge_version"].iloc[0],
                    "dimension": d,
                    "answers": group,
                }
                row |= audit.summary(name, d, mask)
                rows.append(row | {"low": low, "high": high})
    return pd.DataFrame(rows)


def table(found: pd.DataFrame, dimension: str, limits: list[float]) -> pd.DataFrame:
    """Rows of agreement on one dimension as a page shows them."""
    part = found[found["dimension"] == dimension] if "dimension" in found else found
    out = part[
        [c for c in part.columns if c in ("judge", "against", "answers", "question", "characters", "family", "arm")]
    ].copy()
    out["n"] = part["n"].astype(int)
    out["Spearman"] = part["spearman"].map(lambda v: or_dash(v, TWO))
    if "low" in part:
        ends = zip(part["low"], part["high"], strict=True)
        out["Spearman"] += [f" [{or_dash(a, TWO)}, {or_dash(b, TWO)}]" for a, b in ends]
    out["judge - gold, points"] = part["mean difference"].map("{:+.1f}".format)
    for t in limits:
        below = f"< {t:g}"
        out[f"AUC {below}"], out[f"kappa {below}"] = (
            part[f"AUC {below}"].map(lambda v: or_dash(v, TWO)),
            part[f"kappa {below}"].map(lambda v: or_dash(v, TWO)),
        )
        kinds = [part[f"{kind} % {below}"] for kind in ("judge", "called", "gold")]
        out[f"{below}: judge (calls) / gold"] = [
            f"{a:.1f}% ({c:.1f}%) / {b:.1f}%" for a, c, b in zip(*kinds, strict=True)
        ]
    return out


def write(name: str, tables: dict[str, pd.DataFrame]) -> list[Path]:
    """Keep an audit's tables that hold anything beside its page, as <name>.<table>.csv; one that holds nothing takes an old one away."""
    folder = paths.REPORTS / "audit"
    for k in [k for k, t in tables.items() if not len(t)]:
        (folder / f"{name}.{k}.csv").unlink(missing_ok=True)
    return [store.write_csv(folder / f"{name}.{k}.csv", t.round(4)) for k, t in tables.items() if len(t)]


def by(audit: Audit, column: pd.Series) -> pd.DataFrame:
    """Agreement with gold, a row a judge, dimension and value of the column."""
    rows = []
    for name in audit.judged:
        scored = audit.scored(name)
        for d, value in product(audit.limits, column[scored].drop_duplicates().sort_values()):
            row = {"judge": name, "dimension": d, column.name: value}
            rows.append(row | audit.summary(name, d, scored & (column == value)))
    return pd.DataFrame(rows)


def lengths(audit: Audit) -> pd.Series:
    """Each answer's quarter by length, in characters: '191 to 228', in order; empty ones for themselves, as where all others are alike."""
    size = audit.gold["answer"].str.len()
    quarters = pd.qcut(size.where(size > 0), 4, duplicates="drop")
    names = [f"{int(q.left) + 1} to {int(q.right)}" for q in quarters.cat.categories]
    named = quarters.cat.rename_categories(names).astype(object).fillna(size.astype(str))
    return named.astype(pd.CategoricalDtype(dict.fromkeys(["0", *names, *named]), ordered=True)).rename("characters")


def between(audit: Audit) -> pd.DataFrame:
    """Agreement of any two judges, the second in the place of gold."""
    rows = []
    for a, b in combinations(audit.judged, 2):
        first, second = (audit.judged[n][audit.scored(a, b)] for n in (a, b))
        for d, limits in audit.limits.items():
            below = {t: stats.below(first, d, t) for t in limits}
            found = agreement.summary(first[d].astype(float), second[d].astype(float), below)
            rows.append({"judge": a, "against": b, "dimension": d, **found})
    return pd.DataFrame(rows)


def confusions(audit: Audit) -> dict[str, pd.DataFrame]:
    """Calls of every judge against gold's at every threshold, by a heading."""
    out = {}
    for name in audit.judged:
        scored = audit.scored(name)
        for d, limits in audit.limits.items():
            for t in limits:
                called, truly = audit.below(name, d, scored)[t] > 0.5, audit.gold.loc[scored, d] < t
                found = agreement.confusion(called, truly, (f"below {t:g}", f"{t:g} or more"))
                out[f"{name}, {d} below {t:g}"] = (
                    found.add_prefix("judge: ").rename_axis(index="gold", columns=None).reset_index()
                )
    return out


def repeated(audit: Audit, times: int, n: int = 64) -> pd.DataFrame:
    """Run-to-run spread: some answers judged `times` over, each time in another order and with another seed, in points."""
    rows, some = [], audit.gold.sample(min(n, len(audit.gold)), random_state=0)
    for name in audit.judged:
        runs, dimensions = [], list(audit.limits)
        for k in range(times):
            judge, mixed = judges.load(params.judge(name), seed=k), some.sample(frac=1, random_state=k)
            found = judge.score(mixed["question"].tolist(), mixed["answer"].tolist(), f"{name}, run {k + 1}")
            runs.append(pd.DataFrame({d: [s.value for s in found[d]] for d in dimensions}, mixed.index, dtype=float))
        for d in dimensions:
            table = pd.concat([r[d] for r in runs], axis=1)
            row = {"judge": name, "dimension": d, "answers": len(some), "runs": times}
            row["standard deviation, on average"] = table.std(axis=1, ddof=1).mean()
            rows.append(row | {"largest range": (table.max(axis=1) - table.min(axis=1)).max()})
    return pd.DataFrame(rows).round(3)


def attacks(audit: Audit) -> pd.DataFrame:
    """How far hostile answers move each judge's first dimension, in points (hostile.movement); a judge is asked once."""
    asked, folder = hostile.answers(), paths.RUNS / "audit" / "hostile"
    found = [
        hostile.movement(score(params.judge(n), asked, folder), next(iter(audit.limits))).assign(judge=n)
        for n in audit.judged
    ]
    return pd.concat(found, ignore_index=True).round(1)
