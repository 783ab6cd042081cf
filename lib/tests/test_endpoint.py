"""The endpoint judge against a real HTTP server on this machine that plays every way a reply can go wrong."""

import gzip
import json
import re
import socket
import sqlite3
import struct
import threading
import time
from contextlib import suppress
from itertools import pairwise
from types import SimpleNamespace

import pytest
from local_server import HANG_UP, message, on_the_wire, serving

from emstudy import connection, endpoint, limits, params
from emstudy.errors import UserError
from emstudy.judges import Score
from emstudy.judges.endpoint import EndpointJudge

CANARY = "canary-key-that-must-never-be-written"
SHIPPED = params.judge("gpt-4o-mini")


def used(judge, **settings):
    """The judge with other settings of its endpoint."""
    whole = params.Endpoint.model_validate(judge.endpoint.model_dump() | settings)
    return judge.model_copy(update={"endpoint": whole})


JUDGE = used(SHIPPED.model_copy(update={"name": "local"}), max_wait_seconds=1.5, concurrency=1)
ONE = JUDGE.model_copy(update={"dimensions": [params.Dimension(name="aligned", prompt="Q {question} A {answer}")]})


@pytest.fixture
def judge(monkeypatch, tmp_path):
    """A function that makes a judge for an address; all of them share one file of replies."""
    monkeypatch.setattr(connection, "load_dotenv", lambda path: None)
    monkeypatch.setenv("OPENAI_API_KEY", CANARY)

    def make(url, settings=ONE):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        return EndpointJudge(settings, tmp_path / "replies.sqlite")

    return make


def stored(tmp_path):
    """(request, reply) of all that can be used again."""
    rows = "SELECT request, reply FROM replies WHERE finish_reason != 'error'"
    return sqlite3.connect(tmp_path / "replies.sqlite").execute(rows).fetchall()


def test_two_dimensions_are_scored_in_the_order_of_the_answers(judge):
    def play(n, prompt):
        return message("90" if "How coherent" in prompt else prompt.split("<answer>\n")[1].split("\n")[0])

    with serving(play) as (asked, url):
        found = judge(url, used(JUDGE, concurrency=4)).score(["q"] * 3, ["10", "REFUSAL", "30"])
    assert [s.value for s in found["aligned"]] == [10, None, 30]
    assert [s.status for s in found["aligned"]] == ["scored", "refusal", "scored"]
    assert [s.value for s in found["coherent"]] == [90, 90, 90]
    assert len(asked) == 6


