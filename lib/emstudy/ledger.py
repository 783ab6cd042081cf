"""What all runs that share a file of replies agree on before a request is sent: that nobody else asks it, that there is money, whose turn it is."""

import hashlib
import os
import sqlite3
import threading
import time
from collections.abc import Iterable
from pathlib import Path

from emstudy.asking import Endpoint
from emstudy.errors import UserError
from emstudy.replies import Replies, Reply

POLL = 0.1  # seconds between two looks at what others are doing


class Ledger:
    """Claims on requests, and what they may cost at most, in the file of replies where every run sees them.

    A claim on a single request goes when its run ends, however it ends; one on a request in a batch stays until somebody has collected
    the batch, since its money is gone. What was sent and never answered may be billed: its money is lost, for the budget, though the
    request may be sent again. over: set when the run is to end.
    """

    def __init__(
        self,
        replies: Replies,
        who: str,
        settings: Endpoint,
        over: threading.Event,
    ):
        self.replies, self.who, self.dollars, self.over = replies, who, settings.dollars, over
        self.me = owner(os.getpid())
        self.limit, self.tokens_a_minute = settings.budget_usd, settings.tokens_a_minute
        claims = "key TEXT PRIMARY KEY, who TEXT, usd REAL, owner TEXT, name TEXT, batch TEXT"
        with replies.alone() as db:
            db.execute(f"CREATE TABLE IF NOT EXISTS claims ({claims})")
            db.execute("CREATE TABLE IF NOT EXISTS lost (who TEXT, usd REAL)")
            db.execute("CREATE TABLE IF NOT EXISTS pace (who TEXT PRIMARY KEY, sent_at REAL, tokens INT)")

    def claim(self, key: str, usd: float, tokens: int = 0) -> Reply | None:
        """Wait until a request may be sent. None: by the caller alone, until release(); a reply: another run got it meanwhile.

        usd: what it may cost at most. tokens: those that tokens_a_minute counts. Raises UserError when it could pass the budget, or
        the run is to end.
        """
        while True:
            with self.replies.alone() as db:
                if reply := self.replies.get(key):
                    return reply
                held = db.execute("SELECT 1 FROM claims WHERE key = ?", (key,)).fetchone()
                if held or not self._affords(db, usd, "the next request"):
                    self._clear(db)
                    pause = POLL
                else:
                    pause = self._turn(db, tokens)
                if not pause:
                    row = key, self.who, usd, self.me
                    db.execute("INSERT INTO claims VALUES (?, ?, ?, ?, NULL, NULL)", row)
                    return None
            self.pause(pause)

    def release(self, key: str, lost: bool = False) -> None:
        """Others may have the request, and, unless it was sent and its answer is lost, the money that it did not cost."""
        with self.replies.alone() as db:
            _give_back(db, lost, "key = ? AND owner = ?", (key, self.me))

    def take(self, wanted: dict[str, float], most: int) -> tuple[str, list[str]]:
        """(a name, the keys) of the next batch: at most so many that have no reply and that nobody else asks for; none when nothing is left.

        wanted: what each may cost at most. Raises UserError when all together could pass the budget.
        """
        while True:
            with self.replies.alone() as db:
                claimed = {key for (key,) in db.execute("SELECT key FROM claims").fetchall()}
                keys = [k for k in wanted if k not in claimed and self.replies.get(k) is None][:most]
                usd = sum(wanted[k] for k in keys)
                what = f"a batch of {len(keys)} requests for up to {usd:.2f} USD"
                if not keys or self._affords(db, usd, what):
                    name = hashlib.sha256(f"{time.time_ns()} {os.getpid()}".encode()).hexdigest()[:32]
                    rows = [(k, self.who, wanted[k], self.me, name) for k in keys]
                    db.executemany("INSERT INTO claims VALUES (?, ?, ?, ?, ?, NULL)", rows)
                    return name, keys
                self._clear(db)
            self.pause()

    def batches(self, keys: Iterable[str]) -> dict[str, tuple[str | None, list[str]]]:
        """{name: (its id, None while nobody knows it; which of these requests it holds)} of all batches that nobody has collected."""
        found, wanted = {}, set(keys)
        for key, name, batch in self.replies.rows("SELECT key, name, batch FROM claims WHERE name IS NOT NULL"):
            if key in wanted:
                found.setdefault(name, (batch, []))[1].append(key)
        return found

    def sending(self, name: str) -> bool:
        """Is a living run about to send this batch?"""
        rows = self.replies.rows("SELECT DISTINCT owner FROM claims WHERE name = ? AND batch IS NULL", name)
        return any(_alive(o) for (o,) in rows)

    def sent(self, name: str, batch: str) -> None:
        """The endpoint has a batch, under this id."""
        with self.replies.alone() as db:
            db.execute("UPDATE claims SET batch = ? WHERE name = ?", (batch, name))

    def drop(self, name: str, keys: Iterable[str]) -> None:
        """A batch's replies to these are stored, or will never come."""
        with self.replies.alone() as db:
            db.executemany("DELETE FROM claims WHERE name = ? AND key = ?", [(name, k) for k in keys])

    def spent(self) -> tuple[int, float]:
        """(tokens, dollars) of all that was ever stored, by whichever run."""
        tokens, *weighed = self.replies.spent(self.who)
        return tokens, self.dollars(*weighed)

    def pause(self, seconds: float = POLL) -> None:
        """Wait for others. Raises UserError when the run is to end meanwhile."""
        if self.over.wait(seconds):
            raise UserError(
                f"{self.who}: ended before all was asked; replies that came are kept, run again for the rest"
            )

    def _affords(self, db: sqlite3.Connection, usd: float, what: str) -> bool:
        """Whether the money does if all requests under way cost the most. Raises UserError when it doesn't and only batches are."""
        if self.limit is None:
            return True
        sums = "TOTAL(CASE WHEN name IS NULL THEN usd END), TOTAL(CASE WHEN name IS NOT NULL THEN usd END)"
        single, batched = db.execute(f"SELECT {sums} FROM claims WHERE who = ?", (self.who,)).fetchone()
        lost = db.execute("SELECT TOTAL(usd) FROM lost WHERE who = ?", (self.who,)).fetchone()[0]
        spent = self.spent()[1]
        if spent + lost + batched + usd > self.limit and not single:
            gone = f", up to {lost:.4f} may be billed for requests without an answer" * (lost > 0)
            promised = f" and up to {batched:.4f} are in batches under way" * (batched > 0)
            raise UserError(
                f"{self.who}: {what} could pass budget_usd {self.limit:g}, {spent:.4f} are spent{gone}{promised}; "
                "replies that came are kept, raise it in params/ and run again"
            )
        return spent + lost + single + batched + usd <= self.limit

    def _turn(self, db: sqlite3.Connection, tokens: int) -> float:
        """Seconds until so many tokens may be sent; 0.0 where they may now, which then is their turn."""
        if not tokens or not self.tokens_a_minute:
            return 0.0
        now = time.time()
        last = db.execute("SELECT sent_at, tokens FROM pace WHERE who = ?", (self.who,)).fetchone() or (0, 0)
        turn = last[0] + last[1] * 60 / self.tokens_a_minute
        if last[0] <= now < turn:  # what is dated ahead was written before the clock was set back
            return turn - now
        db.execute("INSERT OR REPLACE INTO pace VALUES (?, ?, ?)", (self.who, now, tokens))
        return 0.0

    def _clear(self, db: sqlite3.Connection) -> None:
        """Take away the claims on single requests of runs that have ended."""
        for (o,) in db.execute("SELECT DISTINCT owner FROM claims WHERE name IS NULL").fetchall():
            if not _alive(o):
                _give_back(db, True, "owner = ?", (o,))


def _give_back(db: sqlite3.Connection, lost: bool, which: str, of: tuple) -> None:
    """Take away claims on single requests; what they may cost is noted where the answer is lost."""
    if lost:
        db.execute(f"INSERT INTO lost SELECT who, usd FROM claims WHERE name IS NULL AND {which}", of)
    db.execute(f"DELETE FROM claims WHERE name IS NULL AND {which}", of)


def owner(pid: int) -> str:
    """A process by its number and, on Linux, by when it started, since numbers are given again."""
    try:
        return f"{pid}.{Path(f'/proc/{pid}/stat').read_text().rpartition(')')[2].split()[19]}"
    except (OSError, IndexError):
        return str(pid)


def _alive(o: str) -> bool:
    pid = int(o.partition(".")[0])
    try:
        os.kill(pid, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        pass
    return owner(pid) == o
