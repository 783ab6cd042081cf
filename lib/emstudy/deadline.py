"""Calls of an HTTP client that end when they are due and take in no more than they may, whatever the server sends."""

import math
import threading
import time
from collections.abc import Callable
from functools import partial

GRACE = 5  # seconds for requests that are under way when a run is to end: they are paid
REPLY = 16_000_000  # bytes: a thousand times what a chat completion takes
TOO_MUCH = f"a reply of more than {REPLY:,} bytes"


class Deadline:
    """What every call of a client keeps to; `ended` is since when the run is to end."""

    def __init__(self, seconds: float):
        self.seconds, self.ended = seconds, math.inf
        # of each thread's call: when it must be over (due), how many bytes may still come (room), is its request sent and not answered (sent)
        self.mine = threading.local()

    def call(self, send: Callable[[], object], seconds: float | None = None, most: float = REPLY) -> object:
        """What a call of the client gives; it ends when so many seconds are over, the usual ones by default, or so many bytes have come."""
        self.mine.given, self.mine.room, self.mine.sent = seconds or self.seconds, most, False
        self.mine.due = time.monotonic() + self.mine.given
        try:
            found = send()
        except Exception as error:
            self.mine.sent &= not hasattr(error, "status_code")  # an answer that says no is one
            raise
        self.mine.sent = False
        return found

    def unanswered(self) -> bool:
        """Was the thread's last request sent, and its answer never read to its end? Then it may be billed."""
        return self.mine.sent

    def broken(self) -> str:
        """Why the thread's last call was ended; empty when it was not."""
        if self.mine.room < 0:
            return TOO_MUCH
        late = time.monotonic() >= self.mine.due
        return f"no whole reply in {self.mine.given:.1f} seconds" if late else ""

    def watch(self, request) -> None:
        """Hook of the HTTP client: its own timeout starts anew with every byte that comes."""

        def trace(event: str, info: dict) -> None:
            if event.endswith(("connect_tcp.complete", "start_tls.complete")):  # a new connection, or its encrypted one
                info["return_value"].read = partial(self.read, info["return_value"].read)
            self.mine.sent |= event.endswith("send_request_body.complete")

        request.extensions["trace"] = trace

    def unpack(self, response) -> None:
        """Hook of the HTTP client: a reply that comes packed, though asked not to, may unpack to a thousand times its size."""
        if response.headers.get("content-encoding", "identity") != "identity":
            self.mine.room = min(self.mine.room, REPLY // 1000)

    def read(self, plain: Callable[[int, float], bytes], max_bytes: int, timeout: float) -> bytes:
        """Read from a connection as `plain` does. Raises TimeoutError, or ValueError when more comes than the call may take in."""
        end = min(time.monotonic() + timeout, self.mine.due)
        while (left := min(end, self.ended + GRACE) - time.monotonic()) > 0:
            try:
                found = plain(max_bytes, min(left, 1.0))  # now and then it looks whether the run is to end
            except Exception as error:
                if type(error).__name__ == "ReadTimeout":  # of the client's own library, which has had several names
                    continue
                raise
            self.mine.room -= len(found)
            if self.mine.room < 0:
                raise ValueError(TOO_MUCH)
            return found
        raise TimeoutError