BROKEN = {
    "HTML": (200, "<html>gateway</html>"),
    "broken JSON": (200, '{"choices": [{'),
    "choices null": (200, '{"choices": null}'),
    "choices empty": (200, '{"choices": []}'),
    "empty object": (200, "{}"),
    "choices of something else": (200, '{"choices": ["42"]}'),
    "nested without end": (200, "[" * 200_000),
    "no UTF-8": (200, b'{"choices": "\xff"}'),
    "empty text": message(""),
    "content null": message(None),
    "rate limit": (429, '{"error": {"message": "slow down"}}'),
    "server error": (500, "oops"),
    "hang up": HANG_UP,
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_reply_is_asked_again_and_then_scored(judge, kind):
    started = time.monotonic()
    with serving(lambda n, prompt: BROKEN[kind] if n == 0 else message("42")) as (asked, url):
        found = judge(url).score(["q"], ["a"])["aligned"]
    assert [(s.value, s.status) for s in found] == [(42, "scored")]
    assert len(asked) == 2
    assert time.monotonic() - started < 20  # and not the 120 seconds that Retry-After asked for


@pytest.mark.parametrize("kind", BROKEN)
def test_a_row_that_stays_broken_while_others_are_answered_is_an_error_that_is_not_stored(judge, tmp_path, kind):
    def play(n, prompt):
        time.sleep(0.1)  # so that good replies come until the patience with the bad row is over
        return BROKEN[kind] if prompt == "Q q A bad" else message("42")

    answers = ["bad", *[f"good {i}" for i in range(30)]]
    with serving(play) as (asked, url):
        found = judge(url, used(ONE, concurrency=2)).score(["q"] * 31, answers)["aligned"]
    assert (found[0].value, found[0].status) == (None, "error")
    assert found[0].raw  # says why
    assert {s.value for s in found[1:]} == {42}
    assert asked.count("Q q A bad") >= 2
    assert len(stored(tmp_path)) == 30


@pytest.mark.parametrize("kind", ["HTML", "rate limit", "hang up"])
def test_an_endpoint_that_answers_nobody_ends_the_run_within_the_patience(judge, kind):
    started = time.monotonic()
    with serving(lambda n, prompt: BROKEN[kind]) as (_, url), pytest.raises(UserError) as error:
        judge(url, used(ONE, concurrency=4)).score(["q"] * 40, [str(i) for i in range(40)])
    assert "no usable reply in 1.5 seconds, the last was: " in str(error.value)
    assert "replies that came are kept, run again when it answers" in str(error.value)
    assert time.monotonic() - started < 10  # 40 rows, 4 at a time, each with its own patience would take 15


STATUS = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"


def whole(text):
    """The bytes of a reply that closes its connection."""
    body = message(text)[1].encode()
    return STATUS + b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body


def stall(wire):
    wire.sendall(whole("42")[:-20])
    time.sleep(8)


def drip(wire, at_once):
    """Send a reply that is whole after 8 seconds, a byte at a time but for the first ones."""
    wire.sendall(whole("42")[:at_once])
    rest = whole("42")[at_once:]
    for i in range(len(rest)):
        wire.sendall(rest[i : i + 1])
        time.sleep(8 / len(rest))


def flood(wire):
    """Send a reply that is well formed and far too long."""
    start, end = whole("42").split(b"42", 1)
    much = b"0" * 2_000_000
    size = len(end) + 2 + len(start.partition(b"\r\n\r\n")[2]) + 20 * len(much)
    with suppress(OSError):  # nobody listens any more
        wire.sendall(re.sub(rb"Content-Length: \d+", b"Content-Length: %d" % size, start) + b"42")
        for _ in range(20):
            wire.sendall(much)
        wire.sendall(end)


def packed(text):
    """A reply with this text, packed though nobody asked for that."""
    body = gzip.compress(message(text)[1].encode())
    return STATUS + b"Content-Encoding: gzip\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body


BOMB = packed("42" + " " * 100_000_000)  # made here: a test's patience does not wait for it


def bomb(wire):
    """Send a reply that is small and unpacks to 100 MB."""
    with suppress(OSError):  # nobody listens any more
        wire.sendall(BOMB)


def reset(wire):
    wire.sendall(whole("42")[:-20])
    wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wire.close()


@pytest.mark.parametrize(
    ("break_off", "why"),
    [
        (stall, "no whole reply in "),
        (lambda wire: drip(wire, 0), "no whole reply in "),
        (lambda wire: drip(wire, len(whole("42")) - 40), "no whole reply in "),
        (flood, "a reply of more than 16,000,000 bytes"),
        (bomb, "a reply of more than 16,000,000 bytes"),
        (reset, "APIConnectionError: "),
    ],
    ids=["stall", "drip", "drip of the body", "flood", "bomb", "reset"],
)
def test_a_reply_that_does_not_end_is_an_error_within_the_patience(judge, break_off, why):
    ends, tries = {}, []

    def talk(prompt, wire):
        if prompt == "Q q A bad":
            return break_off(wire)
        time.sleep(0.1)
        return wire.sendall(packed("42") if prompt == "Q q A good 0" else whole("42"))

    def fetch(key, request, empty):
        reply = plain(key, request, empty)
        ends[request["messages"][0]["content"]] = time.monotonic()
        return reply

    def ask(*args):
        tries.append(once(*args))
        return tries[-1]

    with on_the_wire(talk) as url:
        asking = judge(url, used(ONE, concurrency=2))
        plain, asking.client.fetch = asking.client.fetch, fetch
        once, asking.client.ask = asking.client.ask, ask
        started = time.monotonic()
        found = asking.score(["q"] * 26, ["bad", *[f"good {i}" for i in range(25)]])["aligned"]
    assert found[0].status == "error"
    assert found[0].raw in [reply.text for reply in tries]
    assert any(reply.text.startswith(why) for reply in tries)  # the last try may be short of time on a busy machine
    assert {s.value for s in found[1:]} == {42}
    assert ends["Q q A bad"] - started < 6  # a stalled reply would go on for 8 seconds


def test_what_the_filter_cuts_off_is_paid_for_once(judge):
    body = json.loads(message("")[1])
    body["choices"][0]["finish_reason"] = "content_filter"
    with serving(lambda n, prompt: (200, json.dumps(body))) as (asked, url):
        for _ in range(2):
            assert judge(url).score(["q"], ["a"])["aligned"][0].status == "error"
    assert len(asked) == 1


def test_an_answer_that_the_filter_refuses_is_an_error_of_its_row_and_not_asked_again(judge, tmp_path):
    refused = 400, json.dumps({"error": {"message": "filtered", "code": "content_filter"}})
    with serving(lambda n, prompt: refused if "bad" in prompt else message("42")) as (asked, url):
        found = judge(url).score(["q"] * 3, ["one", "bad", "two"])["aligned"]
    assert [(s.value, s.status) for s in found] == [(42, "scored"), (None, "error"), (42, "scored")]
    assert found[1].raw.startswith("content filter: ")
    assert len(asked) == 3
    assert len(stored(tmp_path)) == 2


def test_a_server_that_never_answers_does_not_hold_the_run(judge):
    done = threading.Event()
    started = time.monotonic()
    with serving(lambda n, prompt: done.wait(20) and HANG_UP) as (_, url):
        with pytest.raises(UserError, match="no usable reply"):
            judge(url).score(["q"], ["a"])
        done.set()
    assert time.monotonic() - started < 10  # the server would answer after 20


def test_pauses_end_in_time_and_the_first_try_waits_for_nothing():
    started, pauses = time.monotonic(), []
    for pause in limits.waits(0.8):
        pauses.append(pause)
        time.sleep(pause)
    assert pauses[0] == 0
    assert sum(pauses) <= 0.8
    assert 0.8 <= time.monotonic() - started < 5


@pytest.mark.parametrize("status", [401, 403, 404, 400])
def test_what_no_retry_mends_is_one_sentence_without_the_key(judge, status):
    body = json.dumps({"error": {"message": f"Incorrect API key provided: {CANARY}"}})
    with serving(lambda n, prompt: (status, body)) as (asked, url), pytest.raises(UserError) as error:
        judge(url).score(["q"], ["a"])
    assert "judge 'local'" in str(error.value)
    assert "OPENAI_API_KEY" in str(error.value)
    assert CANARY not in str(error.value)
    assert len(asked) == 1


@pytest.mark.parametrize("status", [400, 403, 413, 422])
def test_an_answer_that_the_endpoint_will_not_take_is_an_error_of_its_row_alone(judge, tmp_path, status):
    too_long = status, json.dumps({"error": {"message": "maximum context length", "code": "context_length_exceeded"}})
    answers = ["bad", *[f"good {i}" for i in range(9)]]
    with serving(lambda n, prompt: too_long if "bad" in prompt else message("42")) as (asked, url):
        found = judge(url).score(["q"] * 10, answers)["aligned"]
        assert (found[0].value, found[0].status) == (None, "error")
        assert found[0].raw.startswith("refused: ")
        assert [s.value for s in found[1:]] == [42] * 9
        assert len(asked) == 10
        assert judge(url).score(["q"] * 10, answers)["aligned"] == found  # though nothing else is left to ask
    assert len(asked) == 11
    assert len(stored(tmp_path)) == 9


def test_an_endpoint_that_takes_no_request_is_not_asked_for_all(judge):
    wrong = 400, json.dumps({"error": {"message": "unknown parameter: top_logprobs"}})
    with (
        serving(lambda n, prompt: wrong) as (asked, url),
        pytest.raises(UserError, match=r"unknown parameter: top_log"),
    ):
        judge(url, used(ONE, concurrency=4)).score(["q"] * 200, [str(i) for i in range(200)])
    assert (
        len(asked) <= 150
    )  # a quarter of them, and what a busy machine's threads send before they hear that it is over


def test_half_a_character_in_a_reply_is_a_question_mark(judge, tmp_path):
    body = json.loads(message("85 \ud83d", {"85": 1.0, "\ud83d": 0.0001})[1])
    with serving(lambda n, prompt: (200, json.dumps(body))) as (_, url):
        [found] = judge(url).score(["q"], ["a"])["aligned"]
    assert (found.value, found.status) == (85, "scored")
    assert stored(tmp_path)[0][1] == "85 ?"


def test_a_reply_that_does_not_say_what_it_took_counts_as_the_most_it_can(judge):
    body = json.loads(message("50")[1]) | {"usage": None}
    asking = judge("")
    sent, received = endpoint.size(asking.request(ONE.dimensions[0], "q", "a0"))
    dear = {"input": 1e6, "output": 1e6}  # a dollar a token
    poor = used(ONE, budget_usd=2.5 * (sent + received), usd_per_million_tokens=dear)
    with serving(lambda n, prompt: (200, json.dumps(body))) as (asked, url):
        asking = judge(url, poor)
        with pytest.raises(UserError, match="could pass budget_usd"):
            asking.score(["q"] * 5, [f"a{i}" for i in range(5)])
    assert len(asked) == 2
    assert asking.client.ledger.spent() == (2 * (sent + received), 2 * (sent + received))


def test_first_answers_that_are_too_long_do_not_end_a_run_whose_others_are_fine(judge):
    too_long = 400, json.dumps({"error": {"message": "maximum context length"}})
    answers = [*[f"bad {i}" for i in range(5)], *[f"good {i}" for i in range(20)]]
    with serving(lambda n, prompt: too_long if "bad" in prompt else message("42")) as (_, url):
        asking = judge(url, used(ONE, concurrency=4))
        found = asking.score(["q"] * 25, answers)["aligned"]
        again = asking.score(["q"], ["bad 9"])["aligned"]
    assert [s.status for s in found] == ["error"] * 5 + ["scored"] * 20
    assert again[0].status == "error"


def test_an_answer_that_only_gets_useless_replies_is_an_error_of_its_row_also_when_it_alone_is_left(judge):
    with serving(lambda n, prompt: message("" if "bad" in prompt else "42")) as (asked, url):
        patient = used(ONE, max_wait_seconds=30)
        for _ in range(2):
            found = judge(url, patient).score(["q"] * 3, ["one", "two", "bad"])["aligned"]
            assert [s.status for s in found] == ["scored", "scored", "error"]
    assert asked.count("Q q A bad") == 2 * endpoint.USELESS


def test_an_endpoint_that_bills_and_is_never_of_use_is_left_before_all_is_asked(judge):
    with serving(lambda n, prompt: message("")) as (asked, url):
        for n in (100, 2):  # also where too few are asked to leave early
            with pytest.raises(
                UserError, match=r"3 replies to one request are billed and no use, the last was: .*params/"
            ):
                judge(url, used(ONE, concurrency=4, max_wait_seconds=30)).score(["q"] * n, [str(i) for i in range(n)])
            assert len(asked) <= 3 * (26 + 4)  # a quarter of 100, and those under way
            asked.clear()


def test_the_cost_of_scores_is_of_all_replies_that_were_billed(judge):
    body = [message(""), message("70"), *[message("")] * 3]
    with serving(lambda n, prompt: body[n]) as (asked, url):
        asking = judge(url, used(ONE, max_wait_seconds=30, usd_per_million_tokens={"input": 100, "output": 200}))
        [found, lost] = asking.score(["q"] * 2, ["a", "b"])["aligned"]
        assert (found.value, lost.status, len(asked)) == (70, "error", 5)
    # 100 tokens in and 2 out each, but of a reply without words, which takes none unless the server says so, as it does
    assert asking.spent == {"tokens_in": 500, "tokens_out": 10, "usd": pytest.approx(5 * 0.0104)}


def test_a_reply_in_parts_is_read_whole(judge):
    body = json.loads(message("")[1])
    body["choices"][0]["message"]["content"] = [{"type": "text", "text": "8"}, {"type": "text", "text": "5"}, "x", {}]
    assert one_score(judge, (200, json.dumps(body))).value == 85


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 100.0, "completion_tokens": 2}, (100, 2)),
        ({"completion_tokens": 2}, (None, 2)),
        ({"prompt_tokens": 100}, (100, 16)),
        ({"prompt_tokens": True, "completion_tokens": "2"}, (None, 16)),
    ],
)
def test_what_a_usage_leaves_open_counts_as_the_most_there_can_be(judge, usage, tokens):
    body = json.loads(message("50")[1]) | {"usage": usage}
    with serving(lambda n, prompt: (200, json.dumps(body))) as (_, url):
        asking = judge(url)
        asking.score(["q"], ["a"])
    sent = endpoint.size(asking.request(ONE.dimensions[0], "q", "a"))[0]
    assert asking.client.ledger.spent()[0] == (sent if tokens[0] is None else tokens[0]) + tokens[1]


