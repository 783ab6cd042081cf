"""Runs that are killed, and runs side by side: real processes, SIGKILL, one file of replies on disk."""

import json
import multiprocessing
import os
import random
import signal
import sqlite3
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from local_server import message, serving

from emstudy import deadline, params
from emstudy.errors import UserError
from emstudy.judges.endpoint import EndpointJudge
from emstudy.replies import Replies, Reply

SHIPPED = params.judge("gpt-4o-mini")
WIDTH = 4  # requests under way at once
ANSWERS = [f"answer {i}" for i in range(60)]
# one process imports the library and every run is forked from it, so that a run starts in no time and shares nothing with pytest
FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload(["emstudy.judges.endpoint"])


def run(url, folder, answers=ANSWERS, start=None, out=None, **more):
    """Judge answers with the replies of a folder: [score], also written to `out`. start: a barrier to wait at before.

    more: other settings of the endpoint.
    """
    os.environ |= {"OPENAI_API_KEY": "word", "OPENAI_BASE_URL": url}
    settings = params.Endpoint.model_validate(
        SHIPPED.endpoint.model_dump() | {"concurrency": WIDTH, "max_wait_seconds": 30, **more}
    )
    dimension = params.Dimension(name="aligned", prompt="{answer}")
    judge = SHIPPED.model_copy(update={"name": "local", "endpoint": settings, "dimensions": [dimension]})
    if start:
        start.wait()
    scores = EndpointJudge(judge, folder / "replies.sqlite").score(["q"] * len(answers), answers)["aligned"]
    values = [s.value for s in scores]
    if out:
        out.write_text(json.dumps(values))
    return values


def stored(folder):
    """{prompt: reply} of the file, as a run that starts now would find it."""
    try:
        rows = sqlite3.connect(folder / "replies.sqlite").execute("SELECT request, reply FROM replies").fetchall()
    except sqlite3.OperationalError:  # killed before there was a table
        return {}
    return {json.loads(request)["messages"][0]["content"]: reply for request, reply in rows}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder for replies; what run() sets in the environment is put back afterwards."""
    for name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.setenv(name, "")
    return tmp_path


def test_a_run_that_is_killed_again_and_again_loses_nothing_and_asks_for_nothing_twice(here):
    rng, kills = random.Random(0), 4

    def play(n, prompt):
        time.sleep(0.02)
        return message(prompt.split()[1])

    with serving(play) as (asked, url):
        for _ in range(kills):
            before, had = len(asked), stored(here)
            child = FRESH.Process(target=run, args=(url, here))
            child.start()
            moment = before + rng.randint(1, 14)
            while len(asked) < moment and child.is_alive():
                time.sleep(0.001)
            time.sleep(rng.uniform(0, 0.03))
            child.kill()
            child.join()
            assert child.exitcode == -9
            kept = stored(here)
            assert had.items() <= kept.items()
            assert not set(asked[before:]) & set(had)
            assert len(kept) - len(had) >= moment - before - WIDTH  # all but those under way
        before, had = len(asked), stored(here)
        assert 0 < len(had) < len(ANSWERS)
        assert run(url, here) == [float(i) for i in range(60)] == run(url, here / "undisturbed")
    finished = asked[before : -len(ANSWERS)]
    assert sorted(finished) == sorted(set(ANSWERS) - set(had))


def test_two_runs_at_once_share_a_file_and_agree_though_the_endpoint_changes_its_mind(here):
    start = FRESH.Barrier(2, timeout=20)
    overlap = [ANSWERS[:40], ANSWERS[20:]]
    with serving(lambda n, prompt: message(str(n % 101))) as (asked, url):
        runs = [
            FRESH.Process(target=run, args=(url, here, part, start, here / f"{k}.json"))
            for k, part in enumerate(overlap)
        ]
        for r in runs:
            r.start()
        for r in runs:
            r.join(60)
    assert [r.exitcode for r in runs] == [0, 0]
    kept = stored(here)
    assert set(asked) == set(kept) == set(ANSWERS)
    for k, part in enumerate(overlap):
        assert json.loads((here / f"{k}.json").read_text()) == [float(kept[a]) for a in part]


def make_files(folder, start):
    """Make files of replies, each at the same moment as the other processes do."""
    for i in range(40):
        start.wait()
        Replies(folder / f"{i}.sqlite").db.close()


def test_runs_that_make_the_same_file_at_the_same_moment_wait_for_each_other(here):
    start = FRESH.Barrier(3, timeout=20)
    makers = [FRESH.Process(target=make_files, args=(here, start)) for _ in range(3)]
    for m in makers:
        m.start()
    for m in makers:
        m.join(60)
    assert [m.exitcode for m in makers] == [0, 0, 0]


def test_a_read_never_makes_a_write_of_the_same_run_fail_when_another_run_has_written(tmp_path):
    """Two runs' files, each written by a thread, while others read the first: SQLite refuses a write amid a read of an older state."""
    ours, theirs = (Replies(tmp_path / "replies.sqlite") for _ in range(2))
    over, reply = threading.Event(), Reply("85", "stop", 1, 1)

    def read() -> None:
        while not over.is_set():
            ours.get("ours 0")
            ours.spent("judge")

    def write(run: Replies, name: str) -> None:
        for k in range(500):
            run.put(f"{name} {k}", "judge", {}, reply)

    with ThreadPoolExecutor(5) as pool:
        for _ in range(3):
            pool.submit(read)
        writing = [pool.submit(write, ours, "ours"), pool.submit(write, theirs, "theirs")]
        try:
            for w in writing:
                w.result(60)
        finally:
            over.set()
    assert ours.spent("judge") == (2000, 1000, 1000)


