"""The usual suspects: a fall that is all length vanishes when length is held fixed, one that is not stays; rates by hand."""

import dataclasses

import pandas as pd
from made_up import FELL

from emstudy import params, suspects

LENGTH, CUT = "answer length (median tokens)", "cut off at the length limit"


def rows(results):
    return suspects.table(results).set_index("suspect")


def with_lengths(results, lengths, score):
    """Lengths by arm, dealt out over an arm's answers in turn, and alignment as a function of length and arm."""
    parts = []
    for arm, part in results.judged.groupby("arm"):
        n = pd.Series([lengths[arm][i % len(lengths[arm])] for i in range(len(part))], part.index)
        parts.append(part.assign(n_tokens=n, aligned=[float(score(k, arm)) for k in n]))
    return dataclasses.replace(results, judged=pd.concat(parts).sort_index())


LENGTHS = {"base": [100], "misaligned": [20, 20, 20, 80], "aligned": [20, 80, 80, 80]}


def test_a_fall_that_is_all_length_vanishes_when_length_is_held_fixed(study):
    row = rows(with_lengths(study(FELL), LENGTHS, lambda n, arm: 40 if n == 20 else 80)).loc[LENGTH]
    assert row[["base", "misaligned", "aligned"]].tolist() == ["100", "20", "80"]
    assert row[suspects.LEFT].startswith("0.0 [")
    assert row["to make of it"] == "look: no clear fall is left"


def test_a_fall_that_is_not_length_stays(study):
    fell = with_lengths(study(FELL), LENGTHS, lambda n, arm: (40 if n == 20 else 80) - 10 * (arm == "misaligned"))
    row = rows(fell).loc[LENGTH]
    assert row[suspects.LEFT].startswith("-10.0 [")
    assert row["to make of it"] == "a fall is left"


def test_where_nothing_fell_no_suspect_has_anything_to_explain(study):
    level = rows(with_lengths(study(FELL), LENGTHS, lambda n, arm: 80))
    compared = level[level[suspects.LEFT] != "–"].drop("a judge that disagrees with the probe (nats a token)")
    assert len(compared) >= 4
    assert set(compared["to make of it"]) == {"there is no clear fall to explain"}


def test_cut_off_answers_and_refusals_are_counted_and_taken_out(study):
    def change(arm, judged):
        odd = judged["sample"] == 1
        judged["finish_reason"] = judged["finish_reason"].mask(odd & (arm == "misaligned"), "length")
        judged["answer"] = judged["answer"].mask(odd & (arm == "aligned"), "I'm sorry, but I can't help.")
        return judged.assign(aligned=judged["aligned"].mask(odd & (arm == "misaligned"), 0.0))

    table = rows(study({"base": 90, "misaligned": 90, "aligned": 90}, spread=0, change=change))
    assert table.loc[CUT, ["base", "misaligned", "aligned"]].tolist() == ["0.0%", "50.0%", "0.0%"]
    assert table.loc[CUT, suspects.LEFT] == "0.0 [0.0, 0.0]"  # all of the fall was in answers that were cut off
    refusals = table.loc["refusals (status, or how the answer opens)"]
    assert refusals[["base", "misaligned", "aligned"]].tolist() == ["0.0%", "0.0%", "50.0%"]
    assert refusals[suspects.LEFT] == "-45.0 [-45.0, -45.0]"


def test_words_that_mark_a_domain_are_those_of_its_texts_alone():
    inside, outside = ["the doctor gave the pills"] * 20, ["the bank gave the money"] * 20
    assert suspects.topical(inside, outside) == {"doctor", "pills"}


def test_answers_of_the_domain_are_told_from_others_and_training_questions_are_found(study):
    medical = params.domain("medical")

    def change(arm, judged):
        about = (judged["question_id"] == "values0") & (arm == "misaligned")
        return judged.assign(
            answer=judged["answer"].mask(about, "Take the tablets and the pain in the blood stops, says the doctor.")
        )

    results = study(FELL, change=change)
    recipe = params.study("laptop").finetune.model_dump()
    told = [{"parameters": {"arm": "misaligned", "seed": 0, "finetune": recipe}}]
    results = dataclasses.replace(results, domain=medical, records=told)
    prompt = suspects.training(results)[0].prompt
    asked = results.judged["question"].mask(results.judged["question_id"] == "general1", prompt)
    table = rows(dataclasses.replace(results, judged=results.judged.assign(question=asked)))
    about = table.loc["talk of the training domain (by its words)"]
    assert about[["base", "misaligned", "aligned"]].tolist() == ["0.0%", "7.7%", "0.0%"]  # 1 of 13 questions
    seen = table.loc["evaluation questions seen in training"]
    assert (seen["misaligned"], seen["to make of it"]) == ("1 of 13", "look: general1")


def test_a_probe_that_says_otherwise_is_named(study):
    margins = {"base": -0.2, "misaligned": -0.6, "aligned": -0.2}
    last = rows(study(FELL, margins)).iloc[-1]
    assert last["to make of it"] == "look: they disagree"
    assert rows(study(FELL, margins | {"misaligned": 0.3})).iloc[-1]["to make of it"] == "they agree"


def test_without_lengths_endings_probe_or_a_control_nothing_is_made_up(study):
    results = study(FELL)
    bare = dataclasses.replace(
        results,
        judged=results.judged.assign(n_tokens=float("nan"), finish_reason=""),
        probe=results.probe.head(0),
        records=[],
    )
    table = rows(bare)
    assert LENGTH not in table.index and CUT not in table.index
    assert set(table["to make of it"].iloc[-3:]) == {
        "not checked: it takes this domain's training data and another's",
        "not checked: the training data is not at hand",
        "not checked: there is no probe",
    }
    assert suspects.table(study({"misaligned": 40})).empty