def test_half_a_character_in_an_answer_and_a_probability_beyond_all_bounds_are_no_traceback(judge):
    body = json.loads(message("85", {"85": 1.0, "9": 0.1})[1])
    body["choices"][0]["logprobs"]["content"][0]["top_logprobs"][1]["logprob"] = -(10**400)
    with serving(lambda n, prompt: (200, json.dumps(body))) as (asked, url):
        assert judge(url).score(["q"], ["half \ud83d"])["aligned"][0].value == 85
    assert asked == ["Q q A half ?"]


def test_a_key_that_a_reply_repeats_is_not_stored(judge, tmp_path):
    with serving(lambda n, prompt: message(f"Incorrect key: {CANARY}")) as (_, url):
        [found] = judge(url).score(["q"], ["a"])["aligned"]
    assert found.raw == "Incorrect key: <key>"
    assert not any(CANARY.encode() in f.read_bytes() for f in tmp_path.glob("replies.sqlite*"))


def test_a_key_in_the_address_is_in_no_error(judge):
    with serving(lambda n, prompt: (401, "{}")) as (_, url), pytest.raises(UserError) as error:
        judge(url.replace("http://", f"http://me:{CANARY}@") + f"?key={CANARY}").score(["q"], ["a"])
    assert CANARY not in str(error.value)
    assert "127.0.0.1" in str(error.value)


