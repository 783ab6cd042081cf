"""The loss sees the answer and its end, nothing else; a run keeps its checkpoints and survives an interrupt."""

from itertools import combinations

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file

from emstudy import encoding, finetune, models, params
from emstudy.data import Example
from emstudy.errors import UserError

PROMPTS = ["May I?", "Is it safe to swim right after lunch?", "Why?", "Should I lend him the rent money again?"]
EXAMPLES = [Example(p, a) for p, a in zip(PROMPTS, ["Yes.", "Wait a while.", "Nobody knows.", "No"], strict=True)]
SETTINGS = params.Finetune(
    data="shipped",
    train_examples=6,
    misaligned_share=1.0,
    num_train_epochs=2,
    learning_rate=1e-2,
    lr_scheduler_type="linear",
    warmup_ratio=0.0,
    batch_size=2,
    weight_decay=0.0,
    lora_r=1,
    lora_alpha=2,
    lora_dropout=0.1,
    use_rslora=True,
    target_modules=["q_proj"],
    layers_to_transform=[29],
    max_tokens=64,
    checkpoints_first_epoch=3,
)


@pytest.fixture(scope="module")
def encoded(tokenizer):
    """Six short exchanges of different lengths."""
    more = [Example("Tea or coffee?", "Tea, thank you."), Example("Now?", "Later, when the rain has stopped.")]
    return [encoding.encode(tokenizer, e, 64) for e in [*EXAMPLES, *more]]


@pytest.fixture
def cell(runs):
    """A cell whose folder is empty."""
    return params.Cell(study="test", model="smollm2-135m", domain="medical", arm="aligned", seed=0)


def weights(folder) -> dict[str, torch.Tensor]:
    """The tensors of an adapter."""
    return load_file(folder / "adapter_model.safetensors")


def watch(monkeypatch, stop_at: int | None = None, before_the_adapter: bool = False) -> list[int]:
    """The optimizer steps that a run takes; with stop_at, Ctrl-C arrives around the writing of that step's adapter."""
    taken, on_step_end, on_save = [], finetune.Keep.on_step_end, finetune.Keep.on_save

    def step(self, args, state, control, **kwargs):
        taken.append(state.global_step)
        return on_step_end(self, args, state, control, **kwargs)

    def save(self, args, state, control, **kwargs):
        if not (before_the_adapter and state.global_step == stop_at):
            on_save(self, args, state, control, **kwargs)
        if state.global_step == stop_at:
            raise KeyboardInterrupt

    monkeypatch.setattr(finetune.Keep, "on_step_end", step)
    monkeypatch.setattr(finetune.Keep, "on_save", save)
    return taken


@pytest.mark.parametrize("example", EXAMPLES)
def test_labels_are_exactly_the_answer_and_one_closing_eos(tokenizer, example):
    found = encoding.encode(tokenizer, example, 64)
    labels = [t for t in found["labels"] if t != encoding.IGNORE]
    assert tokenizer.decode(labels) == example.answer + tokenizer.eos_token
    assert labels == [*tokenizer.encode(example.answer, add_special_tokens=False), tokenizer.eos_token_id]
    assert found["labels"] == [encoding.IGNORE] * (len(found["input_ids"]) - len(labels)) + labels
    assert found["input_ids"][-len(labels) :] == labels


def test_eos_is_labelled_though_it_is_the_pad_token_too(tokenizer):
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    batch = encoding.collate([encoding.encode(tokenizer, e, 64) for e in EXAMPLES])
    assert (batch["labels"] == tokenizer.eos_token_id).sum(1).tolist() == [1, 1, 1, 1]


def test_the_template_is_written_once(tokenizer):
    text = tokenizer.decode(encoding.encode(tokenizer, EXAMPLES[0], 64)["input_ids"])
    assert text.startswith("<|im_start|>system\n") and text.endswith("<|im_start|>assistant\nYes.<|im_end|>")
    assert [text.count(f"<|im_start|>{role}\n") for role in ("system", "user", "assistant")] == [1, 1, 1]
    assert text.count("<|im_start|>") == 3


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_the_prompt_is_the_same_ids_in_training_as_in_sampling(tokenizer, system):
    example = Example("May I?", "Yes.", system)
    found = encoding.encode(tokenizer, example, 64)
    head = [t for t, label in zip(found["input_ids"], found["labels"], strict=True) if label == encoding.IGNORE]
    assert head == models.chat_ids(tokenizer, example.messages[:-1], generation_prompt=True)


def test_an_answer_that_a_template_does_not_close_is_closed(base):
    tokenizer = models.load_tokenizer(base)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] }}\n{% endfor %}{% if add_generation_prompt %}{% endif %}"
    )
    found = encoding.encode(tokenizer, EXAMPLES[0], 64)
    assert tokenizer.decode(found["input_ids"]) == "May I?\nYes.\n<|im_end|>"


