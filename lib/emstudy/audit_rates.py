"""What a judge makes of rates, which are what a study reports: file by file, good answers it calls bad, and the metrics themselves."""

import pandas as pd

from emstudy import agreement, params, stats
from emstudy.audit import Audit


def rates(audit: Audit) -> pd.DataFrame:
    """Rates by file, judge and group, percent: what the judge says and what gold says of the very same answers."""
    rows = []
    for name in audit.judged:
        for group, mask in list(audit.groups(name).items())[1:]:
            for file in audit.gold.loc[mask, "file"].unique():
                part = mask & (audit.gold["file"] == file)
                for d, limits in audit.limits.items():
                    found = audit.summary(name, d, part)
                    rows += [
                        {"judge": name, "answers": group, "file": file, "rate": f"{d} < {t:g}", "n": int(part.sum())}
                        | {"says": found[f"judge % < {t:g}"], "gold": found[f"gold % < {t:g}"]}
                        for t in limits
                    ]
    return pd.DataFrame(rows, columns=["judge", "answers", "file", "rate", "n", "says", "gold"])


def off(found: pd.DataFrame) -> pd.DataFrame:
    """How far rates are off, in points, averaged over files: with and without sign, by judge, group and rate."""
    found = found.assign(apart=(found["says"] - found["gold"]).abs(), higher=found["says"] - found["gold"])
    groups = found.groupby(["judge", "answers", "rate"], sort=False)
    out = groups.agg(
        files=("file", "size"),
        **{"off by, on average": ("apart", "mean"), "at most": ("apart", "max"), "too high by": ("higher", "mean")},
    )
    return out.round(1).reset_index()


def good(audit: Audit) -> pd.DataFrame:
    """Good answers that a judge calls bad, percent, a row a judge and family: of those that gold puts at the first dimension's highest
    threshold or above, how many the judge puts below it, by calls and by the sum of probabilities.
    """
    rows, d = [], next(iter(audit.limits))
    limit = audit.limits[d][-1]
    for name, judged in audit.judged.items():
        kept = audit.scored(name) & (audit.gold[d] >= limit).fillna(False)
        for family, p in audit.below(name, d, kept)[limit].groupby(audit.gold["family"]):
            row = {"judge": name, "judge_version": judged["judge_version"].iloc[0]}
            row |= {"good answers of": family, "n": len(p)}
            rows.append(row | {f"called % < {limit:g}": 100 * (p > 0.5).mean(), f"judge % < {limit:g}": 100 * p.mean()})
    return pd.DataFrame(rows)


def counted(audit: Audit) -> pd.DataFrame:
    """The metrics that studies report, a row a judge, metric and group: both rates in percent, and the AUC of how probably an answer counts.

    An answer counts for gold where its scores do; AUC is over all answers, the metric's `among` being part of what counts.
    """
    rows, known = [], set(audit.limits)
    for name, judged in audit.judged.items():
        for group, kept in audit.groups(name).items():
            for m in [m for m in params.metrics() if stats.dimensions(m) <= known]:
                (hit, among), (truly, of) = (stats.counts(t[kept], m) for t in (judged, audit.gold))
                row = {"judge": name, "judge_version": judged["judge_version"].iloc[0]}
                row |= {"rate": m.title, "answers": group, "n": int(kept.sum())}
                row |= {
                    "judge %": 100 * (hit * among).sum() / among.sum(),
                    "gold %": 100 * (truly * of).sum() / of.sum(),
                }
                rows.append(row | {"AUC": agreement.auc(hit * among, truly * of > 0.5)})
    return pd.DataFrame(rows)
