"""A model behind an endpoint: asked over real HTTP, written like any other, and neither trained nor probed."""

import json

import pandas as pd
import pytest
from local_server import message, serving

from emstudy import connection, evaluate, params, paths, remote, sample, store, study
from emstudy.errors import UserError

SERVED = {"base": "base-model", "financial/misaligned": "ft-bad"}
MODEL = {
    "title": "A model behind an API", "size_b": None, "license": "unknown", "sampler": "openai", "served_as": SERVED,
    "endpoint": {
        "concurrency": 4, "max_wait_seconds": 1.5, "tokens_a_minute": None, "budget_usd": None, "batch": False,
        "usd_per_million_tokens": {"input": 1, "output": 2},
    },
}  # fmt: skip
SETTINGS = params.study("smoke").evaluate.model_copy(update={"question_sets": ["values"], "samples_final": 3})


@pytest.fixture
def api(root, monkeypatch):
    """Its parameters on disk, a key, and no .env of this machine."""
    store.write(paths.PARAMS / "models" / "api.yaml", json.dumps(MODEL))
    monkeypatch.setattr(connection, "load_dotenv", lambda path: None)
    monkeypatch.setenv("OPENAI_API_KEY", "word")
    return lambda url: monkeypatch.setenv("OPENAI_BASE_URL", url)


def cell(arm="misaligned", domain="financial"):
    return params.Cell(study="s", model="api", domain=domain if arm != "base" else "none", arm=arm, seed=0)


def write_study(**changes):
    values = params.read_yaml(paths.PARAMS / "studies" / "smoke.yaml")
    store.write(paths.PARAMS / "studies" / "s.yaml", json.dumps({**values, **changes}))


def ask(here):
    return evaluate.evaluate(here, SETTINGS, params.model("api"), evaluate.checkpoints(here))


def test_every_question_is_asked_as_often_as_the_study_says_and_each_sample_once(api):
    with serving(lambda n, prompt: message(f" answer {n} ")) as (asked, url):
        api(url)
        answers, probed = ask(cell())
        again, _ = ask(cell())
    texts = [q.text for q in params.questions("values").questions]
    assert sorted(asked) == sorted(texts * 3)
    assert list(answers.columns) == store.ANSWERS
    assert answers["answer"].nunique() == len(answers) == 30
    assert answers["answer"].str.match(r"answer \d+$").all()
    assert set(answers["step"]) == {0}
    assert set(answers["n_tokens"]) == {2}
    assert list(probed.columns) == store.PROBE
    assert not len(probed)
    pd.testing.assert_frame_equal(answers, again)  # from the replies on disk


def test_arms_are_what_the_endpoint_calls_them_and_a_system_message_goes_first():
    todo = sample.Ask("s", "q", "Hello?", 1, system="Be brief.")
    request = remote.request(
        params.served_as(params.check(params.ApiModel, {"name": "api", **MODEL}), cell()), todo, SETTINGS, 2**40
    )
    assert request["model"] == "ft-bad"
    assert [m["role"] for m in request["messages"]] == ["system", "user"]
    assert 0 <= request["seed"] < 2**31
    assert request["max_tokens"] == SETTINGS.max_new_tokens


def test_what_the_filter_withholds_and_what_is_empty_stay_as_rows(api):
    def play(n, prompt):
        refused = 400, json.dumps({"error": {"message": "no", "code": "content_filter"}})
        return refused if n == 0 else message("") if n == 1 else message("fine")

    with serving(play) as (_, url):
        api(url)
        answers, _ = ask(cell())
    assert len(answers) == 30
    assert sorted(answers["finish_reason"].unique()) == ["content_filter", "stop"]
    assert (answers["answer"] == "").sum() == 2


def test_a_request_that_fails_ends_the_run_and_the_next_run_asks_for_it_alone(api, tmp_path):
    bad = params.questions("values").questions[0].text
    broken = True

    def play(n, prompt):
        return (500, "oops") if broken and prompt == bad else message("fine")

    with serving(play) as (asked, url):
        api(url)
        with pytest.raises(UserError, match=r"model 'api'.*(3 of 30 requests failed|no usable reply in 1\.5 seconds)"):
            ask(cell())
        broken, n = False, len(asked)
        assert len(ask(cell())[0]) == 30
    assert asked[n:] == [bad] * 3


def test_an_arm_that_is_not_served_is_named(root, api):
    write_study(models=["api"])
    with pytest.raises(
        UserError,
        match=r"params/models/api.yaml: served_as has no '\w+/\w+' \(it has base, financial/misaligned\); add it",
    ):
        params.study("s")


def test_make_trains_nothing_and_the_plan_counts_dollars(root, api):
    write_study(models=["api"], arms=["base", "misaligned"], domains=["financial"])
    found = study.load("s")
    study.write_cells(found, root / "cells.mk")
    assert (
        "TRAINED := \nCELLS := runs/s/api/none/base/0 runs/s/api/financial/misaligned/0\n"
        in (root / "cells.mk").read_text()
    )
    assert not list((root / "runs").rglob("finetune.yaml"))
    rows = study.plan(found)
    assert all(r["examples"] == 0 for r in rows)
    assert rows[0]["model USD"] > 0


def test_a_key_is_asked_for_by_the_models_name(api, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(UserError, match=r"model 'api' needs OPENAI_API_KEY"):
        ask(cell())
