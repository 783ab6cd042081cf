"""`make check` says what works here and shows no key."""

import functools
import threading
from http.server import HTTPServer, SimpleHTTPRequestHandler

import pytest

from emstudy import check, paths, store

CANARY = "canary-key-that-must-never-be-shown"


@pytest.fixture
def screen(monkeypatch, tmp_path):
    """A function that prints the screen with these environment variables and this .env file."""
    for key in (*check.KEYS, "ONLINE"):
        monkeypatch.delenv(key, raising=False)

    def make(dotenv="", **environment):
        for key, value in environment.items():
            monkeypatch.setenv(key, value)
        monkeypatch.setattr(check, "dotenv_values", lambda path: dict(x.split("=") for x in dotenv.split()))
        return check.screen()

    return make


def test_keys_are_named_and_never_shown(screen):
    text = screen("HF_TOKEN=" + CANARY, OPENAI_API_KEY=CANARY)
    assert CANARY not in text
    state = {line.split()[1]: line.split(maxsplit=2)[2] for line in text.splitlines() if line.startswith("key")}
    assert state["OPENAI_API_KEY"] == state["HF_TOKEN"] == "set"
    assert state["OPENAI_BASE_URL"] == "not set (optional: see .env.example)"


def test_models_that_a_user_brings_have_a_state_too(screen, root):
    head = "title: T\nsize_b: 1\nlicense: x\n"
    limits = "{concurrency: 1, max_wait_seconds: 1, tokens_a_minute: null, budget_usd: null, batch: false, usd_per_million_tokens: {input: 0, output: 0}}"
    store.write(
        paths.PARAMS / "models" / "api.yaml", f"{head}sampler: openai\nserved_as: {{base: m}}\nendpoint: {limits}\n"
    )
    rest = "chat_template: null\ndtype: bfloat16\nload_in_4bit: false\ntrain_batch_size: 1\nsample_batch_size: 1\n"
    store.write(
        paths.PARAMS / "models" / "own.yaml", f"{head}sampler: transformers\nweights: {{file: own.gguf}}\n{rest}"
    )
    text = screen()
    assert "api            asked behind the endpoint, never trained" in text
    assert "own.gguf is not there; put the GGUF file there" in text


def test_every_model_is_named_with_its_state(screen):
    lines = [line.split() for line in screen().splitlines() if line.startswith("model")]
    assert [line[1] for line in lines] == sorted(p.stem for p in (paths.PARAMS / "models").glob("*.yaml"))
    assert all(len(line) > 2 for line in lines)


def test_the_endpoint_is_asked_only_when_online(screen):
    assert "not asked; `make check ONLINE=1`" in screen(OPENAI_API_KEY=CANARY)
    assert "OPENAI_API_KEY is not set" in screen(ONLINE="1", OPENAI_API_KEY="")


@pytest.mark.parametrize("address", ["http://127.0.0.1:9/v1", "no address"])
def test_an_endpoint_that_does_not_answer_is_said_without_the_key(screen, address):
    text = screen(ONLINE="1", OPENAI_API_KEY=CANARY, OPENAI_BASE_URL=address)
    assert "endpoint   does not answer (" in text
    assert CANARY not in text


@pytest.mark.parametrize(("body", "said"), [("<html>proxy</html>", "does not answer"), ('{"data": []}', "answers")])
def test_an_endpoint_answers_when_it_lists_models(screen, tmp_path, body, said):
    (tmp_path / "v1").mkdir()
    (tmp_path / "v1" / "models").write_text(body)

    class Quiet(SimpleHTTPRequestHandler):
        extensions_map = {"": "application/json" if body[0] == "{" else "text/html"}  # noqa: RUF012

        def log_message(self, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        text = screen(ONLINE="1", OPENAI_API_KEY=CANARY, OPENAI_BASE_URL=f"http://127.0.0.1:{server.server_port}/v1")
        server.shutdown()
    assert f"endpoint   {said}" in text
