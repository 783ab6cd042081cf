"""Any OpenAI-compatible endpoint: requests side by side, every reply stored the moment it arrives and never paid for twice."""

import hashlib
import json
import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from functools import partial
from pathlib import Path

import openai
from tqdm import tqdm

from emstudy import batch, paths
from emstudy.asking import Endpoint
from emstudy.connection import connect
from emstudy.deadline import Deadline
from emstudy.errors import UserError
from emstudy.ledger import Ledger
from emstudy.limits import waits
from emstudy.replies import REPLIES, UNFIT, Replies, Reply, read, sound

# statuses: what no other request would change, and what another may (403 is also how some refuse a text)
REFUSED, REFUSES_ONE = (401, 404), (400, 403, 413, 422)
USELESS = 3  # billed replies without a use to one request, after which it is an error


def size(request: dict) -> tuple[int, int]:
    """(bytes sent, tokens received at most): a token is a byte at least, so no request costs more than these as tokens."""
    return len(json.dumps(request["messages"], ensure_ascii=False).encode()), request["max_tokens"]


class Client:
    """Chat completions from the endpoint at OPENAI_BASE_URL; `who` ("judge 'x'", "model 'y'") is who errors speak of.

    Raises UserError when OPENAI_API_KEY or OPENAI_BASE_URL can't be used.
    """

    def __init__(self, who: str, settings: Endpoint, replies: Path | None = None):
        self.who, self.settings, self.patience = who, settings, settings.max_wait_seconds
        self.limit = min(60, self.patience)  # seconds for one try
        self.over, self.deadline = threading.Event(), Deadline(self.limit)  # over: the run is to end
        self.client = connect(who, self.limit, self.deadline)
        url = self.client.base_url
        self.address = self.short(f"{url.scheme}://{url.netloc.decode()}{url.path}")  # a key can be in what is left out
        self.replies = Replies(replies or paths.RUNS / REPLIES)
        self.ledger = Ledger(self.replies, who, settings, self.over)
        self.heard = time.monotonic()  # when the endpoint last gave a reply
        self.served = False  # whether it ever did
        self.given_up: list[UserError] = []  # why requests got no usable reply

    def ask(self, request: dict, empty: bool, seconds: float) -> Reply:
        """One try. Its finish_reason is 'error' where another may do better; 'content_filter' where the endpoint's filter refuses, and
        UNFIT where the endpoint won't take this request (it is too long, say): no other try does better.

        Raises UserError where no other request will do better either.
        """
        try:
            # .chat.completions.create() checks every field both ways, which takes longer than the rest of a request:
            # 64 threads of one process could not keep up with an endpoint that answers in 200 ms
            send = partial(self.client.post, "/chat/completions", body=request, cast_to=object)
            answer = self.deadline.call(send, seconds)
        except (openai.APIError, TimeoutError, ValueError, RecursionError) as error:  # the last two: no JSON, no UTF-8
            status = getattr(error, "status_code", None)
            if status in REFUSED:
                raise self.fault(error) from None
            if status in REFUSES_ONE:
                return self.refused(error)
            why = self.deadline.broken() or f"{type(error).__name__}: {self.short(error)}"
            return Reply(why, "error")
        reply = read(answer, empty)
        if reply.finish_reason == "error":
            return replace(reply, text=f"reply without a message: {self.short(answer)}")
        self.heard, self.served = time.monotonic(), True
        return self.counted(request, reply)

    def refused(self, error: openai.APIStatusError) -> Reply:
        """The reply to a request that the endpoint won't take. Raises UserError when it takes none: then the settings are wrong."""
        if error.code == "content_filter":
            return Reply(f"content filter: {self.short(error)}", "content_filter")
        self.give_up(self.fault(error))
        return Reply(f"refused: {self.short(error)}", UNFIT)

    def give_up(self, why: UserError) -> None:
        """Note that a request gets no usable reply. Raises UserError when none does: then the settings are wrong."""
        self.given_up.append(why)
        if not self.served and len(self.given_up) > max(self.settings.concurrency, self.asked // 4):
            raise why from None

    def counted(self, request: dict, reply: Reply) -> Reply:
        """A reply without the key, should a server repeat it, and with the tokens it is charged for: where the endpoint does not say
        how many, the most there can be, so that a budget holds."""
        reply = replace(reply, text=reply.text.replace(self.client.api_key, "<key>"))
        if reply.finish_reason == "error":
            return reply
        sent, received = size(request)
        return replace(
            reply, tokens_in=reply.tokens_in or sent, tokens_out=reply.tokens_out or received * bool(reply.text)
        )

    def fault(self, error: Exception) -> UserError:
        """What went wrong as one sentence for the reader."""
        then = "run again later: replies that came are kept, and a batch that was sent is waited for"
        if getattr(error, "status_code", None) in (*REFUSED, *REFUSES_ONE):
            then = "see OPENAI_API_KEY, OPENAI_BASE_URL and the model's name in params/"
        return UserError(f"{self.who} at {self.address}: {self.short(error)}; {then}")

    def short(self, said: object) -> str:
        """The beginning of what an endpoint said, without the key that some servers repeat in it."""
        return sound(" ".join(str(said).replace(self.client.api_key, "<key>").split())[:160])

    def claim(self, key: str, request: dict) -> Reply | None:
        """Wait until the request may be sent, which is None, or until another run has its reply."""
        sent, received = size(request)
        tokens = sent // 4 + received  # a token of English is about four bytes
        return self.ledger.claim(key, self.settings.dollars(sent, received), tokens)

    def fetch(self, key: str, request: dict, empty: bool) -> Reply:
        """The reply from another run that asks at the same time, or from the endpoint, asked again within the patience. What it
        refuses, or what no try mends for this request alone, has a finish_reason that says so.

        It is stored in the thread that got it: whatever ends the run, a paid reply is on disk. Raises UserError when the endpoint
        has given nobody a usable reply for that long.
        """
        end, useless, last = math.inf, 0, Reply("never asked", "error")
        for pause in waits(math.inf):
            left = end - time.monotonic()
            if left <= 0 or useless == USELESS:
                break
            if pause and self.over.wait(min(pause, left)):  # wait(0) would hand the interpreter to the other threads
                break
            asked = time.monotonic()
            if asked >= end:
                break
            if found := self.claim(key, request):
                self.heard, self.served = time.monotonic(), True
                return found
            now = time.monotonic()
            end = now + self.patience if end == math.inf else end + now - asked  # its turn is not the endpoint's doing
            try:
                last = self.ask(request, empty, min(self.limit, max(1, end - now)))
                billed = last.tokens_in + last.tokens_out
                if last.finish_reason == UNFIT:
                    return replace(last, finish_reason="error")
                if last.finish_reason == "content_filter" and not billed:
                    return last
                if last.finish_reason != "error":
                    return self.replies.put(key, self.who, request, last)
                if billed:  # no use, but paid for: kept where no request looks for it
                    useless += 1
                    self.replies.put(f"{key} {time.time_ns()}", self.who, request, last)
            finally:
                self.ledger.release(key, lost=self.deadline.unanswered())
        if useless == USELESS:
            self.give_up(
                UserError(
                    f"{self.who} at {self.address}: {USELESS} replies to one request are billed and no use, the last was: {last.text}; see the model's "
                    "name in params/ (one that thinks first may have no tokens left to answer), and run again"
                )
            )
        elif time.monotonic() - self.heard >= self.patience:
            raise UserError(
                f"{self.who} at {self.address}: no usable reply in {self.patience:g} seconds, the last was: {last.text}; replies that came are kept, run again when it answers"
            )
        return Reply(last.text, "error")

    def complete(self, requests: list[dict], label: str, empty: bool = False) -> list[Reply]:
        """Replies in the order of the requests. Those at hand are read, the others asked for; equal requests are asked once.

        empty: whether a reply without text is an answer (of a model) or a fault (of a judge).
        """
        keys = [self.key(r) for r in requests]
        found = {k: r for k in set(keys) if (r := self.replies.get(k)) is not None}
        todo = {k: r for k, r in zip(keys, requests, strict=True) if k not in found}
        if todo:
            batch.complete(self, todo, label, empty)
            found |= {k: r for k in todo if (r := self.replies.get(k)) is not None}
            todo = {k: r for k, r in todo.items() if k not in found}  # what the batch left open is asked one by one
        self.heard, self.served, self.given_up, self.asked = time.monotonic(), self.served or bool(found), [], len(todo)
        self.deadline.ended = math.inf
        self.over.clear()
        with (
            ThreadPoolExecutor(self.settings.concurrency) as pool,
            tqdm(total=len(todo), desc=label, unit="reply") as bar,
        ):
            waiting = {pool.submit(self.fetch, k, r, empty): k for k, r in todo.items()}
            try:
                for future in as_completed(waiting):
                    found[waiting[future]] = future.result()
                    bar.set_postfix_str("{:,} tokens, {:.4f} USD".format(*self.ledger.spent()), refresh=False)
                    bar.update()
            except BaseException:
                self.deadline.ended = time.monotonic()
                self.over.set()
                pool.shutdown(cancel_futures=True)
                raise
        if self.given_up and not self.served:
            raise self.given_up[-1]
        return [found[k] for k in keys]

    def most(self, request: dict) -> float:
        """Dollars that a request can cost at most."""
        return self.settings.dollars(*size(request))

    def cost(self, requests: list[dict]) -> dict[str, float]:
        """Tokens and dollars of all replies to these requests that were ever stored, also of those that were no use."""
        sent, received, *weighed = self.replies.paid({self.key(r) for r in requests})
        return {"tokens_in": sent, "tokens_out": received, "usd": round(self.settings.dollars(*weighed), 6)}

    def key(self, request: dict) -> str:
        """What a request and its address are filed under."""
        return hashlib.sha256(json.dumps([str(self.client.base_url), request], sort_keys=True).encode()).hexdigest()
