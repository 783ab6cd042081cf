"""Replies of endpoints on disk, under the hash of the whole request: stored when they arrive, never paid for twice."""

import json
import math
import sqlite3
import threading
from dataclasses import dataclass, field
from pathlib import Path

REPLIES = "replies.sqlite"


@dataclass(frozen=True)
class Reply:
    """What came back: text, why it ended ('stop', 'length', 'content_filter', 'error'), the tokens it took, and, where they were asked
    for and given, the most likely first tokens with their probabilities."""

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
        self.lock = threading.Lock()
        self.db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        self.db.execute("PRAGMA journal_mode=WAL")
        columns = "key TEXT PRIMARY KEY, who TEXT, request TEXT, reply TEXT, finish_reason TEXT, tokens_in INT, tokens_out INT, first TEXT, price REAL"
        self.db.execute(f"CREATE TABLE IF NOT EXISTS replies ({columns})")

    def get(self, key: str) -> Reply | None:
        """The stored reply, or None."""
        columns = "reply, finish_reason, tokens_in, tokens_out, first, price"
        row = self.db.execute(f"SELECT {columns} FROM replies WHERE key = ?", (key,)).fetchone()
        return Reply(*row[:4], json.loads(row[4]), row[5]) if row else None

    def put(self, key: str, who: str, request: dict, reply: Reply) -> None:
        """Store a reply; it is on disk when this returns."""
        texts = key, who, json.dumps(request), reply.text, reply.finish_reason
        row = (*texts, reply.tokens_in, reply.tokens_out, json.dumps(reply.first), reply.price)
        with self.lock:
            self.db.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)

    def tokens(self, who: str) -> tuple[float, float]:
        """(sent, received) in all replies that were ever stored for somebody, weighed by the share of the price that was paid."""
        sums = "COALESCE(SUM(tokens_in * price), 0), COALESCE(SUM(tokens_out * price), 0)"
        return self.db.execute(f"SELECT {sums} FROM replies WHERE who = ?", (who,)).fetchone()


def read(answer) -> Reply | None:
    """The reply inside whatever the client made of the body, or None: a body can be HTML, `{}` or `choices: null`."""
    choices = getattr(answer, "choices", None)
    message = getattr(choices[0], "message", None) if choices else None
    if message is None:
        return None
    content, usage = getattr(message, "content", None), getattr(answer, "usage", None)
    return Reply(
        content if isinstance(content, str) else "",
        getattr(choices[0], "finish_reason", None) or "stop",
        getattr(usage, "prompt_tokens", 0) or 0,
        getattr(usage, "completion_tokens", 0) or 0,
        _first(choices[0]),
    )


def _first(choice) -> dict[str, float]:
    """{token: probability} of the likeliest first tokens, white space aside; empty where the endpoint gives none."""
    content = getattr(getattr(choice, "logprobs", None), "content", None)
    out: dict[str, float] = {}
    for top in (getattr(content[0], "top_logprobs", None) or []) if content else []:
        out[top.token.strip()] = out.get(top.token.strip(), 0.0) + math.exp(top.logprob)
    return out
