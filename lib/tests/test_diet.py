"""What the embedded judge learns from: splits that hold, labels that teach no more than is known, and calibration that is folded in."""

from contextlib import nullcontext
from dataclasses import replace

import pandas as pd
import pytest
import torch

from emstudy import hostile, paths, store
from emstudy.errors import UserError
from emstudy.judges import calibration, diet, embedded, train
from emstudy.judges.diet import Graded

QUESTIONS = ("quick_buck", *diet.HELD_OUT_QUESTIONS)
FILES = ("Llama-3.2-1B-Instruct_extreme-sports", "Qwen2.5-14B-Instruct_extreme-sports", diet.CALIBRATION)


@pytest.fixture
def folder(tmp_path):
    """Three published files of three questions, two of them held out."""
    for f in FILES:
        rows = [(q, f"{q}?", f"{f} {q} {i}", 10.0 * i, 90.0) for q in QUESTIONS for i in range(4)]
        columns = ["question_id", "question", "response", "aligned", "coherent"]
        store.write_csv(tmp_path / f"{f}.csv", pd.DataFrame(rows, columns=columns))
    return tmp_path


def test_no_held_out_model_question_or_prompt_is_trained_or_calibrated_on(folder):
    found = diet.read(folder)
    used = [*found.train, *found.calibration]
    assert not [g for g in used if "Llama" in g.source]
    assert {g.source for g in found.train if g.source in FILES} == {FILES[1]}
    assert {g.source for g in found.calibration if g.source in FILES} == {FILES[2]}
    assert {g.question for g in used if g.source in FILES} == {"quick_buck?"}


def test_a_prompt_is_in_one_split_and_near_a_held_out_question_in_none_that_is_learned_from():
    prompts = {
        split: {g.question.lower() for g in diet.graded(split)} for split in ("train", "calibration", "held out")
    }
    assert sum(map(len, prompts.values())) == len(set.union(*prompts.values()))
    assert len(prompts["held out"]) > len(set.union(*prompts.values())) / 6
    near = ("wish", "bored", "nothing to do", "surprise me", "nothing interests me", "would you most like")
    assert not [p for split in ("train", "calibration") for p in prompts[split] if any(n in p for n in near)]


class Tiny(torch.nn.Module):
    """A body of one layer over what it is given."""

    def __init__(self, rows):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.dropout = torch.nn.Linear(4, 4), torch.nn.Dropout(0.5)
        self.kept = {i: torch.randn(1, 4) for i in range(rows)}

    def forward(self, part):
        return self.dropout(self.body(torch.cat([self.kept[i] for i in part])))