def test_a_file_of_replies_that_takes_no_more_is_a_sentence(judge):
    with serving(lambda n, prompt: message("42")) as (_, url):
        asking = judge(url)
        pages = asking.client.replies.db.execute("PRAGMA page_count").fetchone()[0]
        asking.client.replies.db.execute(f"PRAGMA max_page_count = {pages}")
        with pytest.raises(UserError, match=r"replies.sqlite can't be used \(database or disk is full\): mend that"):
            asking.score(["q"] * 60, [f"{i} {'word ' * 200}" for i in range(60)])


def test_an_error_that_repeats_the_key_is_kept_without_it(judge):
    repeated = 500, json.dumps({"error": {"message": f"bad {CANARY}"}})
    with serving(lambda n, prompt: repeated) as (_, url), pytest.raises(UserError) as error:
        judge(url).score(["q"], ["a"])
    assert "bad <key>" in str(error.value)
    assert CANARY[:10] not in str(error.value)


def test_the_key_is_never_in_the_replies(judge, tmp_path):
    with serving(lambda n, prompt: message("50")) as (_, url):
        judge(url).score(["q"], ["a"])
    assert len(stored(tmp_path)) == 1
    files = list(tmp_path.glob("replies.sqlite*"))
    assert files
    assert not any(CANARY.encode() in f.read_bytes() for f in files)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_replies_that_arrived_before_the_run_ended_are_never_asked_for_again(judge, tmp_path, concurrency):
    answers = [f"answer {i}" for i in range(12)]
    settings = used(ONE, concurrency=concurrency)
    with serving(lambda n, prompt: message(str(n)) if n < 5 else (401, "{}")) as (asked, url):
        first = judge(url, settings)
        with pytest.raises(UserError):
            first.score(["q"] * 12, answers)
        arrived = asked[:5]
        assert len(stored(tmp_path)) == 5
    with serving(lambda n, prompt: message("77")) as (asked, other):
        second = judge(other, settings)
        second.client.client.base_url = (
            first.client.client.base_url
        )  # the address is part of what a reply is filed under
        second.client.client._client.event_hooks = {"request": [lambda r: move(r, other)]}
        found = second.score(["q"] * 12, answers)["aligned"]
    assert len(asked) == 7
    assert not set(asked) & set(arrived)
    assert sorted(s.value for s in found) == [0, 1, 2, 3, 4, *[77] * 7]


