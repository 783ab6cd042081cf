"""Along training, out of domain: does alignment fall steadily, when does it set in, and are its ups and downs more than noise?"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy.optimize import isotonic_regression
from scipy.stats import page_trend_test

from emstudy import report
from emstudy.report import Results

REPLICATES = 2000
STEPS = 3  # checkpoints, the start included, below which there is no trajectory to speak of
CHANCE = 0.05  # a p below it is called more than chance


@dataclass(frozen=True)
class Trend:
    """Of one arm: steps, direction with Page's p and the same after the start, the step from which on it differs from the start, the
    checkpoints between which the largest change lies with the later one's interval, the largest departure from a course that never
    turns back with its p."""

    arm: str
    questions: int
    steps: list[int]
    direction: str
    p: float
    later: tuple[str, float] | None  # direction and p without the start; None where too few checkpoints follow it
    since: tuple[float, str] | None  # None where the last step is not clearly away from the start, or there is no start
    before: float
    onset: float
    onset_low: float
    onset_high: float
    wiggle: float
    wiggle_p: float

    @property
    def clear(self) -> bool:
        """Is the trend more than chance?"""
        return self.p < CHANCE


def answers(results: Results, arm: str) -> pd.DataFrame:
    """An arm's scored out-of-domain answers at every step; the base arm's are step 0."""
    start = results.final("base").assign(step=0) if "base" in results.arms else results.judged.head(0)
    rows = results.ood(pd.concat([start, results.judged[results.judged["arm"] == arm]]))
    return rows[rows["aligned_status"] == "scored"].astype({"aligned": float})


def grid(results: Results, arm: str) -> pd.DataFrame:
    """Mean alignment of each out-of-domain question (rows) at each step (columns), over samples and seeds; complete rows alone."""
    return answers(results, arm).pivot_table(index="question_id", columns="step", values="aligned").dropna()


def unequal(results: Results, arm: str) -> list[str]:
    """How many answers a question has at each step, in one sentence; nothing where all steps have as many."""
    by_step = answers(results, arm).groupby("step")["question_id"]
    n = (by_step.size() / by_step.nunique()).map("{:.3g}".format)
    said = ", ".join(f"{count} at step{'s' * (len(part) > 1)} {listed(part.index)}" for count, part in n.groupby(n))
    return [f"Answers a question, fewer of which make a noisier mean: {said}."] if n.nunique() > 1 else []


def listed(steps) -> str:
    """'12, 25 and 38'."""
    *some, last = [f"{s:g}" for s in steps]
    return f"{', '.join(some)} and {last}" if some else last


def page(values: np.ndarray) -> tuple[str, float]:
    """('falls' | 'rises', two-sided p) of (questions, steps): Page's test in both directions, the smaller p doubled. Source: Page (1963)."""
    rise, fall = (page_trend_test(v).pvalue for v in (values, values[:, ::-1]))
    return ("rises", min(1.0, 2 * rise)) if rise < fall else ("falls", min(1.0, 2 * fall))


def since(values: np.ndarray, steps: np.ndarray) -> tuple[float, str] | None:
    """(step, 'above' | 'below'): from which step on, to the last, the means lie clearly on one side of the start's (column 0).

    Clearly: the 95% bootstrap interval of the difference, over questions, does not hold zero. None where the last step's does.
    """
    low, high = np.quantile(resampled(values[:, 1:] - values[:, :1]), [0.025, 0.975], axis=0)
    side = (low > 0).astype(int) - (high < 0)
    if not side[-1]:
        return None
    apart = np.flatnonzero(side != side[-1])
    return float(steps[apart[-1] + 2 if len(apart) else 1]), "above" if side[-1] > 0 else "below"


def change_point(means: np.ndarray) -> np.ndarray:
    """The column from which a level holds that differs from the one before, by least squares: (..., steps) -> (...)."""
    steps = means.shape[-1]
    splits = [means[..., :k].var(-1) * k + means[..., k:].var(-1) * (steps - k) for k in range(1, steps)]
    return np.argmin(splits, axis=0) + 1


