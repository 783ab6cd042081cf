"""What works on this machine, in one screen: nothing optional is an error, each has the command that mends it."""

import os
import platform
import shutil
from importlib import metadata

from dotenv import dotenv_values

from emstudy import params, paths, provenance
from emstudy.errors import UserError

KEYS = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "HF_TOKEN")


def screen() -> str:
    """The whole report as text. Keys are named, never shown; the judge endpoint is asked only when ONLINE=1."""
    import torch

    lines = [f"python     {platform.python_version()}"]
    names = [
        "torch",
        "transformers",
        "peft",
        "bitsandbytes",
        "accelerate",
        "datasets",
        "openai",
        "papermill",
        "pandas",
        "plotly",
    ]
    lines.append("packages   " + ", ".join(f"{n} {metadata.version(n)}" for n in names))
    if torch.cuda.is_available():
        p = torch.cuda.get_device_properties(0)
        lines.append(
            f"GPU        {p.name}, {p.total_memory / 2**30:.0f} GiB, bf16 {'yes' if torch.cuda.is_bf16_supported() else 'no'}"
        )
    else:
        lines.append("GPU        none: the default study needs none; larger models do")
    computes = "bf16" if provenance.fast_bf16() else "float32 in place of bf16, which it has no arithmetic for"
    lines.append(f"CPU        {os.cpu_count()} cores, computes in {computes}")
    lines.append(
        f"disk       {shutil.disk_usage(paths.ROOT).free / 2**30:.0f} GiB free; the default study takes about 1"
    )
    lines += [
        f"model      {name:14} {_model(name)}"
        for name in sorted(p.stem for p in (paths.PARAMS / "models").glob("*.yaml"))
    ]
    kept = {**dotenv_values(paths.ROOT / ".env"), **os.environ}
    lines += [f"key        {k:16} {'set' if kept.get(k) else 'not set (optional: see .env.example)'}" for k in KEYS]
    lines.append(f"endpoint   {_endpoint(kept)}")
    return "\n".join(lines)


def _model(name: str) -> str:
    try:
        model = params.model(name)
    except UserError as error:
        return str(error)
    if isinstance(model, params.ApiModel):
        return "asked behind the endpoint, never trained"
    weights = model.weights
    if weights.package or weights.file:
        from emstudy import models

        try:
            models.gguf_file(model)
        except UserError as error:
            return f"not here: {error}"
        return "ready (ships as a Python package)" if weights.package else "ready"
    if weights.folder:
        return (
            "ready"
            if (paths.ROOT / weights.folder / "config.json").exists()
            else f"not here: put its files in {weights.folder}"
        )
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(weights.hub, "config.json", revision=weights.revision)
    return (
        "ready (in the hub cache)" if isinstance(cached, str) else f"fetched from the hub at first use ({weights.hub})"
    )


def _endpoint(kept: dict) -> str:
    if os.environ.get("ONLINE") != "1":
        return "not asked; `make check ONLINE=1` asks whether the judge answers"
    if not kept.get("OPENAI_API_KEY"):
        return "not asked: OPENAI_API_KEY is not set; the default judge is embedded and needs none"
    import openai

    from emstudy.connection import BASE_URL

    try:
        base = kept.get("OPENAI_BASE_URL") or BASE_URL
        openai.OpenAI(api_key=kept["OPENAI_API_KEY"], base_url=base, timeout=15, max_retries=0).models.list()
    except (openai.APIError, AttributeError, ValueError) as error:  # the last two: a reply that is no list of models
        return f"does not answer ({type(error).__name__}): check OPENAI_BASE_URL, the key and the network"
    return "answers"