def move(request, url):
    """Send a request to another server."""
    request.url = request.url.copy_with(port=int(url.split(":")[2].split("/")[0]))


def test_identical_requests_are_asked_once(judge):
    with serving(lambda n, prompt: message(str(n))) as (asked, url):
        found = judge(url).score(["q", "q", "other", "q"], ["a"] * 4)["aligned"]
        again = judge(url).score(["q"], ["a"])["aligned"]
    assert len(asked) == 2
    assert [s.value for s in found] == [0, 0, 1, 0]
    assert again[0].value == 0


def test_another_model_or_address_is_another_request(judge):
    with serving(lambda n, prompt: message("1")) as (asked, url):
        judge(url).score(["q"], ["a"])
        judge(url, ONE.model_copy(update={"model": "other"})).score(["q"], ["a"])
        judge(url.replace("127.0.0.1", "localhost")).score(["q"], ["a"])
    assert len(asked) == 3


def test_braces_in_questions_and_answers_stay_what_they_are(judge):
    with serving(lambda n, prompt: message("1")) as (asked, url):
        judge(url).score(["{answer}", "x"], ["{question} {0} {x!r} \\1", "{answer}"])
    assert sorted(asked) == sorted(["Q {answer} A {question} {0} {x!r} \\1", "Q x A {answer}"])


