"""Is a difference more than chance, and what difference could a study see at all?"""

import numpy as np
import pandas as pd
from scipy import stats as distributions
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

PERMUTATIONS = 9_999


def permutation_p(a: pd.DataFrame, b: pd.DataFrame) -> float:
    """Two-sided p of a difference between two arms' ratios of sums (stats.by_question), NaN where they share no question.

    If the arms did not differ, which of them gave which answers to a question would be arbitrary: all answers to a question, of
    every seed, change sides together.
    """
    a, b = (t.groupby("question").sum() for t in (a, b))
    shared = a.index.intersection(b.index)
    sides = [
        t.loc[shared, "num"].to_numpy() + 1j * t.loc[shared, "den"].to_numpy() for t in (a, b)
    ]  # both move together
    if not all(side.imag.sum() for side in sides):
        return float("nan")

    def difference(x: np.ndarray, y: np.ndarray, axis: int) -> np.ndarray:
        x, y = x.sum(axis), y.sum(axis)
        return x.real / x.imag - y.real / y.imag

    found = distributions.permutation_test(
        sides, difference, permutation_type="samples", vectorized=True, n_resamples=PERMUTATIONS, batch=1000, rng=0
    )
    return float(np.real(found.pvalue))


def holm(p: pd.Series) -> pd.Series:
    """p values corrected for their number (Holm 1979); those that are NaN stay so and do not count."""
    out = p.astype(float).copy()
    known = out.notna()
    if known.any():
        out[known] = multipletests(out[known], method="holm")[1]
    return out


def wilson(hits: float, n: float, confidence: float) -> tuple[float, float]:
    """Wilson's interval of a share, as if all answers were independent: what the interval would be without clusters."""
    if not n:
        return float("nan"), float("nan")
    low, high = proportion_confint(hits, n, alpha=1 - confidence, method="wilson")
    return float(low), float(high)


def detectable(question: float, answer: float, seed: float, questions: int, samples: int, seeds: int) -> float:
    """The difference between two arms that a study would find in four of five tries, two-sided at 5%.

    question: variance of the true difference between questions; answer: variance of one answer around its question and arm;
    seed: variance of the true difference between seeds.
    """
    variance = question / questions + 2 * answer / (questions * samples * seeds) + seed / seeds
    parts = [(variance - seed / seeds, questions - 1), (seed / seeds, max(1, seeds - 1))]
    df = variance**2 / sum(part**2 / df for part, df in parts)
    return float((distributions.t.ppf(0.975, df) + distributions.t.ppf(0.8, df)) * np.sqrt(variance))
