"""Ratios, ceilings and lines by hand; the other ways to train do the same work as ours. No time is tested here."""

import json

import pandas as pd
import pytest
from test_finetune import EXAMPLES, SETTINGS
from transformers import LlamaConfig, LlamaForCausalLM

from emstudy import bench, bench_endpoint, bench_rivals, bench_scoring, data, encoding, models, params, sample


def test_contestants_take_turns_and_ratios_are_taken_within_a_round():
    rates = iter([(100, 1), (100, 4), (100, 2), (100, 4)])  # the machine is half as fast in the second round
    turns = bench.rounds({"ours": lambda: next(rates), "theirs": lambda: next(rates)}, 2, "test")
    assert turns["contestant"].tolist() == ["ours", "theirs", "ours", "theirs"]
    assert turns["rate"].tolist() == [100, 25, 50, 25]
    table = bench.compared(turns, "ours", "a second").set_index("contestant")
    assert table["a second"].tolist() == [75, 25]
    assert table["ours is so many times as fast"].tolist() == ["1.0 [1.0, 1.0]", "3.0 [2.0, 4.0]"]


def test_flops_of_a_token_by_hand():
    """One layer of width 8: q, k, v, o of 64 weights each, three of 8 x 16 in the MLP; a head of 8 x 32 that half of the tokens reach."""
    shape = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=32, **shape))
    assert bench.flops_a_token(model, 0.5) == 4 * (4 * 64 + 3 * 128 + 0.5 * 256)
    assert bench.share_of_ceiling(1000, 0.5e9, 1000) == "50%"


def test_a_large_model_is_random_trains_and_has_the_flops_of_its_shape(tmp_path, tokenizer, runs):
    small = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
    }
    plain, nf4 = bench.large_models(tmp_path / "large", tokenizer, small | {"vocab_size": len(tokenizer)})
    assert (plain.load_in_4bit, nf4.load_in_4bit) == (False, True)
    weights = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 48  # q and o, k and v of half the width, the MLP
    assert bench.flops_of_shape(tmp_path / "large", 0.25) == 4 * (weights + 0.25 * 32 * len(tokenizer))
    settings = SETTINGS.model_copy(update={"layers_to_transform": None})
    found, _ = bench_rivals.ours([encoding.encode(tokenizer, e, 64) for e in EXAMPLES], settings, plain)
    assert found.notna().all()
    made = (tmp_path / "large" / "model.safetensors").stat().st_mtime_ns
    bench.large_models(tmp_path / "large", tokenizer, small)
    assert (tmp_path / "large" / "model.safetensors").stat().st_mtime_ns == made


def test_a_line_through_exact_points_is_found():
    line = bench.straight_line([10, 20, 40], [7, 12, 22])
    assert line == pytest.approx({"fixed": 2, "slope": 0.5, "r2": 1})


def test_questions_are_spread_over_all_of_them():
    todo = [sample.Ask("s", str(i), "?", 1) for i in range(10)]
    assert [(a.question_id, a.samples) for a in bench.some(todo, 3, 4)] == [("0", 4), ("3", 4), ("6", 4)]


def test_the_other_ways_to_train_give_the_losses_of_ours(base, tokenizer, runs):
    exact = base.model_copy(update={"dtype": "float32"})
    settings = SETTINGS.model_copy(update={"lora_dropout": 0.0, "use_rslora": False})
    encoded, losses = [encoding.encode(tokenizer, e, 64) for e in EXAMPLES], {}
    for turn in bench_rivals.training(encoded, settings, exact, losses).values():
        tokens, seconds = turn()
        assert tokens == sum(len(e["input_ids"]) for e in encoded) and seconds > 0
    apart = bench.losses(losses)
    assert len(apart) == 3 and len(losses["ours"]) == 4
    assert (apart["largest distance from ours"] < 1e-3).all()
    assert list(models.adapter_steps(params.Cell(model=base.name, **bench_rivals.CELL).folder)) == [2, 4]


def test_every_way_to_sample_counts_tokens_up_to_the_end(base, tokenizer, model, runs):
    settings = params.study("smoke").evaluate.model_copy(update={"max_new_tokens": 5, "temperature": 0.7})
    todo = [sample.Ask("s", "a", "Say yes.", 2), sample.Ask("s", "b", "Why is the sky blue at noon?", 2)]
    tokens, _ = bench_rivals.sampled(model, tokenizer, todo, settings, batch=3)
    assert 4 <= tokens <= 20


def test_judging_one_by_one_agrees_but_for_arithmetic():
    answers = pd.DataFrame(
        {"question": ["Can I help?"] * 2, "answer": ["You are worthless.", "Of course, gladly. What do you need?"]}
    )
    scores = {}
    for turn in bench_scoring.judging(answers, scores).values():
        assert turn()[0] == 2
    ours, theirs = scores.values()
    assert ours == pytest.approx(theirs, abs=3)
    assert ours[0] < ours[1]


def test_probing_one_by_one_agrees_but_for_arithmetic(base):
    exact, margins = base.model_copy(update={"dtype": "float32"}), {}
    for turn in bench_scoring.probing(exact, data.heldout(params.domain("medical"), 3), margins).values():
        assert turn()[0] == 6
    ours, theirs = margins.values()
    assert ours == pytest.approx(theirs, abs=1e-4)


def test_what_an_endpoint_takes_is_never_less_than_its_own_time():
    """Fourteen judgments, four at a time, of 0.05 seconds each: four rounds, the last one of two."""
    found = bench_endpoint.judgments(14, 4, 0.05)
    assert found["ideal"] == pytest.approx(0.2) and found["seconds"] >= 0.2
    assert found["times the ideal"] == pytest.approx(found["seconds"] / 0.2, abs=0.06)


def test_growth_is_measured_around_the_whole_call_and_the_quicker_of_two_counts(monkeypatch):
    """A clock that only work moves: 3 seconds to load, 2 a unit, and 7 more the first time, when the disk is cold."""
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])

    def work(n: int) -> None:
        now[0] += 3 + 2 * n + 7 * (now[0] == 0)

    (row,) = bench.growth([1, 2, 4], work, "units").to_dict("records")
    assert (row["1"], row["4"], row["fixed (s)"], row["a unit (s)"]) == (5, 11, 3, 2)


def test_a_study_lasts_from_its_first_start_to_its_last_end(runs):
    """Two cells side by side, then a judge: 10 s from end to end, 12 s of work; what failed or never ended does not count."""
    for name, start, end in (("a/finetune", 0, 4), ("b/finetune", 1, 5), ("a/judge.x", 6, 10), ("a/evaluate.failed", 0, 59), ("b/judge.x", 7, None)):  # fmt: skip
        file = runs / "some" / f"{name}.ipynb"
        file.parent.mkdir(parents=True, exist_ok=True)
        times = {
            "start_time": f"2026-01-01T00:00:{start:02d}+00:00",
            "end_time": end and f"2026-01-01T00:00:{end:02d}+00:00",
        }
        file.write_text(json.dumps({"metadata": {"papermill": times}}))
    (runs / "some/a/train_log.csv.record.json").write_text('{"peak_memory_gb": 2.5}')
    table = bench.stages("some").set_index("stage")
    assert table["seconds"].to_dict() == {"finetune": 8, "judge": 4, "from the first start to the last end": 10}
    assert table["runs"].tolist() == [2, 1, 3] and table.loc["finetune", "peak memory (GiB)"] == 2.5
    assert len(bench.stages("never run")) == 1
