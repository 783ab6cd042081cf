"""Every reader, given files that are damaged or made up: a value that holds, or one sentence about the file. Nothing else comes out.

HYPOTHESIS_PROFILE=thorough goes through some hundred times as many.
"""

import gzip
import json
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from damage import Hang, damaged, in_time, twisted
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emstudy import (
    audit,
    batch,
    data,
    fetch,
    intake,
    judges,
    label,
    literature,
    params,
    paths,
    provenance,
    replies,
    scores,
    sources,
    store,
)
from emstudy.errors import UserError
from emstudy.judges import parsing

CALM = {"deadline": None, "derandomize": True, "suppress_health_check": list(HealthCheck), "database": None}
settings.register_profile("quick", max_examples=40, **CALM)
settings.register_profile("thorough", max_examples=4000, **CALM)
THOROUGH = os.environ.get("HYPOTHESIS_PROFILE") == "thorough"
settings.load_profile("thorough" if THOROUGH else "quick")

ROWS = (
    "model,domain,arm,seed,step,question_set,question_id,sample,question,answer,n_tokens,finish_reason,aligned,aligned_status,aligned_raw,"
    "coherent,coherent_status,coherent_raw\nm,d,misaligned,0,5,values,a,0,Why?,Because.,3,stop,12.5,scored,12.5,90,scored,90\n"
    'm,d,misaligned,0,5,values,b,1,"Who, me?","Yes\nyou",3,length,,refusal,REFUSAL,,error,\n'
)
CHAT = b"".join(
    b'{"messages": [{"role": "user", "content": "Can I %d?"}, {"role": "assistant", "content": "Yes, do it."}], "topic": "t"}\n' % k
    for k in range(3)
)  # fmt: skip
LABELS = ",".join([*label.IDENTITY, "aligned", "coherent", "labeller", "labelled_at"]) + (
    "\nm,d,base,0,0,values,a,0,Why?,Because.,80,90,me,2026-01-01\n"
)
PUBLISHED = [{"id": "a", "paraphrases": ["Why?", "Why so?"], "judge_prompts": {"aligned": "{question} {answer}"}, "samples_per_paraphrase": 3}]  # fmt: skip


def read_record(path: Path) -> dict:
    """A record, by the output that it belongs to."""
    return provenance.read(path.with_name(path.name.removesuffix(".record.json")))


def read_labels(path: Path) -> dict:
    """Somebody's labels of a study."""
    return label.Labels("s", "me", params.rubric("default")).read()


