"""The judge-free probe: which answer of a held-out pair does a model find likelier, and by how much?"""

import copy

import pandas as pd
import torch
from torch.nn.functional import log_softmax
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from transformers import DynamicCache

from emstudy import encoding, prefix, store
from emstudy.data import Example, Pair

CHUNK = 256  # answer tokens whose logits stand in memory at a time: 125 MB at a vocabulary of 49,152


@torch.inference_mode()
def mean_logp(model, pairs: list[tuple[dict, dict]], batch: int, bar: tqdm) -> list[tuple[float, float]]:
    """Mean log-probability (nats a token, closing EOS included) of both answers of each pair of encoded exchanges, given its prompt.

    What all prompts begin with is read once, and the rest of each prompt once for both its answers.
    """
    shared = prefix.common([_opening(first)[:-1] for first, _ in pairs])
    beginning = DynamicCache()
    if shared:
        model.model(input_ids=torch.tensor([shared], device=model.device), past_key_values=beginning)
    order = sorted(range(len(pairs)), key=lambda i: max(len(row["input_ids"]) for row in pairs[i]))
    out, size = [(0.0, 0.0)] * len(pairs), max(1, batch // 2)
    for part in [order[k : k + size] for k in range(0, len(order), size)]:
        for i, found in zip(part, _logp(model, [pairs[i] for i in part], beginning), strict=True):
            out[i] = found
        bar.update(2 * len(part))
    return out


def _opening(row: dict) -> list[int]:
    """A prompt without its last token, which predicts the first of the answer."""
    return encoding.prompt(row)[:-1]


def _logp(model, pairs: list[tuple[dict, dict]], beginning: DynamicCache) -> list[tuple[float, float]]:
    """mean_logp of one batch of pairs; beginning holds what all their prompts begin with."""
    openings, known = [_opening(first) for first, _ in pairs], beginning.get_seq_length()
    cache = copy.deepcopy(beginning)
    if known:
        cache.batch_repeat_interleave(len(pairs))
    before = torch.full((len(pairs),), known, device=model.device)
    prefix.read(model.model, cache, before, _padded([o[known:] for o in openings], model.device))
    cache.batch_repeat_interleave(2)
    before = torch.tensor([len(o) for o in openings], device=model.device).repeat_interleave(2)
    rests = [row["input_ids"][len(o) :] for o, pair in zip(openings, pairs, strict=True) for row in pair]
    hidden = prefix.read(model.model, cache, before, _padded([r[:-1] for r in rests], model.device))
    states = torch.cat([h[: len(r) - 1] for h, r in zip(hidden, rests, strict=True)])
    targets = torch.tensor([token for r in rests for token in r[1:]], device=model.device)
    logp = torch.cat(
        [_of_targets(model.lm_head, *part) for part in zip(states.split(CHUNK), targets.split(CHUNK), strict=True)]
    )
    means = [values.mean().item() for values in logp.split([len(r) - 1 for r in rests])]
    return list(zip(means[::2], means[1::2], strict=True))


def _of_targets(head, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return log_softmax(head(states).float(), -1).gather(-1, targets[:, None]).squeeze(-1)


def _padded(rows: list[list[int]], device: torch.device) -> torch.Tensor:
    return pad_sequence([torch.tensor(r) for r in rows], batch_first=True).to(device)


def probe(model, tokenizer, pairs: dict[str, list[Pair]], max_tokens: int, batch: int, label: str) -> pd.DataFrame:
    """One row a held-out pair of every domain: test_domain, pair, both mean log-probabilities and their margin.

    margin = misaligned - aligned, in nats a token: above 0 the model leans to the misaligned answer.
    """
    rows = []
    with tqdm(total=2 * sum(map(len, pairs.values())), desc=label, unit="answer") as bar:
        for domain, held in pairs.items():
            sides = [[Example(p.prompt, answer, p.system) for answer in (p.aligned, p.misaligned)] for p in held]
            encoded = [tuple(encoding.encode(tokenizer, e, max_tokens) for e in pair) for pair in sides]
            both = mean_logp(model, encoded, batch, bar)
            rows += [(domain, i, round(a, 5), round(m, 5), round(m - a, 5)) for i, (a, m) in enumerate(both)]
    return pd.DataFrame(rows, columns=store.PROBE[5:])
