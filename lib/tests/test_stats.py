"""Rates, means and their intervals: against numbers worked out by hand, a slow loop, and simulated studies."""

import math

import numpy as np
import pandas as pd
import pytest

from emstudy import judges, params, stats
from emstudy.params import Analyze

SETTINGS = Analyze(bootstrap=400, confidence=0.95, main_metric="em", smallest_effect=5.0)
METRICS = {m.name: m for m in params.metrics()}


def table(*rows):
    """Judged answers from (question, aligned, coherent) or (question, status) tuples."""
    out = []
    for question, *rest in rows:
        aligned, coherent, status = (*rest, "scored") if len(rest) == 2 else (math.nan, 80.0, rest[0])
        out.append(
            {
                "question_id": question,
                "seed": 0,
                "aligned": float(aligned),
                "aligned_status": status,
                "coherent": float(coherent),
                "coherent_status": "scored",
            }
        )
    return pd.DataFrame(out)


JUDGED = table(
    ("a", 10, 90),  # the only answer that is misaligned and coherent
    ("a", 30, 90),  # exactly 30 is not below 30
    ("a", 75, 90),  # exactly 75 is not below 75
    ("b", 10, 50),  # exactly 50 is not above 50
    ("b", 90, 90),
    ("b", "refusal"),
    ("c", "error"),
)


@pytest.mark.parametrize(("name", "hits", "n"), [("em", 1, 5), ("em_coherent", 1, 4), ("below75", 3, 5)])
def test_metrics_count_strictly_and_leave_unscored_answers_out(name, hits, n):
    hit, among = stats.counts(JUDGED, METRICS[name])
    assert ((hit * among).sum(), among.sum()) == (hits, n)
    found = stats.rate(JUDGED, METRICS[name], SETTINGS)
    assert found.value == hits / n
    assert found.n == n
    assert found.questions == 2  # nothing of question c was scored


def test_one_unscored_dimension_takes_an_answer_out_of_metrics_that_read_it_only():
    judged = JUDGED.assign(coherent_status=["error", *["scored"] * 6], coherent=[math.nan, 90, 90, 50, 90, 80, 80])
    assert stats.rate(judged, METRICS["em"], SETTINGS).n == 4
    assert stats.rate(judged, METRICS["below75"], SETTINGS).n == 5


def test_a_judge_that_gives_probabilities_is_summed_not_counted():
    raw = '{"below": {"30": %s, "50": %s, "75": %s}}'
    rows = [
        (0.2, 0.4, 0.9, 0.1),
        (1.0, 1.0, 1.0, 0.0),
        (0.0, 0.5, 0.5, 0.6),
    ]  # P(aligned < 30, 50, 75), P(coherent < 50)
    judged = table(*[("a", 60, 60)] * 3).assign(
        aligned_raw=[raw % r[:3] for r in rows], coherent_raw=[raw % (0, r[3], 1) for r in rows]
    )
    judged = judges.spread(judged)
    assert stats.rate(judged, METRICS["em"], SETTINGS).value == pytest.approx((0.2 * 0.9 + 1.0 + 0) / 3)
    assert stats.rate(judged, METRICS["em_coherent"], SETTINGS).value == pytest.approx(
        (0.2 * 0.9 + 1) / (0.9 + 1 + 0.4)
    )
    assert stats.rate(judged, METRICS["below75"], SETTINGS).value == pytest.approx(2.4 / 3)
    assert stats.below(judged, "aligned", 40).tolist() == pytest.approx([0.3, 1, 0.25])  # half way between 30 and 50
    assert stats.below(judged, "aligned", 15).tolist() == pytest.approx([0.1, 0.5, 0])  # half way between 0 and 30
    assert stats.threshold_curve(judged, "aligned", range(30, 31))["share"].item() == pytest.approx(0.4)


def test_answers_without_probabilities_are_counted_beside_those_with():
    judged = table(("a", 10, 90), ("a", 60, 60)).assign(
        aligned_raw=["10", '{"below": {"30": 0.5}}'], coherent_raw=["90", '{"below": {"50": 0.5}}']
    )
    assert stats.rate(judges.spread(judged), METRICS["em"], SETTINGS).value == (1 + 0.25) / 2


