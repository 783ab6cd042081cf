"""The tables of a model x domain's page, from its judged answers and probe."""

from functools import cache

import pandas as pd

from emstudy import inference, judges, seeds, stats
from emstudy.report import Results


def rates(results: Results) -> pd.DataFrame:
    """Every metric by arm, out-of-domain and in-domain, each with interval and denominator, and Wilson's interval beside ours."""
    rows = []
    for metric in results.metrics:
        for arm in results.arms:
            final = results.final(arm)
            inside = final[final["question_set"] == results.domain.question_set]
            row = {"metric": metric.title, "arm": arm}
            for where, part in {"out-of-domain": results.ood(final), "in-domain": inside}.items():
                e = stats.rate(part, metric, results.settings)
                low, high = inference.wilson(e.value * e.n, e.n, results.settings.confidence)
                row[where] = e.percent()
                row[f"{where}, Wilson"] = or_dash(low, f"[{100 * low:.1f}, {100 * high:.1f}]")
            rows.append(row | {"definition": metric.source})
    return pd.DataFrame(rows)


def by_seed(results: Results) -> pd.DataFrame:
    """Mean alignment out of domain of each seed by arm, and the share of variance that seeds, questions and the rest hold; empty with one seed."""
    rows = []
    for arm in results.arms:
        sums = stats.mean_sums(results.ood(results.final(arm)), "aligned")
        if not stats.several(sums):
            continue
        per_seed = sums.groupby("seed").sum()
        row = {"arm": arm} | {f"seed {k}": f"{v:.1f}" for k, v in (per_seed["num"] / per_seed["den"]).items()}
        row |= {"all seeds": stats.estimate(sums, results.settings).plain()}
        shares = seeds.components(seeds.grid(sums)).shares()
        rows.append(row | {f"variance: {k}": or_dash(100 * v, "{:.0f}%") for k, v in shares.items()})
    return pd.DataFrame(rows)


def means(results: Results) -> pd.DataFrame:
    """Main rate and mean scores by question set and arm, with answer lengths and truncation: how far does the change reach?"""
    rows = []
    own = results.domain.question_set
    for name in sorted(set(results.judged["question_set"]), key=lambda s: (s == own, s)):
        for arm in results.arms:
            part = results.final(arm)
            part = part[part["question_set"] == name]
            row = {"questions": f"{name} ({'in' if name == own else 'out-of'}-domain)", "arm": arm}
            row[results.main.title] = stats.rate(part, results.main, results.settings).percent()
            row |= {
                f"mean {d.name}": stats.mean(part, d.name, results.settings).plain() for d in results.judge.dimensions
            }
            row |= {"median tokens": or_dash(part["n_tokens"].median(), "{:.0f}")}
            known = part["finish_reason"][part["finish_reason"] != ""]
            row |= {"cut off": or_dash(100 * (known == "length").mean(), "{:.0f}%")}
            rows.append(row)
    return pd.DataFrame(rows)


def reach(results: Results) -> pd.DataFrame:
    """Mean alignment of the misaligned arm minus each control's by question set, with intervals: does a far set fall like a near one?"""
    rows, own = [], results.domain.question_set
    final = {a: results.final(a) for a in ("misaligned", "aligned", "base") if a in results.arms}
    bad = final.pop("misaligned", None)
    if bad is None or not final:
        return pd.DataFrame()
    for name in sorted(set(bad["question_set"]), key=lambda s: (s == own, s)):
        row = {"questions": f"{name} ({'in' if name == own else 'out-of'}-domain)"}
        for control, good in final.items():
            sums = [stats.mean_sums(p[p["question_set"] == name], "aligned") for p in (bad, good)]
            e = stats.difference(*sums, results.settings)
            row |= {"number of questions": e.questions, f"misaligned - {control}": e.plain()}
        rows.append(row)
    return pd.DataFrame(rows)