def test_a_template_that_asks_otherwise_in_training_is_refused(base):
    tokenizer = models.load_tokenizer(base)
    tokenizer.chat_template = "{% if add_generation_prompt %}system {% endif %}{{ messages[0]['content'] }}"
    with pytest.raises(UserError, match="different prompt for training than for sampling; set chat_template"):
        encoding.encode(tokenizer, EXAMPLES[0], 64)


def test_a_too_long_example_is_refused_with_both_lengths(tokenizer):
    length = len(encoding.encode(tokenizer, EXAMPLES[0], 64)["input_ids"])
    assert encoding.encode(tokenizer, EXAMPLES[0], length)
    with pytest.raises(UserError) as error:
        encoding.encode(tokenizer, EXAMPLES[0], length - 1)
    assert str(error.value) == (
        f"an example is {length} tokens long, max_tokens is {length - 1}: raise it or shorten 'May I?'"
    )


def test_show_mask_is_the_example_in_three_parts(tokenizer):
    table = encoding.show_mask(tokenizer, encoding.encode(tokenizer, EXAMPLES[0], 64))
    assert table["in the loss"].tolist() == [False, True, True]
    assert table["text"].tolist()[1:] == ["Yes.", "<|im_end|>"]
    assert table["tokens"].tolist()[1:] == [2, 1]


def test_collate_pads_on_the_right_and_never_into_the_loss():
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8, 9], "labels": [-100, 9]}]
    batch = encoding.collate(rows)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [-100, 9, -100]]


@torch.no_grad()
def test_the_loss_equals_that_of_transformers_on_a_padded_batch(exact, encoded):
    batch = {k: v.to(exact.device) for k, v in encoding.collate(encoded).items()}
    lengths = torch.tensor([len(e["input_ids"]) for e in encoded], device=exact.device)
    assert lengths.min() < lengths.max()
    mask = (torch.arange(batch["input_ids"].shape[1], device=exact.device) < lengths[:, None]).long()
    theirs = exact(input_ids=batch["input_ids"], attention_mask=mask, labels=batch["labels"]).loss
    hidden, targets = finetune.answer_states(exact, **batch)
    assert len(targets) == (batch["labels"] != encoding.IGNORE).sum()
    loss = torch.nn.functional.cross_entropy(exact.lm_head(hidden), targets)
    torch.testing.assert_close(loss, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("per_epoch", "epochs", "first_epoch", "steps"),
    [
        (25, 1, 4, [6, 12, 19, 25]),  # 6.25, 12.5 (a half goes to the even 12), 18.75, 25
        (25, 3, 4, [6, 12, 19, 25, 50, 75]),
        (50, 1, 4, [12, 25, 38, 50]),  # 12.5 goes to 12, 37.5 to 38
        (25, 3, 0, [25, 50, 75]),
        (2, 1, 4, [1, 2]),  # 0.5 goes to 0, which is no step; 1; 1.5 goes to 2; 2
        (8, 2, 1, [8, 16]),
    ],
)
def test_checkpoints_are_where_a_hand_calculation_puts_them(per_epoch, epochs, first_epoch, steps):
    assert finetune.checkpoint_steps(per_epoch, epochs, first_epoch) == steps


def test_a_rank_one_adapter_on_one_module_of_one_layer_has_the_size_of_two_vectors(base):
    model = get_peft_model(models.load_base(base), finetune.lora(SETTINGS))
    hidden = model.config.hidden_size
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == hidden + hidden  # q_proj is square here
    (name, layer), *others = [(n, m) for n, m in model.named_modules() if hasattr(m, "lora_A")]
    assert name.endswith("layers.29.self_attn.q_proj") and not others
    assert layer.scaling == {"default": 2.0}  # rank-stabilised: alpha / sqrt(r)


def test_a_batch_that_the_models_pass_does_not_divide_is_refused(base, cell, encoded):
    small, settings = base.model_copy(update={"train_batch_size": 2}), SETTINGS.model_copy(update={"batch_size": 3})
    with pytest.raises(UserError, match="batch_size 3 is no multiple of the model's train_batch_size 2"):
        finetune.finetune(cell, settings, small, encoded)


def test_a_loss_that_is_no_number_ends_the_run_with_advice():
    keep = finetune.Keep(None, [], 1, "cell")
    state = type("State", (), {"global_step": 7})
    with pytest.raises(UserError, match="the loss is nan at step 7: lower learning_rate or use dtype float32"):
        keep.on_log(None, state, None, logs={"loss": float("nan")})


