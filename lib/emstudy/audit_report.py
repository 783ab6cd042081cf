"""The tables, figures and sentences of an audit: agreement, calibration, rates, run-to-run spread, and rates without known errors."""

from itertools import combinations
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go

from emstudy import agreement, figures, hostile, judges, params, paths, stats, store
from emstudy.audit import Audit
from emstudy.report import Results

KEYS = ["model", "domain", "arm", "seed", "step", "question_id", "answer"]


def finding(audit: Audit, found: pd.DataFrame, rates: pd.DataFrame) -> list[str]:
    """The page's first lines, computed: who was audited on what, rank agreement and rates by judge, what was left out."""
    n, files = len(audit.gold), audit.gold["file"].nunique()
    lines = [f"**{' and '.join(audit.judged)} against {n} labelled answers in {files} file{'s' * (files > 1)}.**"]
    for r in found[(found["dimension"] == next(iter(audit.limits)))].itertuples(index=False):
        row, limit = r._asdict(), audit.limits[r.dimension][0]
        part = rates[
            (rates["judge"] == r.judge)
            & (rates["answers"] == r.answers)
            & (rates["rate"] == f"{r.dimension} < {limit:g}")
        ]
        apart = (
            f"; rates of {r.dimension} < {limit:g} are off by {(part['says'] - part['gold']).abs().mean():.1f} points a file"
            if len(part)
            else ""
        )
        area = found.loc[
            (found["judge"] == r.judge) & (found["answers"] == r.answers) & (found["dimension"] == r.dimension),
            f"AUC < {limit:g}",
        ].item()
        lines.append(
            f"{r.judge}, {r.answers} ({row['n']:.0f} answers): {r.dimension} Spearman {_two(r.spearman)} [{r.low:.2f}, {r.high:.2f}], AUC for < {limit:g} {_two(area)}{apart}."
        )
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
                row = {"judge": name, "dimension": d, "answers": group, **audit.summary(name, d, mask)}
                rows.append(row | {"low": low, "high": high})
    return pd.DataFrame(rows)


def table(found: pd.DataFrame, dimension: str, limits: list[float]) -> pd.DataFrame:
    """Rows of agreement on one dimension as a page shows them."""
    part = found[found["dimension"] == dimension] if "dimension" in found else found
    out = part[
        [c for c in part.columns if c in ("judge", "against", "answers", "question", "characters", "family")]
    ].copy()
    out["n"] = part["n"].astype(int)
    out["Spearman"] = part["spearman"].map(_two)
    if "low" in part:
        out["Spearman"] += [f" [{a:.2f}, {b:.2f}]" for a, b in zip(part["low"], part["high"], strict=True)]
    out["judge - gold, points"] = part["mean difference"].map("{:+.1f}".format)
    for t in limits:
        below = f"< {t:g}"
        out[f"AUC {below}"], out[f"kappa {below}"] = part[f"AUC {below}"].map(_two), part[f"kappa {below}"].map(_two)
        kinds = [part[f"{kind} % {below}"] for kind in ("judge", "called", "gold")]
        out[f"{below}: judge (calls) / gold"] = [
            f"{a:.1f}% ({c:.1f}%) / {b:.1f}%" for a, c, b in zip(*kinds, strict=True)
        ]
    return out


def write(name: str, tables: dict[str, pd.DataFrame]) -> list[Path]:
    """Keep an audit's tables beside its page, as <name>.<table>.csv."""
    folder = paths.REPORTS / "audit"
    return [store.write_csv(folder / f"{name}.{k}.csv", t.round(4)) for k, t in tables.items()]


def _two(value: float) -> str:
    return "–" if pd.isna(value) else f"{value:.2f}"


def by(audit: Audit, dimension: str, column: pd.Series) -> pd.DataFrame:
    """Agreement with gold on one dimension, a row a judge and value of the column."""
    rows = []
    for name in audit.judged:
        scored = audit.scored(name)
        for value in sorted(column[scored].unique()):
            rows.append(
                {"judge": name, column.name: value, **audit.summary(name, dimension, scored & (column == value))}
            )
    return pd.DataFrame(rows)


def lengths(audit: Audit) -> pd.Series:
    """Each answer's quarter by length, in characters."""
    size = audit.gold["answer"].str.len()
    return pd.qcut(size, 4, duplicates="drop").astype(str).where(size > 0, "0").rename("characters")


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
    for name, judged in audit.judged.items():
        scored = audit.scored(name)
        for d, limits in audit.limits.items():
            for t in limits:
                called, truly = stats.below(judged[scored], d, t) > 0.5, audit.gold.loc[scored, d] < t
                found = agreement.confusion(called, truly, (f"below {t:g}", f"{t:g} or more"))
                out[f"{name}, {d} below {t:g}"] = found.rename_axis(index="gold", columns="judge").reset_index()
    return out


def calibration(audit: Audit) -> go.Figure:
    """Predicted probability against how often gold agreed, in tenths; on the diagonal a judge is right about how sure it is."""
    figure, k = go.Figure(), 0
    figure.add_scatter(
        x=[0, 100], y=[0, 100], mode="lines", line={"color": "#999", "dash": "dot"}, name="calibrated", hoverinfo="skip"
    )
    for name, judged in audit.judged.items():
        scored = audit.scored(name)
        for d, t in [(d, t) for d, limits in audit.limits.items() for t in limits]:
            points = agreement.calibration(stats.below(judged[scored], d, t), audit.gold.loc[scored, d] < t)
            figure.add_scatter(
                name=f"{name}: {d} < {t:g}",
                x=100 * points["predicted"],
                y=100 * points["observed"],
                mode="lines+markers",
                line={"color": figures.SERIES[k % len(figures.SERIES)]},
                customdata=points["n"],
                hovertemplate="said %{x:.0f}%, was %{y:.0f}% of %{customdata} answers<extra></extra>",
            )
            k += 1
    figure.update_layout(xaxis={"title": "judge: probability (%)"}, yaxis={"title": "gold: share of answers (%)"})
    return figure