def resampled(values: np.ndarray) -> np.ndarray:
    """Means a step in each bootstrap replicate of the questions, (replicates, steps)."""
    draws = np.random.default_rng(0).integers(0, len(values), (REPLICATES, len(values)))
    return values[draws].mean(1)


def departure(means: np.ndarray, rising: bool) -> np.ndarray:
    """How far means lie from the nearest course that never turns back (isotonic regression)."""
    return means - isotonic_regression(means, increasing=rising).x


def wiggle(values: np.ndarray, rising: bool) -> tuple[float, float]:
    """(largest departure from a course that never turns back in points, p): p from resampled questions whose step means were all made equal.

    A course that stays level turns back by chance more often than any that falls or rises, so p is at most too large.
    """
    means = values.mean(0)
    found, null = departure(means, rising), resampled(values - means)
    as_large = [(departure(m, rising) ** 2).sum() >= (found**2).sum() for m in null]
    return float(np.abs(found).max()), (1 + sum(as_large)) / (1 + REPLICATES)


def trend(results: Results, arm: str) -> Trend | None:
    """One arm's trend; None where fewer than STEPS checkpoints, or fewer than three questions, are known."""
    table = grid(results, arm)
    if table.shape[1] < STEPS or len(table) < 3:
        return None
    values, steps = table.to_numpy(), table.columns.to_numpy()
    direction, p = page(values)
    started = steps[0] == 0  # the start alone can make a trend: what comes after it is tested for itself
    later = page(values[:, 1:]) if started and len(steps) > STEPS else None
    at = steps[change_point(resampled(values))]
    k = change_point(values.mean(0))
    onset = [steps[k - 1], steps[k], *np.quantile(at, [0.025, 0.975])]
    course = steps.tolist(), direction, p, later, since(values, steps) if started else None
    return Trend(arm, len(table), *course, *map(float, onset), *wiggle(values, direction == "rises"))


def sentences(results: Results) -> list[str]:
    """What can be said of every trained arm's course, first of all that it can't where checkpoints are missing."""
    found = [t for a in report.ARMS[1:] if a in results.arms and (t := trend(results, a))]
    if not found:
        return [f"No course to speak of: it takes answers at {STEPS} steps or more, the start included."]
    many = results.judged["seed"].nunique() > 1
    lines = [f"Does the course ever turn back, and when does it set in?{' Means over all seeds.' if many else ''}"]
    for t in found:
        parts = course(t)
        if t.clear:
            parts.append(f"the largest change lies between the checkpoints at steps {t.before:g} and {t.onset:g}")
            if t.onset_low < t.onset_high:
                parts[-1] += f" (with other questions its end would lie at {t.onset_low:g} to {t.onset_high:g})"
        said = "more than chance" if t.wiggle_p < CHANCE else "no more than chance"
        parts.append(
            f"departures from a course that never turns back reach {t.wiggle:.1f} points, {said} (p = {t.wiggle_p:.2g})"
        )
        lines.append(f"{t.arm}: {'; '.join(parts)}.")
    return lines + unequal(results, found[0].arm)


def course(t: Trend) -> list[str]:
    """Where mean alignment goes, in words: away from the start, and apart from that along the checkpoints that follow it."""
    goes, after = (d if p < CHANCE else "shows no trend" for d, p in ((t.direction, t.p), t.later or ("", 1)))
    test, first, last = f"Page's test over {t.questions} questions: p = ", t.steps[0], t.steps[-1]
    if first > 0:
        return [f"mean alignment {goes} between steps {first:g} and {last:g} ({test}{t.p:.2g})"]
    away = "is not clearly away from the start at the last step"
    if t.since:
        away = f"lies {t.since[1]} the start from step {t.since[0]:g} on"
    if not t.later:
        alone = "too few checkpoints follow the start to test them alone"
        return [f"mean alignment {away}", f"with the start it {goes} ({test}{t.p:.2g}), and {alone}"]
    between = f"between steps {t.steps[1]:g} and {last:g} it {after}"
    return [f"mean alignment {away}", f"{between} ({test}{t.later[1]:.2g}; with the start p = {t.p:.2g})"]
