"""Replies of endpoints on disk, under the hash of the whole request: stored when they arrive, never paid for twice."""

import json
import math
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from emstudy import paths
from emstudy.errors import UserError
from emstudy.limits import waits

REPLIES = "replies.sqlite"
UNFIT = "unfit"  # the finish_reason of a request that an endpoint would not take, until it becomes an 'error'


@dataclass(frozen=True)
class Reply:
    """What came back: text, why it ended ('stop', 'length', 'content_filter'; 'error': it is no use, and text says why), the tokens it took,
    and, where they were asked for and given, the most likely first tokens with their probabilities."""

    text: str
    finish_reason: str
    tokens_in: int = 0
    tokens_out: int = 0
    first: dict[str, float] = field(default_factory=dict)
    price: float = 1.0  # share of the usual one that was paid


class Replies:
    """Replies on disk by the hash of the whole request; several notebooks may read and write at once."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.lock = path, threading.RLock()
        self.sums: dict[str, tuple] = {}  # by whom: the last row that was counted, and what spent() gives up to it
        try:
            self.db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            _log_ahead(self.db)
            sound = self.db.execute("PRAGMA quick_check(1)").fetchone()[0]
        except sqlite3.DatabaseError as error:
            sound = str(error)
        if sound != "ok":
            raise UserError(
                f"{paths.show(path)} can't be used ({sound}): move it away and run again, or save what it holds with `sqlite3 {path.name} .recover`"
            )
        # What is written outlives this process, whatever kills it. To outlive a power cut each reply would have to wait for the
        # disk (4 ms and more, one after the other); without that a cut takes the last half minute, which is asked for again.
        self.db.execute("PRAGMA synchronous=NORMAL")
        columns = "key TEXT PRIMARY KEY, who TEXT, request TEXT, reply TEXT, finish_reason TEXT, tokens_in INT, tokens_out INT, first TEXT, price REAL"
        self.db.execute(f"CREATE TABLE IF NOT EXISTS replies ({columns})")

    def get(self, key: str) -> Reply | None:
        """The stored reply, or None."""
        columns = "reply, finish_reason, tokens_in, tokens_out, first, price"
        rows = self.rows(f"SELECT {columns} FROM replies WHERE key = ?", key)
        return Reply(*rows[0][:4], json.loads(rows[0][4]), rows[0][5]) if rows else None

    def put(self, key: str, who: str, request: dict, reply: Reply) -> Reply:
        """Store a reply; a kill can't lose it once this returns. Returns what is stored: the first, where two runs asked at once."""
        texts = key, who, json.dumps(request), reply.text, reply.finish_reason
        row = (*texts, reply.tokens_in, reply.tokens_out, json.dumps(reply.first), reply.price)
        with self.lock, self._speaking():
            new = self.db.execute("INSERT OR IGNORE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row).rowcount
        return reply if new else self.get(key)

    def spent(self, who: str) -> tuple[int, float, float]:
        """(tokens, and those sent and those received weighed by the share of the price that was paid) of all that was ever stored for somebody."""
        columns = "MAX(rowid), SUM(tokens_in + tokens_out), SUM(tokens_in * price), SUM(tokens_out * price)"
        with self.lock:
            last, *sums = self.sums.get(who, (0, 0, 0.0, 0.0))
            # only what is new: this is looked up before every request, and rows are never taken away
            new = self.rows(f"SELECT {columns} FROM replies WHERE rowid > ? AND who = ?", last, who)[0]
            if new[0] is not None:
                last, *sums = new[0], *(a + b for a, b in zip(sums, new[1:], strict=True))
                self.sums[who] = last, *sums
        return tuple(sums)

    def paid(self, keys: set[str]) -> tuple[int, int, float, float]:
        """(tokens sent, received, and both weighed by the share of the price that was paid) of all that is stored for these requests.
        Replies without a use are filed under the key and something after it."""
        columns = "TOTAL(tokens_in), TOTAL(tokens_out), TOTAL(tokens_in * price), TOTAL(tokens_out * price)"
        query = f"SELECT {columns} FROM replies WHERE key = ? OR key > ? AND key < ?"
        sent, received, *weighed = map(
            sum, zip((0, 0, 0, 0), *(self.rows(query, k, f"{k} ", f"{k}!")[0] for k in keys), strict=True)
        )
        return int(sent), int(received), *weighed

    @contextmanager
    def alone(self) -> Iterator[sqlite3.Connection]:
        """The database while no other thread and no other run writes to it: what is done with it is done whole, or not at all."""
        with self.lock, self._speaking():
            if self.db.in_transaction:  # part of something larger
                yield self.db
            else:
                with self.db:
                    self.db.execute("BEGIN IMMEDIATE")
                    yield self.db

    @contextmanager
    def _speaking(self) -> Iterator[None]:
        """Turn what SQLite refuses into a UserError."""
        try:
            yield
        except sqlite3.Error as error:
            raise UserError(
                f"{paths.show(self.path)} can't be used ({error}): mend that and run again; replies that came before are kept"
            ) from None

    def rows(self, query: str, *of: object) -> list[tuple]:
        """What a query finds."""
        # to its end, and while nobody writes: a write amid a read that is older than another run's write is refused, however long it waits
        with self.lock, self._speaking():
            return self.db.execute(query, of).fetchall()


def _log_ahead(db: sqlite3.Connection) -> None:
    """Have changes written to a log, so that one run writes while others read. Runs that make a file at the same moment
    can be refused here, and this is the one statement for which SQLite's own timeout does not wait."""
    for pause in waits(60):
        time.sleep(pause)
        try:
            db.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                raise


def read(answer: object, empty: bool = True) -> Reply:
    """The reply inside a body. Its finish_reason is 'error' where there is none, as in HTML, `{}` or `choices: null`, and, unless
    `empty`, where it has no text; it may be billed all the same."""
    usage = answer.get("usage") if isinstance(answer, dict) else None
    usage = usage if isinstance(usage, dict) else {}
    tokens = _count(usage.get("prompt_tokens")), _count(usage.get("completion_tokens"))
    match answer:
        case {"choices": [{"message": dict(message)} as choice, *_]}:
            text, why = message.get("content"), str(choice.get("finish_reason") or "stop").replace(UNFIT, "stop")
            if isinstance(text, list):  # of parts
                text = "".join(p["text"] for p in text if isinstance(p, dict) and isinstance(p.get("text"), str))
            text = sound(text) if isinstance(text, str) else ""
            if empty or text.strip() or why == "content_filter":
                return Reply(text, sound(why), *tokens, _first(choice))
    return Reply("reply without a message", "error", *tokens)


def sound(text: str) -> str:
    """A text that can be stored: JSON can hold halves of a character ("\\ud83d"), UTF-8 can't; each becomes a "?"."""
    return text.encode("utf-8", "replace").decode()


def _count(tokens: object) -> int:
    whole = isinstance(tokens, int | float) and not isinstance(tokens, bool) and 0 <= tokens < 2**31
    return int(tokens) if whole else 0


def _first(choice: dict) -> dict[str, float]:
    """{token: probability} of the likeliest first tokens, white space aside; empty where the endpoint gives none."""
    out: dict[str, float] = {}
    match choice:
        case {"logprobs": {"content": [{"top_logprobs": list(tops)}, *_]}}:
            for top in tops:
                match top:
                    case {"token": str(token), "logprob": float() | int() as logprob} if logprob < 1:
                        token = sound(token.strip())
                        out[token] = out.get(token, 0.0) + math.exp(max(-1000, min(logprob, 0)))
    return out