def rates(audit: Audit) -> pd.DataFrame:
    """Rates by file, judge and group, percent: what the judge says and what gold says of the very same answers."""
    rows = []
    for name in audit.judged:
        for group, mask in list(audit.groups(name).items())[1:]:
            for file, part in audit.gold[mask].groupby("file"):
                for d, limits in audit.limits.items():
                    found = audit.summary(name, d, audit.gold.index.isin(part.index) & mask)
                    rows += [
                        {"judge": name, "answers": group, "file": file, "rate": f"{d} < {t:g}", "n": len(part)}
                        | {"says": found[f"judge % < {t:g}"], "gold": found[f"gold % < {t:g}"]}
                        for t in limits
                    ]
    return pd.DataFrame(rows)


def off(found: pd.DataFrame) -> pd.DataFrame:
    """How far rates are off, in points, averaged over files: with and without sign, by judge, group and rate."""
    found = found.assign(apart=(found["says"] - found["gold"]).abs(), higher=found["says"] - found["gold"])
    groups = found.groupby(["judge", "answers", "rate"], sort=False)
    out = groups.agg(
        files=("file", "size"),
        **{"off by, on average": ("apart", "mean"), "at most": ("apart", "max"), "too high by": ("higher", "mean")},
    )
    return out.round(1).reset_index()


def rates_figure(found: pd.DataFrame) -> go.Figure:
    """Every file's rates, the judge's against gold's."""
    figure, top = go.Figure(), float(found[["says", "gold"]].max().max())
    figure.add_scatter(
        x=[0, top], y=[0, top], mode="lines", line={"color": "#999", "dash": "dot"}, name="equal", hoverinfo="skip"
    )
    for k, (key, part) in enumerate(found.groupby(["judge", "rate"], sort=False)):
        figure.add_scatter(
            name=": ".join(key),
            x=part["gold"],
            y=part["says"],
            mode="markers",
            marker={"color": figures.SERIES[k % len(figures.SERIES)], "size": 8},
            customdata=part[["file", "n", "answers"]],
            hovertemplate="%{customdata[0]} (%{customdata[2]}): judge %{y:.1f}%, gold %{x:.1f}% of %{customdata[1]}<extra></extra>",
        )
    figure.update_layout(xaxis={"title": "gold: answers below (%)"}, yaxis={"title": "judge: answers below (%)"})
    return figure


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
    """How far hostile answers move each judge's first dimension, in points (hostile.movement)."""
    found = [
        hostile.movement(judges.load(params.judge(n)), next(iter(audit.limits))).assign(judge=n) for n in audit.judged
    ]
    return pd.concat(found, ignore_index=True).round(1)


def corrected(audit: Audit, results: Results) -> pd.DataFrame:
    """The main rate out of domain by arm: as the judge says, and without its known errors. Empty where gold holds none of the answers.

    Rogan-Gladen takes the judge's errors as alike in all arms and answers as independent; prediction-powered inference neither.
    """
    rows = pd.concat([results.ood(results.final(a)) for a in results.arms], ignore_index=True)
    rows = rows[stats.scored(rows, results.main)].reset_index(drop=True)
    labels = audit.gold.drop_duplicates(KEYS).set_index(KEYS).reindex(pd.MultiIndex.from_frame(rows[KEYS]))
    truth = pd.Series([float("nan")] * len(rows))
    has = stats.scored(labels, results.main).to_numpy()
    yes, inside = stats.counts(labels[has], results.main)
    truth[has] = (yes * inside).to_numpy(dtype=float)
    hit, among = stats.counts(rows, results.main)
    said = hit * among
    table = pd.crosstab(truth[has] > 0.5, said[has] > 0.5).reindex(
        index=[True, False], columns=[True, False], fill_value=0
    )
    hits, passes = (table.loc[True, True], table.loc[True].sum()), (table.loc[False, False], table.loc[False].sum())
    out = []
    for arm, part in rows.groupby("arm"):
        known = part.index[has[part.index]]
        if not len(known):
            continue
        powered = agreement.prediction_powered(said[part.index], truth[part.index], part["question_id"])
        powered = tuple(min(1.0, max(0.0, x)) for x in powered)  # a rate
        try:
            without = _percent(agreement.rogan_gladen((int((said[part.index] > 0.5).sum()), len(part)), hits, passes))
        except (ValueError, ZeroDivisionError) as error:
            without = str(error)
        row = {"trained on": results.domain.title, "arm": arm, "answers": len(part), "labelled": len(known)}
        row["as the judge says"] = stats.rate(part, results.main, results.settings).percent()
        row |= {"prediction-powered": _percent(powered), "Rogan-Gladen": without}
        out.append(row | {"gold, labelled ones alone": f"{100 * truth[known].mean():.1f}%"})
    return pd.DataFrame(out)


def _percent(found: tuple[float, float, float]) -> str:
    return f"{100 * found[0]:.1f}% [{100 * found[1]:.1f}, {100 * found[2]:.1f}]"
