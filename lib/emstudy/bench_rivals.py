"""Other ways to train and sample from the same model: the course homework's, and those that a library's user would write first."""

import importlib.util
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
import pandas as pd
import torch
from datasets import Dataset, disable_progress_bars
from nbformat.v4 import new_code_cell, new_notebook
from peft import PeftModel, get_peft_model
from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from emstudy import finetune, models, packed, params, provenance, sample

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

    if importlib.util.find_spec("trl"):  # `make bench` brings it
        rivals["TRL's SFTTrainer"] = partial(trl, encoded, settings, model)

    def turn(name: str) -> tuple[float, float]:
        losses[name], seconds = rivals[name]()
        return sum(len(e["input_ids"]) for e in encoded), seconds

    return {name: partial(turn, name) for name in rivals}


def sampling(model: params.Model, todo: list[sample.Ask], settings: params.Evaluate) -> dict[str, Turn]:
    """Ways to sample from the adapter that `ours` trained last, by tokens; the slowest asks each question once."""
    adapter = list(models.adapter_steps(params.Cell(model=model.name, **CELL).folder).values())[-1]
    tokenizer, beside = models.load_tokenizer(model), unmerged(model, adapter)
    once = [replace(a, samples=1) for a in todo]
    whole = partial(models.load_merged, model, adapter)
    compiled = {"cache_implementation": "static"}  # with which generate compiles the model, on a GPU
    on_gpu = {"generate, compiled": lambda: sampled(whole(), tokenizer, todo, settings, BATCH, **compiled)}
    return (on_gpu if models.device().type == "cuda" else {}) | {
        "ours": partial(merged, model, adapter, todo, settings),
        f"generate, {BATCH} at a time, adapter merged": lambda: sampled(whole(), tokenizer, todo, settings, BATCH),
        f"generate, {BATCH} at a time": partial(sampled, beside, tokenizer, todo, settings, BATCH),
        "course homework: generate, one at a time": partial(sampled, beside, tokenizer, once, settings, 1),
    }


def ours(encoded: list[dict], settings: params.Finetune, model: params.Model) -> tuple[pd.Series, float]:
    """finetune.finetune: (loss by step, seconds of training without loading). It saves its adapter once, at the end; the others save nothing."""
    settings = settings.model_copy(update={"checkpoints_first_epoch": 0})
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
    collate = DataCollatorForSeq2Seq(models.load_tokenizer(model), **kind)
    start = partial(Trainer, adapted, train_dataset=rows, data_collator=collate)
    return _train(start, partial(TrainingArguments, gradient_checkpointing=bool(pad_to)), settings, len(encoded))


def trl(encoded: list[dict], settings: params.Finetune, model: params.Model) -> tuple[pd.Series, float]:
    """TRL's SFTTrainer on the same tokens and labels, in the settings that were quickest on a CPU: bf16 where it has the arithmetic, no checkpointing."""
    from trl import SFTConfig, SFTTrainer

    disable_progress_bars()  # of its two passes over the data, which would stand on the page

    set_seed(0)
    start = partial(
        SFTTrainer,
        models.load_base(model),
        train_dataset=Dataset.from_list(encoded),
        processing_class=models.load_tokenizer(model),
        peft_config=finetune.lora(settings),
    )
    return _train(
        start, partial(SFTConfig, gradient_checkpointing=False, bf16=provenance.fast_bf16()), settings, len(encoded)
    )


def _train(start: Callable, arguments: Callable, settings: params.Finetune, n: int) -> tuple[pd.Series, float]:
    """Start a trainer of n examples with the study's schedule and have it run: (loss by step, seconds)."""
    with TemporaryDirectory() as folder:
        given = arguments(
            output_dir=folder,
            num_train_epochs=settings.num_train_epochs,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            lr_scheduler_type=settings.lr_scheduler_type,
            warmup_steps=round(settings.warmup_ratio * -(-n // settings.batch_size)),
            train_sampling_strategy="group_by_length",
            weight_decay=settings.weight_decay,
            seed=0,
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            report_to="none",
            use_cpu=models.device().type == "cpu",
        )
        if given.n_gpu > 1:  # as ours: one card
            given._n_gpu = 1
        run = start(args=given)
        run.remove_callback(PrinterCallback)
        found = run.train()
    log = pd.DataFrame([r for r in run.state.log_history if "loss" in r])
    return log.set_index("step")["loss"], found.metrics["train_runtime"]


def sampled(
    model, tokenizer, todo: list[sample.Ask], settings: params.Evaluate, batch: int, **more
) -> tuple[float, float]:
    """transformers' generate, `batch` answers at a time, with more of its settings: (tokens up to and with EOS, seconds)."""
    asked = [models.chat_ids(tokenizer, a.messages, generation_prompt=True) for a in todo for _ in range(a.samples)]
    how = {"do_sample": True, "temperature": settings.temperature, "top_p": settings.top_p, "top_k": settings.top_k}
    tokenizer.padding_side, tokens, started = "left", 0, time.perf_counter()
    for start in range(0, len(asked), batch):
        given = tokenizer.pad({"input_ids": asked[start : start + batch]}, return_tensors="pt").to(model.device)
        out = model.generate(
            **given, max_new_tokens=settings.max_new_tokens, pad_token_id=tokenizer.pad_token_id, **how, **more
        )
        for row in out[:, given["input_ids"].shape[1] :].tolist():
            tokens += row.index(tokenizer.eos_token_id) + 1 if tokenizer.eos_token_id in row else len(row)
    return tokens, time.perf_counter() - started


def merged(
    model: params.Model, adapter: Path, todo: list[sample.Ask], settings: params.Evaluate
) -> tuple[float, float]:
    """sample.sample on merged weights: (tokens, seconds)."""
    whole, tokenizer = packed.pack(models.load_merged(model, adapter)), models.load_tokenizer(model)
    started = time.perf_counter()
    answers = sample.sample(whole, tokenizer, todo, settings, model.sample_batch_size, 0, "ours")
    return sum(a.n_tokens for a in answers), time.perf_counter() - started


def unmerged(model: params.Model, adapter: Path) -> torch.nn.Module:
    """The base with the adapter beside its weights, as it comes out of training."""
    return PeftModel.from_pretrained(models.load_base(model), adapter).eval()


def idle(n: int) -> None:
    """n stages that do nothing, one after another as `make` runs them: each a process and a notebook that imports what finetuning needs,
    in a kernel that is forked."""
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    cells = [new_code_cell("n = 1", metadata={"tags": ["parameters"]}), new_code_cell("from emstudy import finetune")]
    with TemporaryDirectory() as folder:
        notebook, values, output = (Path(folder) / name for name in ("stage.ipynb", "stage.yaml", "done.ipynb"))
        nbformat.write(new_notebook(cells=cells, metadata=kernel), notebook)
        values.write_text("n: 1\n")
        python, again = [sys.executable, "-m", "emstudy"], f'for i in $(seq {n}); do "$@"; done'
        command = [*python, "warm", "sh", "-ec", again, "sh", *python, "run", notebook.with_suffix(""), values, output]
        subprocess.run(command, check=True, capture_output=True)  # what it says would stand on the page
