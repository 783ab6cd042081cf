"""Along training: Page's published example, simulated courses whose change is known, and false alarms counted."""

import re

import numpy as np
import pandas as pd
import pytest
from made_up import FELL

from emstudy import trends

# Ratings of three settings by ten raters, with the textbook's L = 133.5 (scipy's documentation of page_trend_test)
RATINGS = np.array(
    [[3, 4, 3], [2, 2, 4], [3, 3, 5], [1, 3, 2], [2, 3, 2], [2, 4, 5], [1, 2, 4], [3, 4, 4], [2, 4, 5], [1, 3, 4]]
)


def test_pages_test_finds_the_textbooks_rise_and_the_same_fall_in_the_mirror():
    direction, p = trends.page(RATINGS)
    assert direction == "rises" and p < 0.01
    assert trends.page(RATINGS[:, ::-1]) == ("falls", p)


def test_the_change_point_is_where_a_step_is():
    assert trends.change_point(np.array([70.0, 70, 50, 50, 50])) == 2
    assert trends.change_point(np.array([[70.0, 50, 50, 50], [70, 70, 70, 50]])).tolist() == [1, 3]


def test_departure_from_a_steady_course_by_hand():
    # falling: 60, 40, 50 pools the last two to 45
    assert trends.departure(np.array([60.0, 40, 50]), rising=False).tolist() == [0, -5, 5]
    assert trends.departure(np.array([60.0, 50, 40]), rising=False).tolist() == [0, 0, 0]


def simulated(rng, course):
    """(30 questions, steps): levels of their own, and noise of 12 points around the course."""
    return np.asarray(course) + rng.normal(0, 10, (30, 1)) + rng.normal(0, 12, (30, len(course)))


@pytest.mark.parametrize("course", [[60.0] * 5, [70.0, 65, 60, 55, 50]])
def test_ups_and_downs_of_noise_alone_raise_few_alarms(course, monkeypatch):
    monkeypatch.setattr(trends, "REPLICATES", 200)
    rng = np.random.default_rng(0)
    alarms = [trends.wiggle(simulated(rng, course), rising=False)[1] < 0.05 for _ in range(150)]
    assert np.mean(alarms) <= 0.08


def test_a_course_that_turns_back_by_15_points_is_found(monkeypatch):
    monkeypatch.setattr(trends, "REPLICATES", 200)
    rng = np.random.default_rng(1)
    found = [trends.wiggle(simulated(rng, [70.0, 50, 65, 50, 50]), rising=False)[1] < 0.05 for _ in range(60)]
    assert np.mean(found) >= 0.9


def test_the_onsets_interval_holds_the_true_step_often_enough(monkeypatch):
    monkeypatch.setattr(trends, "REPLICATES", 200)
    rng, held = np.random.default_rng(3), []
    for _ in range(150):
        at = trends.change_point(trends.resampled(simulated(rng, [70.0, 70, 65, 65, 65])))
        low, high = np.quantile(at, [0.025, 0.975])
        held.append(low <= 2 <= high)
    assert np.mean(held) >= 0.93


def test_no_trend_raises_few_alarms():
    rng = np.random.default_rng(2)
    assert np.mean([trends.page(simulated(rng, [60.0] * 5))[1] < 0.05 for _ in range(300)]) <= 0.08


def test_the_sentences_say_fall_onset_and_wiggle(study):
    head, bad, good = trends.sentences(study(FELL, spread=1))
    assert head == "Does the course ever turn back, and when does it set in?"
    assert bad.startswith(
        "misaligned: mean alignment lies below the start from step 8 on; with the start it falls (Page's test "
    )
    assert "over 10 questions: p = " in bad and "too few checkpoints follow the start to test them alone;" in bad
    assert "the largest change lies between the checkpoints at steps 4 and 8;" in bad  # 90, 90, 40
    assert "departures from a course that never turns back reach" in bad and "no more than chance" in bad
    assert good.startswith("aligned: ")


def test_the_step_from_which_a_course_lies_on_one_side_of_its_start():
    steps, noise = np.array([0, 12, 25, 38]), simulated(np.random.default_rng(4), [0.0] * 4)
    assert trends.since(np.add(noise, [70, 50, 50, 50]), steps) == (12, "below")
    assert trends.since(np.add(noise, [50, 30, 50, 70]), steps) == (
        38,
        "above",
    )  # below it at first, which does not hold
    assert trends.since(np.add(noise, [70, 50, 50, 70]), steps) is None


def test_a_fall_that_the_start_alone_makes_is_no_trend_afterwards(study):
    """90 before training, 60 at every checkpoint after it, each of which has one answer a question but the last, which has two."""

    def change(arm, judged):
        if arm == "base":
            return judged
        noise = np.random.default_rng(5).normal(60, 3, (4, len(judged)))
        parts = [judged.assign(step=4 * (k + 1), aligned=noise[k]) for k in range(4)]
        table = pd.concat(parts).drop_duplicates(["step", "question_id", "sample"])
        return table[(table["sample"] == 0) | (table["step"] == 16)]

    _, bad, good, answers = trends.sentences(study({"base": 90, "misaligned": 60, "aligned": 60}, change=change))
    said = r": mean alignment lies below the start from step 4 on; between steps 4 and 16 it shows no trend \(Page's test over 10 "
    for line in (bad, good):
        p, with_start = re.search(said + r"questions: p = ([\d.]+); with the start p = ([\d.e-]+)\)", line).groups()
        assert float(with_start) < 0.05 < float(p)
    assert (
        answers
        == "Answers a question, fewer of which make a noisier mean: 1 at steps 4, 8 and 12, 2 at steps 0 and 16."
    )


def test_without_a_start_the_checkpoints_alone_are_tested(study):
    def change(arm, judged):
        return pd.concat([judged.assign(step=4 * (k + 1), aligned=judged["aligned"] - 10 * k) for k in range(3)])

    _, line, *_ = trends.sentences(study({"misaligned": 90}, change=change))
    assert re.match(
        r"misaligned: mean alignment falls between steps 4 and 12 \(Page's test over 10 questions: p = [\d.e-]+\);",
        line,
    )


def test_without_checkpoints_the_sentence_says_so(study):
    assert trends.sentences(study({"base": 90}))[0].startswith("No course to speak of")
