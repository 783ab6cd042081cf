"""Where an output comes from: settings, inputs, commit, packages and machine, in a record beside it."""

import json
import os
import platform
import resource
import subprocess
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from emstudy import paths, store
from emstudy.errors import UserError

ENDING = ".record.json"


def git_commit() -> str:
    """The commit that ran, with '+changes' when the tree differs from it; 'unknown' outside a checkout."""
    git = ["git", "-C", str(paths.ROOT)]
    try:
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        tree = [*git, "status", "--porcelain", "--", "lib/emstudy", "notebooks", "params", "data"]
        changed = subprocess.run(tree, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+changes" if changed else "")


def hardware() -> str:
    """The machine in words: processor, cores, accelerator, and what stands in for bf16 where there is no arithmetic for it."""
    import torch

    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    gpu = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"no GPU{'' if fast_bf16() else ', no bf16: float32'}"
    )
    return f"{cpu}, {os.cpu_count()} cores, {gpu}"


def fast_bf16() -> bool:
    """Whether the CPU's own instructions multiply bf16 matrices."""
    import torch

    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def beside(path: Path) -> Path:
    """Where an output's record lies."""
    return path.with_name(path.name + ENDING)


def write(path: Path, *, parameters: dict, inputs: Iterable[Path], started: float, **more) -> dict:
    """Write the provenance of an output beside it, as <output>.record.json.

    parameters: all settings; inputs: files whose SHA-256 is kept; started: time.time() at the start; more: other facts.
    """
    names = ["torch", "transformers", "peft", "accelerate", "pandas", "emstudy"]
    found = {
        "output": path.name,
        "parameters": parameters,
        "inputs": {paths.show(p): store.sha256(p) for p in inputs},
        "git_commit": git_commit(),
        "packages": {"python": platform.python_version(), **{n: metadata.version(n) for n in names}},
        "hardware": hardware(),
        "finished": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        "seconds": round(time.time() - started, 1),
        "peak_memory_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),  # Linux counts in KiB
        **more,
    }
    store.write(beside(path), json.dumps(found, indent=1, ensure_ascii=False, default=str) + "\n")
    return found


def read(path: Path) -> dict:
    """The provenance of an output. Raises UserError when it is absent."""
    found = beside(path)
    if not found.exists():
        raise UserError(f"{paths.show(found)} is not there: {path.name} was not finished, run its stage again")
    try:
        said = json.loads(found.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise UserError(f"{paths.show(found)} is damaged: delete {path.name} and run its stage again")
    return said
