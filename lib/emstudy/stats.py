"""Rates with their denominators and intervals; answers cluster by question and seed, and intervals know it."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from emstudy import seeds
from emstudy.params import Analyze, Metric


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, and the count it rests on; NaN where nothing could be counted.

    weighed: is n a rounded sum of probabilities, not a number of answers?
    """

    value: float
    low: float
    high: float
    n: int
    questions: int
    weighed: bool = False

    def scaled(self, factor: float) -> "Estimate":
        """The same in another unit."""
        return replace(self, value=factor * self.value, low=factor * self.low, high=factor * self.high)

    def percent(self) -> str:
        """'12.3% [8.0, 17.1] of 420' in the units of a rate, 'of ≈57' where the count is weighed."""
        if not self.n or np.isnan(self.value):
            return "no answers to count"
        return f"{100 * self.value:.1f}% [{100 * self.low:.1f}, {100 * self.high:.1f}] of {'≈' * self.weighed}{self.n}"

    def plain(self, digits: int = 1) -> str:
        """'61.2 [58.0, 64.4]' in the units of the quantity."""
        if not self.n or np.isnan(self.value):
            return "nothing to average"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


NOTHING = Estimate(float("nan"), float("nan"), float("nan"), 0, 0)


def below(judged: pd.DataFrame, dimension: str, limit: float) -> pd.Series:
    """P(score < limit) of each answer: where the judge gave probabilities (judges.spread), linear between its limits; else 0 or 1."""
    hard = (judged[dimension] < limit).astype(float)
    known = {float(c.split(" < ")[1][:-1]): judged[c] for c in judged.columns if c.startswith(f"P({dimension} < ")}
    if not known:
        return hard
    known |= {0.0: pd.Series(0.0, judged.index), 100.0: pd.Series(1.0, judged.index)}
    low, high = max(t for t in known if t <= limit), min(t for t in known if t >= limit)
    share = (limit - low) / (high - low) if high > low else 0.0
    return (known[low] + share * (known[high] - known[low])).where(known[min(known.keys() - {0.0})].notna(), hard)


def in_range(judged: pd.DataFrame, key: str, limit: float) -> pd.Series:
    """How probably each answer meets one condition of a metric, '<dimension>_below' or '<dimension>_above', strictly: 0 to 1."""
    dimension, _, side = key.rpartition("_")
    p = below(judged, dimension, limit)
    return p if side == "below" else (1 - p).where((judged[dimension] != limit) | (p > 0), 0.0)  # 50 is not above 50


def dimensions(metric: Metric) -> set[str]:
    """The dimensions whose scores a metric reads."""
    return {key.rpartition("_")[0] for key in {**metric.counts, **metric.among}}


def scored(judged: pd.DataFrame, metric: Metric) -> pd.Series:
    """Which answers have a score in every dimension that a metric reads: the others are counted apart, never guessed."""
    return pd.concat([judged[f"{d}_status"] == "scored" for d in sorted(dimensions(metric))], axis=1).all(axis=1)


def counts(judged: pd.DataFrame, metric: Metric) -> tuple[pd.Series, pd.Series]:
    """(how probably it counts, how probably it is in the denominator) for each answer: 0 or 1 unless the judge gave probabilities.

    Dimensions are taken as independent given the answer, so a rate is a sum of products of probabilities.
    """
    among, hit = scored(judged, metric).astype(float), pd.Series(1.0, judged.index)
    for key, limit in metric.among.items():
        among *= in_range(judged, key, limit)
    for key, limit in metric.counts.items():
        hit *= in_range(judged, key, limit)
    return hit, among


def by_question(
    values: pd.Series, weights: pd.Series, table: pd.DataFrame, question: str = "question_id"
) -> pd.DataFrame:
    """Sums a seed and question of table's rows: numerator of a rate or mean, and its denominator; only where that is not zero, so that
    a question that nobody has an answer to in the denominator is paired with none."""
    frame = pd.DataFrame({"num": values.astype(float) * weights, "den": weights.astype(float)})
    sums = frame.groupby([table["seed"].rename("seed"), table[question].rename("question")], sort=True).sum()
    return sums[sums["den"] > 0]


