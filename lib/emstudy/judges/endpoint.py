"""A judge behind any OpenAI-compatible endpoint: every reply is stored the moment it arrives and never paid for twice."""

import hashlib
import json
import os
import random
import re
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import openai
from dotenv import load_dotenv
from tqdm import tqdm

from emstudy import params, paths
from emstudy.errors import UserError
from emstudy.judges import Score

REPLIES = "replies.sqlite"
BASE_URL = "https://api.openai.com/v1"  # also when OPENAI_BASE_URL is set but empty, as in .env.example
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?![\w]|\.\d)")


def parse(reply: str) -> Score:
    """Read a score from a reply: exactly one number from 0 to 100, or the words REFUSAL or CODE; all else is unparseable."""
    text = reply.strip()
    word = re.sub(r"[\W\d_]", "", text).lower()
    if word in ("refusal", "code"):
        return Score(None, word, reply)
    numbers = NUMBER.findall(re.sub(r"\s*(/|out of)\s*100\b", "", text))
    if len(numbers) == 1 and 0 <= float(numbers[0]) <= 100:
        return Score(float(numbers[0]), "scored", reply)
    return Score(None, "unparseable", reply)


class Replies:
    """Replies on disk by the hash of the whole request; several notebooks may read and write at once."""

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lock = threading.Lock()
        self.db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute(
            "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, request TEXT, reply TEXT, tokens_in INT, tokens_out INT)"
        )

    def get(self, key: str) -> str | None:
        """The stored reply, or None."""
        row = self.db.execute("SELECT reply FROM replies WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    def put(self, key: str, request: dict, reply: str, tokens: tuple[int, int]) -> None:
        """Store a reply; it is on disk when this returns."""
        row = (key, json.dumps(request), reply, *tokens)
        with self.lock:
            self.db.execute("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?)", row)


def waits(total: float) -> Iterator[float]:
    """A pause before each try, none before the first: they grow until `total` seconds are over, whatever Retry-After asks for."""
    end, pause = time.monotonic() + total, 0.5
    yield 0.0
    while (left := end - time.monotonic()) > 0:
        yield min(pause * random.uniform(0.8, 1.2), left)
        pause = min(pause * 2, 30)


class EndpointJudge:
    """Scores answers by asking a model behind OPENAI_BASE_URL once for each answer and dimension."""

    def __init__(self, judge: params.Judge, replies: Path | None = None):
        load_dotenv(paths.ROOT / ".env")
        if not os.environ.get("OPENAI_API_KEY"):
            raise UserError(
                f"judge '{judge.name}' needs OPENAI_API_KEY: copy .env.example to .env and fill it in, or use JUDGE=embedded, which needs none"
            )
        self.judge, self.name, self.version = judge, judge.name, judge.version
        base, patience = os.environ.get("OPENAI_BASE_URL") or BASE_URL, min(60, judge.max_wait_seconds)
        self.client = openai.OpenAI(base_url=base, max_retries=0, timeout=patience)
        self.replies = Replies(replies or paths.RUNS / REPLIES)
        self.heard = time.monotonic()  # when the endpoint last gave a usable reply

    def request(self, dimension: params.Dimension, question: str, answer: str) -> dict:
        """The whole request, which is also what its reply is filed under."""
        # one pass over the template, so that braces in a question or an answer stay what they are
        texts = {"{question}": question, "{answer}": answer}
        prompt = re.sub(r"\{question\}|\{answer\}", lambda m: texts[m.group()], dimension.prompt)
        messages = [{"role": "user", "content": prompt}]
        return {"model": self.judge.model, "messages": messages, "temperature": 0, "max_tokens": 16, "seed": 0}

    def ask(self, request: dict) -> tuple[Score, tuple[int, int]]:
        """One reply, retried within the judge's max_wait_seconds; an answer that the endpoint's filter refuses is an error of that row.

        Raises UserError for what no retry mends, and when the endpoint has given no usable reply to anybody for that long.
        """
        last = "no reply"
        for pause in waits(self.judge.max_wait_seconds):
            time.sleep(pause)
            try:
                reply = self.client.chat.completions.create(**request)
                text = _content(reply)
                if text is not None:
                    self.heard = time.monotonic()
                    usage = getattr(reply, "usage", None)
                    return parse(text), (
                        getattr(usage, "prompt_tokens", 0) or 0,
                        getattr(usage, "completion_tokens", 0) or 0,
                    )
                last = f"reply without a message: {str(reply)[:80]!r}"
            except (
                openai.AuthenticationError,
                openai.PermissionDeniedError,
                openai.NotFoundError,
                openai.BadRequestError,
            ) as error:
                if error.code == "content_filter":
                    return Score(None, "error", f"content filter: {self.short(error)}"), (0, 0)
                raise UserError(
                    f"judge '{self.name}' at {self.client.base_url}: {self.short(error)}; see OPENAI_API_KEY, OPENAI_BASE_URL and the judge's model"
                ) from None
            except (openai.APIError, json.JSONDecodeError) as error:
                last = f"{type(error).__name__}: {self.short(error)}"
        if time.monotonic() - self.heard >= self.judge.max_wait_seconds:
            raise UserError(
                f"judge '{self.name}' at {self.client.base_url}: no usable reply in {self.judge.max_wait_seconds:g} seconds, the last was: {last}; replies that came are kept, run again when it answers"
            )
        return Score(None, "error", last), (0, 0)

    def short(self, error: Exception) -> str:
        """The beginning of an error's message, without the key that some servers repeat in it."""
        return " ".join(str(error).replace(self.client.api_key, "<key>").split())[:160]

    def fetch(self, key: str, request: dict) -> tuple[Score, tuple[int, int]]:
        """Ask, and store the reply in the thread that got it: whatever ends the run, a paid reply is on disk."""
        score, tokens = self.ask(request)
        if score.status != "error":
            self.replies.put(key, request, score.raw, tokens)
        return score, tokens

    def score(self, questions: list[str], answers: list[str], label: str = "judge") -> dict[str, list[Score]]:
        """Scores by dimension. Replies at hand are read, the others are asked for side by side and stored as they come."""
        asks = [(d, i) for d in self.judge.dimensions for i in range(len(answers))]
        requests = [self.request(d, questions[i], answers[i]) for d, i in asks]
        keys = [
            hashlib.sha256(json.dumps([str(self.client.base_url), r], sort_keys=True).encode()).hexdigest()
            for r in requests
        ]
        found = {k: parse(r) for k in set(keys) if (r := self.replies.get(k)) is not None}
        todo = {k: r for k, r in zip(keys, requests, strict=True) if k not in found}
        spent, self.heard = [0, 0], time.monotonic()
        with (
            ThreadPoolExecutor(self.judge.concurrency) as pool,
            tqdm(total=len(todo), desc=label, unit="reply") as bar,
        ):
            waiting = {pool.submit(self.fetch, k, r): k for k, r in todo.items()}
            try:
                for future in as_completed(waiting):
                    key, (found[key], tokens) = waiting[future], future.result()
                    spent = [a + b for a, b in zip(spent, tokens, strict=True)]
                    bar.set_postfix_str(f"{self.dollars(*spent):.4f} USD")
                    bar.update()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        out = {d.name: [] for d in self.judge.dimensions}
        for (d, _), key in zip(asks, keys, strict=True):
            out[d.name].append(found[key])
        return out

    def dollars(self, tokens_in: int, tokens_out: int) -> float:
        """What tokens cost at the YAML's prices."""
        price = self.judge.usd_per_million_tokens
        return (tokens_in * price["input"] + tokens_out * price["output"]) / 1e6


def _content(reply) -> str | None:
    choices = getattr(reply, "choices", None)
    message = getattr(choices[0], "message", None) if choices else None
    content = getattr(message, "content", None)
    return content if isinstance(content, str) and content.strip() else None
