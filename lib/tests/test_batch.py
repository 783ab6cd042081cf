"""The Batch API, against a local server that plays it: upload, create, wait, collect, and every way this can break."""

import json
import re
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from local_server import message, running

from emstudy import batch, connection, params
from emstudy.errors import UserError
from emstudy.judges.endpoint import EndpointJudge
from emstudy.replies import Reply

KEY = "a-word-that-servers-repeat"
SHIPPED = params.judge("gpt-4o-mini")
SETTINGS = {"max_wait_seconds": 1.5, "concurrency": 2, "batch": True}
JUDGE = SHIPPED.model_copy(
    update={
        "name": "local",
        "endpoint": SHIPPED.endpoint.model_copy(update=SETTINGS),
        "dimensions": [params.Dimension(name="aligned", prompt="Q {question} A {answer}")],
    }
)


class Office:
    """What the server knows: uploaded files, batches, and what was asked for one by one."""

    def __init__(self, polls=2, status="completed", skip=(), empty=(), refuses=None, instead=None):
        self.polls, self.status, self.skip, self.empty, self.refuses = polls, status, skip, empty, refuses
        self.instead = instead or {}  # {path: what is answered, the first times that it is asked for}
        self.files, self.batches, self.single, self.gone = {}, {}, [], set()
        self.without = ()  # what it knows nothing of: 'files', 'batches'

    def answer(self, k, line):
        score = re.search(r"A (\d+)", line["body"]["messages"][0]["content"])[1]
        body = json.loads(message("" if k in self.empty else score)[1])
        return {"custom_id": line["custom_id"], "response": {"status_code": 200, "body": body}, "error": None}

    def show(self, name):
        found = self.batches[name]
        found["asked"] += 1
        over = found["asked"] > self.polls
        lines = [json.loads(t) for t in self.files[found["input"]].splitlines()]
        done = [self.answer(k, x) for k, x in enumerate(lines) if k not in self.skip]
        self.files[f"out-{name}"] = "".join(json.dumps(d) + "\n" for d in done)
        errors = {"data": [{"message": "the file is too long"}], "object": "list"} if self.status == "failed" else None
        return {
            "id": name, "object": "batch", "endpoint": "/v1/chat/completions", "completion_window": "24h", "created_at": 0,
            "input_file_id": found["input"], "status": self.status if over else "in_progress", "metadata": found["metadata"],
            "output_file_id": f"out-{name}" if over and self.status != "failed" else None, "errors": errors,
            "request_counts": {"total": len(lines), "completed": len(done) if over else 1, "failed": 0},
        }  # fmt: skip


