"""LoRA finetuning on chat examples, with checkpoints along the way."""

import hashlib
import math
import os
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from peft import LoraConfig, get_peft_model
from tqdm import tqdm
from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback

from emstudy import encoding, fused, models, params, prefix, seal, store
from emstudy.errors import UserError


def answer_states(
    model, input_ids: torch.Tensor, labels: torch.Tensor, shared: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states (n, width) and targets (n) at the n positions that predict a label: only there does a head have work.

    shared: how many tokens all rows begin with, which are read once (prefix.together); None reads every row by itself.
    """
    if shared is None:
        hidden = model.model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
    else:
        hidden = prefix.together(model.model, input_ids, shared)[:, :-1]
    targets = labels[:, (shared or 0) + 1 :]
    seen = targets != encoding.IGNORE
    return hidden[seen], targets[seen]


class AnswerTrainer(Trainer):
    """A Trainer whose loss is the mean over all answer tokens of an optimizer step, computed on those tokens only.

    shared: as in answer_states.
    """

    shared: int | None = None

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Cross entropy summed over answer tokens, divided by the answer tokens of the whole step."""
        base = model.get_base_model()
        hidden, targets = answer_states(base, inputs["input_ids"], inputs["labels"], self.shared)
        loss = fused.answer_loss(hidden, base.lm_head, targets)
        return loss / (num_items_in_batch if num_items_in_batch is not None else len(targets))


def checkpoint_steps(steps_per_epoch: int, epochs: int, first_epoch: int) -> list[int]:
    """Optimizer steps to keep: `first_epoch` evenly spaced ones in the first epoch, then the end of every epoch."""
    early = {round(steps_per_epoch * k / first_epoch) for k in range(1, first_epoch + 1)} if first_epoch else set()
    return sorted((early | {steps_per_epoch * e for e in range(1, epochs + 1)}) - {0})


class Keep(TrainerCallback):
    """Keeps the adapter at chosen steps, lets the Trainer save its state there for a resume, and moves the bar."""

    def __init__(self, folder: Path, steps: list[int], total: int, label: str):
        self.folder, self.steps = folder, steps
        self.bar = tqdm(total=total, desc=label, unit="step")

    def on_train_begin(self, args, state, control, **kwargs):
        """Start where a resumed run stands, with the adapter of that step: the interrupt may have come before it was written."""
        self.bar.update(state.global_step - self.bar.n)
        if state.global_step:
            self.on_save(args, state, control, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Show the loss; one that is no number ends the run, for nothing after it would mean anything."""
        if not logs or "loss" not in logs:
            return
        if not math.isfinite(logs["loss"]):
            raise UserError(
                f"the loss is {logs['loss']} at step {state.global_step}: lower learning_rate or use dtype float32"
            )
        self.bar.set_postfix(loss=f"{logs['loss']:.3f}")

    def on_step_end(self, args, state, control, **kwargs):
        """Ask for a save at the chosen steps."""
        self.bar.update(state.global_step - self.bar.n)
        control.should_save = state.global_step in self.steps
        return control

    def on_save(self, args, state, control, model=None, **kwargs):
        """Write the adapter beside its final name and rename it, so that a folder that is there is whole; then seal the Trainer's state."""
        final = self.folder / "adapter" / f"step-{state.global_step:05d}"
        partial = final.with_name(f".{final.name}.{os.getpid()}.partial")
        try:
            model.save_pretrained(partial)
            seal.write(partial, "*.safetensors")
            shutil.rmtree(final, ignore_errors=True)
            partial.rename(final)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        seal.write(Path(args.output_dir) / f"checkpoint-{state.global_step}")


@dataclass(frozen=True)
class Result:
    """What a finetuning run leaves: its log (store.TRAIN_LOG), its checkpoints by step, tokens a pass, trainable parameters, and
    the seconds of its training, loading aside (of the last part, where it was interrupted)."""

    log: pd.DataFrame
    checkpoints: dict[int, Path]
    tokens: int
    trainable: int
    seconds: float


def lora(settings: params.Finetune) -> LoraConfig:
    """The adapter's shape from params."""
    return LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        use_rslora=settings.use_rslora,
        target_modules=settings.target_modules,
        layers_to_transform=settings.layers_to_transform,
        task_type="CAUSAL_LM",
    )


def last_state(folder: Path) -> str | None:
    """The newest whole state below a run's folder to go on from; its trainer_state.json is written last. One that was damaged since is named and passed over."""
    whole = {int(p.parent.name.split("-")[1]): p.parent for p in folder.glob("checkpoint-*/trainer_state.json")}
    for _, state in sorted(whole.items(), reverse=True):
        try:
            seal.check(state, "training goes on from the state before it, or anew")
        except UserError as error:
            print(error, file=sys.stderr)
        else:
            return str(state)
    return None


def finetune(cell: params.Cell, settings: params.Finetune, model: params.Model, encoded: list[dict]) -> Result:
    """Train one adapter and keep its checkpoints; a run that was interrupted goes on from its last one."""
    set_seed(cell.seed)
    base = models.load_base(model)
    shared = None
    if models.device().type == "cpu":
        base.set_attn_implementation(prefix.TOGETHER)
        # dropout draws for every row anew; a prompt's last token predicts the answer's first
        shared = 0 if settings.lora_dropout else len(prefix.common([encoding.prompt(e)[:-1] for e in encoded]))
    peft_model = get_peft_model(base, lora(settings))  # frozen but for the adapter, which is kept in fp32
    fused.quicken(peft_model)
    for shape in peft_model.peft_config.values():
        if isinstance(shape.target_modules, set):  # which Python orders anew in each process
            shape.target_modules = sorted(shape.target_modules)
    micro = min(model.train_batch_size, settings.batch_size)
    if settings.batch_size % micro:
        raise UserError(f"batch_size {settings.batch_size} is no multiple of the model's train_batch_size {micro}")
    per_epoch = -(-len(encoded) // settings.batch_size)
    total = per_epoch * settings.num_train_epochs
    keep = Keep(
        cell.folder,
        checkpoint_steps(per_epoch, settings.num_train_epochs, settings.checkpoints_first_epoch),
        total,
        str(cell),
    )
    state = cell.folder / "trainer" / hashlib.sha256(repr((settings, model, encoded)).encode()).hexdigest()[:12]
    last = last_state(state)
    if last is None:  # what other settings left here would be taken for checkpoints of this run
        for name in ("trainer", "adapter"):
            shutil.rmtree(cell.folder / name, ignore_errors=True)
    arguments = TrainingArguments(
        output_dir=str(state),
        num_train_epochs=settings.num_train_epochs,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=settings.batch_size // micro,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.lr_scheduler_type,
        warmup_steps=round(settings.warmup_ratio * total),
        weight_decay=settings.weight_decay,
        train_sampling_strategy="group_by_length",
        seed=cell.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        save_total_limit=2,  # should the last one be damaged
        disable_tqdm=True,
        report_to="none",
        use_cpu=models.device().type == "cpu",
    )
    if arguments.n_gpu > 1:  # the Trainer would split every batch over the cards, for which so small a job is too small
        arguments._n_gpu = 1
    trainer = AnswerTrainer(
        peft_model, arguments, train_dataset=encoded, data_collator=encoding.collate, callbacks=[keep]
    )
    trainer.shared = shared
    trainer.remove_callback(PrinterCallback)
    trainer.model_accepts_loss_kwargs = True
    with store.writing(cell.folder):
        done = trainer.train(resume_from_checkpoint=last)
    keep.bar.close()
    log = pd.DataFrame([r for r in trainer.state.log_history if "loss" in r])[store.TRAIN_LOG]
    shutil.rmtree(cell.folder / "trainer", ignore_errors=True)
    return Result(
        log=log.drop_duplicates("step", keep="last"),
        checkpoints=models.adapter_steps(cell.folder),
        tokens=sum(len(e["input_ids"]) for e in encoded),
        trainable=sum(p.numel() for p in peft_model.parameters() if p.requires_grad),
        seconds=done.metrics["train_runtime"],
    )
