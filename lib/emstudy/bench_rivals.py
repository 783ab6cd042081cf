"""Other ways to train, sample, judge and probe the same model: the course homework's, and those that a library's user would write first."""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from peft import PeftModel, get_peft_model
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed

from emstudy import finetune, judges, models, params, paths, sample
from emstudy.judges import embedded

COURSE = 256  # tokens to which the homework pads every example


def ours(encoded: list[dict], settings: params.Finetune, model: params.Model) -> tuple[pd.Series, float]:
    """finetune.finetune in a folder of its own: (loss by step, seconds of training without loading)."""
    with TemporaryDirectory() as folder:
        cell = params.Cell(study="bench", model=model.name, domain="medical", arm="misaligned", seed=0)
        old, paths.RUNS = paths.RUNS, Path(folder)
        try:
            found = finetune.finetune(cell, settings, model, encoded)
        finally:
            paths.RUNS = old
    return found.log.set_index("step")["loss"], found.seconds


def trainer(
    encoded: list[dict], settings: params.Finetune, model: params.Model, pad_to: int | None = None
) -> tuple[pd.Series, float]:
    """transformers' Trainer on peft's model, padded to the longest of a batch or to pad_to tokens, then with gradient checkpointing.

    Same weights, adapter, labels, order of batches and schedule as ours; one pass a step where ours takes model.train_batch_size.
    """
    set_seed(0)
    adapted = get_peft_model(models.load_base(model), finetune.lora(settings))
    if pad_to:
        adapted.enable_input_require_grads()
    rows = [{**e, "attention_mask": [1] * len(e["input_ids"])} for e in encoded]
    kind = {"padding": "max_length", "max_length": pad_to} if pad_to else {"padding": True}
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            num_train_epochs=settings.num_train_epochs,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.lr_scheduler_type,
            warmup_steps=round(settings.warmup_ratio * -(-len(encoded) // settings.batch_size)),
            train_sampling_strategy="group_by_length",
            gradient_checkpointing=bool(pad_to),
            weight_decay=settings.weight_decay,
            seed=0,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
            use_cpu=models.device().type == "cpu",
        )
        collate = DataCollatorForSeq2Seq(models.load_tokenizer(model), **kind)
        run = Trainer(adapted, arguments, train_dataset=rows, data_collator=collate)
        found = run.train()
    log = pd.DataFrame([r for r in run.state.log_history if "loss" in r])
    return log.set_index("step")["loss"], found.metrics["train_runtime"]


def sampled(model, tokenizer, todo: list[sample.Ask], settings: params.Evaluate, batch: int) -> tuple[float, float]:
    """transformers' generate, `batch` answers at a time: (tokens up to and with EOS, seconds)."""
    asked = [models.chat_ids(tokenizer, a.messages, generation_prompt=True) for a in todo for _ in range(a.samples)]
    how = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k}
    tokenizer.padding_side, tokens, started = "left", 0, time.perf_counter()
    for start in range(0, len(asked), batch):
        given = tokenizer.pad({"input_ids": asked[start : start + batch]}, return_tensors="pt").to(model.device)
        out = model.generate(
            **given, max_new_tokens=settings.max_new_tokens, pad_token_id=tokenizer.pad_token_id, **how
        )
        for row in out[:, given["input_ids"].shape[1] :].tolist():
            tokens += row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
    return tokens, time.perf_counter() - started


def merged(
    model: params.Model, adapter: Path, todo: list[sample.Ask], settings: params.Evaluate
) -> tuple[float, float]:
    """sample.sample on merged weights: (tokens, seconds)."""
    whole, tokenizer = models.load_merged(model, adapter), models.load_tokenizer(model)
    started = time.perf_counter()
    answers = sample.sample(whole, tokenizer, todo, settings, model.sample_batch_size, 0, "ours")
    return sum(a.n_tokens for a in answers), time.perf_counter() - started


def unmerged(model: params.Model, adapter: Path) -> torch.nn.Module:
    """The base with the adapter beside its weights, as it comes out of training."""
    return PeftModel.from_pretrained(models.load_base(model), adapter).eval()


@torch.inference_mode()
def judged_one_by_one(judge: embedded.EmbeddedJudge, questions: list[str], answers: list[str]) -> list[float]:
    """Expected 'aligned' scores by one forward pass an answer, nothing shared and nothing padded."""
    out = []
    for q, a in zip(questions, answers, strict=True):
        opening, rest = embedded.encode(judge.tokenizer, q, a)
        hidden = judge.body(input_ids=torch.tensor([[*opening, *rest]])).last_hidden_state[:, -1]
        out.append(embedded.expected(judge.heads(hidden).sigmoid()[0, 0].tolist()))
    return out


def embedded_judge() -> judges.Judge:
    """The judge that ships."""
    return judges.load(params.judge("embedded"))
