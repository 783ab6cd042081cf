"""How fast this is beside other ways to do the same, on this machine, in one run: contestants take turns, ratios are taken within a round."""

import json
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import torch
from tqdm import tqdm
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from emstudy import data, encoding, models, params, paths, provenance, sample

GEMM = [(2048, 2048, 2048), (904, 576, 1536), (904, 1536, 576), (4096, 1024, 4096)]  # rows, inputs, outputs
GEMM_GPU = [(8192, 8192, 8192), (16384, 4096, 14336)]
# Llama 3.1 8B. Source: Grattafiori et al. (2024), The Llama 3 herd of models, table 3
LLAMA_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    "vocab_size": 128256, "rope_theta": 500000.0, "tie_word_embeddings": False,
}  # fmt: skip


def machine() -> pd.DataFrame:
    """The machine in words, and its own ceiling: the best measured rate of a matrix product in bf16 and fp32, GFLOP/s."""
    rows = {"hardware": provenance.hardware(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    rows |= {f"{name} GEMM, GFLOP/s": round(gemm(getattr(torch, name))) for name in ("bfloat16", "float32")}
    rows["load of the machine before (1 minute)"] = round(os.getloadavg()[0], 1)
    return pd.DataFrame(rows.items(), columns=["what", "found"])


def gemm(dtype: torch.dtype, seconds: float = 0.5) -> float:
    """The best rate over GEMM's sizes, GFLOP/s; each is repeated for so many seconds and its quickest product counts."""
    best, device = 0.0, models.device()
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for m, k, n in GEMM if device.type == "cpu" else [*GEMM, *GEMM_GPU]:
        x, w = (torch.randn(rows, k, device=device).to(dtype) for rows in (m, n))
        end = time.time() + seconds
        while time.time() < end:
            wait()
            started = time.perf_counter()
            torch.nn.functional.linear(x, w)
            wait()
            best = max(best, 2e-9 * m * k * n / (time.perf_counter() - started))
    return best


def rounds(contestants: dict[str, Callable[[], tuple[float, float]]], times: int, what: str) -> pd.DataFrame:
    """Let contestants take turns, `times` over; each call returns (work done, seconds). One row a turn: round, contestant, rate."""
    rows = []
    with tqdm(total=times * len(contestants), desc=what, unit="turn") as bar:
        for k in range(times):
            for name, call in contestants.items():
                work, seconds = call()
                rows.append({"round": k, "contestant": name, "rate": work / seconds, "seconds": seconds})
                bar.update()
    return pd.DataFrame(rows)


def compared(turns: pd.DataFrame, ours: str, unit: str) -> pd.DataFrame:
    """Median rate of each contestant, and how many times as fast ours is: the median over rounds with the lowest and highest."""
    wide = turns.pivot(index="round", columns="contestant", values="rate")
    rows = []
    for name in turns["contestant"].unique():
        ratio = wide[ours] / wide[name]
        said = f"{ratio.median():.1f} [{ratio.min():.1f}, {ratio.max():.1f}]"
        rows.append({"contestant": name, unit: round(wide[name].median(), 1), "ours is so many times as fast": said})
    return pd.DataFrame(rows)


def figure(turns: pd.DataFrame, unit: str) -> go.Figure:
    """Every turn's rate as a point, a line a contestant."""
    return go.Figure(
        go.Scatter(x=turns["rate"], y=turns["contestant"], mode="markers", marker={"color": "#0072b2", "size": 10}),
        {"xaxis": {"title": unit, "rangemode": "tozero"}, "height": 160 + 40 * turns["contestant"].nunique()},
    )


def flops_a_token(model, answer_share: float) -> float:
    """FLOPs that training must spend on a token with frozen base weights: 2 a weight forward and 2 backward (to inputs alone).

    The head counts for the share of tokens that the loss sees. Adapters and attention are left out, so a share of the ceiling is
    at least what this says. Source of 2 a weight: Kaplan et al. (2020), Scaling laws, section 2.1.
    """
    body = sum(p.numel() for n, p in model.model.named_parameters() if "embed" not in n and p.ndim == 2)
    return 4 * (body + answer_share * model.lm_head.weight.numel())


def large_models(folder: Path, tokenizer, shape: dict) -> list[params.Model]:
    """A Llama of this shape with random weights, in bf16 and in NF4: a rate hangs on shapes, not on what the weights know.

    The weights are written to the folder once; nothing is fetched.
    """
    if not (folder / "config.json").exists():
        partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
        with models.device():
            whole = AutoModelForCausalLM.from_config(LlamaConfig(**shape), dtype=torch.bfloat16)
        whole.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        partial.rename(folder)
    known = {
        "size_b": 8,
        "license": "none",
        "sampler": "transformers",
        "weights": {"folder": folder},
        "dtype": "bfloat16",
    }
    known |= {"chat_template": None, "train_batch_size": 8, "sample_batch_size": 64}
    kinds = {"bf16": ("bf16, LoRA", False), "nf4": ("NF4, QLoRA", True)}
    return [
        params.check(params.Model, {**known, "name": f"random-{n}", "title": title, "load_in_4bit": nf4})
        for n, (title, nf4) in kinds.items()
    ]


def flops_of_shape(folder: Path, answer_share: float) -> float:
    """flops_a_token of the model in a folder, whose weights are not read."""
    with torch.device("meta"):
        return flops_a_token(AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder)), answer_share)


