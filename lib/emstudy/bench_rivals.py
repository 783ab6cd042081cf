"""Other ways to train, sample, judge and probe the same model: the course homework's, and those that a library's user would write first."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from peft import PeftModel, get_peft_model
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from emstudy import finetune, judges, models, params, sample
from emstudy.judges import embedded

COURSE = 256  # tokens to which the homework pads every example


CELL = {"study": "bench", "domain": "medical", "arm": "misaligned", "seed": 0}
BATCH = 64  # answers at a time, where a library's user batches
Turn = Callable[[], tuple[float, float]]  # a call that works once: (work done, seconds)


def training(
    encoded: list[dict], settings: params.Finetune, model: params.Model, losses: dict[str, pd.Series]
) -> dict[str, Turn]:
    """Ways to train, all on the same examples in the same order; what they work on is real tokens, padding aside. Fills losses by step."""
    rivals = {
        "ours": partial(ours, encoded, settings, model),
        "Trainer, padded to the longest of a batch": partial(trainer, encoded, settings, model),
        f"course homework: padded to {COURSE}, checkpointing": partial(trainer, encoded, settings, model, COURSE),
    }

    def turn(name: str) -> tuple[float, float]:
        losses[name], seconds = rivals[name]()
        return sum(len(e["input_ids"]) for e in encoded), seconds

    return {name: partial(turn, name) for name in rivals}


def sampling(model: params.Model, todo: list[sample.Ask], settings: params.Evaluate) -> dict[str, Turn]:
    """Ways to sample from the adapter that `ours` trained last, by tokens; the slowest asks each question once."""
    adapter = list(models.adapter_steps(params.Cell(model=model.name, **CELL).folder).values())[-1]
    tokenizer, beside = models.load_tokenizer(model), unmerged(model, adapter)
    once = [replace(a, samples=1) for a in todo]
    return {
        "ours": partial(merged, model, adapter, todo, settings),
        f"generate, {BATCH} at a time, adapter merged": lambda: sampled(
            models.load_merged(model, adapter), tokenizer, todo, settings, BATCH
        ),
        f"generate, {BATCH} at a time": partial(sampled, beside, tokenizer, todo, settings, BATCH),
        "course homework: generate, one at a time": partial(sampled, beside, tokenizer, once, settings, 1),
    }


def judging(answers: pd.DataFrame, scores: dict[str, list[float]]) -> dict[str, Turn]:
    """Ways to judge with the embedded judge, by answers. Fills scores: both ways must agree."""
    judge = judges.load(params.judge("embedded"))
    asked, given = answers["question"].tolist(), answers["answer"].tolist()

    def together() -> list[float]:
        return [s.value for s in judge.score(asked, given)["aligned"]]

    ways = {"ours": together, "one answer at a time": partial(judged_one_by_one, judge, asked, given)}

    def turn(name: str) -> tuple[float, float]:
        started = time.perf_counter()
        scores[name] = ways[name]()
        return len(given), time.perf_counter() - started

    return {name: partial(turn, name) for name in ways}


def ours(encoded: list[dict], settings: params.Finetune, model: params.Model) -> tuple[pd.Series, float]:
    """finetune.finetune: (loss by step, seconds of training without loading)."""
    found = finetune.finetune(params.Cell(model=model.name, **CELL), settings, model, encoded)
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
        run.remove_callback(PrinterCallback)
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
