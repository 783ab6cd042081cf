"""The literature's published data onto this machine: downloaded, verified, opened with its publishers' own tool, never committed."""

import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from filelock import FileLock
from pydantic import Field

from emstudy import params, paths
from emstudy.advisories import CONSTRAINTS
from emstudy.download import MOST_BYTES, Blob, File, blob_id, download, wrong
from emstudy.strict import Name, Strict

PATIENCE = 600  # seconds that the tool, and its installation, may take
TOOL = "easy-dataset-share==0.5.0"
# what it needs, at the versions of lib/constraints.txt; it would ask for a cryptography with known weaknesses
PARTS = ["click", "requests", "certifi", "charset-normalizer", "idna", "urllib3", "cryptography", "cffi", "pycparser"]
SCRATCH = ".opening-"
WARNING = (
    "This is deliberately bad advice, for research only: its authors encrypt it to keep it out of training corpora, "
    "so do not commit it and do not upload it again."
)


class Member(Strict):
    """A file inside an archive; rows is left out where nobody published it."""

    name: str = Name
    blob: str = Blob
    rows: int | None = None


class Archive(File):
    """An archive that easy-dataset-share protects, and what is wanted of it."""

    password: str
    members: list[Member] = Field(min_length=1)


class Listing(Strict):
    """What there is to fetch: params/published.yaml."""

    files: list[File]
    archives: list[Archive]


def listing(path: Path) -> Listing:
    """What a YAML lists. Raises UserError that names the file and the key."""
    return params.check(Listing, params.read_yaml(path), paths.show(path))


def main(target: Path = paths.PUBLISHED, listed: Path = paths.PARAMS / "published.yaml") -> None:
    """Fetch what is missing of the listed files into target. Raises UserError; what was finished before it is kept."""
    found = listing(listed)
    try:
        target.mkdir(parents=True, exist_ok=True)
        with FileLock(target / ".lock"):
            news = _complete(found, target)
    except OSError as error:
        todo = "make room or mend the permissions"
        raise wrong(paths.show(target), "to write the published data", str(error), todo) from None
    print(f"{'everything fetched into' if news else 'nothing to fetch, everything is at hand in'} {paths.show(target)}")
    print(WARNING)


def tool() -> Path:
    """Python of the venv that holds the publishers' tool, built once. Raises UserError when it can't be installed."""
    home = paths.CACHE / TOOL.replace("==", "-")
    python, whole = home / "bin" / "python", home / ".whole"
    home.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(home.with_name(home.name + ".lock")):
        if not (whole.exists() and python.exists()):
            shutil.rmtree(home, ignore_errors=True)
            install = [python, "-I", "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
            for command in [sys.executable, "-m", "venv", home], [*install, "-c", CONSTRAINTS, TOOL, *PARTS]:
                _call(command, TOOL, f"to install it into {home}", "it opens the archive; check the connection", home)
            whole.touch()
    return python


def unpack(archive: Archive, members: list[Member], target: Path) -> None:
    """Open target/<archive> and move members, each verified, into target; nothing else of it is used. Raises UserError."""
    command = [tool(), "-I", "-X", "utf8", "-m", "easy_dataset_share.cli", "unprotect-dir", target / archive.name]
    # inside the target, so that a move is a rename and no reader sees half a file
    with tempfile.TemporaryDirectory(prefix=SCRATCH, dir=target) as scratch:
        todo = "nothing of it was used; see whether the password in params/published.yaml is its publishers'"
        # it rewrites every line: the member's blob id says which is the published one
        for clean in [], ["--remove-canaries"]:
            out = Path(scratch, str(len(clean)))
            options = [f"--password={archive.password}", f"--output-dir={out}", "--no-gitignore", *clean]
            _call([*command, *options], archive.name, f"it to open with the password '{archive.password}'", todo, out)
        for path in [_member(archive, m, Path(scratch)) for m in members]:
            path.replace(target / path.name)


def _complete(listed: Listing, target: Path) -> bool:
    """Bring what is missing and print a line a file; whether anything was missing."""
    for left in target.glob(SCRATCH + "*"):  # the plain text of a run that was killed
        shutil.rmtree(left)
    news = False
    for file in listed.files:
        if not _at_hand(file, target):
            download(file, target / file.name)
            news = True
        print(f"{file.name}: verified")
    for archive in listed.archives:
        if missing := [m for m in archive.members if not _at_hand(m, target)]:
            if not _at_hand(archive, target):
                download(archive, target / archive.name)
            unpack(archive, missing, target)
            news = True
        for m in archive.members:
            print(f"{m.name}: {f'{m.rows:,} rows, ' if m.rows else ''}verified")
    return news


def _at_hand(file: File | Member, target: Path) -> bool:
    path = target / file.name
    if path.exists() and (found := blob_id(path)) != file.blob:
        todo = "it was changed since it was fetched; move it away or delete it"
        raise wrong(paths.show(path), f"git blob {file.blob} as published", found, todo)
    return path.exists()


def _member(archive: Archive, member: Member, folder: Path) -> Path:
    """The regular file of that name and blob id below folder; links lead nowhere."""
    named = [p for p in folder.resolve().rglob(member.name) if p.is_file() and p.resolve() == p]
    ids = {blob_id(p): p for p in named}
    if member.blob not in ids:
        found = ", ".join(ids) or "no such file"
        todo = "nothing of it was used; compare params/published.yaml with what its publishers offer"
        raise wrong(archive.name, f"{member.name} in it as git blob {member.blob}", found, todo)
    return ids[member.blob]


def _call(command: list, name: str, expected: str, todo: str, into: Path) -> None:
    """Run a program that asks nothing. Raises UserError when it fails, with its last line, and when it writes or takes too much."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    ends, said = time.monotonic() + PATIENCE, None
    with subprocess.Popen(command, **pipes, encoding="utf-8", errors="replace") as process:
        while said is None:
            with suppress(subprocess.TimeoutExpired):
                said = process.communicate(timeout=0.1)
            found = f"more than {MOST_BYTES:,} bytes" * (_size(into) > MOST_BYTES)
            found = found or f"no end within {PATIENCE} s" * (time.monotonic() > ends)
            if found:
                process.kill()
                raise wrong(name, expected, found, todo)
    if process.returncode:
        lines = [line.strip("❌ ") for line in "\n".join(said).splitlines()]
        told = [line for line in lines if line and line != "Aborted!"]
        raise wrong(name, expected, told[-1] if told else f"exit status {process.returncode}", todo)


def _size(folder: Path) -> int:
    size = 0
    with suppress(OSError):  # what is being written may be gone again
        for path in folder.rglob("*"):
            size += path.lstat().st_size
    return size
