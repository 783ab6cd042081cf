"""How long to wait before another try."""

import random
import time
from collections.abc import Iterator


def waits(total: float) -> Iterator[float]:
    """A pause before each try, none before the first: they grow until `total` seconds are over, whatever Retry-After asks for."""
    end, pause = time.monotonic() + total, 0.5
    yield 0.0
    while (left := end - time.monotonic()) > 0:
        yield min(pause * random.uniform(0.8, 1.2), left)
        pause = min(pause * 2, 30)
