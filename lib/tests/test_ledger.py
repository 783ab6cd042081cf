"""What runs that share a file of replies agree on: who asks what, and for whose money."""

import os
import threading
import time

import pytest

from emstudy import asking, ledger, params
from emstudy.errors import UserError
from emstudy.replies import Replies, Reply

A_DOLLAR = asking.Prices(input=1e6, output=1e6)  # a token
ENDPOINT = params.judge("gpt-4o-mini").endpoint.model_copy(update={"usd_per_million_tokens": A_DOLLAR})


@pytest.fixture
def ledgers(tmp_path):
    """A function that makes the ledger of a run; a token costs a dollar."""

    def make(budget=None):
        settings = ENDPOINT.model_copy(update={"budget_usd": budget})
        replies = Replies(tmp_path / "replies.sqlite")
        return ledger.Ledger(replies, "judge", settings, threading.Event())

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


@pytest.mark.parametrize(
    ("owner", "free"),
    [
        (lambda: ledger.owner(os.getppid()), False),
        (lambda: f"{os.getpid()}.1", True),  # an earlier process had this one's number
        (lambda: "4194305.1", True),  # there is no such number
    ],
)
def test_a_claim_holds_for_as_long_as_its_process_lives(ledgers, owner, free):
    two = ledgers()
    two.replies.db.execute("INSERT INTO claims VALUES ('key', 'judge', 0.0, ?, NULL, NULL)", (owner(),))
    thread, got = later(lambda: two.claim("key", 0))
    thread.join(1)
    assert (got == [None]) == free
    two.replies.db.execute("DELETE FROM claims WHERE owner = ?", (owner(),))
    thread.join(5)
    assert got == [None]


def test_a_wait_for_others_ends_with_the_run(ledgers):
    one, two = ledgers(), ledgers()
    one.claim("key", 0)
    two.over.set()
    with pytest.raises(UserError, match="judge: ended before all was asked"):
        two.claim("key", 0)


def test_a_batch_is_taken_once_and_its_money_is_gone_until_it_is_collected(ledgers):
    one, two = ledgers(10), ledgers(10)
    name, keys = one.take({"a": 3, "b": 4, "c": 3}, 2)
    assert keys == ["a", "b"]
    assert two.take({"a": 3, "b": 4}, 2)[1] == []
    assert two.batches(["a", "x"]) == {name: (None, ["a"])}
    assert two.sending(name)
    one.sent(name, "batch-7")
    assert two.batches(["b"]) == {name: ("batch-7", ["b"])}
    assert not two.sending(name)
    with pytest.raises(
        UserError, match=r"could pass budget_usd 10, 0\.0000 are spent and up to 7\.0000 are in batches"
    ):
        two.claim("d", 4)
    with pytest.raises(UserError, match=r"a batch of 1 requests for up to 4\.00 USD could pass budget_usd 10"):
        two.take({"d": 4}, 2)
    one.drop(name, ["a", "b"])
    assert two.claim("d", 4) is None


@pytest.mark.parametrize("ahead", [0, 3600])
def test_a_turn_comes_though_the_clock_was_set_back(ledgers, ahead):
    one = ledgers()
    one.tokens_a_minute = 60  # one a second
    one.replies.db.execute("INSERT INTO pace VALUES ('judge', ?, 1)", (time.time() + ahead,))
    started = time.monotonic()
    one.claim("key", 0, 1)
    assert (0.5 < time.monotonic() - started < 5) if not ahead else time.monotonic() - started < 0.9


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


def test_money_of_a_request_whose_answer_is_lost_is_gone_though_its_run_was_killed(ledgers):
    one, two = ledgers(10), ledgers(10)
    assert one.claim("a", 3) is None
    one.release("a", lost=True)
    assert one.claim("a", 3) is None  # it may be sent again
    one.replies.db.execute("UPDATE claims SET owner = '99999999'")  # it is killed now
    with pytest.raises(
        UserError, match=r"10, 0\.0000 are spent, up to 6\.0000 may be billed for requests without an answer"
    ):
        two.claim("b", 5)
    assert two.claim("a", 4) is None


def test_dollars_and_tokens_are_counted_by_whom_and_at_the_price_that_was_paid(ledgers):
    one, two = ledgers(), ledgers()
    one.replies.put("a", "judge", {}, Reply("85", "stop", 100, 2))
    assert two.spent() == (102, 102)
    one.replies.put("b", "judge", {}, Reply("85", "stop", 100, 2, price=0.5))
    one.replies.put("b", "judge", {}, Reply("90", "stop", 100, 2))  # was there already
    one.replies.put("c", "somebody else", {}, Reply("85", "stop", 100, 2))
    assert one.spent() == two.spent() == (204, 153)