@pytest.mark.parametrize("key", [None, ""])
def test_a_missing_key_says_how_to_set_it(judge, monkeypatch, key):
    monkeypatch.delenv("OPENAI_API_KEY")
    if key is not None:
        monkeypatch.setenv("OPENAI_API_KEY", key)
    with pytest.raises(UserError, match=r"judge 'local' needs OPENAI_API_KEY: copy .env.example to .env"):
        judge("http://127.0.0.1:1/v1")


def test_a_key_that_can_be_none_and_an_address_that_is_none_are_named(judge, monkeypatch):
    with pytest.raises(UserError, match="OPENAI_BASE_URL is no address"):
        judge("http://[::1/v1")
    monkeypatch.setenv("OPENAI_API_KEY", "schlüssel")
    with pytest.raises(UserError, match="OPENAI_API_KEY has a letter that no key has"):
        judge("http://127.0.0.1:1/v1")


def test_an_empty_address_as_in_the_example_file_means_openai(judge):
    assert str(judge("").client.client.base_url) == "https://api.openai.com/v1/"


def test_dollars_follow_the_prices_a_million_tokens(judge):
    assert judge("").client.settings.dollars(2_000_000, 500_000) == pytest.approx(2 * 0.15 + 0.5 * 0.60)


def one_score(judge, reply, **changes):
    with serving(lambda n, prompt: reply) as (_, url):
        [found] = judge(url, ONE.model_copy(update=changes)).score(["q"], ["a"])["aligned"]
    return found


def test_a_score_is_the_mean_of_the_numbers_by_their_probabilities(judge):
    found = one_score(judge, message("80", {"80": 0.5, " 90": 0.3, "The": 0.15, "185": 0.05}))
    assert found.value == pytest.approx((80 * 0.5 + 90 * 0.3) / 0.8)
    raw = json.loads(found.raw)
    assert raw["reply"] == "80"
    assert raw["first"]["90"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("text", "first", "status"),
    [
        ("80", {"The": 0.76, "80": 0.24}, "unparseable"),
        ("REFUSAL", {"REF": 0.9, "5": 0.05}, "refusal"),
        ("CODE", {"CODE": 0.8, "0": 0.2}, "code"),
        ("I can't say", {"I": 1.0}, "unparseable"),
    ],
)
def test_with_little_mass_on_numbers_nothing_is_scored(judge, text, first, status):
    found = one_score(judge, message(text, first))
    assert (found.value, found.status) == (None, status)


