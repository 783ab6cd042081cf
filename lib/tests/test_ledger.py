"""What runs that share a file of replies agree on: who asks what, and for whose money."""

import os
import sqlite3
import threading
import time

import pytest

from emstudy import ledger, params
from emstudy.errors import UserError
from emstudy.replies import Replies, Reply

ENDPOINT = params.judge("gpt-4o-mini").endpoint


@pytest.fixture
def ledgers(tmp_path):
    """A function that makes the ledger of a run; a token costs a dollar."""

    def make(budget=None):
        settings = ENDPOINT.model_copy(update={"budget_usd": budget})
        return ledger.Ledger(Replies(tmp_path / "replies.sqlite"), "judge", settings, lambda a, b: a + b)

    return make


def later(call):
    """Run a call in a thread: (the thread, where its result will be)."""
    got = []
    thread = threading.Thread(target=lambda: got.append(call()), daemon=True)
    thread.start()
    return thread, got


def test_another_run_waits_for_the_reply_of_a_request_that_is_under_way(ledgers):
    one, two = ledgers(), ledgers()
    assert one.claim("key", 0) is None
    thread, got = later(lambda: two.claim("key", 0))
    thread.join(0.3)
    assert got == []
    one.replies.put("key", "judge", {}, Reply("85", "stop"))
    one.release("key")
    thread.join(5)
    assert got == [Reply("85", "stop")]


def test_a_claim_that_is_given_back_without_a_reply_goes_to_the_next(ledgers):
    one, two = ledgers(), ledgers()
    one.claim("key", 0)
    thread, got = later(lambda: two.claim("key", 0))
    one.release("key")
    thread.join(5)
    assert got == [None]


@pytest.mark.parametrize(("left", "free"), [(-1, True), (60, False)])
def test_a_claim_holds_until_its_time_is_over_though_a_process_has_its_number(ledgers, left, free):
    two = ledgers()
    row = "key", "judge", 0.0, os.getppid(), time.time() + left
    two.replies.db.execute("INSERT INTO claims VALUES (?, ?, ?, ?, ?)", row)
    thread, got = later(lambda: two.claim("key", 0))
    thread.join(1)
    assert (got == [None]) == free
    two.replies.db.execute("UPDATE claims SET until = 0")
    thread.join(5)
    assert got == [None]


def test_a_claim_that_is_renewed_holds_for_longer(ledgers, tmp_path):
    one = ledgers()
    one.claim("key", 0)
    one.replies.db.execute("UPDATE claims SET until = 0")
    one.renew("key")
    [until] = sqlite3.connect(tmp_path / "replies.sqlite").execute("SELECT until FROM claims").fetchone()
    assert until > time.time() + ledger.LEASE - 5


def test_what_one_run_has_promised_another_can_not_spend(ledgers):
    one, two = ledgers(10), ledgers(10)
    assert one.claim("a", 7) is None
    thread, got = later(lambda: two.claim("b", 4))
    thread.join(0.3)
    assert got == []
    one.replies.put("a", "judge", {}, Reply("85", "stop", 5, 1))  # it cost 6
    one.release("a")
    thread.join(5)
    assert got == [None]
    two.release("b")
    with pytest.raises(UserError, match=r"judge: the next request could pass budget_usd 10, 6\.0000 are spent"):
        one.claim("c", 4.5)
    assert one.claim("c", 4.5, sent=True) is None


def test_dollars_and_tokens_are_counted_by_whom_and_at_the_price_that_was_paid(ledgers):
    one, two = ledgers(), ledgers()
    one.replies.put("a", "judge", {}, Reply("85", "stop", 100, 2))
    assert two.spent() == (102, 102)
    one.replies.put("b", "judge", {}, Reply("85", "stop", 100, 2, price=0.5))
    one.replies.put("b", "judge", {}, Reply("90", "stop", 100, 2))  # was there already
    one.replies.put("c", "somebody else", {}, Reply("85", "stop", 100, 2))
    assert one.spent() == two.spent() == (204, 153)