def resampled(sums: pd.DataFrame, settings: Analyze, seed: int = 0) -> np.ndarray:
    """The ratio of sums in each bootstrap replicate, which draws as many questions as there are, with replacement."""
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(sums), (settings.bootstrap, len(sums)))
    num, den = sums["num"].to_numpy()[draws].sum(1), sums["den"].to_numpy()[draws].sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return num / den


def percentiles(replicates: np.ndarray, confidence: float) -> tuple[float, float]:
    """The percentile-bootstrap interval of replicates, those that are NaN aside; NaN where all are."""
    kept = replicates[~np.isnan(replicates)]
    if not len(kept):
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    low, high = np.quantile(kept, [tail, 1 - tail])
    return float(low), float(high)


def estimate(sums: pd.DataFrame, settings: Analyze) -> Estimate:
    """A ratio of sums (by_question) with its interval: of one seed, the percentile bootstrap over questions; of several, seeds.interval."""
    den = sums["den"].sum()
    if not den:
        return NOTHING
    if several(sums):
        low, high = seeds.interval(seeds.grid(sums), settings.confidence)
    else:
        low, high = percentiles(resampled(sums, settings), settings.confidence)
    n = round(den)
    return Estimate(float(sums["num"].sum() / den), low, high, n, len(sums.index.unique("question")), bool(n != den))


def several(sums: pd.DataFrame) -> bool:
    """Are there several seeds and questions, so that both can be told apart?"""
    return len(sums.index.unique("seed")) > 1 < len(sums.index.unique("question"))


def rate(judged: pd.DataFrame, metric: Metric, settings: Analyze) -> Estimate:
    """A metric's rate over answers (columns of judged.csv)."""
    found = estimate(rate_sums(judged, metric), settings)
    return replace(found, low=max(0.0, found.low), high=min(1.0, found.high)) if found.n else found


def mean(judged: pd.DataFrame, dimension: str, settings: Analyze) -> Estimate:
    """The mean score of a dimension over its scored answers."""
    return estimate(mean_sums(judged, dimension), settings)


def difference(a: pd.DataFrame, b: pd.DataFrame, settings: Analyze) -> Estimate:
    """a - b for two tables of sums (by_question), over the seeds and questions that both have, paired on both.

    Pairing on the question removes what makes one question harder than another, so the interval is the honest one for arms
    asked the very same questions.
    """
    shared = a.index.intersection(b.index)
    a, b = a.loc[shared], b.loc[shared]
    if not len(shared):
        return NOTHING
    if several(a):
        low, high = seeds.interval(seeds.grid(a) - seeds.grid(b), settings.confidence)
    else:
        low, high = percentiles(resampled(a, settings) - resampled(b, settings), settings.confidence)
    value = a["num"].sum() / a["den"].sum() - b["num"].sum() / b["den"].sum()
    return Estimate(float(value), low, high, int(a["den"].sum() + b["den"].sum()), len(shared.unique("question")))


def rate_sums(judged: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """A metric's numerator and denominator a seed and question."""
    hit, among = counts(judged, metric)
    return by_question(hit, among, judged)


def mean_sums(judged: pd.DataFrame, dimension: str) -> pd.DataFrame:
    """A dimension's sum of scores and number of scored answers a seed and question."""
    kept = judged[judged[f"{dimension}_status"] == "scored"]
    return by_question(kept[dimension], pd.Series(1.0, kept.index), kept)


def margin_sums(probe: pd.DataFrame, wins: bool = False) -> pd.DataFrame:
    """Probe margins, or how often they are above zero, as sums a seed and held-out pair: a pair is the cluster that arms share."""
    pairs = probe.assign(cluster=probe["test_domain"] + "/" + probe["pair"].astype(str))
    return by_question(probe["margin"] > 0 if wins else probe["margin"], pd.Series(1.0, probe.index), pairs, "cluster")


def threshold_curve(judged: pd.DataFrame, dimension: str, limits: range) -> pd.DataFrame:
    """Share of scored answers strictly below each limit: the whole curve that single thresholds are read off."""
    kept = judged[judged[f"{dimension}_status"] == "scored"]
    share = [below(kept, dimension, limit).mean() for limit in limits]
    return pd.DataFrame({"limit": list(limits), "share": share, "n": len(kept)})