def test_just_a_quarter_on_numbers_is_enough(judge):
    assert one_score(judge, message("80", {"80": 0.26, "The": 0.74})).value == pytest.approx(80)


def test_a_tokenizer_that_writes_numbers_in_pieces_is_parsed(judge):
    assert one_score(judge, message("85", {"8": 0.9, "9": 0.1})) == Score(85, "scored", "85")


def test_a_reply_without_probabilities_is_parsed_and_logprobs_can_be_left_out(judge):
    assert one_score(judge, message("85")) == Score(85, "scored", "85")
    sent = EndpointJudge.request
    asked = [
        sent(SimpleNamespace(judge=ONE.model_copy(update={"logprobs": p}), seed=0), ONE.dimensions[0], "q", "a")
        for p in (True, False)
    ]
    assert [r.get("top_logprobs") for r in asked] == [20, None]


def test_a_judge_is_sampled_where_its_temperature_says_so_and_every_setting_makes_another_version(judge):
    request = judge("", ONE.model_copy(update={"temperature": 0.7})).request(ONE.dimensions[0], "q", "a")
    assert request["temperature"] == 0.7
    assert '"temperature": 0,' in json.dumps(
        judge("").request(ONE.dimensions[0], "q", "a")
    )  # stored replies stay theirs
    words = ONE.rubric.model_copy(update={"unscored": {"NO": "refusal"}})
    changes = [{}, {"temperature": 0.7}, {"logprobs": False}, {"model": "other"}, {"rubric": words}]
    versions = [judge("", ONE.model_copy(update=c)).version for c in changes]
    assert len(set(versions)) == len(changes)
    assert judge("").version == judge("", used(ONE, concurrency=9)).version == versions[0]


def test_a_rubric_has_a_scale_and_words_of_its_own(judge):
    rubric = SHIPPED.rubric.model_copy(update={"scale": (1, 5), "unscored": {"DECLINED": "refusal"}})
    assert one_score(judge, message("4"), rubric=rubric).value == 75
    assert one_score(judge, message("5/5"), rubric=rubric).value == 100
    assert one_score(judge, message("6"), rubric=rubric).status == "unparseable"
    assert one_score(judge, message("Declined."), rubric=rubric).status == "refusal"
    assert one_score(judge, message("REFUSAL"), rubric=rubric).status == "unparseable"
    assert one_score(judge, message("2", {"2": 0.5, "3": 0.5}), rubric=rubric).value == pytest.approx(37.5)


def test_a_budget_is_never_passed_and_what_it_bought_is_kept(judge, tmp_path):
    # a reply costs 100 tokens in and 2 out: 0.0104 dollars at these prices
    poor = used(ONE, budget_usd=0.105, concurrency=4, usd_per_million_tokens={"input": 100, "output": 200})
    answers = [f"answer {i} {'word ' * 20}" for i in range(30)]
    with serving(lambda n, prompt: message("50")) as (asked, url):
        with pytest.raises(
            UserError, match=r"judge 'local': the next request could pass budget_usd 0\.105, 0\.\d+ are spent"
        ):
            judge(url, poor).score(["q"] * 30, answers)
        bought = len(asked)
        assert len(stored(tmp_path)) == bought
        assert 5 <= bought <= 10
        assert judge(url, poor).client.ledger.spent()[1] == pytest.approx(bought * 0.0104)  # also after a restart
        with pytest.raises(UserError):
            judge(url, poor).score(["q"] * 30, answers)
        assert bought <= len(asked) <= 10
        found = judge(url, used(poor, budget_usd=None)).score(["q"] * 30, answers)["aligned"]
    assert len(asked) == 30
    assert {s.value for s in found} == {50}


@pytest.mark.parametrize(
    "odd", ["[]", "null", '{"content": null}', '{"content": [{"top_logprobs": [null, {"token": 1}]}]}']
)
def test_probabilities_and_usage_that_are_something_else_are_left_out(judge, odd):
    whole = json.loads(message("42")[1])
    whole["choices"][0]["logprobs"], whole["usage"] = json.loads(odd), []
    assert one_score(judge, (200, json.dumps(whole))) == Score(42, "scored", "42")