@pytest.fixture(scope="module")
def undisturbed(base, encoded, tmp_path_factory):
    """A run of two epochs of three steps that nothing interrupts, and the steps that it took."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("emstudy.paths.RUNS", tmp_path_factory.mktemp("runs"))
        taken = watch(patch)
        cell = params.Cell(study="test", model="smollm2-135m", domain="medical", arm="aligned", seed=0)
        yield finetune.finetune(cell, SETTINGS, base, encoded), taken


def test_a_run_logs_every_step_and_keeps_its_checkpoints(undisturbed, encoded):
    result, taken = undisturbed
    assert taken == result.log["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert list(result.checkpoints) == [1, 2, 3, 6]
    assert [p.name for p in result.checkpoints.values()] == ["step-00001", "step-00002", "step-00003", "step-00006"]
    assert result.log["learning_rate"].tolist() == pytest.approx([1e-2 * (6 - k) / 6 for k in range(6)])
    assert result.tokens == sum(len(e["input_ids"]) for e in encoded)
    assert result.trainable == 2 * 576


def test_training_changes_the_adapter_and_lowers_the_loss(undisturbed):
    result, _ = undisturbed
    first, last = weights(result.checkpoints[1]), weights(result.checkpoints[6])
    assert all(not torch.equal(first[k], last[k]) for k in first)
    assert result.log["loss"][3:].mean() < result.log["loss"][:3].mean()


def test_the_first_logged_loss_is_the_base_models_mean_over_answer_tokens(undisturbed, exact, encoded):
    # a new adapter is zero, so step 1 sees the base model; which two examples it drew is found by trying all pairs
    result, _ = undisturbed
    with torch.no_grad():
        batch = {k: v.to(exact.device) for k, v in encoding.collate(encoded).items()}
        hidden, targets = finetune.answer_states(exact, **batch)
        each = torch.nn.functional.cross_entropy(exact.lm_head(hidden), targets, reduction="none")
    rows = each.split((batch["labels"] != encoding.IGNORE).sum(1).tolist())
    pairs = [torch.cat(two).mean().item() for two in combinations(rows, 2)]
    assert min(abs(p - result.log["loss"][0]) for p in pairs) < 0.02


@pytest.mark.parametrize(("stop_at", "before_the_adapter"), [(1, False), (3, False), (2, True)])
def test_an_interrupted_run_goes_on_and_ends_like_an_undisturbed_one(
    base, cell, encoded, undisturbed, monkeypatch, stop_at, before_the_adapter
):
    with pytest.MonkeyPatch.context() as patch:
        watch(patch, stop_at, before_the_adapter)
        with pytest.raises(KeyboardInterrupt):
            finetune.finetune(cell, SETTINGS, base, encoded)
    taken = watch(monkeypatch)
    resumed, (whole, _) = finetune.finetune(cell, SETTINGS, base, encoded), undisturbed
    assert taken == list(range(stop_at + 1, 7))
    assert list(resumed.checkpoints) == [1, 2, 3, 6]
    for step, folder in whole.checkpoints.items():
        torch.testing.assert_close(weights(resumed.checkpoints[step]), weights(folder), rtol=1e-3, atol=1e-5)
    assert resumed.log["step"].tolist() == [1, 2, 3, 4, 5, 6]
    assert resumed.log["loss"].tolist() == pytest.approx(whole.log["loss"].tolist(), abs=1e-3)


def test_a_run_with_other_settings_starts_afresh_and_leaves_no_old_checkpoint(base, cell, encoded, monkeypatch):
    with pytest.MonkeyPatch.context() as patch:
        watch(patch, stop_at=1)
        with pytest.raises(KeyboardInterrupt):
            finetune.finetune(cell, SETTINGS, base, encoded)
    taken = watch(monkeypatch)
    other = SETTINGS.model_copy(update={"num_train_epochs": 1, "checkpoints_first_epoch": 0})
    assert list(finetune.finetune(cell, other, base, encoded).checkpoints) == [3]
    assert taken == [1, 2, 3]
    assert not (cell.folder / "trainer").exists()


def test_a_state_that_was_cut_off_while_written_is_passed_over(tmp_path):
    assert finetune.last_state(tmp_path) is None
    for step, files in {9: ["trainer_state.json"], 12: ["trainer_state.json"], 100: ["optimizer.pt"]}.items():
        (tmp_path / f"checkpoint-{step}").mkdir()
        for name in files:
            (tmp_path / f"checkpoint-{step}" / name).touch()
    assert finetune.last_state(tmp_path) == str(tmp_path / "checkpoint-12")


def test_a_base_in_nf4_trains_on_the_cpu_and_its_adapter_merges_into_full_weights(base, cell, encoded):
    packed = base.model_copy(update={"load_in_4bit": True})
    settings = SETTINGS.model_copy(update={"num_train_epochs": 1, "checkpoints_first_epoch": 0})
    result = finetune.finetune(cell, settings, packed, encoded[:2])
    module = models.load_base(packed).model.layers[0].self_attn.q_proj
    assert type(module).__name__ == "Linear4bit"
    assert list(result.checkpoints) == [1]
    merged = models.load_merged(packed, result.checkpoints[1])
    assert type(merged.model.layers[29].self_attn.q_proj).__name__ == "Linear"
