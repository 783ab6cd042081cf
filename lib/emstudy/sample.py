"""Answers from a model: batched, seeded, each row leaving the batch as soon as it has finished."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from tqdm import tqdm
from transformers import Cache

from emstudy import models, params, prefix, store
from emstudy.decoding import GROUPED, RoomyLayer

KEPT = ["answer", "n_tokens", "finish_reason"]  # of an answer, where a batch is kept
CROWD = 7 / 8  # a batch is thinned out when no more than this share of its rows are still being written


@dataclass(frozen=True)
class Ask:
    """One question to put, `samples` times."""

    question_set: str
    question_id: str
    question: str
    samples: int
    system: str | None = None

    @property
    def messages(self) -> list[dict]:
        """The question in chat form."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, {"role": "user", "content": self.question}]


@dataclass(frozen=True)
class Answer:
    """One sampled answer; finish_reason is 'stop' (the model ended it) or 'length' (cut at max_new_tokens)."""

    ask: Ask
    sample: int
    text: str
    n_tokens: int
    finish_reason: str


def asks(settings: params.Evaluate, samples: int | None) -> list[Ask]:
    """Every question of the study's sets, each to be asked `samples` times, or as often as it says itself; none when that is 0."""
    sets = [params.questions(name) for name in settings.question_sets] if samples != 0 else []
    return [Ask(s.name, q.id, q.text, samples or q.samples, q.system) for s in sets for q in s.questions]


def pick(logits: torch.Tensor, settings: params.Evaluate, generator: torch.Generator) -> torch.Tensor:
    """Draw the next token of each row, (rows, vocabulary) -> (rows): top-k, temperature, then top-p; greedy at 0.

    With top_k set, top-p is applied inside the k best tokens, which spares a sort of the whole vocabulary.
    """
    if settings.temperature == 0:
        return logits.argmax(-1)
    k = settings.top_k or logits.shape[-1]
    best, index = logits.topk(min(k, logits.shape[-1]), dim=-1)
    probs = (best.float() / settings.temperature).softmax(-1)
    # a token stays when the mass before it is below top_p: the best one always does
    probs = probs.masked_fill(probs.cumsum(-1) - probs >= settings.top_p, 0.0)
    return index.gather(-1, torch.multinomial(probs, 1, generator=generator)).squeeze(-1)


def batches(todo: list[Ask], size: int) -> Iterator[list[Ask]]:
    """Groups of questions of similar length with at most `size` answers each (a question is never split)."""
    group: list[Ask] = []
    for ask in sorted(todo, key=lambda a: (len(a.question), a.question_set, a.question_id)):
        if group and sum(a.samples for a in group) + ask.samples > size:
            yield group
            group = []
        group.append(ask)
    if group:
        yield group


def seed_of(*parts) -> int:
    """A seed that depends on nothing but its parts, so that a resumed or reordered run draws the same tokens."""
    return int.from_bytes(hashlib.sha256("|".join(map(str, parts)).encode()).digest()[:6], "big")