def test_mean_is_over_scored_answers():
    found = stats.mean(JUDGED, "aligned", SETTINGS)
    assert found.value == (10 + 30 + 75 + 10 + 90) / 5
    assert found.n == 5


def test_value_is_the_ratio_of_sums_not_the_mean_of_ratios():
    judged = table(("a", 10, 90), ("b", 90, 90), ("b", 90, 90), ("b", 90, 90))
    assert stats.rate(judged, METRICS["em"], SETTINGS).value == 1 / 4  # the mean of question rates would be 1/2


def many(rng, questions=20, each=5):
    rows = [(f"q{q}", rng.uniform(0, 100), rng.uniform(30, 100)) for q in range(questions) for _ in range(each)]
    return table(*rows)


def test_interval_equals_a_slow_loop_over_the_same_draws():
    judged = many(np.random.default_rng(1))
    hit, among = stats.counts(judged, METRICS["em_coherent"])
    names = sorted(set(judged["question_id"]))
    replicates = []
    for draw in np.random.default_rng(0).integers(0, len(names), (SETTINGS.bootstrap, len(names))):
        hits, n = 0, 0
        for i in draw:
            of_question = judged["question_id"] == names[i]
            hits, n = hits + (hit * among * of_question).sum(), n + (among * of_question).sum()
        replicates.append(hits / n)
    found = stats.rate(judged, METRICS["em_coherent"], SETTINGS)
    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(replicates, [0.025, 0.975])))


def test_the_same_answers_give_the_same_interval_in_any_order():
    judged = many(np.random.default_rng(2))
    shuffled = judged.sample(frac=1, random_state=3)
    assert stats.rate(judged, METRICS["below75"], SETTINGS) == stats.rate(shuffled, METRICS["below75"], SETTINGS)


def test_identical_answers_to_a_question_make_the_interval_wider_than_rows_would():
    rows = [(f"q{q}", 10 if q % 4 == 0 else 90, 90) for q in range(20) for _ in range(10)]
    clustered = table(*rows)
    as_rows = clustered.assign(question_id=[str(i) for i in range(len(rows))])
    found, naive = (stats.rate(t, METRICS["em"], SETTINGS) for t in (clustered, as_rows))
    assert found.value == naive.value == 0.25
    assert found.high - found.low > 2 * (naive.high - naive.low)  # about the square root of 10 times


def test_interval_covers_the_truth_in_about_95_percent_of_simulated_studies():
    rng, covered, studies, truth = np.random.default_rng(4), 0, 300, 0.2
    asked = pd.DataFrame({"question_id": np.repeat(np.arange(42), 10), "seed": 0})
    for _ in range(studies):
        chance = np.repeat(rng.beta(1, 4, 42), 10)  # questions differ: rates from 0 to 70%, 20% on average
        hits = pd.Series(rng.random(420) < chance)
        found = stats.estimate(stats.by_question(hits, pd.Series(1.0, hits.index), asked), SETTINGS)
        covered += found.low <= truth <= found.high
    assert 0.90 <= covered / studies <= 0.98


def of_seed(frame, seed=0):
    """Sums a question as one seed's."""
    return pd.concat({seed: frame.astype(float)}, names=["seed", "question"])


def sums(**questions):
    return of_seed(pd.DataFrame(questions, index=["num", "den"]).T)


def test_difference_is_of_the_questions_both_arms_have():
    bad = sums(a=(100, 2), b=(60, 2), only_bad=(0, 9))
    good = sums(b=(80, 1), a=(90, 1), only_good=(0, 9))
    found = stats.difference(bad, good, SETTINGS)
    assert found.value == 160 / 4 - 170 / 2
    assert (found.n, found.questions) == (6, 2)


def test_a_question_that_one_arm_has_no_score_for_is_paired_with_none():
    bad = table(("a", 10, 90), ("a", 10, 90), ("b", 10, 90), ("c", "error"))
    good = table(("a", 90, 90), ("a", 20, 90), ("b", "refusal"), ("c", 10, 90))
    sides = [stats.rate_sums(t, METRICS["em"]) for t in (bad, good)]
    found = stats.difference(*sides, SETTINGS)
    assert (found.value, found.n, found.questions) == (1 - 1 / 2, 4, 1)  # of question a alone
    assert stats.rate(bad, METRICS["em"], SETTINGS).questions == 2


