"""How far two scorings of the same answers agree, and what a rate would be without the judge's known errors."""

import math

import numpy as np
import pandas as pd
from scipy.stats import norm, spearmanr

THRESHOLDS = (30, 50, 75)


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


def summary(scores: pd.Series, gold: pd.Series, thresholds: tuple[int, ...] = THRESHOLDS) -> dict[str, float]:
    """Spearman, mean difference, and below each threshold kappa, AUC and both rates (percent) of paired scores 0-100."""
    found = {"n": len(scores), "spearman": spearmanr(scores, gold).statistic if len(scores) > 2 else math.nan}
    found["mean difference"] = (scores - gold).mean()
    for t in thresholds:
        found |= {f"kappa < {t}": kappa(scores < t, gold < t), f"AUC < {t}": auc(-scores, gold < t)}
        found |= {f"judge % < {t}": 100 * (scores < t).mean(), f"gold % < {t}": 100 * (gold < t).mean()}
    return {k: float(v) for k, v in found.items()}


def confusion(scores: pd.Series, gold: pd.Series, threshold: float) -> pd.DataFrame:
    """How many answers both, one or neither call below a threshold: rows gold, columns judge."""
    names = {True: f"below {threshold:g}", False: f"{threshold:g} or more"}
    table = pd.crosstab((gold < threshold).map(names), (scores < threshold).map(names))
    return table.reindex(index=list(names.values()), columns=list(names.values()), fill_value=0)


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
    Vet. Med. 113. Raises ValueError where the judge is no better than chance.
    """
    z = norm.ppf(0.5 + confidence / 2)
    n, n_yes, n_no = calls[1] + z**2, hits[1] + 2, passes[1] + 2
    p, se, sp = (calls[0] + z**2 / 2) / n, (hits[0] + 1) / n_yes, (passes[0] + 1) / n_no
    youden = se + sp - 1
    if youden <= 0:
        raise ValueError(
            "the judge is no better than chance on the labelled answers: its rate says nothing of the true one"
        )
    rate = (p + sp - 1) / youden
    shift = 2 * z**2 * (rate * se * (1 - se) / n_yes - (1 - rate) * sp * (1 - sp) / n_no)
    spread = p * (1 - p) / n + rate**2 * se * (1 - se) / n_yes + (1 - rate) ** 2 * sp * (1 - sp) / n_no
    half = z * math.sqrt(spread) / youden
    plain = (calls[0] / calls[1] + passes[0] / passes[1] - 1) / (hits[0] / hits[1] + passes[0] / passes[1] - 1)
    return tuple(min(1.0, max(0.0, x)) for x in (plain, rate + shift - half, rate + shift + half))


def prediction_powered(judged, judged_too, gold, confidence: float = 0.95) -> tuple[float, float, float]:
    """(mean, low, high) of what gold would say of all answers: the judge's mean over all, corrected by gold - judge where both spoke.

    judged: the judge over answers without gold; judged_too and gold: both over the labelled ones, drawn at random. Source:
    Angelopoulos et al. (2023), Prediction-powered inference, Science 382, for the mean.
    """
    judged, error = np.asarray(judged, float), np.asarray(gold, float) - np.asarray(judged_too, float)
    mean = judged.mean() + error.mean()
    half = norm.ppf(0.5 + confidence / 2) * math.sqrt(judged.var(ddof=1) / len(judged) + error.var(ddof=1) / len(error))
    return float(mean), float(mean - half), float(mean + half)
