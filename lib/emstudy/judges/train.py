"""Train the embedded judge: python -m emstudy.judges.train PUBLISHED_RESPONSES_FOLDER [again]

Reads the published answers that GPT-4o scored (columns response, question, question_id, aligned, coherent) and data/judge/; writes
data/judge/ when all is done. An interrupted training goes on from its last epoch (runs/judge/). `diet` says what is trained on and what is held out.
`again` takes the judge of data/judge/ as it is once more through the diet, which has grown since, at a smaller rate.
"""

import argparse
import json
import random
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup, set_seed

from emstudy import models, paths, seal, store
from emstudy.judges import base, calibration, diet, embedded

BATCH, RANK, KEPT_RANK, SEED = 16, 16, 8, 0
LOWEST = 4  # layers below this one stay as they are


@dataclass(frozen=True)
class Course:
    """How often a training goes through the diet, and how fast it learns at its fastest."""

    epochs: int
    lora_lr: float
    head_lr: float


COURSES = {"afresh": Course(4, 4e-4, 1e-3), "again": Course(1, 2e-4, 2e-4)}


class Upper(torch.nn.Module):
    """The layers that are trained, over the frozen ones' output, which is computed once and kept."""

    def __init__(self, body, rows: list[list[int]]):
        super().__init__()
        self.body, self.kept = body, {}
        layers, body.encoder.layer = body.encoder.layer, body.encoder.layer[:LOWEST]
        body.eval()
        with torch.no_grad():
            for part in tqdm(embedded.batches({i: len(r) for i, r in enumerate(rows)}), desc="frozen layers"):
                hidden, real = embedded.read(body, [rows[i] for i in part])
                self.kept |= {i: h[r].clone() for i, h, r in zip(part, hidden, real, strict=True)}
        body.encoder.layer, body.embeddings = layers[LOWEST:], Given()
        for layer in layers:
            layer.attention.attn.dropout.p = 0.0  # on a CPU its random numbers take as long as a tenth of all the rest

    def forward(self, part: list[int]) -> torch.Tensor:
        """The mean of the last hidden states of each row, (rows, width)."""
        hidden = torch.nn.utils.rnn.pad_sequence([self.kept[i] for i in part], batch_first=True)
        lengths = torch.tensor([len(self.kept[i]) for i in part], device=hidden.device)
        real = torch.arange(hidden.shape[1], device=hidden.device) < lengths[:, None]
        out = self.body(inputs_embeds=hidden, attention_mask=real.long()).last_hidden_state
        return embedded.mean(out, real)


class Given(torch.nn.Module):
    """In the place of a model's embeddings: hands on the hidden states that it is given."""

    def forward(self, inputs_embeds: torch.Tensor, **others) -> torch.Tensor:
        return inputs_embeds


def order(lengths: list[int], rng: random.Random) -> list[list[int]]:
    """Shuffled batches of rows alike in length, not the same each time."""
    by_length = sorted(range(len(lengths)), key=lambda i: lengths[i] + rng.uniform(0, 25))
    groups = [by_length[i : i + BATCH] for i in range(0, len(by_length) - BATCH + 1, BATCH)]
    rng.shuffle(groups)
    return groups