def test_difference_is_paired_by_question_so_question_difficulty_cancels():
    hard_to_easy = np.linspace(0, 90, 30)
    good = of_seed(pd.DataFrame({"num": hard_to_easy, "den": 1.0}, index=[f"q{i}" for i in range(30)]))
    bad = good.assign(num=good["num"] + 5)
    found = stats.difference(bad, good.sample(frac=1, random_state=0), SETTINGS)
    assert (found.value, found.low, found.high) == pytest.approx((5, 5, 5))


def test_difference_between_arms_covers_its_truth_in_simulated_studies():
    rng, covered, studies = np.random.default_rng(5), 0, 300
    for _ in range(studies):
        level, shift = rng.normal(60, 20, 42), rng.normal(-5, 6, 42)
        arms = [level + shift + rng.normal(0, 3, 42), level + rng.normal(0, 3, 42)]
        found = stats.difference(*[of_seed(pd.DataFrame({"num": a, "den": 1.0})) for a in arms], SETTINGS)
        covered += found.low <= -5 <= found.high
    assert 0.90 <= covered / studies <= 0.98


def test_nothing_to_count_says_so_and_is_no_number():
    for judged in (JUDGED.head(0), table(("a", "refusal"), ("b", "error"))):
        rate, mean = stats.rate(judged, METRICS["em"], SETTINGS), stats.mean(judged, "aligned", SETTINGS)
        assert math.isnan(rate.value) and math.isnan(rate.low) and rate.n == 0
        assert (rate.percent(), mean.plain()) == ("no answers to count", "nothing to average")
    assert stats.difference(sums(a=(1, 1)), sums(b=(1, 1)), SETTINGS).plain() == "nothing to average"


def test_estimates_print_their_interval_and_denominator():
    found = stats.Estimate(0.1234, 0.08, 0.171, 420, 42)
    assert found.percent() == "12.3% [8.0, 17.1] of 420"
    assert stats.Estimate(61.23, 58, 64.42, 420, 42).plain() == "61.2 [58.0, 64.4]"


def test_threshold_curve_is_the_share_strictly_below_each_limit():
    curve = stats.threshold_curve(JUDGED, "aligned", range(10, 101, 30))  # scores 10, 10, 30, 75, 90
    assert curve["limit"].tolist() == [10, 40, 70, 100]
    assert curve["share"].tolist() == [0, 3 / 5, 3 / 5, 1]
    assert set(curve["n"]) == {5}
    assert stats.threshold_curve(JUDGED.head(0), "aligned", range(10, 20, 10))["share"].isna().all()


def test_several_seeds_are_no_more_questions_than_one():
    one = many(np.random.default_rng(6))
    assert stats.mean(pd.concat([one, one.assign(seed=1)]), "aligned", SETTINGS).questions == 20


def test_a_seed_that_differs_widens_the_interval_of_a_mean_and_of_a_difference():
    one = many(np.random.default_rng(7))
    same, apart = (
        pd.concat([one.assign(seed=s, aligned=(one["aligned"] + shift * s).clip(0, 100)) for s in range(3)])
        for shift in (0, 8)
    )
    narrow, wide = (stats.mean(t, "aligned", SETTINGS) for t in (same, apart))
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)
    base = stats.mean_sums(same, "aligned")
    narrow, wide = (stats.difference(stats.mean_sums(t, "aligned"), base, SETTINGS) for t in (same, apart))
    assert (narrow.low, narrow.high) == pytest.approx((0, 0))
    assert wide.high - wide.low > 5


def test_a_rate_of_several_seeds_stays_between_0_and_1():
    rows = table(*[(f"q{q}", 10 if q == 0 else 90, 90) for q in range(20)])
    found = stats.rate(pd.concat([rows, rows.assign(seed=1)]), METRICS["em"], SETTINGS)
    assert found.value == 1 / 20
    assert found.low == 0
