"""What all runs that share a file of replies agree on before a request is sent: that nobody else asks it, that there is money, whose turn it is."""

import os
import sqlite3
import time
from collections.abc import Callable

from emstudy.asking import Endpoint
from emstudy.errors import UserError
from emstudy.replies import Replies, Reply

POLL = 0.1  # seconds between two looks at what others are doing
LEASE = 300  # seconds that a claim holds unless it is renewed: longer than any one call takes


class Ledger:
    """Claims on requests, and what they may cost at most, in the file of replies where every run sees them.

    dollars: what (sent, received) tokens cost.
    """

    def __init__(self, replies: Replies, who: str, settings: Endpoint, dollars: Callable[[float, float], float]):
        self.replies, self.who, self.dollars = replies, who, dollars
        self.limit, self.tokens_a_minute = settings.budget_usd, settings.tokens_a_minute
        claims = "key TEXT PRIMARY KEY, who TEXT, usd REAL, pid INT, until REAL"
        replies.db.execute(f"CREATE TABLE IF NOT EXISTS claims ({claims})")
        replies.db.execute("CREATE TABLE IF NOT EXISTS pace (who TEXT PRIMARY KEY, sent_at REAL, tokens INT)")

    def claim(
        self, key: str, usd: float, tokens: int = 0, what: str = "the next request", sent: bool = False
    ) -> Reply | None:
        """Wait until a request may be sent. None: by the caller alone, until release(); a reply: another run got it meanwhile.

        usd: what it may cost at most. tokens: those that tokens_a_minute counts. sent: an earlier run sent it, so that its money
        is gone in any case. Raises UserError when it could pass the budget.
        """
        while True:
            with self.replies.alone() as db:
                if reply := self.replies.get(key):
                    return reply
                held = db.execute("SELECT 1 FROM claims WHERE key = ?", (key,)).fetchone()
                if held or not (sent or self._affords(db, usd, what)):
                    self._clear(db)
                    pause = POLL
                else:
                    pause = self._turn(db, tokens)
                if not pause:
                    row = key, self.who, usd, os.getpid(), time.time() + LEASE
                    db.execute("INSERT INTO claims VALUES (?, ?, ?, ?, ?)", row)
                    return None
            time.sleep(pause)

    def renew(self, key: str) -> None:
        """Hold a claim for longer."""
        with self.replies.lock:
            row = time.time() + LEASE, key, os.getpid()
            self.replies.db.execute("UPDATE claims SET until = ? WHERE key = ? AND pid = ?", row)

    def release(self, key: str) -> None:
        """The request came back: others may have it, and the money that it did not cost."""
        with self.replies.lock:
            self.replies.db.execute("DELETE FROM claims WHERE key = ? AND pid = ?", (key, os.getpid()))

    def spent(self) -> tuple[int, float]:
        """(tokens, dollars) of all that was ever stored, by whichever run."""
        tokens, *weighed = self.replies.spent(self.who)
        return tokens, self.dollars(*weighed)

    def _affords(self, db: sqlite3.Connection, usd: float, what: str) -> bool:
        """Whether the money does if all requests under way cost the most. Raises UserError when it doesn't and none is under way."""
        if self.limit is None:
            return True
        [promised] = db.execute("SELECT TOTAL(usd) FROM claims WHERE who = ?", (self.who,)).fetchone()
        spent = self.spent()[1]
        if spent + usd > self.limit and not promised:
            raise UserError(
                f"{self.who}: {what} could pass budget_usd {self.limit:g}, {spent:.4f} are spent; "
                "replies that came are kept, raise it in params/ and run again"
            )
        return spent + promised + usd <= self.limit

    def _turn(self, db: sqlite3.Connection, tokens: int) -> float:
        """Seconds until so many tokens may be sent; 0.0 where they may now, which then is their turn."""
        if not tokens or not self.tokens_a_minute:
            return 0.0
        now = time.time()
        last = db.execute("SELECT sent_at, tokens FROM pace WHERE who = ?", (self.who,)).fetchone() or (0, 0)
        if (turn := min(last[0], now) + last[1] * 60 / self.tokens_a_minute) > now:
            return turn - now
        db.execute("INSERT OR REPLACE INTO pace VALUES (?, ?, ?)", (self.who, now, tokens))
        return 0.0

    def _clear(self, db: sqlite3.Connection) -> None:
        """Take away the claims of runs that were killed."""
        for (pid,) in db.execute("SELECT DISTINCT pid FROM claims").fetchall():
            if not _alive(pid):
                db.execute("DELETE FROM claims WHERE pid = ?", (pid,))
        db.execute("DELETE FROM claims WHERE until < ?", (time.time(),))  # another process may have its number now


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)  # sends nothing
    except ProcessLookupError:
        return False
    except PermissionError:  # it is somebody else's
        pass
    return True
