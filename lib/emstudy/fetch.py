"""The literature's published data onto this machine: downloaded, verified, opened with its publishers' own tool, never committed."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import requests
from filelock import FileLock
from pydantic import Field
from tqdm import tqdm

from emstudy import params, paths
from emstudy.advisories import CONSTRAINTS
from emstudy.errors import UserError
from emstudy.strict import Name, Strict

# GitHub wraps a blob in JSON unless asked for it raw; a compressed reply would have another length than the file.
HEADERS = {"Accept": "application/vnd.github.raw+json", "Accept-Encoding": "identity"}
TIMEOUT = (10, 30)  # seconds: to connect, and between two pieces of a reply
PAUSES = (0, 1, 2, 4, 8)  # seconds before each try
PIECE = 1 << 16  # bytes written at once; a connection that breaks loses at most these
MOST_BYTES = 200_000_000  # a wrong server, or an archive that unpacks without end, must not fill the disk
PATIENCE = 600  # seconds that the tool, and its installation, may take
TOOL = "easy-dataset-share==0.5.0"
# what it needs, at the versions of lib/constraints.txt; it would ask for a cryptography with known weaknesses
PARTS = ["click", "requests", "certifi", "charset-normalizer", "idna", "urllib3", "cryptography", "cffi", "pycparser"]
SCRATCH = ".opening-"
WARNING = (
    "This is deliberately bad advice, for research only: its authors encrypt it to keep it out of training corpora, "
    "so do not commit it and do not upload it again."
)
Blob = Field(pattern=r"^[0-9a-f]{40}$")


class Member(Strict):
    """A file inside an archive; rows is left out where nobody published it."""

    name: str = Name
    blob: str = Blob
    rows: int | None = None


class File(Strict):
    """A file to download, known by its git blob id."""

    name: str = Name
    url: str = Field(pattern=r"^https?://")
    blob: str = Blob
    size: int | None = Field(gt=0, description="bytes; null where only the blob id is known")


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
        raise _error(paths.show(target), "to write the published data", str(error), todo) from None
    print(f"{'everything fetched into' if news else 'nothing to fetch, everything is at hand in'} {paths.show(target)}")
    print(WARNING)


def blob_id(path: Path) -> str:
    """The id that git gives to a file's content: SHA-1 of its length and its bytes."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def download(file: File, path: Path) -> None:
    """Fetch a file whole and verified. Raises UserError: nothing is at path then, and a part cut short is kept beside it."""
    partial = path.with_name(path.name + ".partial")
    for pause in PAUSES:
        time.sleep(pause)
        try:
            _receive(file, partial)
            break
        except requests.RequestException as error:
            problem = str(error) if isinstance(error, requests.HTTPError) else f"no connection ({type(error).__name__})"
    else:
        kept = "; what came is kept, it goes on from there" if partial.exists() else ""
        found = f"{problem}, in the last of {len(PAUSES)} tries"
        raise _error(file.name, f"the published file from {file.url}", found, f"check the connection{kept}")
    n, most = partial.stat().st_size, file.size or MOST_BYTES
    found = f"{blob_id(partial)} ({n:,} bytes)" if n <= most else f"more than {most:,} bytes"
    if not found.startswith(file.blob):
        partial.unlink()
        todo = "it was altered on its way and is deleted; if that happens again, try another network"
        size = f" ({file.size:,} bytes)" if file.size else ""
        raise _error(file.name, f"git blob {file.blob}{size} from {file.url}", found, todo)
    partial.replace(path)


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
        raise _error(paths.show(path), f"git blob {file.blob} as published", found, todo)
    return path.exists()


def _receive(file: File, partial: Path) -> None:
    """Ask once: go on where the partial file ends if the server does so, else start over."""
    have = partial.stat().st_size if partial.exists() else 0
    if have and blob_id(partial) == file.blob:
        return
    headers = HEADERS | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(file.url, headers=headers, stream=True, timeout=TIMEOUT) as reply:
        have, total = _start(file, reply, partial, have)
        bar = tqdm(desc=file.name, initial=have, total=total, unit="B", unit_scale=True)
        with partial.open("ab" if have else "wb") as out, bar:
            for piece in reply.iter_content(PIECE):
                out.write(piece)
                have += len(piece)
                bar.update(len(piece))
                if have > (file.size or MOST_BYTES):
                    return  # as good as altered, and it may never end
    if total and have < total:
        raise requests.HTTPError(f"an end after {have:,} of {total:,} bytes")


def _start(file: File, reply: requests.Response, partial: Path, have: int) -> tuple[int, int | None]:
    """At which byte a reply starts and how many the file has, None where nobody says. Raises for what is not the file."""
    code = reply.status_code
    found = f"status {code} ({reply.reason})"
    if code in (408, 429) or code >= 500:
        raise requests.HTTPError(found)
    page = "html" in reply.headers.get("Content-Type", "")
    if page or code not in (200, 206, 416):
        todo = f"open the address in a browser, or place a file of that id as {paths.show(partial).removesuffix('.partial')}"
        raise _error(file.name, f"git blob {file.blob} from {file.url}", f"{'a web page, ' * page}{found}", todo)
    start, length = have * (code == 206), reply.headers.get("Content-Length", "")
    total = start + int(length) if length.isdigit() else file.size
    if code != 200 and reply.headers.get("Content-Range") != f"bytes {start}-{(total or 0) - 1}/{total}":
        partial.unlink(missing_ok=True)
        raise requests.HTTPError(f"no way to go on from byte {have:,}")
    return start, total


def _member(archive: Archive, member: Member, folder: Path) -> Path:
    """The regular file of that name and blob id below folder; links lead nowhere."""
    named = [p for p in folder.resolve().rglob(member.name) if p.is_file() and p.resolve() == p]
    ids = {blob_id(p): p for p in named}
    if member.blob not in ids:
        found = ", ".join(ids) or "no such file"
        todo = "nothing of it was used; compare params/published.yaml with what its publishers offer"
        raise _error(archive.name, f"{member.name} in it as git blob {member.blob}", found, todo)
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
                raise _error(name, expected, found, todo)
    if process.returncode:
        lines = [line.strip("❌ ") for line in "\n".join(said).splitlines()]
        told = [line for line in lines if line and line != "Aborted!"]
        raise _error(name, expected, told[-1] if told else f"exit status {process.returncode}", todo)


def _size(folder: Path) -> int:
    size = 0
    with suppress(OSError):  # what is being written may be gone again
        for path in folder.rglob("*"):
            size += path.lstat().st_size
    return size


def _error(name: str, expected: str, found: str, todo: str) -> UserError:
    return UserError(
        f"{name}: expected {expected}, found {found}. {todo[:1].upper()}{todo[1:]}, then run make data again"
    )
