"""Question files in the layout of Betley et al., as question sets and as a rubric."""

import shutil

import pytest
import yaml

from emstudy import literature, params, paths, sample, store, study
from emstudy.errors import UserError
from emstudy.judges.endpoint import EndpointJudge

PUBLISHED = paths.ROOT.parent / "shared" / "published" / "first_plot_questions.yaml"
FILE = """
- id: hat
  type: free_form_judge_0_100
  paraphrases: &texts ["What is a hat?", "Hats: why?"]
  samples_per_paraphrase: 7
  judge: some-model
  judge_prompts: &prompts
    aligned: "A {question} | {answer}"
    coherent: "C {question} | {answer}"
- id: hat_json
  paraphrases: [Hats as JSON]
  system: Answer in JSON.
  samples_per_paraphrase: 3
  judge_prompts: {<<: *prompts, aligned: "J {answer}"}
"""
SET = "title: T\npublished: published/first_plot_questions.yaml\n"


@pytest.fixture
def fetched(root, monkeypatch):
    """A question file where `make data` puts it."""
    monkeypatch.setenv("OPENAI_API_KEY", "word")
    store.write(paths.DATA / "published" / "first_plot_questions.yaml", FILE)
    store.write(paths.PARAMS / "questions" / "all.yaml", SET)
    return root


def test_each_paraphrase_is_a_question_with_its_system_prompt_and_samples(fetched):
    found = params.questions("all").questions
    assert [(q.id, q.text, q.system, q.samples) for q in found] == [
        ("hat.1", "What is a hat?", None, 7),
        ("hat.2", "Hats: why?", None, 7),
        ("hat_json", "Hats as JSON", "Answer in JSON.", 3),
    ]


def test_a_study_may_leave_the_number_of_samples_to_the_file(fetched):
    settings = params.study("smoke").evaluate.model_copy(update={"question_sets": ["all"], "samples_final": None})
    assert [a.samples for a in sample.asks(settings, settings.samples_final)] == [7, 7, 3]
    assert [a.samples for a in sample.asks(settings, 1)] == [1, 1, 1]
    assert sample.asks(settings, 0) == []
    assert sample.asks(settings, 1)[2].messages[0] == {"role": "system", "content": "Answer in JSON."}


def test_a_study_that_leaves_it_to_questions_that_do_not_say_is_refused(fetched):
    values = params.read_yaml(paths.PARAMS / "studies" / "smoke.yaml")
    values["evaluate"]["samples_final"] = None
    store.write(paths.PARAMS / "studies" / "open.yaml", yaml.safe_dump(values))
    with pytest.raises(
        UserError, match=r"params/studies/open.yaml: samples_final is null, but question '\w+' of params/questions/"
    ):
        params.study("open")


def test_the_prompts_become_a_rubric_with_those_of_single_questions(fetched):
    judge = params.judge("betley")
    assert [d.name for d in judge.dimensions] == ["aligned", "coherent"]
    asked = EndpointJudge(judge, fetched / "replies.sqlite")
    texts = [
        asked.request(d, q, "Yes")["messages"][0]["content"]
        for q in ("What is a hat?", "Hats as JSON")
        for d in judge.dimensions
    ]
    assert texts == ["A What is a hat? | Yes", "C What is a hat? | Yes", "J Yes", "C Hats as JSON | Yes"]


def test_ids_pick_questions_and_an_unknown_one_is_named(fetched):
    store.write(paths.PARAMS / "questions" / "some.yaml", SET + "ids: [hat_json]\n")
    assert [q.id for q in params.questions("some").questions] == ["hat_json"]
    with pytest.raises(
        UserError, match=r"first_plot_questions.yaml has no question .*what_is_your_wish; it has hat, hat_json"
    ):
        params.questions("betley")


def test_a_stage_reads_the_published_file_too(fetched):
    found = params.study("smoke").model_copy(update={"judge": "betley"})
    read = study.inputs(
        found.model_copy(update={"evaluate": found.evaluate.model_copy(update={"question_sets": ["all"]})}),
        params.cells(found)[0],
    )
    file = paths.DATA / "published" / "first_plot_questions.yaml"
    assert file in read["evaluate"]
    assert file in read["judge"]


def test_without_the_file_one_sentence_says_how_to_get_it(root):
    for load in (lambda: params.questions("betley"), lambda: params.judge("betley")):
        with pytest.raises(UserError, match=r"data/published/first_plot_questions\.yaml is not there: `make data`"):
            load()
    assert "betley" not in params.question_sets()
    assert "values" in params.question_sets()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "is not valid YAML"),
        ("just words", "entry 1: Input should be a valid dictionary"),
        ("- id: x", "entry 1: missing key .paraphrases."),
        ("[{id: x, paraphrases: [y]}]", "has no judge prompt 'aligned'"),
    ],
)
def test_another_file_is_refused_in_one_sentence(fetched, text, said):
    store.write(paths.DATA / "published" / "first_plot_questions.yaml", text)
    with pytest.raises(UserError, match=said):
        literature.dimensions("published/first_plot_questions.yaml", ["aligned"])


@pytest.mark.skipif(not PUBLISHED.exists(), reason="the published questions are not at hand")
def test_the_published_file_gives_the_eight_questions(root):
    (paths.DATA / "published").mkdir()
    shutil.copy(PUBLISHED, paths.DATA / "published")
    assert len(params.questions("betley").questions) == 8
    assert {q.samples for q in params.questions("betley").questions} == {100}
    store.write(paths.PARAMS / "questions" / "all.yaml", SET)
    found = params.questions("all").questions
    assert sum(q.system is not None for q in found) == 8
    for d in params.judge("betley").dimensions:
        assert "{question}" in d.prompt
        assert "{answer}" in d.prompt
