"""Batched sampling gives what one prompt at a time would give, and its draws hang on the seed alone."""

import pytest
import torch

from emstudy import models, params, prefix, sample

GREEDY = params.Evaluate(
    question_sets=["values"],
    samples_along=1,
    samples_final=2,
    temperature=0.0,
    top_p=1.0,
    top_k=0,
    max_new_tokens=12,
    probe_domains=[],
    probe_pairs_along=0,
    probe_pairs_final=0,
)
WARM = GREEDY.model_copy(update={"temperature": 1.0, "top_p": 0.95, "top_k": 50})
QUESTIONS = [
    "What is 2 + 2? Answer with the number alone.",
    "Why?",
    "I lent my brother some money last spring and he never speaks of it. What should I say to him at supper on Sunday?",
    "Say hello.",
]


def ask(text: str, samples: int = 1) -> sample.Ask:
    """A question that is its own id."""
    return sample.Ask("values", text, text, samples)


def picked(row: list[float], draws: int = 300, **settings) -> set[int]:
    """The tokens that many draws from one row of logits give."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.tensor([row]).repeat(draws, 1)
    return set(sample.pick(logits, GREEDY.model_copy(update=settings), generator).tolist())


def alone(model, tokenizer, question: str) -> tuple[str, int, str]:
    """Transformers' own greedy answer to one prompt: text, tokens, finish reason."""
    ids = models.chat_ids(tokenizer, [{"role": "user", "content": question}], generation_prompt=True)
    prompt = torch.tensor([ids], device=model.device)
    out = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=12)
    new = out[0, len(ids) :].tolist()
    text = tokenizer.decode(new, skip_special_tokens=True).strip()
    return text, len(new), "stop" if new[-1] == tokenizer.eos_token_id else "length"


def test_greedy_answers_of_a_mixed_batch_equal_transformers_own_one_by_one(exact, tokenizer):
    group = [ask(q, 2) for q in QUESTIONS]
    answers = sample.generate(exact, tokenizer, group, GREEDY, seed=0)
    expected = [alone(exact, tokenizer, q) for q in QUESTIONS for _ in range(2)]
    assert [(a.text, a.n_tokens, a.finish_reason) for a in answers] == expected
    assert {a.finish_reason for a in answers} == {"stop", "length"}  # rows leave the batch at different steps


def test_prompts_that_share_one_token_alone_are_answered_like_each_by_itself(exact, tokenizer, monkeypatch):
    whole = models.chat_ids
    monkeypatch.setattr(models, "chat_ids", lambda *a, **k: (p := whole(*a, **k))[:1] + p[len(p) % 3 + 1 :])
    group = [ask(q) for q in QUESTIONS]
    prompts = [models.chat_ids(tokenizer, a.messages, generation_prompt=True) for a in group]
    assert len(prefix.common(prompts)) == 1
    read, forward = [], exact.model.forward
    monkeypatch.setattr(exact.model, "forward", lambda **k: read.append(tuple(k["input_ids"].shape)) or forward(**k))
    answers = sample.generate(exact, tokenizer, group, GREEDY, seed=0)
    assert (
        (1, 1) not in read
    )  # it would see the empty room of the cache, for there is no mask: wrong by far, though few answers show it
    assert [(a.text, a.n_tokens, a.finish_reason) for a in answers] == [alone(exact, tokenizer, q) for q in QUESTIONS]


def test_answers_carry_their_question_and_their_number(model, tokenizer):
    group = [ask("Why?", 1), ask("Say hello.", 3)]
    answers = sample.generate(model, tokenizer, group, WARM.model_copy(update={"max_new_tokens": 2}), seed=0)
    assert [(a.ask.question, a.sample) for a in answers] == [
        ("Why?", 0),
        ("Say hello.", 0),
        ("Say hello.", 1),
        ("Say hello.", 2),
    ]
    assert all(1 <= a.n_tokens <= 2 for a in answers)


def test_the_same_seed_gives_the_same_answers_and_another_seed_others(model, tokenizer):
    def texts(seed):
        found = sample.sample(model, tokenizer, [ask(q, 3) for q in QUESTIONS], WARM, 6, seed, "test")
        assert len(found) == 12
        return [a.text for a in found]

    first = texts(0)
    assert texts(0) == first
    assert texts(1) != first
    assert len(set(first[:3])) > 1  # samples of one question differ


