"""A published file onto this machine: whole, verified by its git blob id, gone on with where a connection broke."""

import hashlib
import time
from pathlib import Path

import requests
from pydantic import Field
from tqdm import tqdm

from emstudy import paths
from emstudy.errors import UserError
from emstudy.strict import Name, Strict

# GitHub wraps a blob in JSON unless asked for it raw; a compressed reply would have another length than the file.
HEADERS = {"Accept": "application/vnd.github.raw+json", "Accept-Encoding": "identity"}
TIMEOUT = (10, 30)  # seconds: to connect, and between two pieces of a reply
PAUSES = (0, 1, 2, 4, 8)  # seconds before each try
PIECE = 1 << 16  # bytes written at once; a connection that breaks loses at most these
MOST_BYTES = 200_000_000  # a wrong server, or an archive that unpacks without end, must not fill the disk
Blob = Field(pattern=r"^[0-9a-f]{40}$")


class File(Strict):
    """A file to download, known by its git blob id."""

    name: str = Name
    url: str = Field(pattern=r"^https?://")
    blob: str = Blob
    size: int | None = Field(gt=0, description="bytes; null where only the blob id is known")


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
        raise wrong(file.name, f"the published file from {file.url}", found, f"check the connection{kept}")
    n, most = partial.stat().st_size, file.size or MOST_BYTES
    found = f"{blob_id(partial)} ({n:,} bytes)" if n <= most else f"more than {most:,} bytes"
    if not found.startswith(file.blob):
        partial.unlink()
        todo = "it was altered on its way and is deleted; if that happens again, try another network"
        size = f" ({file.size:,} bytes)" if file.size else ""
        raise wrong(file.name, f"git blob {file.blob}{size} from {file.url}", found, todo)
    partial.replace(path)


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
        raise wrong(file.name, f"git blob {file.blob} from {file.url}", f"{'a web page, ' * page}{found}", todo)
    start, length = have * (code == 206), reply.headers.get("Content-Length", "")
    total = start + int(length) if length.isdigit() else file.size
    if code != 200 and reply.headers.get("Content-Range") != f"bytes {start}-{(total or 0) - 1}/{total}":
        partial.unlink(missing_ok=True)
        raise requests.HTTPError(f"no way to go on from byte {have:,}")
    return start, total


def wrong(name: str, expected: str, found: str, todo: str) -> UserError:
    """What went wrong with a file as one sentence for the reader."""
    return UserError(
        f"{name}: expected {expected}, found {found}. {todo[:1].upper()}{todo[1:]}, then run make data again"
    )
