"""Any OpenAI-compatible endpoint: requests side by side, every reply stored the moment it arrives and never paid for twice."""

import hashlib
import json
import os
import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

import openai
from dotenv import load_dotenv
from tqdm import tqdm

from emstudy import paths
from emstudy.errors import UserError

REPLIES = "replies.sqlite"
BASE_URL = "https://api.openai.com/v1"  # also when OPENAI_BASE_URL is set but empty, as in .env.example


@dataclass(frozen=True)
class Reply:
    """What came back: text, why it ended ('stop', 'length', 'content_filter', 'error') and the tokens it took."""

    text: str
    finish_reason: str
    tokens_in: int = 0
    tokens_out: int = 0


class Replies:
    """Replies on disk by the hash of the whole request; several notebooks may read and write at once."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = threading.Lock()
        self.db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        self.db.execute("PRAGMA journal_mode=WAL")
        columns = "key TEXT PRIMARY KEY, request TEXT, reply TEXT, finish_reason TEXT, tokens_in INT, tokens_out INT"
        self.db.execute(f"CREATE TABLE IF NOT EXISTS replies ({columns})")

    def get(self, key: str) -> Reply | None:
        """The stored reply, or None."""
        columns = "reply, finish_reason, tokens_in, tokens_out"
        row = self.db.execute(f"SELECT {columns} FROM replies WHERE key = ?", (key,)).fetchone()
        return Reply(*row) if row else None

    def put(self, key: str, request: dict, reply: Reply) -> None:
        """Store a reply; it is on disk when this returns."""
        row = (key, json.dumps(request), reply.text, reply.finish_reason, reply.tokens_in, reply.tokens_out)
        with self.lock:
            self.db.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?, ?)", row)


def waits(total: float) -> Iterator[float]:
    """A pause before each try, none before the first: they grow until `total` seconds are over, whatever Retry-After asks for."""
    end, pause = time.monotonic() + total, 0.5
    yield 0.0
    while (left := end - time.monotonic()) > 0:
        yield min(pause * random.uniform(0.8, 1.2), left)
        pause = min(pause * 2, 30)


class Client:
    """Chat completions from the endpoint at OPENAI_BASE_URL; `who` ("judge 'x'", "model 'y'") is who errors speak of.

    Raises UserError when OPENAI_API_KEY is not set.
    """

    def __init__(self, who: str, concurrency: int, max_wait_seconds: float, prices: dict, replies: Path | None = None):
        load_dotenv(paths.ROOT / ".env")
        if not os.environ.get("OPENAI_API_KEY"):
            raise UserError(
                f"{who} needs OPENAI_API_KEY: copy .env.example to .env and fill it in (a local server takes any word); "
                "the embedded judge and the shipped model need none"
            )
        self.who, self.concurrency, self.patience, self.prices = who, concurrency, max_wait_seconds, prices
        base = os.environ.get("OPENAI_BASE_URL") or BASE_URL
        self.client = openai.OpenAI(base_url=base, max_retries=0, timeout=min(60, max_wait_seconds))
        self.replies = Replies(replies or paths.RUNS / REPLIES)
        self.heard = time.monotonic()  # when the endpoint last gave a usable reply

    def ask(self, request: dict, empty: bool) -> Reply:
        """One reply, retried within the patience; what the endpoint's filter refuses, or no retry mends for this request alone,
        has a finish_reason that says so. Raises UserError when the endpoint has given nobody a usable reply for that long."""
        last = "no reply"
        for pause in waits(self.patience):
            time.sleep(pause)
            try:
                answer = self.client.chat.completions.create(**request)
                reply = _read(answer)
                if reply is not None and (empty or reply.text.strip()):
                    self.heard = time.monotonic()
                    return reply
                last = f"reply without a message: {str(answer)[:80]!r}"
            except (
                openai.AuthenticationError,
                openai.PermissionDeniedError,
                openai.NotFoundError,
                openai.BadRequestError,
            ) as error:
                if error.code == "content_filter":
                    return Reply(f"content filter: {self.short(error)}", "content_filter")
                raise UserError(
                    f"{self.who} at {self.client.base_url}: {self.short(error)}; see OPENAI_API_KEY, OPENAI_BASE_URL and the model's name in params/"
                ) from None
            except (openai.APIError, json.JSONDecodeError) as error:
                last = f"{type(error).__name__}: {self.short(error)}"
        if time.monotonic() - self.heard >= self.patience:
            raise UserError(
                f"{self.who} at {self.client.base_url}: no usable reply in {self.patience:g} seconds, the last was: {last}; replies that came are kept, run again when it answers"
            )
        return Reply(last, "error")

    def short(self, error: Exception) -> str:
        """The beginning of an error's message, without the key that some servers repeat in it."""
        return " ".join(str(error).replace(self.client.api_key, "<key>").split())[:160]

    def fetch(self, key: str, request: dict, empty: bool) -> Reply:
        """Ask, and store the reply in the thread that got it: whatever ends the run, a paid reply is on disk."""
        reply = self.ask(request, empty)
        if reply.finish_reason not in ("error", "content_filter"):
            self.replies.put(key, request, reply)
        return reply

    def complete(self, requests: list[dict], label: str, empty: bool = False) -> list[Reply]:
        """Replies in the order of the requests. Those at hand are read, the others asked for; equal requests are asked once.

        empty: whether a reply without text is an answer (of a model) or a fault (of a judge).
        """
        keys = [self.key(r) for r in requests]
        found = {k: r for k in set(keys) if (r := self.replies.get(k)) is not None}
        todo = {k: r for k, r in zip(keys, requests, strict=True) if k not in found}
        spent, self.heard = 0.0, time.monotonic()
        with ThreadPoolExecutor(self.concurrency) as pool, tqdm(total=len(todo), desc=label, unit="reply") as bar:
            waiting = {pool.submit(self.fetch, k, r, empty): k for k, r in todo.items()}
            try:
                for future in as_completed(waiting):
                    reply = found[waiting[future]] = future.result()
                    spent += self.dollars(reply.tokens_in, reply.tokens_out)
                    bar.set_postfix_str(f"{spent:.4f} USD")
                    bar.update()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return [found[k] for k in keys]

    def key(self, request: dict) -> str:
        """What a request and its address are filed under."""
        return hashlib.sha256(json.dumps([str(self.client.base_url), request], sort_keys=True).encode()).hexdigest()

    def dollars(self, tokens_in: int, tokens_out: int) -> float:
        """What tokens cost at the YAML's prices a million."""
        return (tokens_in * self.prices["input"] + tokens_out * self.prices["output"]) / 1e6


def _read(answer) -> Reply | None:
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
    )
