"""Patience, pace and purse, on a clock that a test turns."""

import threading

import pytest

from emstudy import limits


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    found = Clock()
    monkeypatch.setattr(limits, "time", found)
    return found


def test_requests_go_out_at_the_pace_of_their_tokens(clock):
    pace, starts = limits.Pace(600), []  # ten a second
    for tokens in (50, 20, 100, 10):
        pace.take(tokens)
        starts.append(clock.now)
    assert starts == pytest.approx([0, 5, 7, 17])


def test_a_pause_is_not_saved_up(clock):
    pace = limits.Pace(600)
    pace.take(50)
    clock.sleep(100)
    pace.take(50)
    assert clock.now == 100
    pace.take(1)
    assert clock.now == pytest.approx(105)


def test_without_a_limit_nobody_waits(clock):
    pace = limits.Pace(None)
    for _ in range(3):
        pace.take(10**9)
    assert clock.now == 0


def test_no_promise_can_pass_the_limit():
    purse = limits.Purse(1.0, spent=0.5)
    assert purse.promise(0.5)
    purse.pay(0.5, 0.1)
    assert purse.promise(0.4)
    purse.pay(0.4, 0.4)
    assert purse.spent == pytest.approx(1.0)
    assert not purse.promise(0.01)
    assert limits.Purse(0, spent=0).promise(0)  # what costs nothing passes no limit


def test_near_the_limit_a_request_waits_for_those_under_way():
    purse = limits.Purse(1.0, spent=0.0)
    assert purse.promise(0.8)
    got = []
    waiting = threading.Thread(target=lambda: got.append(purse.promise(0.8)))
    waiting.start()
    waiting.join(0.1)
    assert waiting.is_alive()
    purse.pay(0.8, 0.05)
    waiting.join(5)
    assert got == [True]


def test_without_a_limit_the_purse_counts():
    purse = limits.Purse(None, spent=2.0)
    purse.known(3.0)  # another run spent meanwhile
    purse.known(2.5)  # an older look at the same money
    assert purse.spent == 3.0
    purse = limits.Purse(None, spent=2.0)
    assert purse.promise(1e9)
    purse.pay(1e9, 0.25)
    assert purse.spent == 2.25