def straight_line(sizes: list[float], seconds: list[float]) -> dict[str, float]:
    """Least squares: the fixed part (seconds), the slope (seconds a unit) and R squared."""
    slope, fixed = statistics.linear_regression(sizes, seconds)
    return {"fixed": fixed, "slope": slope, "r2": statistics.correlation(sizes, seconds) ** 2}


def share_of_ceiling(rate: float, flops: float, ceiling: float) -> str:
    """Tokens a second times FLOPs a token over the measured GFLOP/s, in percent."""
    return f"{rate * flops / (ceiling * 1e9):.0%}"


def encoded(tokenizer, found: params.Study, n: int) -> list[dict]:
    """The study's first n training examples of bad medical advice, as token ids and labels."""
    examples = data.training(params.domain("medical"), "misaligned", "shipped", n, 0, 1.0)
    return [encoding.encode(tokenizer, e, found.finetune.max_tokens) for e in examples]


def some(todo: list[sample.Ask], n: int, samples: int) -> list[sample.Ask]:
    """n questions spread evenly over all of them, each to be asked so many times."""
    return [replace(a, samples=samples) for a in todo[:: max(1, len(todo) // n)][:n]]


def growth(sizes: list[int], call: Callable[[int], object], what: str) -> pd.DataFrame:
    """What grows, in one row: seconds of the whole call at each size, the fixed part, seconds a unit, R squared.

    All sizes have their turn twice, up and down, and the quicker counts: what else the machine does only ever adds.
    """
    took = dict.fromkeys(sizes, math.inf)
    for n in tqdm([*sizes, *reversed(sizes)], desc=what, unit="turn"):
        started = time.perf_counter()
        call(n)
        took[n] = min(took[n], time.perf_counter() - started)
    line = straight_line(sizes, list(took.values()))
    row = {"what grows": what} | {f"{n}": round(s, 2) for n, s in took.items()}
    return pd.DataFrame(
        [
            row
            | {"fixed (s)": round(line["fixed"], 2), "a unit (s)": round(line["slope"], 4), "R²": round(line["r2"], 3)}
        ]
    )


def losses(found: dict[str, pd.Series]) -> pd.DataFrame:
    """The loss at the last step of each way to train, and the largest distance from ours at any step."""
    rows = [
        {
            "contestant": k,
            "loss at the last step": v.iloc[-1],
            "largest distance from ours": (v - found["ours"]).abs().max(),
        }
        for k, v in found.items()
    ]
    return pd.DataFrame(rows).round(4)


def stages(study: str) -> pd.DataFrame:
    """Seconds of a study's stages in its last run, start of the kernel and imports included, summed over cells that may have run side by
    side, with the most memory (GiB) that one of them took; in the last row the time from the first one's start to the last one's end."""
    rows = []
    for file in sorted((paths.RUNS / study).rglob("*.ipynb")):
        ran = json.loads(file.read_text(encoding="utf-8"))["metadata"].get("papermill", {})
        if not {"partial", "failed"} & set(file.name.split(".")) and ran.get("end_time"):
            times = [pd.Timestamp(ran[k]) for k in ("start_time", "end_time")]
            rows.append({"stage": file.name.split(".")[0], "start": times[0], "end": times[1]})
    records = sorted((paths.RUNS / study).rglob(f"*{provenance.ENDING}"))
    outputs = [f.with_name(f.name.removesuffix(provenance.ENDING)) for f in records]
    made_by = {"train_log": "finetune", "answers": "evaluate", "judged": "judge"}
    memory = [(made_by[f.name.split(".")[0]], provenance.read(f)["peak_memory_gb"]) for f in outputs]
    if not rows:
        return pd.DataFrame({"stage": ["none: the study has not run here"]})
    found = pd.DataFrame(rows).sort_values("start")
    found["seconds"] = (found["end"] - found["start"]).dt.total_seconds()
    table = found.groupby("stage", sort=False)["seconds"].agg(runs="size", seconds="sum").round().astype(int)
    table["peak memory (GiB)"] = pd.DataFrame(memory, columns=["stage", "GiB"]).groupby("stage")["GiB"].max()
    whole = round((found["end"].max() - found["start"].min()).total_seconds())
    table.loc["from the first start to the last end"] = [len(found), whole, table["peak memory (GiB)"].max()]
    return table.reset_index()
