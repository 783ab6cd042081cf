"""Several seeds: variance components against statsmodels' REML, a worked example, and coverage in simulated studies."""

import warnings

import numpy as np
import pandas as pd
import pytest
import statsmodels.formula.api as smf

from emstudy import seeds


def study(rng, n_seeds=3, questions=42, sd=(2.0, 8.0, 6.0), truth=-5.0):
    """One value a seed and question: the truth, a seed's and a question's share, and the rest."""
    s, q, e = sd
    values = (
        truth + rng.normal(0, s, (n_seeds, 1)) + rng.normal(0, q, questions) + rng.normal(0, e, (n_seeds, questions))
    )
    return pd.DataFrame(values).rename_axis(index="seed", columns="question")


def test_mean_squares_of_a_table_worked_by_hand():
    values = pd.DataFrame([[1.0, 2.0], [3.0, 8.0]])  # rows 1.5 and 5.5, columns 2 and 5, mean 3.5; rest +-1
    assert seeds.mean_squares(values) == pytest.approx((16, 9, 4))
    found = seeds.components(values)
    assert (found.seed, found.question, found.rest) == pytest.approx((6, 2.5, 4))
    assert list(found.shares().values()) == pytest.approx([6 / 12.5, 2.5 / 12.5, 4 / 12.5])
    low, high = seeds.interval(values, 0.95)  # variance 21, df 21^2 / (16^2 + 9^2) = 1.309
    assert (low + high) / 2 == pytest.approx(3.5)
    assert high - low == pytest.approx(2 * 7.4178 * np.sqrt(21 / 4), rel=1e-3)


def test_components_are_those_of_a_mixed_model_fitted_by_reml():
    values = study(np.random.default_rng(1), n_seeds=4, questions=30, sd=(5.0, 8.0, 6.0))
    long = values.stack().rename("y").reset_index().assign(one=1)
    parts = {"seed": "0 + C(seed)", "question": "0 + C(question)"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit = smf.mixedlm("y ~ 1", long, groups="one", vc_formula=parts, re_formula="0").fit(reml=True)
    by_name = dict(zip(fit.model.exog_vc.names, fit.vcomp, strict=True))
    found = seeds.components(values)
    assert (found.seed, found.question, found.rest) == pytest.approx(
        (by_name["seed"], by_name["question"], fit.scale), rel=0.02
    )


@pytest.mark.parametrize(
    ("n_seeds", "sd", "least"),
    [(n, sd, 0.92) for n in (2, 3, 5) for sd in [(0.0, 8.0, 6.0), (2.0, 8.0, 6.0), (1.0, 4.0, 10.0)]]
    + [(2, (6.0, 8.0, 6.0), 0.85), (3, (6.0, 8.0, 6.0), 0.89), (5, (6.0, 8.0, 6.0), 0.92)],
)
def test_the_interval_covers_the_truth_whatever_holds_the_variance(n_seeds, sd, least):
    rng = np.random.default_rng(2)
    covered = [
        low <= -5 <= high for low, high in (seeds.interval(study(rng, n_seeds, sd=sd), 0.95) for _ in range(600))
    ]
    assert np.mean(covered) >= least


def test_with_seeds_that_do_not_differ_the_interval_is_that_of_the_questions():
    rng = np.random.default_rng(3)
    one = rng.normal(0, 8, 42)
    low, high = seeds.interval(pd.DataFrame([one, one, one]), 0.95)
    assert high - low == pytest.approx(
        2 * 2.0195 * one.std(ddof=1) / np.sqrt(42), rel=1e-3
    )  # t with 41 degrees of freedom


def test_the_grid_has_the_ratio_as_its_mean_and_moves_with_the_numerators():
    index = pd.MultiIndex.from_product([[0, 1], ["a", "b"]], names=["seed", "question"])
    sums = pd.DataFrame({"num": [1.0, 2.0, 3.0, 0.0], "den": [2.0, 4.0, 6.0, 0.0]}, index=index)
    found = seeds.grid(sums)
    assert found.to_numpy().mean() == pytest.approx(6 / 12)
    assert found.loc[0].tolist() == pytest.approx([0.5, 0.5])  # every cell has the same rate
    sums.loc[(0, "a"), "num"] += 1
    assert seeds.grid(sums).to_numpy().mean() == pytest.approx(7 / 12)
    assert seeds.grid(sums).loc[0, "a"] > seeds.grid(sums).loc[0, "b"]