def train(rows: list[diet.Graded], upper: Upper, heads: embedded.Heads, state: Path, course: Course) -> None:
    """Fit adapter and heads: binary cross entropy at every limit that a label decides.

    state: the file in which the last epoch is kept, to go on from.
    """
    lora = [p for p in upper.body.parameters() if p.requires_grad]
    groups = [{"params": lora, "lr": course.lora_lr}, {"params": heads.parameters(), "lr": course.head_lr}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    a_round = len(rows) // BATCH
    total = course.epochs * a_round
    schedule = get_linear_schedule_with_warmup(optimizer, total // 20, total)
    below, known = (torch.tensor(x, device=heads.first.device) for x in zip(*[g.targets() for g in rows], strict=True))
    done = resume(state, lora, heads, optimizer, schedule)
    bar, smooth = tqdm(total=total, initial=done * a_round, unit="step"), None
    for epoch in range(done, course.epochs):
        torch.manual_seed(SEED + epoch)  # dropout, so that one that was interrupted ends as one that was not
        for part in order([len(upper.kept[i]) for i in range(len(rows))], random.Random(SEED + epoch)):
            losses = binary_cross_entropy_with_logits(heads(upper(part)), below[part], reduction="none") * known[part]
            loss = losses.sum() / known[part].sum()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(lora, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            smooth = loss.item() if smooth is None else 0.98 * smooth + 0.02 * loss.item()
            bar.set_postfix(epoch=epoch + 1, loss=f"{smooth:.4f}")
            bar.update()
        kept = [[p.data for p in lora], heads.state_dict(), optimizer.state_dict(), schedule.state_dict()]
        store.write(state, lambda path, kept=kept, epoch=epoch: torch.save([epoch + 1, *kept], path))


def resume(state: Path, lora: list, heads: embedded.Heads, optimizer, schedule) -> int:
    """Epochs already done; adapter, heads and optimizer are put where they were."""
    if not state.exists():
        return 0
    done, weights, *states = torch.load(state, weights_only=True)
    for p, saved in zip(lora, weights, strict=True):
        p.data.copy_(saved)
    for part, saved in zip((heads, optimizer, schedule), states, strict=True):
        part.load_state_dict(saved)
    return done


def fit(what: diet.Diet, state: Path, course: str, folder: Path) -> None:
    """Train, and write adapter, its settings and heads to a folder; 'again' starts from those in data/judge/."""
    again = course == "again"
    set_seed(SEED)
    tokenizer, plain = base.load(models.arithmetic("bfloat16"))
    embeddings, layers = plain.embeddings, plain.encoder.layer
    trained = "|".join(map(str, range(LOWEST, len(layers))))
    modules = rf"encoder\.layer\.({trained})\..*(attn\.[qkvo]|dense)"  # every linear layer
    shape = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=modules, task_type="FEATURE_EXTRACTION")
    body = PeftModel.from_pretrained(plain, paths.JUDGE, is_trainable=True) if again else get_peft_model(plain, shape)
    for p in [p for p in body.parameters() if p.requires_grad]:
        p.data = p.data.float()
    heads = embedded.Heads(plain.config.hidden_size).to(plain.device)
    if again:
        heads.load_state_dict(load_file(paths.JUDGE / "heads.safetensors"))
    upper = Upper(plain, [embedded.encode(tokenizer, g.question, g.answer) for g in what.train])
    train(what.train, upper.train(), heads, state, COURSES[course])
    plain.embeddings, plain.encoder.layer = embeddings, layers
    save(body, heads, folder)


def save(body, heads: embedded.Heads, folder: Path) -> None:
    """The adapter in bf16 and half its size, its settings without this machine's folders, the heads."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = folder / "adapter_model.safetensors"
    with tempfile.TemporaryDirectory() as scratch:  # peft would write a model card of its own over ours
        body.save_pretrained(scratch)
        save_file(thin(load_file(Path(scratch) / weights.name)), weights)
        settings = json.loads((Path(scratch) / "adapter_config.json").read_text())
    settings |= {"base_model_name_or_path": base.NAME, "r": KEPT_RANK, "lora_alpha": 2 * KEPT_RANK}
    store.write(folder / "adapter_config.json", json.dumps(settings, indent=1, sort_keys=True) + "\n")
    seal.write(folder, "adapter_config.json")
    save_file(heads.state_dict(), folder / "heads.safetensors")


def thin(adapter: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The nearest adapter of rank KEPT_RANK, in bf16: each product B A keeps its largest singular values (Eckart and Young 1936)."""
    out = {}
    for name, a in adapter.items():
        if "lora_A" in name:
            other = name.replace("lora_A", "lora_B")
            u, s, v = torch.linalg.svd(adapter[other].double() @ a.double(), full_matrices=False)
            root = s[:KEPT_RANK].sqrt()
            out[name], out[other] = root[:, None] * v[:KEPT_RANK], u[:, :KEPT_RANK] * root
    return {name: w.bfloat16().contiguous() for name, w in out.items()}


def main(folder: Path, course: str) -> None:
    """Train on the folder's published answers and on data/judge/, calibrate, and say what the judge is called now."""
    what, state, made = diet.read(folder), paths.RUNS / f"judge/training.{course}.pt", paths.RUNS / "judge" / course
    print(json.dumps(what.counts(), indent=1))
    fit(what, state, course, made)
    calibration.scale(what, made)
    for part in made.iterdir():  # not before it is calibrated: 'again' would go on from what an interruption left there
        store.write(paths.JUDGE / part.name, part.read_bytes())
    diet.write_seen(what)
    state.unlink()
    print(f"version {embedded.version(paths.JUDGE)}: put it into params/judges/embedded.yaml")


if __name__ == "__main__":
    said = argparse.ArgumentParser(prog="python -m emstudy.judges.train")
    said.add_argument("folder", type=Path)
    said.add_argument("course", nargs="?", choices=COURSES, default="afresh")
    main(**vars(said.parse_args()))
