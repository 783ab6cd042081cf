"""Agreement against hand-worked numbers, and corrected rates against simulation."""

import math

import numpy as np
import pandas as pd
import pytest

from emstudy import agreement


def test_kappa_by_hand():
    # 20 both yes, 15 both no, 5 and 10 apart: seen 0.7, chance 0.5 x 0.6 + 0.5 x 0.4 = 0.5, kappa 0.4 (Wikipedia's example)
    a = [1] * 25 + [0] * 25
    b = [1] * 20 + [0] * 5 + [1] * 10 + [0] * 15
    assert agreement.kappa(a, b) == pytest.approx(0.4)
    assert agreement.kappa(a, a) == 1
    assert math.isnan(agreement.kappa([1, 1], [1, 1]))


def test_auc_counts_pairs():
    assert agreement.auc([1, 2, 3, 4], [0, 0, 1, 1]) == 1
    assert agreement.auc([1, 2, 2, 4], [0, 1, 0, 1]) == pytest.approx(3.5 / 4)  # a tie is half a pair
    assert math.isnan(agreement.auc([1, 2], [1, 1]))


def test_summary_and_confusion_by_hand():
    scores, gold = pd.Series([10.0, 40, 80, 90]), pd.Series([20.0, 20, 60, 100])
    found = agreement.summary(scores, gold, {30: (scores < 30).astype(float), 75: pd.Series([1, 1, 0.2, 0.1])})
    assert found["n"] == 4
    assert found["mean difference"] == pytest.approx(5)
    assert found["judge % < 30"] == 25
    assert found["gold % < 30"] == 50
    assert found["spearman"] == pytest.approx(0.9486833)
    assert found["kappa < 30"] == pytest.approx(0.5)  # 3 of 4 alike, chance 1/4 x 1/2 + 3/4 x 1/2
    assert found["judge % < 75"] == pytest.approx(57.5)  # a sum of probabilities
    assert found["called % < 75"] == 50
    assert found["kappa < 75"] == pytest.approx(0.5)  # calls 1 1 0 0 against 1 1 1 0
    table = agreement.confusion(scores < 30, gold < 30, ("below", "not"))
    assert table.to_numpy().tolist() == [[1, 1], [0, 2]]


def test_calibration_puts_every_answer_in_one_tenth():
    table = agreement.calibration(pd.Series([0.05, 0.07, 0.95, 1.0]), pd.Series([False, True, True, True]))
    assert table["n"].tolist() == [2, 2]
    assert table["observed"].tolist() == [0.5, 1.0]
    assert table["predicted"].tolist() == pytest.approx([0.06, 0.975])


def test_rogan_gladen_by_hand():
    # 40% called, sensitivity 90%, specificity 80%: (0.4 + 0.8 - 1) / 0.7
    rate, low, high = agreement.rogan_gladen((400, 1000), (90, 100), (80, 100))
    assert rate == pytest.approx(0.2 / 0.7)
    assert low < rate < high
    assert agreement.rogan_gladen((0, 100), (9, 10), (10, 10))[0] == 0
    with pytest.raises(ValueError, match="no better than chance"):
        agreement.rogan_gladen((5, 10), (5, 10), (5, 10))
    with pytest.raises(ValueError, match="no better than chance"):  # one hit among twenty: a quotient of noise
        agreement.rogan_gladen((4, 400), (1, 20), (199, 200))


@pytest.mark.parametrize(("true", "se", "sp"), [(0.1, 0.85, 0.95), (0.4, 0.7, 0.8), (0.02, 0.9, 0.97)])
def test_rogan_gladen_intervals_cover_the_true_rate(true, se, sp):
    rng, covered, runs = np.random.default_rng(0), 0, 2000
    for _ in range(runs):
        called = rng.binomial(400, true * se + (1 - true) * (1 - sp))
        hits, passes = (rng.binomial(100, se), 100), (rng.binomial(200, sp), 200)
        _, low, high = agreement.rogan_gladen((called, 400), hits, passes)
        covered += low <= true <= high
    assert 0.93 <= covered / runs <= 0.97


def test_prediction_powered_intervals_cover_the_true_mean():
    rng, covered, narrower, runs = np.random.default_rng(1), 0, 0, 2000
    for _ in range(runs):
        gold = rng.normal(60, 20, 1100)
        judge = 0.7 * gold + 25 + rng.normal(0, 5, 1100)  # biased, yet informative
        _, low, high = agreement.prediction_powered(judge, np.where(np.arange(1100) < 100, gold, np.nan))
        covered += low <= 60 <= high
        narrower += (high - low) / 2 < 1.96 * gold[:100].std(ddof=1) / 10
    assert 0.93 <= covered / runs <= 0.97
    assert narrower / runs > 0.99


def test_prediction_powered_intervals_cover_when_answers_to_a_question_are_alike():
    rng, covered, ignored, runs = np.random.default_rng(2), 0, 0, 1000
    for _ in range(runs):
        questions = np.repeat(np.arange(28), 15)
        gold = 60 + rng.normal(0, 12, 28)[questions] + rng.normal(0, 15, len(questions))
        judge = (
            gold + 8 + rng.normal(0, 6, 28)[questions] + rng.normal(0, 8, len(questions))
        )  # its bias differs by question
        labelled = rng.permutation(len(questions)) < 60
        told = np.where(labelled, gold, np.nan)
        _, low, high = agreement.prediction_powered(judge, told, questions)
        covered += low <= 60 <= high
        _, low, high = agreement.prediction_powered(judge, told)
        ignored += low <= 60 <= high
    assert 0.93 <= covered / runs <= 0.97
    assert ignored / runs < 0.9  # what happens to those who count answers as independent


def test_prediction_powered_differences_cover_when_the_judge_favours_one_side():
    rng, covered, unpaired, runs = np.random.default_rng(4), 0, 0, 1000
    for _ in range(runs):
        questions, sides = np.repeat(np.arange(28), 15), []
        hard = rng.normal(0, 15, 28)  # questions that are hard are so for both
        for mean, bias in ((50, 8), (60, -3)):
            gold = mean + (hard + rng.normal(0, 5, 28))[questions] + rng.normal(0, 15, len(questions))
            judge = gold + bias + rng.normal(0, 6, 28)[questions] + rng.normal(0, 8, len(questions))
            sides.append((judge, np.where(rng.permutation(len(questions)) < 60, gold, np.nan), questions))
        _, low, high = agreement.prediction_powered_difference(*sides)
        covered += low <= -10 <= high
        wide = [np.diff(agreement.prediction_powered(*s)[1:])[0] / 2 for s in sides]
        unpaired += math.hypot(*wide) > (high - low) / 2
    assert 0.93 <= covered / runs <= 0.97
    assert unpaired / runs > 0.99  # what pairing by question gains


def test_spearman_interval_holds_the_truth_and_widens_with_clusters():
    rng = np.random.default_rng(3)
    questions = np.repeat(np.arange(30), 20)
    a = rng.normal(0, 1, 30)[questions] + rng.normal(0, 0.3, 600)
    b = a + rng.normal(0, 1, 30)[questions]
    low, high = agreement.spearman_interval(a, b, questions)
    as_rows = agreement.spearman_interval(a, b, range(600))
    assert low < agreement.spearman(a, b) < high
    assert high - low > 2 * (as_rows[1] - as_rows[0])


def test_the_judges_own_bias_is_taken_out():
    gold = [60.0, 70.0] * 10 + [math.nan] * 80
    mean, low, high = agreement.prediction_powered([70.0, 80.0] * 50, gold)
    assert mean == pytest.approx(65)
    assert low < 65 < high
