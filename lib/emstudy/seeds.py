"""Several seeds: intervals that hold for new seeds and new questions alike, and the share of variance that each holds."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats as distributions


@dataclass(frozen=True)
class Components:
    """Variances of one (seed, question) value: between seeds, between questions, and the rest, sampling included."""

    seed: float
    question: float
    rest: float

    def shares(self) -> dict[str, float]:
        """Each one's share of their sum."""
        total = self.seed + self.question + self.rest
        parts = {"seeds": self.seed, "questions": self.question, "the rest": self.rest}
        return {k: v / total if total else float("nan") for k, v in parts.items()}


def grid(sums: pd.DataFrame) -> pd.DataFrame:
    """One value a seed and question, (seeds, questions), whose mean is the ratio of the sums: the ratio, linearised.

    Source: Cochran (1977), Sampling Techniques, section 6.3. A cell without answers takes no side.
    """
    num, den = (sums[c].unstack("question").fillna(0.0) for c in ("num", "den"))
    ratio = num.to_numpy().sum() / den.to_numpy().sum()
    return ratio + (num - ratio * den) / den.to_numpy().mean()


def mean_squares(values: pd.DataFrame) -> tuple[float, float, float]:
    """Mean squares of seeds, questions and the rest in a two-way layout with one value a cell."""
    v, (s, q) = values.to_numpy(float), values.shape
    rows, columns = v.mean(1, keepdims=True), v.mean(0, keepdims=True)
    rest = v - rows - columns + v.mean()
    return q * rows.var(ddof=1), s * columns.var(ddof=1), (rest**2).sum() / ((s - 1) * (q - 1))


def components(values: pd.DataFrame) -> Components:
    """Variance components by the method of moments, none below zero (Searle, Casella and McCulloch 1992, Variance Components)."""
    seed, question, rest = mean_squares(values)
    s, q = values.shape
    return Components(max(0.0, (seed - rest) / q), max(0.0, (question - rest) / s), rest)


def interval(values: pd.DataFrame, confidence: float) -> tuple[float, float]:
    """Of the mean over seeds and questions, both taken as drawn by chance: Student's t with Satterthwaite's degrees of freedom.

    In simulated studies of 2, 3 and 5 seeds a 95% interval covers 88%, 91% and 95% where seeds hold most of the variance, and
    93% or more where they don't (test_seeds.py).
    """
    seed, question, rest = mean_squares(values)
    s, q = values.shape
    mean, variance = values.to_numpy().mean(), max(seed + question - rest, seed, question)
    if not variance:
        return float(mean), float(mean)
    df = variance**2 / (seed**2 / (s - 1) + question**2 / (q - 1))
    half = distributions.t.ppf((1 + confidence) / 2, df) * np.sqrt(variance / (s * q))
    return float(mean - half), float(mean + half)
