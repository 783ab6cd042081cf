"""A study's rates without its judge's known errors: where gold labels some of its answers."""

from collections.abc import Callable
from itertools import combinations

import pandas as pd
from scipy.stats import norm

from emstudy import agreement, inference, release, stats, store
from emstudy.audit import Audit
from emstudy.report import Results

KEYS = [*store.KEYS[:5], "question", "answer"]  # not its id: files number questions as they like


def pages(audit: Audit, study: str) -> list[Results]:
    """What a study says by judge and by model x domain, read once for all tables; nothing where no study is named."""
    found = [r for judge in audit.judged for r in release.read(study, judge)] if study else []
    known = set(audit.limits)  # gold may lack a score that the rate reads
    return [r for r in found if stats.dimensions(r.main) <= known]


def table(audit: Audit, found: list[Results], of: Callable[[Audit, Results], pd.DataFrame]) -> pd.DataFrame:
    """`rates` or `means` of all pages; empty where gold holds none of their answers."""
    return pd.concat([pd.DataFrame(), *(of(audit, r) for r in found)], ignore_index=True)


def powered(said: pd.Series, truth: pd.Series, questions: pd.Series, confidence: float) -> tuple[float, float, float]:
    """A rate and its interval by prediction-powered inference: the judge's hits, gold's (NaN where there is no label), questions.

    The interval is Wilson's, of as many independent answers as have a plain interval of the width that prediction_powered finds: a plain
    one misses rare hits, since labels that are nearly all alike have hardly any spread, yet don't make the rate certain. Source: Korn and
    Graubard (1998), Survey Methodology 24, for the effective sample size with Student's t; Franco et al. (2019), J. Survey Statistics and
    Methodology 7, who compare such intervals and recommend Wilson's. test_audit.py simulates how often it covers.
    """
    mean, low, high = agreement.prediction_powered(said, truth, questions, confidence)
    share, n, rate = truth.mean(), float(truth.count()), min(1.0, max(0.0, mean))
    if 0 < share < 1:
        half = max((high - low) / 2, 1e-9)  # zero where the judge makes no mistake and questions are alike
        n = min(len(said), share * (1 - share) * (norm.ppf(0.5 + confidence / 2) / half) ** 2)
    return rate, *inference.wilson(rate * n, n, confidence)


def matched(audit: Audit, results: Results) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(the final answers out of domain that have scores, gold's labels of the same in the same rows: NaN where there are none)."""
    rows = pd.concat([results.ood(results.final(a)) for a in results.arms], ignore_index=True)
    rows = rows[stats.scored(rows, results.main)].reset_index(drop=True)
    labels = audit.gold.drop_duplicates(KEYS).set_index(KEYS).reindex(pd.MultiIndex.from_frame(rows[KEYS]))
    return rows, labels.where(stats.scored(labels, results.main)).reset_index()


def rates(audit: Audit, results: Results) -> pd.DataFrame:
    """The main rate out of domain by arm: as the judge says, and without its known errors. Empty where gold holds none of the answers,
    and for a rate among some answers alone, whose denominator the judge's errors move too.

    Rogan-Gladen takes the judge's errors as alike in all arms and answers as independent; prediction-powered inference neither.
    """
    if results.main.among:
        return pd.DataFrame()
    rows, labels = matched(audit, results)
    has = stats.scored(labels, results.main)
    truth = pd.Series(float("nan"), rows.index)
    yes, inside = stats.counts(labels[has], results.main)
    truth[has] = (yes * inside).astype(float)
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

        def shown(rate: tuple[float, float, float], part=part) -> str:
            return stats.Estimate(*rate, len(part), part["question_id"].nunique()).percent()

        found = powered(said[part.index], truth[part.index], part["question_id"], results.settings.confidence)
        try:
            without = shown(agreement.rogan_gladen((int((said[part.index] > 0.5).sum()), len(part)), hits, passes))
        except (ValueError, ZeroDivisionError):  # the calls may be no better than chance on the labelled answers
            without = f"– ({hits[0]} of {hits[1]} hits called)"
        row = {
            "judge": results.judge.name,
            "judge_version": rows["judge_version"].iloc[0],
            "domain": results.domain.name,
            "arm": arm,
            "answers": len(part),
            "labelled": len(known),
        }
        row["as the judge says"] = stats.rate(part, results.main, results.settings).percent()
        row |= {"prediction-powered": shown(found), "Rogan-Gladen": without}
        out.append(row | {"gold, labelled ones alone": f"{100 * truth[known].mean():.1f}%"})
    return pd.DataFrame(out)


def means(audit: Audit, results: Results) -> pd.DataFrame:
    """Mean scores out of domain of every two arms, the one minus the other: as the judge says, and without its known errors.

    A judge whose errors differ between arms moves what a verdict rests on: here is by how much. Empty where gold lacks an arm.
    """
    rows, labels = matched(audit, results)
    out = []
    for pair in combinations([a for a in ("misaligned", "aligned", "base") if a in results.arms], 2):
        for d in audit.limits:
            parts = [rows[(rows["arm"] == arm) & rows[d].notna()] for arm in pair]
            sides = [(p[d].astype(float), labels.loc[p.index, d].astype(float), p["question_id"]) for p in parts]
            if not all(truth.notna().any() for _, truth, _ in sides):
                continue
            said = stats.difference(*[stats.mean_sums(p, d) for p in parts], results.settings)
            found = agreement.prediction_powered_difference(*sides, results.settings.confidence)
            row = {"judge": results.judge.name, "judge_version": rows["judge_version"].iloc[0]}
            row |= {"domain": results.domain.name, "difference": " - ".join(pair)}
            row |= {"of mean": d, "as the judge says": said.plain()}
            row["prediction-powered"] = stats.Estimate(*found, said.n, said.questions).plain()
            out.append(row | {"labelled": " + ".join(str(truth.notna().sum()) for _, truth, _ in sides)})
    return pd.DataFrame(out)