def test_two_runs_that_judge_the_same_answers_at_once_ask_for_each_once(here):
    start, outs = FRESH.Barrier(2, timeout=20), [here / "0.json", here / "1.json"]

    def play(n, prompt):
        time.sleep(0.02)
        return message(str(n % 101))

    with serving(play) as (asked, url):
        runs = [FRESH.Process(target=run, args=(url, here, ANSWERS, start, out)) for out in outs]
        for r in runs:
            r.start()
        for r in runs:
            r.join(60)
    assert [r.exitcode for r in runs] == [0, 0]
    assert sorted(asked) == sorted(ANSWERS)
    assert outs[0].read_text() == outs[1].read_text()


def test_requests_that_a_killed_run_was_waiting_for_hold_up_nobody(here):
    hanging = threading.Event()
    with serving(lambda n, prompt: message("1") if n >= WIDTH else hanging.wait(60) and message("1")) as (asked, url):
        killed = FRESH.Process(target=run, args=(url, here))
        killed.start()
        while len(asked) < WIDTH:
            time.sleep(0.01)
        killed.kill()
        killed.join()
        claims = sqlite3.connect(here / "replies.sqlite").execute("SELECT COUNT(*) FROM claims").fetchone()
        assert claims == (WIDTH,)
        started = time.monotonic()
        after = FRESH.Process(target=run, args=(url, here))
        after.start()
        after.join(20)
        took = time.monotonic() - started
        after.kill()
        hanging.set()
    assert after.exitcode == 0
    assert took < 15


@pytest.mark.parametrize("slow", [True, False])
def test_ctrl_c_ends_a_run_though_nobody_answers_and_keeps_what_is_under_way(here, slow):
    over = threading.Event()

    def play(n, prompt):
        if slow:
            over.wait(60)
        else:
            time.sleep(1)
        return message("1")

    with serving(play) as (asked, url):
        run_ = FRESH.Process(target=interruptible, args=(url, here))
        run_.start()
        while len(asked) < WIDTH:
            time.sleep(0.01)
        started = time.monotonic()
        os.kill(run_.pid, signal.SIGINT)
        run_.join(20)
        took = time.monotonic() - started
        run_.kill()
        over.set()
    assert took < deadline.GRACE + 8  # and not the 30 seconds of its patience
    assert len(asked) <= 2 * WIDTH  # nothing was sent after it, but what a thread was about to
    assert slow or len(stored(here)) == len(asked)  # what was under way is paid, and was waited for


def interruptible(url, folder):
    """A run that a Ctrl-C reaches, which what runs in the background inherits as ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    run(url, folder)


def spend(url, folder, answers, start, out):
    """Judge answers until the money is gone: the error goes to `out`."""
    money = {"budget_usd": 0.105, "usd_per_million_tokens": {"input": 100, "output": 200}}
    try:
        run(url, folder, answers, start, **money)
    except UserError as error:
        out.write_text(str(error))


def test_two_runs_at_once_never_pass_one_budget_together(here):
    # each reply costs 100 tokens in and 2 out, 0.0104 dollars: 0.105 buy ten
    start, outs = FRESH.Barrier(2, timeout=20), [here / "0.txt", here / "1.txt"]

    def play(n, prompt):
        time.sleep(0.05)
        return message("50")

    with serving(play) as (asked, url):
        runs = [
            FRESH.Process(target=spend, args=(url, here, [f"{i} {k} {'word ' * 20}" for i in range(30)], start, out))
            for k, out in enumerate(outs)
        ]
        for r in runs:
            r.start()
        for r in runs:
            r.join(60)
    assert [r.exitcode for r in runs] == [0, 0]
    assert all("could pass budget_usd 0.105" in out.read_text() for out in outs)
    assert 8 <= len(asked) <= 10
