"""Every path of the study hangs on one root; nothing depends on the working directory."""

import os
from pathlib import Path

ROOT = Path(os.environ.get("EMSTUDY_ROOT") or Path(__file__).resolve().parents[2])
NOTEBOOKS = ROOT / "notebooks"
PARAMS = ROOT / "params"
DATA = ROOT / "data"
PUBLISHED = DATA / "published"
JUDGE = DATA / "judge"
REPORTS = ROOT / "reports"
RUNS = Path(os.environ.get("EMSTUDY_RUNS") or ROOT / "runs")
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emstudy"

DEFAULT_STUDY = "laptop"


def show(path: Path) -> str:
    """A path as a reader of this project would write it: relative to the root where it lies below it."""
    path = Path(path)
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def link(folder: Path, target: Path) -> str:
    """Where a page in the folder finds the target: a relative address."""
    return Path(os.path.relpath(target, folder)).as_posix()


def reports(study: str) -> Path:
    """Folder of a study's pages: reports/ for the default study, a folder of its own below it for any other."""
    return REPORTS if study == DEFAULT_STUDY else REPORTS / "studies" / study
