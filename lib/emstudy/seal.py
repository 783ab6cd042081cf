"""The SHA-256 of a folder's files, kept beside them as `sha256sum` writes and checks it: what is read is what was written."""

from pathlib import Path

from emstudy import paths, store
from emstudy.errors import UserError

NAME = "SHA256SUMS"


def write(folder: Path, pattern: str = "*") -> None:
    """Seal the files of a folder that fit a pattern."""
    files = sorted(p for p in folder.glob(pattern) if p.is_file() and p.name != NAME)
    store.write(folder / NAME, "".join(f"{store.sha256(p)}  {p.name}\n" for p in files))


def read(path: Path) -> dict[str, str]:
    """{file: its SHA-256} of a list that `sha256sum -c` reads too."""
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return {name: digest for digest, _, name in (line.partition("  ") for line in lines)}


def check(folder: Path, todo: str) -> None:
    """Raises UserError, which ends with `todo`, when a file of a sealed folder is gone or another; says nothing of a folder that nobody sealed."""
    if not (folder / NAME).exists():
        return
    for name, digest in (read(folder / NAME) or {NAME: ""}).items():
        if not (folder / name).is_file() or store.sha256(folder / name) != digest:
            raise UserError(f"{paths.show(folder / (name or NAME))} is not what was written there: {todo}")
