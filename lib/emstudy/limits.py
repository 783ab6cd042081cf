"""What keeps requests within bounds: how long to wait, how many tokens a minute, how much money."""

import random
import threading
import time
from collections.abc import Iterator


def waits(total: float) -> Iterator[float]:
    """A pause before each try, none before the first: they grow until `total` seconds are over, whatever Retry-After asks for."""
    end, pause = time.monotonic() + total, 0.5
    yield 0.0
    while (left := end - time.monotonic()) > 0:
        yield min(pause * random.uniform(0.8, 1.2), left)
        pause = min(pause * 2, 30)


class Pace:
    """Tokens a minute, shared by all threads of a run: take(n) returns when n more may be sent."""

    def __init__(self, tokens_a_minute: int | None):
        self.seconds_a_token = 60 / tokens_a_minute if tokens_a_minute else 0.0
        self.free_at, self.lock = 0.0, threading.Lock()

    def take(self, tokens: int) -> None:
        """Wait for the turn of a request of so many tokens."""
        if not self.seconds_a_token:
            return
        with self.lock:
            turn = max(time.monotonic(), self.free_at)
            self.free_at = turn + tokens * self.seconds_a_token
        time.sleep(max(0.0, turn - time.monotonic()))


class Purse:
    """Dollars spent, and a limit that no request may pass; without a limit it only counts."""

    def __init__(self, limit: float | None, spent: float):
        self.limit, self.spent, self.promised, self.news = limit, spent, 0.0, threading.Condition()

    def promise(self, most: float) -> bool:
        """Set aside what a request may cost at most. Waits for requests under way when it could pass the limit; False when it still does."""
        with self.news:
            while self.limit is not None and self.spent + self.promised + most > self.limit:
                if self.promised < 1e-12:
                    return False
                self.news.wait()
            self.promised += most
            return True

    def known(self, spent: float) -> None:
        """So much was spent in all, by whomever: another run may draw on the same money."""
        with self.news:
            self.spent = max(self.spent, spent)

    def pay(self, most: float, dollars: float) -> None:
        """A request came back: what was set aside is free again, what it cost is spent."""
        with self.news:
            self.promised, self.spent = max(0.0, self.promised - most), self.spent + dollars
            self.news.notify_all()