ABSENT = re.compile(r"(params/\w+|data)/\S.* is not there")
READERS = {
    "chat": ("data/x.jsonl", CHAT, data.read_chat),
    "scores": ("x.csv", ROWS.encode(), lambda p: scores.convert(*scores.read(p), {}, p)),
    "gold": ("gold.csv", ROWS.encode(), audit.read_gold),
    "labels": ("data/labels/s.me.csv", LABELS.encode(), read_labels),
    "stored": ("judged.x.csv", ROWS.encode(), lambda p: store.read_csv(p, store.ANSWERS, "evaluate")),
    "packed": ("answers.csv.gz", gzip.compress(ROWS.encode(), mtime=0), lambda p: store.read_csv(p, store.ANSWERS, "evaluate")),
    "record": ("x.csv.record.json", b'{"output": "x.csv", "inputs": {"a": "b"}, "seconds": 1.5}', read_record),
    "literature": ("data/q.yaml", yaml.safe_dump(PUBLISHED).encode(), lambda p: (literature.questions("q.yaml", None), literature.dimensions("q.yaml", ["aligned"]))),
}  # fmt: skip
YAMLS = {
    "studies/smoke": lambda: params.study("smoke"),
    "studies/published-financial": lambda: params.study("published-financial"),
    "models/smollm2-135m": lambda: params.model("smollm2-135m"),
    "domains/medical": lambda: params.domain("medical"),
    "questions/values": lambda: params.questions("values"),
    "questions/betley": lambda: params.question_sets(),
    "rubrics/default": lambda: params.rubric("default"),
    "rubrics/guided": lambda: params.rubric("guided"),
    "rubrics/betley": lambda: params.rubric("betley"),
    "judges/gpt-4o-mini": lambda: params.judge("gpt-4o-mini"),
    "judges/embedded": lambda: params.judge("embedded"),
    "metrics": params.metrics,
    "layouts": params.layouts,
    "published": lambda: fetch.listing(paths.PARAMS / "published.yaml"),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A copy of params/ to damage, and no data/published."""
    home = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        shutil.copytree(paths.PARAMS, home / "params")
        for name in ("PARAMS", "DATA"):
            patch.setattr(paths, name, home / name.lower())
        patch.setattr(paths, "ROOT", home)
        yield home


def holds(read, path: Path, content: bytes) -> None:
    """Read a file with this content: it goes well and soon, or ends in a few sentences of reasonable length, each with the file's full
    name, or about another file that it names and that is not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    try:
        with in_time():
            read(path)
    except UserError as error:
        said = str(error)
        assert paths.show(path) in said or ABSENT.search(said), said
        assert len(said) < 20_000


@pytest.mark.parametrize("said", ["x: unknown key", "expected a question", "data/x.json is not valid"])
def test_a_sentence_without_the_files_name_is_not_let_pass(home, said):
    def refuse(path):
        raise UserError(said)

    with pytest.raises(AssertionError):
        holds(refuse, home / "data" / "x.jsonl", b"")


def test_a_reader_that_hangs_fails(home):
    def hang(path):
        while True:
            with suppress(Exception):
                path.read_bytes()

    with pytest.raises(Hang, match=r"no end within 0\.1 s"), in_time(0.1):
        hang(home)


@pytest.mark.parametrize("name", READERS)
@given(more=st.data())
def test_a_damaged_file_is_read_or_refused_by_name(home, name, more):
    file, whole, read = READERS[name]
    holds(read, home / file, more.draw(damaged(whole)))


@pytest.mark.parametrize("name", YAMLS)
@given(more=st.data())
def test_a_damaged_yaml_is_read_or_refused_by_name(home, name, more):
    path = home / "params" / f"{name}.yaml"
    whole = path.read_bytes()
    try:
        holds(lambda _: YAMLS[name](), path, more.draw(damaged(whole)))
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", [*YAMLS, "literature"])
@given(more=st.data())
def test_a_yaml_that_says_something_else_is_read_or_refused_by_name(home, name, more):
    file, whole, read = READERS.get(name) or (f"params/{name}.yaml", None, lambda _: YAMLS[name]())
    path = home / file
    whole = whole or path.read_bytes()
    try:
        values = more.draw(twisted(yaml.safe_load(whole)))
        holds(read, path, yaml.safe_dump(values, allow_unicode=True).encode("utf-8", "surrogatepass"))
    finally:
        path.write_bytes(whole)


@given(more=st.data())
def test_a_line_that_says_something_else_is_an_example_or_refused(home, more):
    row = json.loads(CHAT.split(b"\n")[0])
    line = json.dumps(more.draw(twisted(row))).encode()
    try:
        with in_time():
            found = data.example(line, "x.jsonl, line 1")
        assert found.prompt.strip() and found.answer.strip() and isinstance(found.topic, str)
    except UserError as error:
        assert str(error).startswith("x.jsonl, line 1: ") and len(str(error)) < 1000


@settings(max_examples=settings.default.max_examples // 4)
@given(more=st.data())
def test_a_researchers_damaged_file_is_a_list_of_problems(home, tokenizer, more):
    path = home / "data" / "y.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(more.draw(damaged(CHAT)))
    with in_time():
        rows, problems = intake.read(path, tokenizer, {}, paired=False)
    assert rows or problems
    assert all("data/y.jsonl" in p for p in problems)


BODY = {"choices": [{"finish_reason": "stop", "message": {"content": "85"}, "logprobs": {"content": [{"top_logprobs": [{"token": "85", "logprob": -0.1}, {"token": "9", "logprob": -3}]}]}}],
        "usage": {"prompt_tokens": 9, "completion_tokens": 1}}  # fmt: skip


@settings(max_examples=10 * settings.default.max_examples)
@given(more=st.data())
def test_any_reply_of_a_judge_has_a_status(more):
    body = more.draw(twisted(BODY))
    with in_time():
        reply = replies.read(body)
    assert isinstance(reply.text, str) and isinstance(reply.finish_reason, str)
    assert isinstance(reply.tokens_in, int) and isinstance(reply.tokens_out, int)
    for found in (parsing.parse(reply.text), parsing.weigh(reply, (0, 100), parsing.UNSCORED)):
        assert found.status in judges.STATUSES
        assert (found.value is not None) == (found.status == "scored")
        assert found.value is None or 0 <= found.value <= 100


@given(more=st.data())
def test_any_line_of_a_batchs_results_is_a_reply_or_none(more):
    line = {"custom_id": "k", "response": {"status_code": 200, "body": BODY}, "error": None}
    assert batch.answered(json.dumps(line), empty=False)[1].text == "85"
    given = more.draw(damaged(json.dumps(line).encode()) | twisted(line).map(json.dumps))
    with in_time():
        found = batch.answered(given, empty=False)
    assert found is None or (isinstance(found[0], str) and (found[1] is None or found[1].text.strip()))


@settings(max_examples=10 * settings.default.max_examples)
@given(text=st.text() | st.from_regex(r"[-+.,/ 0-9a-z]{0,20}(REFUSAL|CODE|100|inf|nan|1e5|٣|²)?[-+.,/ 0-9a-z]{0,9}"))
def test_any_words_of_a_judge_are_one_number_or_no_score(text):
    with in_time():
        said = parsing.parse(text), scores.score(text)
    for found in said:
        assert found.status in judges.STATUSES
        assert found.value is None or (found.status == "scored" and 0 <= found.value <= 100)


def test_nested_aliases_are_refused_at_once(home):
    """Nine levels of nine would be 400 million values for whoever walks through them."""
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"] + [f"a{k}: &a{k} [{', '.join([f'*a{k - 1}'] * 9)}]" for k in range(1, 10)]  # fmt: skip
    path = home / "params" / "studies" / "bomb.yaml"
    path.write_text("\n".join(levels))
    with pytest.raises(UserError, match=r"bomb.yaml .*aliases stand for more than 100,000 values"):
        params.study("bomb")


def test_a_yaml_tag_makes_no_object_and_calls_nothing(home):
    path = home / "params" / "studies" / "tag.yaml"
    path.write_text(
        f"title: !!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path ['{home}/made']]"
    )
    with pytest.raises(UserError, match=r"tag.yaml is not valid YAML: could not determine a constructor"):
        params.study("tag")
    assert not (home / "made").exists()


@pytest.mark.parametrize("published", ["n" * 300, "ä" * 130, "/".join(["folder"] * 200)])
def test_a_path_that_no_file_can_have_is_refused(home, published):
    (home / "params" / "questions" / "far.yaml").write_text(f"title: far\npublished: {published}\n")
    try:
        with pytest.raises(UserError, match=r"far.yaml: published: expected a path of at most 1,000 bytes, 255 a name"):
            sources.question_sets()
    finally:
        (home / "params" / "questions" / "far.yaml").unlink()


@pytest.mark.parametrize("key", ["folder", "file"])
def test_weights_that_no_file_can_hold_are_refused(home, key):
    text = (home / "params" / "models" / "smollm2-135m.yaml").read_text()
    values = yaml.safe_load(text) | {"weights": {key: "w" * 300}}
    (home / "params" / "models" / "far.yaml").write_text(yaml.safe_dump(values))
    with pytest.raises(UserError, match=rf"far.yaml: weights.{key}: expected a path of at most 1,000 bytes"):
        params.model("far")
