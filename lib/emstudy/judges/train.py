"""Train the embedded judge: python -m emstudy.judges.train PUBLISHED_RESPONSES_FOLDER [further]

Reads the published answers that GPT-4o scored (columns response, question, question_id, aligned, coherent) and data/judge/; writes
data/judge/. With `further` it goes on from the judge that lies there, on what is new and a part of the rest, and averages the two. An
interrupted training goes on from its last epoch (runs/judge/). `diet` says what is trained on and what is held out.
"""

import json
import random
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from torch.nn.functional import binary_cross_entropy_with_logits
from tqdm import tqdm
from transformers import get_linear_schedule_with_warmup, set_seed

from emstudy import fused, paths, seal, store
from emstudy.judges import calibration, diet, embedded

BATCH, RANK, LOWEST = 16, 16, 8  # layers below LOWEST have no adapter
SHARE = 0.75  # of the new weights where a further training is averaged with what it started from


@dataclass(frozen=True)
class Recipe:
    """How one training goes. Layers below first_layer stay as they are: their output is computed once, which saves their time."""

    name: str
    seed: int
    epochs: int
    first_layer: int
    lora_lr: float
    head_lr: float

    @property
    def state(self) -> Path:
        """Where the last epoch is kept until the training is over."""
        return paths.RUNS / f"judge/{self.name}.pt"


ANEW = Recipe("anew", seed=0, epochs=4, first_layer=LOWEST, lora_lr=4e-4, head_lr=1e-3)
FURTHER = Recipe("further", seed=1, epochs=2, first_layer=12, lora_lr=3e-4, head_lr=4.5e-4)


class Upper(torch.nn.Module):
    """The layers that are trained, over the frozen ones' output, which is computed once and kept."""

    def __init__(self, body, rows: list[list[int]], first_layer: int):
        super().__init__()
        self.body, layers = body, body.layers
        lower, norm = layers[:first_layer], body.norm
        body.layers, body.norm = lower, torch.nn.Identity()
        self.kept: dict[int, torch.Tensor] = {}
        with torch.no_grad():
            parts = embedded.batches({i: (0, len(r)) for i, r in enumerate(rows)})
            for part in tqdm(parts, desc="frozen layers", unit="batch"):
                width = max(len(rows[i]) for i in part)
                ids = torch.tensor([rows[i] + [0] * (width - len(rows[i])) for i in part])
                hidden = body(input_ids=ids.to(body.device), use_cache=False).last_hidden_state
                self.kept |= {i: h[: len(rows[i])].clone() for i, h in zip(part, hidden, strict=True)}
        body.layers, body.norm = layers[first_layer:], norm

    def forward(self, part: list[int]) -> torch.Tensor:
        """Last hidden state at the last token of each row, (rows, width)."""
        hidden = torch.nn.utils.rnn.pad_sequence([self.kept[i] for i in part], batch_first=True)
        last = torch.tensor([len(self.kept[i]) - 1 for i in part])
        out = self.body(inputs_embeds=hidden, use_cache=False).last_hidden_state
        return out[torch.arange(len(part)), last]


def order(lengths: list[int], rng: random.Random) -> list[list[int]]:
    """Shuffled batches of rows alike in length, not the same each time."""
    by_length = sorted(range(len(lengths)), key=lambda i: lengths[i] + rng.uniform(0, 25))
    groups = [by_length[i : i + BATCH] for i in range(0, len(by_length) - BATCH + 1, BATCH)]
    rng.shuffle(groups)
    return groups


