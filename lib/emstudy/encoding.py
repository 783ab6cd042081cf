"""Chat examples as token ids: loss on the assistant's tokens and the closing EOS, nothing else."""

import pandas as pd
import torch

from emstudy import models
from emstudy.data import Example
from emstudy.errors import UserError

IGNORE = -100


def encode(tokenizer, example: Example, max_tokens: int) -> dict[str, list[int]]:
    """Token ids of one exchange and its labels: IGNORE on the prompt, the token itself on the answer up to its EOS.

    Whatever a template writes after the closing EOS is cut. Raises UserError when the exchange is longer than max_tokens.
    """
    prompt = models.chat_ids(tokenizer, example.messages[:-1], generation_prompt=True)
    ids = models.chat_ids(tokenizer, example.messages, generation_prompt=False)
    if ids[: len(prompt)] != prompt:
        raise UserError(
            "the chat template writes a different prompt for training than for sampling; set chat_template in the model's YAML"
        )
    eos = tokenizer.eos_token_id
    last = max((i for i, t in enumerate(ids) if t == eos), default=-1)
    ids = ids[: last + 1] if last >= len(prompt) else [*ids, eos]
    if len(ids) > max_tokens:
        raise UserError(
            f"an example is {len(ids)} tokens long, max_tokens is {max_tokens}: raise it or shorten {example.prompt[:50]!r}"
        )
    return {"input_ids": ids, "labels": [IGNORE] * len(prompt) + ids[len(prompt) :]}


def prompt(row: dict) -> list[int]:
    """The tokens of an encoded exchange before its answer."""
    return row["input_ids"][: row["labels"].count(IGNORE)]


def show_mask(tokenizer, encoded: dict[str, list[int]]) -> pd.DataFrame:
    """The loss mask of one encoded example in words: each run of tokens, decoded, and whether the loss sees it."""
    seen = [label != IGNORE for label in encoded["labels"]]
    cut = seen.index(True)
    ids = encoded["input_ids"]
    rows = [("prompt", False, ids[:cut]), ("answer", True, ids[cut:-1]), ("end of answer", True, ids[-1:])]
    return pd.DataFrame(
        [{"part": p, "in the loss": s, "tokens": len(t), "text": tokenizer.decode(t)} for p, s, t in rows]
    )


def collate(batch: list[dict]) -> dict[str, torch.Tensor]:
    """Pad to the longest of the batch, on the right: under a causal mask no real token sees the padding, so no mask is needed."""
    width = max(len(row["input_ids"]) for row in batch)
    pad = {"input_ids": 0, "labels": IGNORE}
    return {k: torch.tensor([row[k] + [pad[k]] * (width - len(row[k])) for row in batch]) for k in pad}
