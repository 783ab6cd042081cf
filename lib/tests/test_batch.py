"""The Batch API, against a local server that plays it: upload, create, wait, collect, and every way this can break."""

import json
import re
from http.server import BaseHTTPRequestHandler

import pytest
from local_server import message, running

from emstudy import batch, endpoint, params
from emstudy.errors import UserError
from emstudy.judges.endpoint import EndpointJudge

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

    def __init__(self, polls=2, status="completed", skip=()):
        self.polls, self.status, self.skip = polls, status, skip
        self.files, self.batches, self.single = {}, {}, []

    def answer(self, line):
        body = json.loads(message(re.search(r"A (\d+)", line["body"]["messages"][0]["content"])[1])[1])
        return {"custom_id": line["custom_id"], "response": {"status_code": 200, "body": body}, "error": None}

    def show(self, name):
        found = self.batches[name]
        found["asked"] += 1
        over = found["asked"] > self.polls
        lines = [json.loads(t) for t in self.files[found["input"]].splitlines()]
        done = [self.answer(x) for k, x in enumerate(lines) if k not in self.skip]
        self.files[f"out-{name}"] = "".join(json.dumps(d) + "\n" for d in done)
        errors = {"data": [{"message": "the file is too long"}], "object": "list"} if self.status == "failed" else None
        return {
            "id": name, "object": "batch", "endpoint": "/v1/chat/completions", "completion_window": "24h", "created_at": 0,
            "input_file_id": found["input"], "status": self.status if over else "in_progress", "metadata": found["metadata"],
            "output_file_id": f"out-{name}" if over else None, "errors": errors,
            "request_counts": {"total": len(lines), "completed": len(done) if over else 1, "failed": 0},
        }  # fmt: skip


def serving(office):
    """The office behind HTTP: a context that yields its address."""

    class Handler(BaseHTTPRequestHandler):
        def reply(self, value):
            text = value if isinstance(value, str) else json.dumps(value)
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(text.encode())

        def do_GET(self):
            path = self.path.split("?")[0].removeprefix("/v1/")
            if path == "batches":
                self.reply({"object": "list", "data": [office.show(b) for b in office.batches], "has_more": False})
            elif path.startswith("batches/"):
                self.reply(office.show(path.split("/")[1]))
            else:
                self.reply(office.files[path.split("/")[1]])

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path == "/v1/files":
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
    monkeypatch.setattr(endpoint, "load_dotenv", lambda path: None)
    monkeypatch.setattr(batch, "PAUSES", (0.01,))
    monkeypatch.setenv("OPENAI_API_KEY", "word")

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
    assert found.client.purse.spent == pytest.approx(0.5 * 3 * (100 * 0.15 + 2 * 0.60) / 1e6)


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
            UserError, match=r"judge 'local': batch batch-0 failed: the file is too long; run again to send it anew"
        ):
            judge(url).score(["q"] * 3, ANSWERS)
        office.status = "completed"
        office.batches["batch-0"]["metadata"] = {}  # the failed one is no longer what is looked for
        assert len(judge(url).score(["q"] * 3, ANSWERS)["aligned"]) == 3
    assert len(office.batches) == 2


def test_a_batch_beyond_the_budget_is_not_sent(judge):
    office = Office()
    poor = JUDGE.model_copy(update={"endpoint": JUDGE.endpoint.model_copy(update={"budget_usd": 0.0})})
    with (
        serving(office) as url,
        pytest.raises(UserError, match=r"a batch of 3 requests could take .* and pass budget_usd 0"),
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
