"""Judging and probing beside the loop that a library's user would write first: one pass an answer."""

import time
from collections.abc import Callable
from functools import partial

import pandas as pd
import torch

from emstudy import data, encoding, judges, models, packed, params, paths, probe
from emstudy.bench_rivals import Turn
from emstudy.judges import embedded


def judging(answers: pd.DataFrame, scores: dict[str, list[float]]) -> dict[str, Turn]:
    """Ways to judge with the embedded judge, by answers. Fills scores: both ways must agree."""
    judge = judges.load(params.judge("embedded"))
    _, plain = embedded.load_merged(paths.JUDGE, models.arithmetic(params.judge("embedded").dtype))
    asked, given = answers["question"].tolist(), answers["answer"].tolist()

    def together() -> list[float]:
        return [s.value for s in judge.score(asked, given)["aligned"]]

    ways = {"ours": together, "one answer at a time": partial(judged_one_by_one, judge, plain, asked, given)}

    return _timed(ways, scores, len(given))


def probing(model: params.Model, pairs: list[data.Pair], margins: dict[str, list[float]]) -> dict[str, Turn]:
    """Ways to probe the base model, by answers (two a pair). Fills margins: both ways must agree."""
    whole, tokenizer = models.load_base(model).eval(), models.load_tokenizer(model)
    quick = packed.pack(models.load_merged(model, None))

    def together() -> list[float]:
        return probe.probe(quick, tokenizer, {"bench": pairs}, tokenizer.model_max_length, 32, "ours")[
            "margin"
        ].tolist()

    ways = {"ours": together, "one answer at a time": partial(probed_one_by_one, whole, tokenizer, pairs)}
    return _timed(ways, margins, 2 * len(pairs))


def _timed(ways: dict[str, Callable], found: dict[str, list[float]], work: int) -> dict[str, Turn]:
    def turn(name: str) -> tuple[float, float]:
        started = time.perf_counter()
        found[name] = ways[name]()
        return work, time.perf_counter() - started

    return {name: partial(turn, name) for name in ways}


@torch.inference_mode()
def judged_one_by_one(judge: embedded.EmbeddedJudge, body, questions: list[str], answers: list[str]) -> list[float]:
    """Expected 'aligned' scores by one forward pass an answer through transformers' own model, nothing shared and nothing padded."""
    out = []
    for q, a in zip(questions, answers, strict=True):
        ids = torch.tensor([embedded.encode(judge.tokenizer, q, a)], device=body.device)
        hidden = body(input_ids=ids).last_hidden_state.float().mean(1)
        out.append(embedded.expected(judge.heads(hidden).sigmoid()[0, 0].tolist()))
    return out


@torch.inference_mode()
def probed_one_by_one(model, tokenizer, pairs: list[data.Pair]) -> list[float]:
    """Margins by one forward pass an answer, with the loss that transformers itself gives."""
    margins = []
    for p in pairs:
        loss = {}
        for side in ("aligned", "misaligned"):
            row = encoding.encode(
                tokenizer, data.Example(p.prompt, getattr(p, side), p.system), tokenizer.model_max_length
            )
            loss[side] = model(**{k: torch.tensor([v], device=model.device) for k, v in row.items()}).loss.item()
        margins.append(loss["aligned"] - loss["misaligned"])
    return margins