def serving(office):
    """The office behind HTTP: a context that yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def reply(self, value, status=200):
            text = value if isinstance(value, str) else json.dumps(value)
            self.send_response(status)
            self.send_header("Content-Type", "text/html" if text.startswith("<") else "application/json")
            self.end_headers()
            self.wfile.write(text.encode())

        def do_GET(self):
            path = self.path.split("?")[0].removeprefix("/v1/")
            if path in office.gone or path in office.without:
                self.reply({"error": {"message": "no such batch"}}, 404)
            elif office.instead.get(path):
                self.reply(office.instead[path].pop())
            elif office.refuses and office.refuses[0] == "GET" and path.startswith(office.refuses[1]):
                self.reply({"error": {"message": f"Incorrect key: {KEY}"}}, 401)
            elif path == "batches":
                self.reply({"object": "list", "data": [office.show(b) for b in office.batches], "has_more": False})
            elif path.startswith("batches/"):
                self.reply(office.show(path.split("/")[1]))
            else:
                self.reply(office.files[path.split("/")[1]])

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path.removeprefix("/v1/") in office.without:
                self.reply({"error": {"message": "Not Found"}}, 404)
            elif office.instead.get(f"POST {self.path}"):
                self.reply(office.instead[f"POST {self.path}"].pop())
            elif office.refuses and office.refuses[0] == "POST" and self.path == f"/v1/{office.refuses[1]}":
                self.reply({"error": {"message": f"Incorrect key: {KEY}"}}, 401)
            elif self.path == "/v1/files":
                name = f"file-{len(office.files)}"
                office.files[name] = "\n".join(t for t in body.decode().splitlines() if t.startswith("{"))
                about = {"id": name, "object": "file", "bytes": 1, "created_at": 0}
                self.reply({**about, "filename": "f", "purpose": "batch", "status": "ok"})
            elif self.path == "/v1/batches":
                given, name = json.loads(body), f"batch-{len(office.batches)}"
                office.batches[name] = {"input": given["input_file_id"], "metadata": given["metadata"], "asked": 0}
                self.reply(office.show(name))
            else:
                office.single.append(json.loads(body))
                self.reply(message("77")[1])

        def log_message(self, *args):
            pass

    return running(Handler)


@pytest.fixture
def judge(monkeypatch, tmp_path):
    """A function that makes the judge for an address; it waits no longer than it must."""
    monkeypatch.setattr(connection, "load_dotenv", lambda path: None)
    monkeypatch.setattr(batch, "PAUSES", (0.01,))
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def make(url, settings=JUDGE):
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        return EndpointJudge(settings, tmp_path / "replies.sqlite")

    return make


ANSWERS = ["10", "20", "30"]


def test_a_batch_is_sent_once_waited_for_and_paid_at_half_the_price(judge):
    office = Office()
    with serving(office) as url:
        found = judge(url)
        scores = found.score(["q"] * 3, ANSWERS)["aligned"]
        again = judge(url).score(["q"] * 3, ANSWERS)["aligned"]
    assert [s.value for s in scores] == [10, 20, 30]
    assert again == scores
    assert len(office.batches) == 1
    assert office.single == []
    assert found.spent["usd"] == pytest.approx(0.5 * 3 * (100 * 0.15 + 2 * 0.60) / 1e6, abs=1e-6)
    assert found.client.ledger.spent()[1] == pytest.approx(0.5 * 3 * (100 * 0.15 + 2 * 0.60) / 1e6)


def test_a_run_that_was_interrupted_waits_for_the_batch_that_is_under_way(judge, monkeypatch):
    office = Office(polls=3)
    with serving(office) as url:
        with monkeypatch.context() as m:
            m.setattr(batch, "_wait", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                judge(url).score(["q"] * 3, ANSWERS)
        assert [s.value for s in judge(url).score(["q"] * 3, ANSWERS)["aligned"]] == [10, 20, 30]
    assert len(office.batches) == 1


def test_what_a_batch_leaves_open_is_asked_one_by_one(judge):
    office = Office(skip=(1,))
    with serving(office) as url:
        scores = judge(url).score(["q"] * 3, ANSWERS)["aligned"]
    assert sorted(s.value for s in scores)[-1] == 77
    assert len(office.single) == 1


def test_a_batch_that_failed_is_named_with_its_reason_and_sent_anew_by_the_next_run(judge):
    office = Office(status="failed")
    with serving(office) as url:
        with pytest.raises(
            UserError,
            match=r"judge 'local': batch batch-0 failed: the file is too long; .* run again to send the rest anew",
        ):
            judge(url).score(["q"] * 3, ANSWERS)
        office.status = "completed"
        assert len(judge(url).score(["q"] * 3, ANSWERS)["aligned"]) == 3
    assert len(office.batches) == 2


def test_a_batch_beyond_the_budget_is_not_sent(judge):
    office = Office()
    poor = JUDGE.model_copy(update={"endpoint": JUDGE.endpoint.model_copy(update={"budget_usd": 0.0})})
    with (
        serving(office) as url,
        pytest.raises(UserError, match=r"a batch of 3 requests for up to 0\.00 USD could pass budget_usd 0"),
    ):
        judge(url, poor).score(["q"] * 3, ANSWERS)
    assert office.batches == {}
    assert office.files == {}


def test_many_requests_go_in_several_batches(judge, monkeypatch):
    monkeypatch.setattr(batch, "MOST", 2)
    office = Office()
    with serving(office) as url:
        assert [s.value for s in judge(url).score(["q"] * 3, ANSWERS)["aligned"]] == [10, 20, 30]
    assert len(office.batches) == 2


@pytest.mark.parametrize("refuses", [("GET", "batches"), ("POST", "files"), ("POST", "batches"), ("GET", "files/")])
def test_what_an_endpoint_refuses_is_one_sentence_without_the_key(judge, refuses):
    with serving(Office(refuses=refuses)) as url, pytest.raises(UserError) as error:
        judge(url).score(["q"] * 3, ANSWERS)
    assert "Incorrect key: <key>" in str(error.value)
    assert "see OPENAI_API_KEY" in str(error.value)
    assert KEY not in str(error.value)


class Interrupted:
    """A connection whose second reply is not stored: Ctrl-C comes first."""

    def __init__(self, db):
        self.db, self.stored = db, 0

    def execute(self, text, *values):
        if "INTO replies" in text:
            self.stored += 1
            if self.stored == 2:
                raise KeyboardInterrupt
        return self.db.execute(text, *values)

    def __getattr__(self, name):
        return getattr(self.db, name)

    def __enter__(self):
        return self.db.__enter__()

    def __exit__(self, *error):
        return self.db.__exit__(*error)


def test_a_batch_whose_replies_were_half_stored_is_paid_once(judge):
    office = Office()
    with serving(office) as url:
        first = judge(url)
        first.client.replies.db = Interrupted(first.client.replies.db)
        with pytest.raises(KeyboardInterrupt):
            first.score(["q"] * 3, ANSWERS)
        second = judge(url)
        assert second.client.ledger.spent() == (0, 0)  # all of a batch, or nothing
        assert [s.value for s in second.score(["q"] * 3, ANSWERS)["aligned"]] == [10, 20, 30]
    assert len(office.batches) == 1


def test_a_second_batch_is_found_again_when_the_first_left_something_open(judge, monkeypatch):
    monkeypatch.setattr(batch, "MOST", 2)
    office, wait, calls = Office(skip=(0,)), batch._wait, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return wait(*args)

    monkeypatch.setattr(batch, "_wait", interrupted)
    with serving(office) as url:
        with pytest.raises(KeyboardInterrupt):
            judge(url).score(["q"] * 4, [*ANSWERS, "40"])
        judge(url).score(["q"] * 4, [*ANSWERS, "40"])
    # the second batch is waited for, what the first left open goes into a third, and what they leave open is asked one by one
    assert [len(office.files[b["input"]].splitlines()) for b in office.batches.values()] == [2, 2, 1]
    assert len(office.single) == 2


@pytest.mark.parametrize("more", [[], ["40"]])
def test_two_runs_at_once_pay_for_no_request_twice(judge, more):
    office, scores, meet = Office(), {}, threading.Barrier(2, timeout=10)

    def run(k, answers, asking):
        meet.wait()
        scores[k] = [s.value for s in asking.score(["q"] * len(answers), answers)["aligned"]]

    with serving(office) as url:
        runs = [
            threading.Thread(target=run, args=(k, answers, judge(url)))
            for k, answers in enumerate([ANSWERS, [*ANSWERS, *more]])
        ]
        for r in runs:
            r.start()
        for r in runs:
            r.join(20)
    assert scores == {0: [10, 20, 30], 1: [10, 20, 30, *map(int, more)]}
    sent = [line for b in office.batches.values() for line in office.files[b["input"]].splitlines()]
    assert len(sent) == len({json.loads(line)["custom_id"] for line in sent}) == 3 + len(more)
    assert office.single == []


def killed_while_waiting(judge, url, monkeypatch, settings=JUDGE, answers=ANSWERS):
    """A run that sends a batch and is killed before it looks after it."""
    with monkeypatch.context() as m:
        m.setattr(batch, "_wait", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            judge(url, settings).score(["q"] * len(answers), answers)


@pytest.mark.parametrize("again", [True, False])
def test_a_run_with_one_answer_more_or_without_batches_waits_for_the_batch_that_is_under_way(judge, monkeypatch, again):
    office = Office(polls=3)
    after = (
        JUDGE if again else JUDGE.model_copy(update={"endpoint": JUDGE.endpoint.model_copy(update={"batch": False})})
    )
    with serving(office) as url:
        killed_while_waiting(judge, url, monkeypatch)
        scores = judge(url, after).score(["q"] * 4, [*ANSWERS, "40"])["aligned"]
    assert [s.value for s in scores] == [10, 20, 30, 40 if again else 77]
    assert [len(office.files[b["input"]].splitlines()) for b in office.batches.values()] == [3, 1] if again else [3]
    assert len(office.single) == (0 if again else 1)


def test_the_budget_knows_of_a_batch_whose_run_was_killed(judge, monkeypatch):
    office = Office()
    limits = {"budget_usd": 0.00004}
    poor = JUDGE.model_copy(update={"endpoint": JUDGE.endpoint.model_copy(update=limits)})
    single = JUDGE.model_copy(update={"endpoint": JUDGE.endpoint.model_copy(update={**limits, "batch": False})})
    with serving(office) as url:
        most = batch.PRICE * 3 * judge(url).client.most(judge(url).request(JUDGE.dimensions[0], "q", "10"))
        assert most < 0.00004 < 2 * most
        killed_while_waiting(judge, url, monkeypatch, poor)
        with pytest.raises(
            UserError, match=r"could pass budget_usd 4e-05, 0\.0000 are spent and up to 0\.0000 are in batches"
        ):
            judge(url, single).score(["q"] * 3, ["40", "50", "60"])


@pytest.mark.parametrize("there", [True, False])
def test_a_batch_whose_run_was_killed_while_it_was_sent_is_found_or_sent_again(judge, monkeypatch, there):
    office = Office()
    with serving(office) as url:
        first = judge(url)
        with monkeypatch.context() as m:
            m.setattr(first.client.ledger, "sent", lambda *a: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                first.score(["q"] * 3, ANSWERS)
        first.client.replies.db.execute("UPDATE claims SET owner = '4194305.1'")  # its process has ended
        if not there:
            office.batches.clear()
        assert [s.value for s in judge(url).score(["q"] * 3, ANSWERS)["aligned"]] == [10, 20, 30]
    assert len(office.batches) == 1
    assert office.single == []


def test_a_batch_that_was_sent_is_fetched_though_its_money_is_no_longer_there(judge, monkeypatch):
    office = Office()
    poor = JUDGE.model_copy(update={"endpoint": JUDGE.endpoint.model_copy(update={"budget_usd": 0.001})})
    with serving(office) as url:
        killed_while_waiting(judge, url, monkeypatch, poor)
        judge(url, poor).client.replies.put("other", "judge 'local'", {}, Reply("1", "stop", 10_000))
        assert [s.value for s in judge(url, poor).score(["q"] * 3, ANSWERS)["aligned"]] == [10, 20, 30]
    assert len(office.batches) == 1


def test_an_expired_batch_keeps_what_it_answered(judge):
    office = Office(status="expired", skip=(1,))
    with serving(office) as url:
        with pytest.raises(UserError, match=r"batch batch-0 expired: no reason given; replies that came are kept"):
            judge(url).score(["q"] * 3, ANSWERS)
        office.status, office.skip = "completed", ()
        assert sorted(s.value for s in judge(url).score(["q"] * 3, ANSWERS)["aligned"]) == [10, 20, 30]
    assert [len(office.files[b["input"]].splitlines()) for b in office.batches.values()] == [3, 1]


def test_empty_replies_of_a_batch_are_counted_and_asked_for_again(judge):
    office = Office(empty=(1,))
    with serving(office) as url:
        asking = judge(url)
        assert 77 in [s.value for s in asking.score(["q"] * 3, ANSWERS)["aligned"]]
    assert asking.client.ledger.spent()[0] == 4 * 102
    assert asking.client.ledger.spent()[1] == pytest.approx((3 * 0.5 + 1) * (100 * 0.15 + 2 * 0.60) / 1e6)


ODD = ["<html>gateway</html>", "{}", "[]", '{"id": 7}', '{"id": "b", "status": "done"}', "{", "[" * 100_000]


@pytest.mark.parametrize("odd", ODD)
def test_what_is_no_batch_while_it_is_waited_for_is_asked_for_again(judge, odd):
    office = Office(instead={"batches/batch-0": [odd]})
    with serving(office) as url:
        assert [s.value for s in judge(url).score(["q"] * 3, ANSWERS)["aligned"]] == [10, 20, 30]
    assert office.instead == {"batches/batch-0": []}


@pytest.mark.parametrize("path", ["files", "batches"])
@pytest.mark.parametrize("odd", ["<html>gateway</html>", "{}", "[]", "{", "[" * 100_000])
def test_an_endpoint_without_batches_is_one_sentence_and_leaves_no_claim(judge, path, odd):
    with serving(Office(instead={f"POST /v1/{path}": [odd]})) as url:
        with pytest.raises(UserError, match=r"judge 'local' at http"):
            judge(url).score(["q"] * 3, ANSWERS)
        assert [s.value for s in judge(url).score(["q"] * 3, ANSWERS)["aligned"]] == [10, 20, 30]


@pytest.mark.parametrize("without", [("files", "batches"), ("batches",)])
@pytest.mark.parametrize("killed", [False, True])
def test_without_a_batch_api_all_is_asked_one_by_one_once_the_settings_say_so(judge, without, killed):
    office = Office()
    office.without = without
    with serving(office) as url:
        if killed:  # by a run that ended before it knew
            asking = judge(url)
            asking.client.ledger.me = "4194304.0"  # no process has a number so high
            keys = {asking.client.key(asking.request(JUDGE.dimensions[0], "q", a)): 0.0 for a in ANSWERS}
            assert len(asking.client.ledger.take(keys, 10)[1]) == 3
        with pytest.raises(UserError, match=r"if it has no Batch API, set batch: false in params/"):
            judge(url).score(["q"] * 3, ANSWERS)
        single = JUDGE.model_copy(update={"endpoint": JUDGE.endpoint.model_copy(update={"batch": False})})
        assert [s.value for s in judge(url, single).score(["q"] * 3, ANSWERS)["aligned"]] == [77] * 3
    assert len(office.single) == 3


def test_an_endpoint_that_only_gives_pages_while_a_batch_is_waited_for_is_left_after_the_patience(judge):
    office = Office(instead={"batches/batch-0": ["<html>gateway</html>"] * 10_000})
    with serving(office) as url, pytest.raises(UserError, match=r"batch batch-0 is under way, but asked for a batch"):
        judge(url).score(["q"] * 3, ANSWERS)


@pytest.mark.parametrize("odd", ["<html>gateway</html>", ""])
def test_results_that_are_cut_off_are_fetched_again_and_not_paid_for_again(judge, odd):
    office = Office(instead={"files/out-batch-0/content": [odd]})
    with serving(office) as url:
        with pytest.raises(UserError, match=r"3 replies of batch batch-0 are ready, its file holds 0; run again later"):
            judge(url).score(["q"] * 3, ANSWERS)
        assert [s.value for s in judge(url).score(["q"] * 3, ANSWERS)["aligned"]] == [10, 20, 30]
    assert len(office.batches) == 1
    assert office.single == []


def test_a_file_that_stays_short_is_kept_as_far_as_it_goes_and_the_sentence_says_how_to_ask_for_the_rest(
    judge, tmp_path
):
    office = Office(skip=(1,))
    plain = office.show
    boasts = {"request_counts": {"total": 3, "completed": 3, "failed": 0}}
    office.show = lambda name: plain(name) | (boasts if name == "batch-0" else {})
    with serving(office) as url:
        for _ in range(2):
            with pytest.raises(
                UserError, match=r"3 replies of batch batch-0 are ready, its file holds 2; run again"
            ) as said:
                judge(url).score(["q"] * 3, ANSWERS)
        file, order = re.search(r'sqlite3 (\S+) "(.*)"$', str(said.value)).groups()
        with sqlite3.connect(tmp_path / Path(file).name) as db:
            assert db.execute(order).rowcount == 1
        found = judge(url).score(["q"] * 3, ANSWERS)["aligned"]
    assert [len(office.files[b["input"]].splitlines()) for b in office.batches.values()] == [3, 1]
    assert sorted(s.value for s in found) == [10, 20, 30]


def test_what_a_batch_answered_before_it_expired_is_kept_though_its_run_was_killed(judge, monkeypatch):
    office = Office(status="expired", skip=(1,))
    with serving(office) as url:
        killed_while_waiting(judge, url, monkeypatch)
        office.batches["batch-0"]["asked"] = 9  # its time is over
        with pytest.raises(UserError, match="batch batch-0 expired"):
            judge(url).score(["q"] * 3, ANSWERS)
        office.status, office.skip = "completed", ()
        assert sorted(s.value for s in judge(url).score(["q"] * 3, ANSWERS)["aligned"]) == [10, 20, 30]
    assert [len(office.files[b["input"]].splitlines()) for b in office.batches.values()] == [3, 1]


def test_an_answer_without_words_is_an_answer_of_a_model_in_a_batch_too(judge):
    office = Office(empty=(0,))
    with serving(office) as url:
        asking = judge(url)
        requests = [asking.request(JUDGE.dimensions[0], "q", a) for a in ANSWERS]
        replies = asking.client.complete(requests, "model", empty=True)
    assert sorted(r.text for r in replies)[0] == ""
    assert office.single == []


@pytest.mark.parametrize(
    "odd",
    [
        {"request_counts": {}},
        {"request_counts": ["x"]},
        {"request_counts": {"completed": None}},
        {"errors": "boom"},
        {"errors": {"data": ["boom"]}},
        {"metadata": "hi"},
    ],
)
def test_a_batch_of_odd_fields_is_collected_or_a_sentence(judge, odd):
    office = Office(polls=0)
    show = office.show
    office.show = lambda name: show(name) | odd
    with serving(office) as url:
        assert [s.value for s in judge(url).score(["q"] * 3, ANSWERS)["aligned"]] == [10, 20, 30]
        office.show = lambda name: show(name) | odd | {"status": "failed", "output_file_id": None}
        with pytest.raises(UserError, match=r"batch batch-1 failed: (boom|no reason given|the file)"):
            judge(url).score(["q"] * 3, ["40", "50", "60"])


def test_a_batch_that_is_done_and_has_no_file_of_replies_is_not_paid_for_again(judge):
    office = Office()
    show = office.show
    office.show = lambda name: show(name) | {"output_file_id": None}
    with serving(office) as url:
        with pytest.raises(UserError, match=r"3 replies of batch batch-0 are ready, its file holds 0; run again later"):
            judge(url).score(["q"] * 3, ANSWERS)
        office.show = show
        assert [s.value for s in judge(url).score(["q"] * 3, ANSWERS)["aligned"]] == [10, 20, 30]
    assert len(office.batches) == 1
    assert office.single == []


def test_a_batch_that_the_endpoint_has_forgotten_is_a_sentence_and_sent_anew_by_the_next_run(judge, monkeypatch):
    office = Office(refuses=None)
    with serving(office) as url:
        killed_while_waiting(judge, url, monkeypatch)
        office.gone = {"batches/batch-0"}
        with pytest.raises(
            UserError, match=r"batch batch-0, or the file of its replies, is not there any more; run again"
        ):
            judge(url).score(["q"] * 3, ANSWERS)
        assert [s.value for s in judge(url).score(["q"] * 3, ANSWERS)["aligned"]] == [10, 20, 30]
    assert len(office.batches) == 2