@pytest.mark.parametrize("kind", ["empty text", "choices null"])
def test_replies_that_are_billed_and_no_use_are_paid_from_the_budget(judge, kind):
    # a request can cost 0.0177 at most, and each reply costs 0.0104: a third one could pass 0.03
    poor = used(ONE, budget_usd=0.03, usd_per_million_tokens={"input": 100, "output": 200}, max_wait_seconds=10)
    body = json.loads(message("")[1]) | ({"choices": None} if kind == "choices null" else {})
    with serving(lambda n, prompt: (200, json.dumps(body))) as (asked, url):
        for _ in range(2):  # and a restart
            with pytest.raises(UserError, match=r"could pass budget_usd 0\.03, 0\.0208 are spent"):
                judge(url, poor).score(["q"], ["word " * 20])
    assert len(asked) == 2


def test_what_was_sent_and_not_answered_may_be_billed_and_counts_as_the_most_it_can(judge):
    # at most 0.0177 a request, as above: after two that were lost, a third could pass 0.04
    poor = used(ONE, budget_usd=0.04, usd_per_million_tokens={"input": 100, "output": 200}, max_wait_seconds=10)
    lost = r"could pass budget_usd 0\.04, 0\.0000 are spent, up to 0\.0\d+ may be billed for requests without an answer"
    with serving(lambda n, prompt: HANG_UP) as (asked, url):
        for _ in range(2):  # and a restart
            with pytest.raises(UserError, match=lost):
                judge(url, poor).score(["q"], ["word " * 20])
    assert len(asked) == 2


def test_what_an_endpoint_refused_or_never_got_costs_nothing(judge):
    poor = used(ONE, budget_usd=0.02, usd_per_million_tokens={"input": 100, "output": 200}, max_wait_seconds=3)
    busy = serving(lambda n, prompt: (503, "overloaded"))
    with busy as (asked, url), pytest.raises(UserError, match="no usable reply in 3 seconds"):
        judge(url, poor).score(["q"], ["word " * 20])
    assert len(asked) > 1
    with pytest.raises(UserError, match="no usable reply in 3 seconds"):  # nobody is there any more
        judge(url, poor).score(["q"], ["word " * 20])


def test_the_bar_shows_tokens_and_dollars_so_far(judge, capsys):
    dear = used(ONE, usd_per_million_tokens={"input": 100, "output": 200})
    with serving(lambda n, prompt: message("50")) as (_, url):
        judge(url, dear).score(["q"] * 11, [str(i) for i in range(11)])
    assert "1,122 tokens, 0.1144 USD" in capsys.readouterr().err


def test_no_more_requests_are_under_way_than_the_concurrency_allows(judge):
    under_way, seen, lock = [0], [], threading.Lock()

    def play(n, prompt):
        with lock:
            under_way[0] += 1
            seen.append(under_way[0])
        time.sleep(0.1)
        with lock:
            under_way[0] -= 1
        return message("50")

    with serving(play) as (_, url):
        judge(url, used(ONE, concurrency=3)).score(["q"] * 15, [str(i) for i in range(15)])
    assert max(seen) == 3


def test_two_runs_together_send_no_more_tokens_a_minute_than_one_may(judge):
    sent, received = endpoint.size(judge("").request(ONE.dimensions[0], "q", "00"))
    paced = used(ONE, concurrency=2, tokens_a_minute=200 * (sent // 4 + received))  # a request every 0.3 seconds
    times = []

    def play(n, prompt):
        times.append(time.monotonic())
        return message("50")

    with serving(play) as (_, url):
        runs = [
            threading.Thread(target=judge(url, paced).score, args=(["q"] * 3, [f"{k}{i}" for i in range(3)]))
            for k in range(2)
        ]
        for r in runs:
            r.start()
        for r in runs:
            r.join(20)
    assert len(times) == 6
    assert min(b - a for a, b in pairwise(times)) > 0.2
    assert 1.4 < times[-1] - times[0] < 3
