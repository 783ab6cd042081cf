"""Tests of differences: against enumeration, hand-worked Holm, statsmodels' power, and simulated studies without an effect."""

from itertools import product

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.power import TTestPower

from emstudy import inference


def sums(num, den=None, seed=0):
    """Sums of one seed's questions."""
    frame = pd.DataFrame(
        {"num": np.asarray(num, float), "den": np.ones(len(num)) if den is None else np.asarray(den, float)}
    )
    frame.index = pd.MultiIndex.from_product([[seed], [f"q{i}" for i in range(len(num))]], names=["seed", "question"])
    return frame


def test_p_is_the_share_of_all_exchanges_that_differ_as_much():
    rng = np.random.default_rng(0)
    a, b = sums(rng.random(9), rng.integers(1, 4, 9)), sums(rng.random(9) + 0.3, rng.integers(1, 4, 9))

    def gap(turned):
        x, y = (np.where(np.array(turned)[:, None], p, q).sum(0) for p, q in ((b, a), (a, b)))
        return x[0] / x[1] - y[0] / y[1]

    seen, every = gap([False] * 9), [gap(t) for t in product([False, True], repeat=9)]
    low, high = np.mean(np.array(every) <= seen + 1e-12), np.mean(np.array(every) >= seen - 1e-12)
    assert inference.permutation_p(a, b) == pytest.approx(min(1, 2 * min(low, high)))


def test_seeds_of_a_question_change_sides_together():
    rng = np.random.default_rng(1)
    a, b = rng.random(12), rng.random(12) + 0.2
    one = inference.permutation_p(sums(a), sums(b))
    three = inference.permutation_p(*[pd.concat([sums(x, seed=s) for s in range(3)]) for x in (a, b)])
    assert three == one  # the same answers three times over tell no more


def test_p_is_even_when_there_is_no_effect():
    rng, ps = np.random.default_rng(2), []
    for _ in range(200):
        level = rng.normal(60, 20, 10)
        ps.append(inference.permutation_p(*[sums(level + rng.normal(0, 5, 10)) for _ in range(2)]))
    assert 0.01 <= np.mean(np.array(ps) < 0.05) <= 0.09
    assert 0.4 <= np.mean(ps) <= 0.6


def test_arms_without_a_common_question_have_no_p():
    assert np.isnan(inference.permutation_p(sums([1.0]), sums([1.0], den=[0.0])))


def test_holm_is_worked_by_hand_and_leaves_out_what_is_not_known():
    found = inference.holm(pd.Series([0.01, np.nan, 0.04, 0.03]))
    assert found.tolist() == pytest.approx([0.03, np.nan, 0.06, 0.06], nan_ok=True)
    assert inference.holm(pd.Series([np.nan])).isna().all()


def test_wilson_is_newcombe_s_example():
    """Newcombe (1998), table I: 81 of 263."""
    assert inference.wilson(81, 263, 0.95) == pytest.approx((0.2553, 0.3662), abs=1e-4)


def test_detectable_is_what_a_paired_t_test_finds_in_four_of_five_tries():
    found = inference.detectable(question=64.0, answer=0.0, seed=0.0, questions=42, samples=10, seeds=1)
    assert TTestPower().power(found / 8.0, nobs=42, alpha=0.05) == pytest.approx(0.8, abs=0.01)


def test_detectable_falls_with_questions_samples_and_seeds():
    plain = {"question": 64.0, "answer": 400.0, "seed": 4.0, "questions": 42, "samples": 10, "seeds": 3}
    found = inference.detectable(**plain)
    for more in ({"questions": 84}, {"samples": 20}, {"seeds": 6}):
        assert inference.detectable(**plain | more) < found