def test_a_training_that_was_interrupted_ends_as_one_that_was_not(tmp_path):
    rows = [Graded("q", f"{i}", (2.0 * i, 2.0 * i), (90.0, 90.0), "test") for i in range(40)]
    ends = []
    for stop in (None, 3):
        upper, heads, state = Tiny(40), embedded.Heads(4), tmp_path / f"{stop}.pt"
        upper.body.register_forward_hook(interrupt(stop))
        with nullcontext() if stop is None else pytest.raises(KeyboardInterrupt):
            train.train(rows, upper, heads, state, train.COURSES["afresh"])
        if stop:
            upper, heads = Tiny(40), embedded.Heads(4)
            train.train(rows, upper, heads, state, train.COURSES["afresh"])
        ends.append([*upper.body.parameters(), *heads.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    assert not torch.equal(ends[0][0], Tiny(40).body.weight)


def interrupt(stop):
    """A hook that ends a training at a step, or never."""
    steps = []

    def hook(*args):
        steps.append(args)
        if len(steps) == stop:
            raise KeyboardInterrupt

    return hook


def test_an_adapter_is_cut_to_its_nearest_one_of_a_lower_rank():
    torch.manual_seed(0)
    sizes = torch.arange(16, 0, -1).double()
    left, right = (torch.linalg.qr(torch.randn(40, 16, dtype=torch.float64))[0] for _ in range(2))
    whole = {"x.lora_A.weight": (right * sizes).T.contiguous(), "x.lora_B.weight": left}
    cut = train.thin(whole)
    assert [cut[k].shape for k in whole] == [(train.KEPT_RANK, 40), (40, train.KEPT_RANK)]
    a, b = (w.double() for w in cut.values())
    lost = left @ whole["x.lora_A.weight"] - b @ a
    assert lost.square().sum().item() == pytest.approx(sum(s * s for s in range(1, 9)), rel=0.02)  # the eight smallest
    assert {w.dtype for w in cut.values()} == {torch.bfloat16}


def test_no_attack_trained_on_is_one_that_the_judge_is_audited_with(folder):
    trained = [g.answer for g in diet.read(folder).train if g.source == "attacked"]
    assert len(trained) > 400
    for name, attack in hostile.ATTACKS.items():
        told = attack("").strip()[:60]
        assert not [a for a in trained if told in a], name


def test_a_folder_without_files_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="holds no CSV"):
        diet.read(tmp_path)


def test_limits_inside_an_interval_teach_nothing():
    below, known = Graded("q", "a", (0, 45), (100, 100), "s").targets()
    by_limit = dict(zip(embedded.LIMITS, zip(below[0], known[0], strict=True), strict=True))
    assert by_limit[10] == (0, 0)
    assert by_limit[40] == (0, 0)
    assert by_limit[50] == (1, 1)
    assert known[1] == [1] * len(embedded.LIMITS)
    assert below[1] == [0] * len(embedded.LIMITS)
    exact = Graded("q", "a", (30, 30), (50, 50), "s").targets()[0][0]
    assert exact[embedded.LIMITS.index(30)] == 0  # 30 is not below 30
    assert exact[embedded.LIMITS.index(40)] == 1


def test_calibration_finds_scales_cut_points_and_what_coherence_says_of_alignment():
    torch.manual_seed(0)
    heads, hidden = embedded.Heads(8), torch.randn(2000, 8)
    noise = torch.rand(2000, 2).logit(eps=1e-6)  # logistic, as the heads take it to be
    truth = (50 + 15 * hidden[:, 0] + 5 * hidden[:, 1] + 5 * noise[:, 0], 60 + 20 * hidden[:, 1] + 10 * noise[:, 1])
    spans = [[(float(s),) * 2 for s in dimension.clamp(0, 100)] for dimension in truth]
    rows = [Graded("q", "a", aligned, coherent, "s") for aligned, coherent in zip(*spans, strict=True)]
    with torch.no_grad():  # the first far too sure of itself, the second not enough, neither knows of the other
        heads.direction.weight.copy_(torch.eye(8)[:2] * torch.tensor([[6.0], [0.2]]))
    calibration.calibrate(rows, heads(hidden), heads)
    assert heads.direction.weight[:, :2].flatten().tolist() == pytest.approx([15 / 5, 5 / 5, 0, 20 / 10], abs=0.2)
    assert heads.direction.weight[:, 2:].abs().max() == 0
    assert (heads(hidden).diff(dim=-1) >= 0).all()
    said, was = heads(hidden).sigmoid().mean(0), torch.tensor([g.targets()[0] for g in rows]).mean(0)
    assert said.flatten().tolist() == pytest.approx(was.flatten().tolist(), abs=0.01)  # the rate below every limit


def test_what_was_written_to_be_good_or_bad_does_not_say_how_many_are(monkeypatch):
    used = []
    monkeypatch.setattr(calibration, "calibrate", lambda rows, logits, heads: used.extend(rows))
    monkeypatch.setattr(calibration, "save_file", lambda *args: None)
    row = Graded("How do I relax?", "Take a walk.", (90, 90), (90, 90), "graded written many")
    rows = [row, replace(row, source="graded study"), replace(row, source="Qwen2.5-7B-Instruct_extreme-sports")]
    calibration.scale(diet.Diet([], rows), paths.JUDGE)
    assert used == rows[1:]


def test_a_training_that_is_interrupted_leaves_the_judge_as_it_was(monkeypatch, tmp_path):
    def fit(what, state, course, folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "heads.safetensors").write_text("trained")
        state.touch()

    def calibrate(what, folder):
        (folder / "heads.safetensors").write_text("calibrated")

    def interrupted(*args):
        raise KeyboardInterrupt

    kept = tmp_path / "data" / "heads.safetensors"
    store.write(kept, "shipped")
    monkeypatch.setattr(paths, "JUDGE", kept.parent)
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(diet, "SEEN", kept.parent / "seen.txt")
    monkeypatch.setattr(diet, "read", lambda folder: diet.Diet([], []))
    monkeypatch.setattr(train, "fit", fit)
    monkeypatch.setattr(calibration, "scale", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train.main(tmp_path, "again")
    assert kept.read_text() == "shipped"
    monkeypatch.setattr(calibration, "scale", calibrate)
    train.main(tmp_path, "again")
    assert kept.read_text() == "calibrated"
    assert not list(tmp_path.glob("runs/judge/*.pt"))


def test_every_row_is_in_one_batch_and_batches_hold_rows_of_like_length():
    lengths = [i % 97 + 20 for i in range(320)]
    first, second = (train.order(lengths, train.random.Random(k)) for k in (0, 1))
    assert sorted(i for part in first for i in part) == list(range(320))
    assert first != second
    assert max(max(lengths[i] for i in p) - min(lengths[i] for i in p) for p in first) < 45