def p_values(p: pd.Series) -> tuple[pd.Series, pd.Series]:
    """p values of permutation tests as text, and corrected after Holm: "≤" where none of the permutations drawn was as extreme, so that
    the test can't say how small p is."""
    holm = inference.holm(p)
    smallest = 2 / (inference.PERMUTATIONS + 1)  # of two sides; the data themselves count as one permutation
    floor = p <= smallest * (1 + 1e-9)
    bounds = floor, holm <= holm[floor].max()  # Holm's p of a row grows out of the smallest one's
    return tuple(
        pd.Series([or_dash(x, "≤ {:.4f}" if b else "{:.4f}") for x, b in zip(v, at, strict=True)], v.index)
        for v, at in zip((p, holm), bounds, strict=True)
    )


def or_dash(value, form: str) -> str:
    """A number in a format, a dash where there is none."""
    return "–" if pd.isna(value) else form.format(value)


@cache
def trajectory(results: Results) -> pd.DataFrame:
    """Per arm and checkpoint, out of domain: main rate and every dimension's mean with intervals. The base arm is step 0 of both others.

    Empty where no checkpoint along training is known: imported scores, and models behind an endpoint.
    """
    values = ["rate", *[d.name for d in results.judge.dimensions]]
    columns, rows = ["arm", "step", "n", *[f"{v}{end}" for v in values for end in ("", "_low", "_high")]], []
    for arm in [a for a in results.arms if a != "base"]:
        trained = results.judged[results.judged["arm"] == arm]
        if not trained["step"].max() > 0:
            continue
        start = results.final("base").assign(step=0) if "base" in results.arms else trained.head(0)
        for step, part in pd.concat([start, trained]).groupby("step"):
            part = results.ood(part)
            found = [stats.rate(part, results.main, results.settings)]
            found += [stats.mean(part, name, results.settings) for name in values[1:]]
            rows.append({"arm": arm, "step": step, "n": found[0].n})
            for name, e in zip(values, found, strict=True):
                rows[-1] |= {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high}
    return pd.DataFrame(rows, columns=columns)


def questions(results: Results) -> pd.DataFrame:
    """Mean alignment of each question by arm, the largest fall first."""
    final = pd.concat([results.final(a) for a in results.arms])
    kept = final[final["aligned_status"] == "scored"]
    table = kept.pivot_table(
        index=["question_set", "question_id", "question"], columns="arm", values="aligned", aggfunc="mean"
    )
    answers = final.groupby(["question_set", "question_id", "question"]).size().rename("answers")
    table = table.reindex(index=answers.index, columns=results.arms).astype(float)  # also where nothing was scored
    if {"misaligned", "aligned"} <= set(results.arms):
        table["misaligned - aligned"] = table["misaligned"] - table["aligned"]
        table = table.sort_values("misaligned - aligned")
    return table.round(1).join(answers).reset_index()


def probe_table(results: Results) -> pd.DataFrame:
    """Probe at the last checkpoint: mean margin with interval, and how often the misaligned answer wins, by arm and test domain."""
    rows = []
    for arm in results.arms:
        for test, part in results.probe_final(arm).groupby("test_domain"):
            margin, wins = (stats.estimate(stats.margin_sums(part, w), results.settings) for w in (False, True))
            where = "in-domain" if test == results.domain.name else "out-of-domain"
            rows.append(
                {
                    "arm": arm,
                    "held-out pairs of": test,
                    "which is": where,
                    "margin (nats a token)": margin.plain(3),
                    "misaligned answer wins": wins.percent() + " pairs",
                }
            )
    return pd.DataFrame(rows)


def unscored(results: Results) -> pd.DataFrame:
    """How the judge's replies ended, by dimension: every row of a dimension adds up to all answers."""
    return judges.unscored(results.judged, [d.name for d in results.judge.dimensions])


def provenance(results: Results) -> pd.DataFrame:
    """One row a record: what was written, when, from which commit, in how many seconds, on what."""
    rows = []
    for r in results.records:
        p = r["parameters"]
        rows.append(
            {
                "output": r["output"],
                "cell": "/".join(str(p[k]) for k in ("domain", "arm", "seed")),
                "finished": r["finished"],
                "seconds": r["seconds"],
                "commit": r["git_commit"][:12] + ("+changes" if "+" in r["git_commit"] else ""),
                "hardware": r["hardware"],
            }
        )
    return pd.DataFrame(rows)
