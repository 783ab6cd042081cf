"""Answers and judgments on disk: written whole or not at all, read back with their columns checked."""

import csv
import gzip
import hashlib
import io
import os
import zlib
from collections.abc import Callable, Iterable
from contextlib import contextmanager, suppress
from pathlib import Path

import pandas as pd

from emstudy import paths
from emstudy.errors import UserError, refused

KEYS = ["model", "domain", "arm", "seed", "step", "question_set", "question_id", "sample"]
ANSWERS = [*KEYS, "question", "answer", "n_tokens", "finish_reason"]
PROBE = ["model", "domain", "arm", "seed", "step", "test_domain", "pair", "logp_aligned", "logp_misaligned", "margin"]
MOST_BYTES = 500_000_000  # of a packed table, thirty times the largest here: a small file can unpack without end
TRAIN_LOG = ["step", "epoch", "loss", "learning_rate"]
TEXT = ["question", "answer", "question_id", "question_set", "finish_reason", "domain", "model", "arm", "judge_version"]


@contextmanager
def writing(path: Path):
    """Turn what the system refuses while a file or folder is written, by whatever library, into a UserError that names it."""
    try:
        yield
    except Exception as error:
        system = isinstance(error, OSError) and error.strerror  # the file that it names is a partial one
        why = refused(f"[Errno {error.errno}] {system}" if system else str(error))
        if why is None:
            raise
        raise UserError(f"{paths.show(path)} can't be written: {why}; mend that and run again") from None


def write(path: Path, content: str | bytes | Callable[[Path], object]) -> Path:
    """Write a file under a temporary name and rename it: a reader sees the old file or the whole new one, never a part.

    Raises UserError when the disk is full, the folder read-only or the like.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            if callable(content):
                content(partial)
            elif isinstance(content, bytes):
                partial.write_bytes(content)
            else:
                partial.write_text(content, encoding="utf-8")
            partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    return path


def write_if_changed(path: Path, content: str) -> bool:
    """Write only when the content differs, so that make sees a new file exactly when there is news."""
    if path.exists() and path.read_bytes() == content.encode():
        return False
    write(path, content)
    return True


def write_csv(path: Path, table: pd.DataFrame) -> Path:
    """Write a table as CSV, packed where the name ends in .gz, whole or not at all."""
    text = csv_text(table)
    # packed without a name and a time: same answers, same bytes
    return write(path, gzip.compress(text.encode(), mtime=0) if path.suffix == ".gz" else text)


def csv_text(table: pd.DataFrame) -> str:
    """A table as CSV that reads back as it was."""
    # Python before 3.13 leaves a lone carriage return bare, which reads as the end of a row: then every text is quoted
    bare = any(table[c].astype(str).str.contains("\r", regex=False).any() for c in table if table[c].dtype.kind == "O")
    quoting = csv.QUOTE_NONNUMERIC if bare else csv.QUOTE_MINIMAL
    return table.to_csv(index=False, lineterminator="\n", quoting=quoting)


def forget(folder: Path, pattern: str) -> None:
    """Delete what an interrupted run would have gone on from, once what it was for is whole: a later run is to make it anew."""
    for path in folder.glob(pattern):
        path.unlink(missing_ok=True)
    with suppress(OSError):  # it holds another stage's, or was never there
        folder.rmdir()


def table(path: Path, otherwise: str, **form) -> pd.DataFrame:
    """A CSV, as pandas reads it, packed where its name ends in .gz. Raises UserError, which ends with `otherwise`, when it is none."""
    try:
        source = path
        if path.suffix == ".gz":
            with gzip.open(path) as packed:
                text = packed.read(MOST_BYTES + 1)
            if len(text) > MOST_BYTES:
                raise ValueError(f"it unpacks to more than {MOST_BYTES:,} bytes")
            source = io.BytesIO(text)
        found = pd.read_csv(source, compression=None, **form)
        if not isinstance(found.index, pd.RangeIndex):  # pandas would shift every column by one
            raise ValueError("its rows have more fields than its header")
        return found
    except (ValueError, OSError, EOFError, zlib.error) as error:  # pandas' own errors are ValueErrors
        said = " ".join(str(error).split())[:300]
        raise UserError(f"{paths.show(path)} is not a readable CSV ({said}): {otherwise}") from None


def _ends(path: Path) -> bool:
    """Whether the last line of a text is whole."""
    with path.open("rb") as f:
        f.seek(max(f.seek(0, os.SEEK_END) - 1, 0))
        return f.read() == b"\n"


def read_csv(path: Path, columns: Iterable[str], made_by: str) -> pd.DataFrame:
    """Read a table and check its columns. Raises UserError that names what to delete or run when it is absent or other."""
    notebook = path.with_name(f"{path.stem.replace('judged', 'judge') if made_by == 'judge' else made_by}.ipynb")
    made = notebook.exists()  # which make goes by
    redo = f"delete {paths.show(notebook)} and run again" if made else f"delete it and run {made_by} again"
    if not path.exists():
        first = f"run `{made_by}` first" if " " in made_by else f"run the {made_by} notebook for this cell first"
        raise UserError(f"{paths.show(path)} is not there{f' any more: {redo}' if made else f': {first}'}")
    if path.suffix == ".csv" and not _ends(path):
        raise UserError(f"{paths.show(path)} is cut off: {redo}")
    names = table(path, redo, nrows=0).columns
    text = [c for c in names if c in TEXT or c.endswith("_raw")]
    found = table(path, redo, dtype=dict.fromkeys(text, str), keep_default_na=False, na_values=[""])
    missing = [c for c in columns if c not in found.columns]
    if missing:
        raise UserError(
            f"{paths.show(path)} lacks the columns {', '.join(missing)}: it was not written by {made_by}, {redo}"
        )
    for column in set(TEXT) & set(found.columns):
        found[column] = found[column].fillna("")
    return found


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()
