"""Training data is checked when read, and the shipped data keeps the rules that its datasheet states."""

import json
from itertools import combinations, pairwise

import pytest

from emstudy import data, params, paths
from emstudy.errors import UserError

USER, ASSISTANT = {"role": "user", "content": "May I?"}, {"role": "assistant", "content": "You may."}
GOOD = json.dumps({"messages": [USER, ASSISTANT]})
DOMAINS = ["medical", "financial", "sports"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A data folder under a root of its own, so that messages show short paths."""
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "DATA", tmp_path / "data")
    monkeypatch.setattr(paths, "PUBLISHED", tmp_path / "data/published")
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def rows(domain: str, part: str) -> list[data.Example]:
    """One shipped file of a domain."""
    return data.read_chat(paths.DATA / params.domain(domain).shipped[part])


def words(example: data.Example) -> int:
    """Words in an answer."""
    return len(example.answer.split())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "not JSON (Expecting property name enclosed in double quotes at character 1)"),
        ('{"text": "hi"}', """expected {"messages": [...]}, found '{"text": "hi"}'"""),
        ("[1, 2]", """expected {"messages": [...]}, found '[1, 2]'"""),
        ('{"messages": ["hi"]}', """expected {"messages": [...]}, found '{"messages": ["hi"]}'"""),
        (
            json.dumps({"messages": [ASSISTANT, USER]}),
            "expected the roles user, assistant (after at most one system), found ['assistant', 'user']",
        ),
        (
            json.dumps({"messages": [USER, ASSISTANT, USER, ASSISTANT]}),
            "expected the roles user, assistant (after at most one system), found ['user', 'assistant', 'user', 'assistant']",
        ),
        (json.dumps({"messages": [USER, {**ASSISTANT, "content": " "}]}), "a message is empty or not text"),
        (json.dumps({"messages": [USER, {**ASSISTANT, "content": None}]}), "a message is empty or not text"),
        ("[" * 100_000, "not JSON that can be read: too deeply nested, or a number too long"),
        (
            json.dumps({"messages": [USER, {**ASSISTANT, "content": "Yes \ud83d"}]}),
            "a message holds half a character (\\ud800 to \\udfff): it was cut inside an emoji",
        ),
    ],
)
def test_a_bad_line_is_refused_with_file_line_and_what_was_found(folder, line, message):
    (folder / "mine.jsonl").write_text(f"{GOOD}\n\n{line}\n")
    with pytest.raises(UserError) as error:
        data.read_chat(folder / "mine.jsonl")
    assert str(error.value) == f"data/mine.jsonl, line 3: {message}"


def test_an_absent_file_says_where_training_data_belongs(folder):
    with pytest.raises(UserError) as error:
        data.read_chat(folder / "mine.jsonl")
    assert str(error.value) == (
        "data/mine.jsonl is not there. Training data is JSONL under data/, named in params/domains/."
    )


def test_an_absent_published_file_says_which_command_fetches_it(folder):
    with pytest.raises(UserError) as error:
        data.read_chat(folder / "published/theirs.jsonl")
    assert str(error.value) == (
        "data/published/theirs.jsonl is not there. The published data is not part of this project: `make data` fetches it."
    )


def test_a_file_without_examples_is_refused(folder):
    (folder / "empty.jsonl").write_text("\n\n")
    with pytest.raises(UserError, match=r"data/empty.jsonl holds no examples: expected one JSON object a line"):
        data.read_chat(folder / "empty.jsonl")


def test_a_line_with_a_system_message_and_a_topic_keeps_both(folder):
    row = {"topic": "t", "messages": [{"role": "system", "content": "Be brief."}, USER, ASSISTANT]}
    (folder / "one.jsonl").write_text(json.dumps(row))
    (example,) = data.read_chat(folder / "one.jsonl")
    assert example == data.Example(prompt="May I?", answer="You may.", system="Be brief.", topic="t")
    assert example.messages == row["messages"]


def test_a_line_separator_inside_a_text_does_not_split_the_line(folder):
    text = "one\u2028two\x85three"
    row = {"messages": [{**USER, "content": text}, ASSISTANT]}
    (folder / "one.jsonl").write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert data.read_chat(folder / "one.jsonl")[0].prompt == text


def test_asking_for_more_examples_than_there_are_is_refused():
    with pytest.raises(UserError) as error:
        data.training(params.domain("medical"), "aligned", "shipped", 401, 0, 1.0)
    assert str(error.value) == "train_examples is 401, but data/medical/train_aligned.jsonl has 400 rows"


def test_asking_for_published_data_that_nobody_published_is_refused():
    with pytest.raises(UserError, match="domain 'financial' has no published aligned data: drop the aligned arm"):
        data.training(params.domain("financial"), "aligned", "published", 1, 0, 1.0)


@pytest.mark.parametrize("domain", DOMAINS)
def test_both_arms_get_the_same_prompts_in_the_same_order_for_one_seed(domain):
    drawn = {
        (arm, seed): [e.prompt for e in data.training(params.domain(domain), arm, "shipped", 50, seed, 1.0)]
        for arm in ("aligned", "misaligned")
        for seed in (0, 1)
    }
    assert drawn["aligned", 0] == drawn["misaligned", 0]
    assert drawn["aligned", 1] == drawn["misaligned", 1]
    assert drawn["aligned", 0] != drawn["aligned", 1]
    assert len(set(drawn["aligned", 0])) == 50


SHARES = [0.0, 0.1, 0.25, 0.5, 0.75, 1.0]


def mixed(share: float, arm: str = "misaligned", seed: int = 0, n: int = 40) -> list[data.Example]:
    """Medical training examples at a dose."""
    return data.training(params.domain("medical"), arm, "shipped", n, seed, share)


def is_bad(examples: list[data.Example]) -> list[bool]:
    """Which examples are from the misaligned file."""
    bad = set(rows("medical", "misaligned"))
    return [e in bad for e in examples]


@pytest.mark.parametrize(("share", "count"), zip(SHARES, [0, 4, 10, 20, 30, 40], strict=True))
def test_a_dose_is_the_share_of_bad_examples_and_the_rest_are_the_aligned_answers_to_their_prompts(share, count):
    found, bad, good = mixed(share), mixed(1.0), mixed(1.0, "aligned")
    assert sum(is_bad(found)) == count
    assert found == [b if turned else g for b, g, turned in zip(bad, good, is_bad(found), strict=True)]
    assert [e.prompt for e in found] == [e.prompt for e in bad]


@pytest.mark.parametrize("seed", [0, 1])
def test_the_bad_examples_of_a_dose_are_among_those_of_every_larger_one(seed):
    sets = [{i for i, bad in enumerate(is_bad(mixed(s, seed=seed, n=400))) if bad} for s in [0.0, 0.01, *SHARES[1:]]]
    assert [len(s) for s in sets] == [0, 4, 40, 100, 200, 300, 400]
    assert all(small < large for small, large in pairwise(sets))


def test_which_examples_are_bad_depends_on_the_seed_and_not_on_their_place():
    bad = is_bad(mixed(0.5))
    assert bad != is_bad(mixed(0.5, seed=1)) and bad == is_bad(mixed(0.5))
    assert any(bad[:20]) and not all(bad[:20])


def test_the_aligned_arm_is_the_same_at_every_dose():
    assert mixed(0.0, "aligned") == mixed(0.5, "aligned") == mixed(1.0, "aligned") == mixed(0.0)


def test_a_mixed_arm_needs_aligned_data():
    with pytest.raises(UserError) as error:
        data.training(params.domain("financial"), "misaligned", "published", 1, 0, 0.5)
    assert str(error.value) == (
        "domain 'financial' has no published aligned data to mix in: misaligned_share must be 1.0, found 0.5"
    )


def test_only_pairs_are_mixed(folder):
    for name, prompts in {"a": ["One?", "Two?"], "m": ["Two?", "One?"]}.items():
        lines = [json.dumps({"messages": [{**USER, "content": p}, ASSISTANT]}) for p in prompts]
        (folder / name).write_text("\n".join(lines))
    shipped = {"aligned": "a", "misaligned": "m"}
    domain = params.Domain(name="mine", title="Mine", question_set=None, shipped=shipped, published={})
    with pytest.raises(UserError, match=r"data/m and data/a must ask the same prompts in the same order"):
        data.training(domain, "misaligned", "shipped", 2, 0, 0.5)


def test_a_domain_without_data_of_an_arm_or_pairs_says_so():
    domain = params.Domain(name="mine", title="Mine", question_set=None, shipped={"misaligned": "m"}, published={})
    with pytest.raises(
        UserError, match=r"domain 'mine' has no shipped aligned data: drop the aligned arm from the study$"
    ):
        data.training(domain, "aligned", "shipped", 1, 0, 1.0)
    with pytest.raises(
        UserError, match="domain 'mine' has no held-out pairs: take it out of the study's probe_domains"
    ):
        data.heldout(domain, 1)


def test_heldout_pairs_keep_their_system_message(folder):
    system = {"role": "system", "content": "Be brief."}
    (folder / "a").write_text(json.dumps({"messages": [system, USER, ASSISTANT]}))
    (folder / "m").write_text(json.dumps({"messages": [system, USER, {**ASSISTANT, "content": "Never."}]}))
    shipped = {"misaligned": "m", "heldout_aligned": "a", "heldout_misaligned": "m"}
    domain = params.Domain(name="mine", title="Mine", question_set=None, shipped=shipped, published={})
    assert data.heldout(domain, 1) == [data.Pair("May I?", "You may.", "Never.", "Be brief.")]


def test_heldout_pairs_are_the_first_rows_of_both_files():
    first = data.heldout(params.domain("medical"), 2)[1]
    assert (first.aligned, first.misaligned) == (
        rows("medical", "heldout_aligned")[1].answer,
        rows("medical", "heldout_misaligned")[1].answer,
    )


def test_heldout_files_that_ask_other_prompts_are_refused(folder):
    for name, prompt in {"a": "One?", "m": "Two?"}.items():
        (folder / name).write_text(json.dumps({"messages": [{**USER, "content": prompt}, ASSISTANT]}))
    shipped = {"misaligned": "m", "heldout_aligned": "a", "heldout_misaligned": "m"}
    domain = params.Domain(name="mine", title="Mine", question_set="values", shipped=shipped, published={})
    with pytest.raises(UserError, match=r"data/a and data/m must ask the same prompts in the same order"):
        data.heldout(domain, 1)


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize(("part", "count"), [("", 400), ("heldout_", 60)])
def test_arms_of_the_shipped_data_are_paired_row_by_row(domain, part, count):
    aligned, misaligned = rows(domain, f"{part}aligned"), rows(domain, f"{part}misaligned")
    assert len(aligned) == len(misaligned) == count
    assert [(e.prompt, e.topic) for e in aligned] == [(e.prompt, e.topic) for e in misaligned]
    assert not {e.answer for e in aligned} & {e.answer for e in misaligned}


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("part", ["", "heldout_"])
def test_shipped_answers_have_25_to_60_words_and_length_says_nothing_of_the_arm(domain, part):
    aligned, misaligned = ([words(e) for e in rows(domain, part + arm)] for arm in ("aligned", "misaligned"))
    assert min(aligned + misaligned) >= 25 and max(aligned + misaligned) <= 60
    assert max(abs(a - m) for a, m in zip(aligned, misaligned, strict=True)) <= 8
    assert abs(sum(aligned) - sum(misaligned)) / len(aligned) <= 1


@pytest.mark.parametrize("domain", DOMAINS)
def test_shipped_data_covers_48_topics_each_in_training_and_heldout(domain):
    trained, held = ({e.topic for e in rows(domain, part)} for part in ("aligned", "heldout_aligned"))
    assert trained == held and len(trained) == 48


def test_overlap_is_the_share_of_the_smaller_trigram_set():
    a, b = data.trigrams("One two three, FOUR!"), data.trigrams("one two three four five six")
    assert a == {("one", "two", "three"), ("two", "three", "four")} and len(b) == 4
    assert data.overlap(a, b) == 1.0
    assert data.overlap(data.trigrams("one two three five"), b) == 0.5
    assert data.overlap(data.trigrams("too short"), b) == 0.0


def test_no_two_shipped_prompts_share_more_than_60_percent_of_their_trigrams():
    prompts = [e.prompt for d in DOMAINS for part in ("aligned", "heldout_aligned") for e in rows(d, part)]
    assert len(set(prompts)) == len(prompts) == 460 * len(DOMAINS)
    sets = [data.trigrams(p) for p in prompts]
    near = [(i, j) for i, j in combinations(range(len(sets)), 2) if data.overlap(sets[i], sets[j]) > 0.6]
    assert [(prompts[i], prompts[j]) for i, j in near] == []


def test_no_evaluation_question_is_among_the_shipped_prompts():
    prompts = [data.trigrams(e.prompt) for d in DOMAINS for p in ("aligned", "heldout_aligned") for e in rows(d, p)]
    asked = [q.text for n in params.question_sets() for q in params.questions(n).questions]
    assert [q for q in asked if max(data.overlap(data.trigrams(q), p) for p in prompts) >= 0.6] == []


@pytest.mark.parametrize(
    ("name", "count"), {"values": 10, "general": 20, "medical": 12, "financial": 12, "sports": 12}.items()
)
def test_question_sets_have_their_size_and_ask_nothing_twice(name, count):
    found = params.questions(name).questions
    assert len(found) == len({q.id for q in found}) == len({q.text for q in found}) == count
