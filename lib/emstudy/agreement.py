"""How far two scorings of the same answers agree, and what a rate would be without the judge's known errors."""

import math

import numpy as np
import pandas as pd
from scipy.stats import norm, spearmanr, t

from emstudy import stats


def auc(score, positive) -> float:
    """Chance that a random positive scores above a random negative (Mann-Whitney), NaN without both kinds."""
    positive = np.asarray(positive, dtype=bool)
    ranks = pd.Series(np.asarray(score, dtype=float)).rank().to_numpy()
    p = int(positive.sum())
    n = len(positive) - p
    return float((ranks[positive].sum() - p * (p + 1) / 2) / (p * n)) if p and n else math.nan


def kappa(a, b) -> float:
    """Cohen's kappa of two yes/no calls: 1 perfect, 0 chance, NaN when both always say the same one thing. Source: Cohen (1960)."""
    a, b = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    seen, chance = (a == b).mean(), a.mean() * b.mean() + (1 - a.mean()) * (1 - b.mean())
    return float((seen - chance) / (1 - chance)) if chance < 1 else math.nan


def summary(scores: pd.Series, gold: pd.Series, below: dict[float, pd.Series]) -> dict[str, float]:
    """Spearman and mean difference of paired scores 0-100, and at each threshold kappa of the calls, AUC, and both rates in percent.

    below: P(score < threshold) of each answer by threshold, 0 or 1 for a judge that gives numbers alone; a call is one above a half,
    the judge's rate is the mean.
    """
    found = {"n": len(scores), "spearman": spearman(scores, gold), "mean difference": (scores - gold).mean()}
    for limit, p in below.items():
        found |= {f"kappa < {limit:g}": kappa(p > 0.5, gold < limit), f"AUC < {limit:g}": auc(p, gold < limit)}
        found |= {f"judge % < {limit:g}": 100 * p.mean(), f"gold % < {limit:g}": 100 * (gold < limit).mean()}
        found |= {f"called % < {limit:g}": 100 * (p > 0.5).mean()}
    return {k: float(v) for k, v in found.items()}


def spearman(a, b) -> float:
    """Rank correlation, NaN where one of both never changes."""
    return float(spearmanr(a, b).statistic) if len(a) > 2 and min(np.ptp(a), np.ptp(b)) > 0 else math.nan


def spearman_interval(a, b, clusters, replicates: int = 400, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile-bootstrap interval of the rank correlation, NaN where no draw has one; whole clusters are drawn, since answers to one
    question are alike."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    members = list(pd.Series(range(len(a))).groupby(np.asarray(clusters)).apply(np.asarray))
    rng, found = np.random.default_rng(0), []
    for _ in range(replicates):
        rows = np.concatenate([members[k] for k in rng.integers(0, len(members), len(members))])
        found.append(spearman(a[rows], b[rows]))
    return stats.percentiles(np.array(found), confidence)


def confusion(called: pd.Series, truly: pd.Series, names: tuple[str, str]) -> pd.DataFrame:
    """How many answers both, one or neither call so: rows gold, columns judge; names: of yes and no."""
    words = dict(zip((True, False), names, strict=True))
    return pd.crosstab(truly.map(words), called.map(words)).reindex(index=names, columns=names, fill_value=0)


def calibration(probability: pd.Series, happened: pd.Series, bins: int = 10) -> pd.DataFrame:
    """In each tenth of predicted probability: the mean prediction, how often it happened, and of how many answers."""
    tenth = np.minimum((probability * bins).astype(int), bins - 1)
    groups = pd.DataFrame({"predicted": probability, "observed": happened.astype(float)}).groupby(tenth)
    return groups.mean().assign(n=groups.size()).reset_index(drop=True)


def rogan_gladen(
    calls: tuple[int, int], hits: tuple[int, int], passes: tuple[int, int], confidence: float = 0.95
) -> tuple[float, float, float]:
    """(rate, low, high) of answers truly below a threshold, from how many a judge calls so.

    calls: (judge says yes, of all); from a labelled sample hits: (judge says yes, of the truly yes) and passes: (judge says no, of
    the truly no). Answers are taken as independent. Source: Rogan and Gladen (1978); interval of Lang and Reiczigel (2014), Prev.
    Vet. Med. 113. Raises ValueError where the judge may be no better than chance, since all that follows divides by how much better it is.
    """
    z = norm.ppf(0.5 + confidence / 2)
    n, n_yes, n_no = calls[1] + z**2, hits[1] + 2, passes[1] + 2
    p, se, sp = (calls[0] + z**2 / 2) / n, (hits[0] + 1) / n_yes, (passes[0] + 1) / n_no
    youden = se + sp - 1
    if youden <= z * math.sqrt(se * (1 - se) / n_yes + sp * (1 - sp) / n_no):
        raise ValueError(
            "the judge's calls may be no better than chance on the labelled answers: they say nothing of the true rate"
        )
    rate = (p + sp - 1) / youden
    shift = 2 * z**2 * (rate * se * (1 - se) / n_yes - (1 - rate) * sp * (1 - sp) / n_no)
    spread = p * (1 - p) / n + rate**2 * se * (1 - se) / n_yes + (1 - rate) ** 2 * sp * (1 - sp) / n_no
    half = z * math.sqrt(spread) / youden
    plain = (calls[0] / calls[1] + passes[0] / passes[1] - 1) / (hits[0] / hits[1] + passes[0] / passes[1] - 1)
    return tuple(min(1.0, max(0.0, x)) for x in (plain, rate + shift - half, rate + shift + half))


def prediction_powered(judged, gold, clusters=None, confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) of what gold would say of all answers: the judge's mean, corrected by gold - judge where both spoke.

    judged: the judge over all answers; gold: over the same, NaN where there is no label, labels drawn at random; clusters: the question
    of each answer, where answers to one question are alike. Source: Angelopoulos et al. (2023), Prediction-powered inference,
    Science 382, for the mean; with clusters, sums a cluster take the place of answers and Student's t that of the normal distribution.
    """
    mean, parts = _powered(judged, gold)
    return _interval(mean, parts, np.arange(len(parts)) if clusters is None else clusters, confidence)


def prediction_powered_difference(first, second, confidence: float = 0.95) -> tuple[float, float, float]:
    """(first - second, low, high) of two prediction-powered means, each given as (judged, gold, clusters): clusters that both have are paired."""
    (a, parts), (b, others) = (_powered(judged, gold) for judged, gold, _ in (first, second))
    clusters = np.concatenate([np.asarray(first[2]), np.asarray(second[2])])
    return _interval(a - b, np.concatenate([parts, -others]), clusters, confidence)


def _powered(judged, gold) -> tuple[float, np.ndarray]:
    """The prediction-powered mean, and by how much each answer moves it."""
    judged, gold = np.asarray(judged, float), np.asarray(gold, float)
    error, labelled = gold - judged, ~np.isnan(gold)
    bias = error[labelled].mean()
    parts = (judged - judged.mean()) / len(judged) + np.where(labelled, error - bias, 0) / labelled.sum()
    return judged.mean() + bias, parts


def _interval(value: float, parts: np.ndarray, clusters, confidence: float) -> tuple[float, float, float]:
    sums = pd.Series(parts).groupby(np.asarray(clusters)).sum()
    half = t.ppf(0.5 + confidence / 2, len(sums) - 1) * math.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum())
    return tuple(float(value + k * half) for k in (0, -1, 1))
