"""Any OpenAI-compatible endpoint: requests side by side, every reply stored the moment it arrives and never paid for twice."""

import hashlib
import json
import os
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

import openai
from dotenv import load_dotenv
from tqdm import tqdm

from emstudy import batch, paths
from emstudy.asking import Endpoint
from emstudy.errors import UserError
from emstudy.limits import Pace, Purse, waits
from emstudy.replies import REPLIES, Replies, Reply, read

BASE_URL = "https://api.openai.com/v1"  # also when OPENAI_BASE_URL is set but empty, as in .env.example


def size(request: dict) -> tuple[int, int]:
    """(bytes sent, tokens received at most): a token is a byte at least, so no request costs more than these as tokens."""
    return len(json.dumps(request["messages"], ensure_ascii=False).encode()), request["max_tokens"]


class Client:
    """Chat completions from the endpoint at OPENAI_BASE_URL; `who` ("judge 'x'", "model 'y'") is who errors speak of.

    Raises UserError when OPENAI_API_KEY is not set.
    """

    def __init__(self, who: str, settings: Endpoint, replies: Path | None = None):
        load_dotenv(paths.ROOT / ".env")
        if not os.environ.get("OPENAI_API_KEY"):
            raise UserError(
                f"{who} needs OPENAI_API_KEY: copy .env.example to .env and fill it in (a local server takes any word); "
                "the embedded judge and the shipped model need none"
            )
        self.who, self.settings, self.patience = who, settings, settings.max_wait_seconds
        base = os.environ.get("OPENAI_BASE_URL") or BASE_URL
        self.client = openai.OpenAI(base_url=base, max_retries=0, timeout=min(60, self.patience))
        self.replies = Replies(replies or paths.RUNS / REPLIES)
        self.pace = Pace(settings.tokens_a_minute)
        self.purse = Purse(settings.budget_usd, self.dollars(*self.replies.tokens(who)))
        self.heard = time.monotonic()  # when the endpoint last gave a usable reply
        self.counted = time.monotonic()  # when the money that all runs together have spent was last looked up

    def ask(self, request: dict, empty: bool) -> Reply:
        """One reply, retried within the patience; what the endpoint's filter refuses, or no retry mends for this request alone,
        has a finish_reason that says so. Raises UserError when the endpoint has given nobody a usable reply for that long."""
        last = "no reply"
        for pause in waits(self.patience):
            if pause:  # sleep(0) would hand the interpreter to the other threads, and wait for it again
                time.sleep(pause)
            try:
                # .chat.completions.create() checks every field both ways, which takes longer than the rest of a request:
                # 64 threads of one process could not keep up with an endpoint that answers in 200 ms
                answer = self.client.post("/chat/completions", body=request, cast_to=object)
                reply = read(answer)
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
            except (openai.APIError, ValueError) as error:  # ValueError: a body that is no JSON, or no UTF-8
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
        sent, received = size(request)
        most = self.dollars(sent, received)
        if self.settings.budget_usd is not None and time.monotonic() - self.counted > 1:
            self.counted = time.monotonic()
            self.purse.known(self.dollars(*self.replies.tokens(self.who)))
        if not self.purse.promise(most):
            raise UserError(
                f"{self.who}: the next request could pass budget_usd {self.settings.budget_usd:g}, {self.purse.spent:.4f} are spent; "
                "replies that came are kept, raise it in params/ and run again"
            )
        reply = Reply("", "error")
        try:
            self.pace.take(sent // 4 + received)  # a token of English is about four bytes
            reply = self.ask(request, empty)
            if reply.finish_reason in ("error", "content_filter"):
                return reply
            return self.replies.put(key, self.who, request, reply)
        finally:
            self.purse.pay(most, self.dollars(reply.tokens_in, reply.tokens_out))

    def complete(self, requests: list[dict], label: str, empty: bool = False) -> list[Reply]:
        """Replies in the order of the requests. Those at hand are read, the others asked for; equal requests are asked once.

        empty: whether a reply without text is an answer (of a model) or a fault (of a judge).
        """
        keys = [self.key(r) for r in requests]
        found = {k: r for k in set(keys) if (r := self.replies.get(k)) is not None}
        todo = {k: r for k, r in zip(keys, requests, strict=True) if k not in found}
        if self.settings.batch and todo:
            batch.complete(self, todo, label)
            found |= {k: r for k in todo if (r := self.replies.get(k)) is not None}
            todo = {k: r for k, r in todo.items() if k not in found}  # what the batch left open is asked one by one
        self.heard = time.monotonic()
        with (
            ThreadPoolExecutor(self.settings.concurrency) as pool,
            tqdm(total=len(todo), desc=label, unit="reply") as bar,
        ):
            waiting = {pool.submit(self.fetch, k, r, empty): k for k, r in todo.items()}
            try:
                for future in as_completed(waiting):
                    found[waiting[future]] = future.result()
                    bar.set_postfix_str(f"{self.purse.spent:.4f} USD", refresh=False)
                    bar.update()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return [found[k] for k in keys]

    def most(self, request: dict) -> float:
        """Dollars that a request can cost at most."""
        return self.dollars(*size(request))

    def key(self, request: dict) -> str:
        """What a request and its address are filed under."""
        return hashlib.sha256(json.dumps([str(self.client.base_url), request], sort_keys=True).encode()).hexdigest()

    def dollars(self, tokens_in: int, tokens_out: int) -> float:
        """What tokens cost at the YAML's prices a million."""
        prices = self.settings.usd_per_million_tokens
        return (tokens_in * prices["input"] + tokens_out * prices["output"]) / 1e6