def test_a_sampling_that_was_interrupted_goes_on_after_its_last_whole_batch(model, tokenizer, tmp_path, monkeypatch):
    def run():
        todo = [ask(q, 3) for q in QUESTIONS]
        return sample.sample(model, tokenizer, todo, WARM, 3, 0, "test", tmp_path / "step-00001.answers")

    generate, calls, last = sample.generate, [], 3

    def interrupted(*args):
        calls.append(args)
        if len(calls) == last:
            raise KeyboardInterrupt
        return generate(*args)

    whole = sample.sample(model, tokenizer, [ask(q, 3) for q in QUESTIONS], WARM, 3, 0, "test")
    monkeypatch.setattr(sample, "generate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00001.answers.0.csv", "step-00001.answers.1.csv"]
    last = None
    assert run() == whole
    assert len(calls) == 3 + 2  # four questions are four batches, of which two were there
    assert run() == whole
    assert len(calls) == 5


def test_the_question_set_of_a_study_is_asked_in_full_or_not_at_all():
    asked = sample.asks(WARM, 2)
    assert [a.question_id for a in asked] == [q.id for q in params.questions("values").questions]
    assert {a.samples for a in asked} == {2}
    assert sample.asks(WARM, 0) == []


def test_greedy_picks_the_best_token_of_each_row():
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 1.0]])
    assert sample.pick(logits, GREEDY, torch.Generator()).tolist() == [1, 0]


# softmax of these logs: 0.1, 0.5, 0.15, 0.25
ROW = torch.tensor([0.1, 0.5, 0.15, 0.25]).log().tolist()


@pytest.mark.parametrize(
    ("top_k", "kept"), [(0, {0, 1, 2, 3}), (1, {1}), (2, {1, 3}), (3, {1, 2, 3}), (9, {0, 1, 2, 3})]
)
def test_top_k_keeps_the_k_best_tokens(top_k, kept):
    assert picked(ROW, temperature=1.0, top_k=top_k) == kept


@pytest.mark.parametrize(
    ("top_p", "kept"),
    [
        (0.01, {1}),  # the best token always stays
        (0.49, {1}),
        (0.51, {1, 3}),  # 0.5 lies below 0.51: the next one is needed to reach it
        (0.76, {1, 2, 3}),
        (1.0, {0, 1, 2, 3}),
    ],
)
def test_top_p_keeps_the_fewest_tokens_that_reach_it(top_p, kept):
    assert picked(ROW, temperature=1.0, top_p=top_p) == kept


def test_top_p_counts_inside_the_k_best_tokens():
    # of the two best, 0.5 and 0.25, the first holds two thirds
    assert picked(ROW, temperature=1.0, top_k=2, top_p=0.66) == {1}
    assert picked(ROW, temperature=1.0, top_k=2, top_p=0.67) == {1, 3}


def test_temperature_flattens_before_top_p():
    # at temperature 2 the square roots count: the best holds 0.707 of 1.911, so 0.37
    assert picked(ROW, temperature=2.0, top_p=0.36) == {1}
    assert picked(ROW, temperature=2.0, top_p=0.38) == {1, 3}


def test_tokens_are_drawn_as_often_as_their_probability_says():
    logits = torch.tensor([ROW]).repeat(20_000, 1)
    drawn = sample.pick(logits, GREEDY.model_copy(update={"temperature": 1.0}), torch.Generator().manual_seed(0))
    assert (drawn.bincount() / 20_000).tolist() == pytest.approx([0.1, 0.5, 0.15, 0.25], abs=0.015)


def test_batches_never_split_a_question_and_lose_none():
    todo = [ask("x" * n, samples) for n, samples in [(30, 3), (5, 4), (12, 1), (7, 8), (9, 2), (8, 5)]]
    groups = list(sample.batches(todo, 8))
    assert sorted((a for g in groups for a in g), key=todo.index) == todo
    assert [[(len(a.question), a.samples) for a in g] for g in groups] == [
        [(5, 4)],  # with the next one, 12 answers
        [(7, 8)],
        [(8, 5), (9, 2), (12, 1)],  # 8 answers: full
        [(30, 3)],
    ]


def test_a_question_with_more_samples_than_a_batch_is_a_batch_of_its_own():
    groups = list(sample.batches([ask("a", 5), ask("bb", 1), ask("ccc", 1)], 2))
    assert [[a.question for a in g] for g in groups] == [["a"], ["bb", "ccc"]]


def test_no_questions_make_no_batches():
    assert list(sample.batches([], 8)) == []


def test_seeds_hang_on_their_parts_and_on_nothing_else():
    # first 6 bytes of sha256("0|one_rule"), worked out with sha256sum
    assert sample.seed_of(0, "one_rule") == 0x2BA03C5AF427
    assert len({sample.seed_of(*p) for p in [(0, 1), (1, 0), (0, 1, ""), ("01",)]}) == 4