def train(
    rows: list[diet.Graded], upper: Upper, heads: embedded.Heads, recipe: Recipe, before: list[torch.Tensor]
) -> None:
    """Fit adapter and heads: binary cross entropy at every limit that a label decides.

    before: the weights it begins with. Where it goes on from an epoch that is kept, they become those it had begun with then.
    """
    lora = [p for p in upper.body.parameters() if p.requires_grad]
    groups = [{"params": lora, "lr": recipe.lora_lr}, {"params": heads.parameters(), "lr": recipe.head_lr}]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.01)
    a_round = len(rows) // BATCH
    total = recipe.epochs * a_round
    schedule = get_linear_schedule_with_warmup(optimizer, total // 20, total)
    below, known = (torch.tensor(x, device=heads.first.device) for x in zip(*[g.targets() for g in rows], strict=True))
    done = resume(recipe.state, [*before, *lora], heads, optimizer, schedule)
    bar, smooth = tqdm(total=total, initial=done * a_round, unit="step"), None
    for epoch in range(done, recipe.epochs):
        for part in order([len(upper.kept[i]) for i in range(len(rows))], random.Random(recipe.seed + epoch)):
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
        state = [[p.data for p in (*before, *lora)], heads.state_dict(), optimizer.state_dict(), schedule.state_dict()]
        recipe.state.parent.mkdir(parents=True, exist_ok=True)
        torch.save([epoch + 1, *state], recipe.state.with_suffix(".partial"))
        recipe.state.with_suffix(".partial").replace(recipe.state)


def resume(state: Path, tensors: list, heads: embedded.Heads, optimizer, schedule) -> int:
    """Epochs already done; tensors, heads and optimizer are put where they were."""
    if not state.exists():
        return 0
    done, weights, *states = torch.load(state, weights_only=True)
    for p, saved in zip(tensors, weights, strict=True):
        p.data.copy_(saved)
    for part, saved in zip((heads, optimizer, schedule), states, strict=True):
        part.load_state_dict(saved)
    return done


def start(plain, heads: embedded.Heads, recipe: Recipe):
    """The base with the adapter to train: a new one, or the one in data/judge/ with its heads."""
    if recipe is FURTHER:
        heads.load_state_dict(load_file(paths.JUDGE / "heads.safetensors"))
        body = PeftModel.from_pretrained(plain, paths.JUDGE, is_trainable=True)
    else:
        trained = "|".join(map(str, range(LOWEST, embedded.LAYERS)))
        modules = rf"layers\.({trained})\.\w+\.\w+_proj"
        shape = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=modules, task_type="FEATURE_EXTRACTION")
        body = get_peft_model(plain, shape)
    for p in [p for p in body.parameters() if p.requires_grad]:
        p.data = p.data.float()
    for layer in plain.layers[: recipe.first_layer]:
        layer.requires_grad_(False)
    fused.quicken(body)
    return body


def fit(what: diet.Diet, recipe: Recipe) -> None:
    """Train, and write adapter, its settings and heads to data/judge/."""
    set_seed(recipe.seed)
    known = [g for g in what.train if g.source not in diet.NEW]
    rows = diet.rehearsed(what.train, recipe.seed) if recipe is FURTHER else known
    tokenizer, plain = embedded.load_body()
    heads, layers = embedded.Heads(plain.config.hidden_size).to(plain.device), plain.layers
    body = start(plain, heads, recipe)
    trained = [*(p for p in body.parameters() if p.requires_grad), *heads.parameters()]
    before = [p.detach().clone() for p in trained]
    read = [embedded.encode(tokenizer, g.question, g.answer) for g in rows]
    train(rows, Upper(plain, [[*opening, *rest] for opening, rest in read], recipe.first_layer), heads, recipe, before)
    plain.layers = layers
    if recipe is FURTHER:
        average(trained, before)
    save(body, heads)


@torch.no_grad()
def average(trained: list, before: list[torch.Tensor]) -> None:
    """Put the trained weights at SHARE of the way from what they were before, so that less is forgotten.

    Source: Wortsman et al. (2022), Robust fine-tuning of zero-shot models.
    """
    for p, old in zip(trained, before, strict=True):
        p.lerp_(old, 1 - SHARE)


def save(body, heads: embedded.Heads) -> None:
    """The adapter in bf16, its settings without this machine's folders, the heads."""
    weights = paths.JUDGE / "adapter_model.safetensors"
    with tempfile.TemporaryDirectory() as scratch:  # peft would write a model card of its own over ours
        body.save_pretrained(scratch)
        save_file({k: v.bfloat16() for k, v in load_file(Path(scratch) / weights.name).items()}, weights)
        settings = json.loads((Path(scratch) / "adapter_config.json").read_text())
    settings["base_model_name_or_path"] = embedded.BASE
    store.write(paths.JUDGE / "adapter_config.json", json.dumps(settings, indent=1, sort_keys=True) + "\n")
    seal.write(paths.JUDGE, "adapter_config.json")
    save_file(heads.state_dict(), paths.JUDGE / "heads.safetensors")


def main(folder: str, recipe: Recipe) -> None:
    """Train on the folder's published answers and on data/judge/, calibrate, and say what the judge is called now."""
    what = diet.read(Path(folder))
    print(json.dumps(what.counts(), indent=1))
    fit(what, recipe)
    calibration.scale(what)
    diet.write_seen(what)
    recipe.state.unlink()
    print(f"version {embedded.version(paths.JUDGE)}: put it into params/judges/embedded.yaml")


if __name__ == "__main__":
    main(sys.argv[1], FURTHER if sys.argv[2:] == ["further"] else ANEW)