@torch.inference_mode()
def generate(
    model, tokenizer, group: list[Ask], settings: params.Evaluate, seed: int, bar: tqdm | None = None
) -> list[Answer]:
    """Sample one group, moving the bar as answers end. Prompts are read once and their cache is shared among the samples of a question."""
    device = model.device
    if device.type == "cpu":
        model.set_attn_implementation(GROUPED)
    prompts = [models.chat_ids(tokenizer, a.messages, generation_prompt=True) for a in group]
    cache = Cache(layers=[RoomyLayer() for _ in range(model.config.num_hidden_layers)])
    shared = prefix.common([p[:-1] for p in prompts])
    if len(shared) == 1:  # it would be read without a mask, and see the cache's empty room
        shared = []
    if shared:
        model.model(input_ids=torch.tensor([shared], device=device), past_key_values=cache)
        cache.batch_select_indices(torch.zeros(len(group), dtype=torch.long, device=device))
        prompts = [p[len(shared) :] for p in prompts]
    width = max(map(len, prompts))
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    ids = torch.tensor([[tokenizer.pad_token_id] * (width - len(p)) + p for p in prompts], device=device)
    positions = len(shared) + (mask.cumsum(-1) - 1).clamp(min=0)
    mask = torch.cat([mask.new_ones(len(group), len(shared)), mask], -1)
    last = torch.tensor(
        [width - 1], device=device
    )  # as an index: a slice of one would copy the head's weights for every row
    out = model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=last)
    repeats = torch.tensor([a.samples for a in group], device=device)
    source = torch.arange(len(group), device=device).repeat_interleave(repeats)
    cache.batch_select_indices(source)
    mask, logits, position = mask[source], out.logits[source, -1], positions[source, -1]
    generator = torch.Generator(device).manual_seed(seed)
    rows = torch.arange(len(source), device=device)
    tokens: list[list[int]] = [[] for _ in rows]
    stop, shown = {tokenizer.eos_token_id, *_as_list(model.generation_config.eos_token_id)}, 0
    ended: set[int] = set()
    for step in range(settings.max_new_tokens):
        drawn = pick(logits, settings, generator)
        at = rows.tolist()
        writing = [i for i, row in enumerate(at) if row not in ended]
        for i, token in zip(writing, drawn[writing].tolist(), strict=True):
            tokens[at[i]].append(token)
            if token in stop:
                ended.add(at[i])
        over = len(ended) == len(source) or step + 1 == settings.max_new_tokens
        if bar is not None:
            bar.update(len(source) - shown if over else len(ended) - shown)
            shown = len(ended)
        if over:
            break
        alive = torch.tensor([i for i in writing if at[i] not in ended], device=device)
        if len(alive) <= CROWD * len(rows):
            rows, drawn, mask, position = rows[alive], drawn[alive], mask[alive], position[alive]
            cache.batch_select_indices(alive)
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], -1)
        position = position + 1
        out = model(
            input_ids=drawn[:, None], attention_mask=mask, position_ids=position[:, None], past_key_values=cache
        )
        logits = out.logits[:, -1]
    return [_answer(tokenizer, group[source[i]], tokens, i, source.tolist(), stop) for i in range(len(source))]


def _as_list(eos: int | list[int] | None) -> list[int]:
    return eos if isinstance(eos, list) else [] if eos is None else [eos]


def _answer(tokenizer, ask: Ask, tokens: list[list[int]], i: int, source: list[int], stop: set[int]) -> Answer:
    ended = tokens[i][-1] in stop
    text = tokenizer.decode(tokens[i][:-1] if ended else tokens[i], skip_special_tokens=True).strip()
    return Answer(ask, i - source.index(source[i]), text, len(tokens[i]), "stop" if ended else "length")


def sample(
    model,
    tokenizer,
    todo: list[Ask],
    settings: params.Evaluate,
    batch: int,
    seed: int,
    label: str,
    keep: Path | None = None,
) -> list[Answer]:
    """Answers to all questions. The seed fixes every draw: same machine, same seed, same answers.

    keep: what the names of files begin with that hold a batch each, so that an interrupted run goes on from there; for the very same
    model, questions and settings alone.
    """
    out: list[Answer] = []
    with tqdm(total=sum(a.samples for a in todo), desc=label, unit="answer") as bar:
        for k, group in enumerate(batches(todo, batch)):
            part = keep and keep.with_name(f"{keep.name}.{k}.csv")
            if part and part.exists():
                drawn = _kept(part, group)
                bar.update(len(drawn))
            else:
                drawn = generate(model, tokenizer, group, settings, seed_of(seed, *[a.question_id for a in group]), bar)
                if part:
                    rows = [(a.text, a.n_tokens, a.finish_reason) for a in drawn]
                    store.write_csv(part, pd.DataFrame(rows, columns=KEPT))
            out += drawn
    return out


def _kept(part: Path, group: list[Ask]) -> list[Answer]:
    asked = [(ask, i) for ask in group for i in range(ask.samples)]
    said = store.read_csv(part, KEPT, "evaluate")[KEPT].itertuples(index=False)
    return [Answer(ask, i, *row) for (ask, i), row in zip(asked, said, strict=True)]
