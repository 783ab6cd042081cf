"""What a study could see: the spread against simulated answers whose spread is known, and the sentence of `make plan`."""

import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats as distributions

from emstudy import inference, params, paths, power


def answers(rng, questions=42, samples=10, effect=0.0, sd=(6.0, 15.0)):
    """Values of both arms: questions differ in level and in effect (sd), answers around them."""
    between, within = sd
    level, shift = rng.normal(60, 20, questions), effect + rng.normal(0, between, questions)
    parts = []
    for arm, mean in (("misaligned", level + shift), ("aligned", level)):
        values = rng.normal(np.repeat(mean, samples), within)
        parts.append(
            pd.DataFrame({"arm": arm, "question_id": np.repeat(np.arange(questions), samples), "value": values})
        )
    return pd.concat(parts, ignore_index=True)


def test_the_spread_of_simulated_answers_is_found_again():
    table = answers(np.random.default_rng(0), questions=4000)
    found = power.spread(table["value"], table)
    assert found.question == pytest.approx(36, rel=0.1)
    assert found.answer == pytest.approx(225, rel=0.02)


def test_four_of_five_simulated_studies_find_what_is_said_to_be_detectable():
    rng, found = np.random.default_rng(1), []
    effect = inference.detectable(36.0, 225.0, 0.0, questions=42, samples=10, seeds=1)
    for _ in range(600):
        table = answers(rng, effect=effect)
        means = table.groupby(["question_id", "arm"])["value"].mean().unstack()
        found.append(distributions.ttest_1samp(means["misaligned"] - means["aligned"], 0).pvalue < 0.05)
    assert np.mean(found) == pytest.approx(0.8, abs=0.05)


def test_the_sentence_names_questions_answers_and_both_differences():
    laptop = params.study("laptop")
    said = power.sentence(laptop)
    assert said.startswith(
        "With 42 out-of-domain questions, 4 answers each and 1 seed(s), four studies of five would find"
    )
    least = float(re.search(r"difference between arms of ([\d.]+) points of mean alignment and", said).group(1))
    for matters, can in ((round(least - 0.2, 1), "out of"), (round(least + 0.2, 1), "within")):
        analyze = laptop.analyze.model_copy(update={"smallest_effect": matters})
        said = power.sentence(laptop.model_copy(update={"analyze": analyze}))
        assert said.endswith(f"A fall of {matters:g} points of mean alignment (smallest_effect) is {can} its reach.")


def test_a_study_that_asks_little_is_told_that_the_smallest_effect_is_out_of_its_reach():
    laptop = params.study("laptop")
    little = laptop.evaluate.model_copy(update={"question_sets": ["values"], "samples_final": 1})
    assert power.sentence(laptop.model_copy(update={"evaluate": little})).endswith("is out of its reach.")


def test_without_pages_of_the_default_study_the_sentence_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "REPORTS", tmp_path)
    assert "is not known" in power.sentence(params.study("laptop"))
