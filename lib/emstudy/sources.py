"""Question sets and rubrics: a YAML under params/, and what it draws from files of the literature."""

from pathlib import Path

from pydantic import Field

from emstudy import literature, paths
from emstudy.asking import Dimension, Rubric
from emstudy.errors import UserError
from emstudy.schema import Questions
from emstudy.strict import File, Strict, check, load, read_yaml


class Sources(Strict, extra="ignore"):
    """What of a YAML says where the rest of it is drawn from; the whole is checked when that has been read."""

    published: File | None = Field(default=None, description="a file below data/ that `make data` fetches")
    ids: list[str] | None = None
    rubric: str | None = None
    guidance: dict[str, str] = Field(default={})
    dimensions: list[str | Dimension] = Field(default=[])


def sources(folder: str, name: str) -> tuple[dict, Sources]:
    """What a YAML says, `published` aside, and where it says that the rest comes from."""
    path = paths.PARAMS / folder / f"{name}.yaml"
    values = read_yaml(path)
    drawn = check(Sources, values, paths.show(path))
    values.pop("published", None)
    return values, drawn


def questions(name: str) -> Questions:
    """Load params/questions/<name>.yaml; with `published` and `ids` its questions come from a file that `make data` fetches."""
    values, drawn = sources("questions", name)
    if drawn.published:
        values["questions"] = literature.questions(drawn.published, drawn.ids)
        values.pop("ids", None)
    return load(Questions, "questions", name, values)


def files(folder: str, name: str) -> list[Path]:
    """The YAML params/<folder>/<name>.yaml, and the rubric and the published file that it draws on, where it does."""
    drawn = sources(folder, name)[1]
    more = [paths.DATA / drawn.published] if drawn.published else []
    return [paths.PARAMS / folder / f"{name}.yaml", *more, *(files("rubrics", drawn.rubric) if drawn.rubric else [])]


def question_sets() -> list[str]:
    """The names of the question sets at hand: all but those whose published file was not fetched."""
    names = sorted(p.stem for p in (paths.PARAMS / "questions").glob("*.yaml"))
    return [n for n in names if all(f.exists() for f in files("questions", n))]


def rubric(name: str) -> Rubric:
    """Load params/rubrics/<name>.yaml. With `published` its dimensions are names of prompts in a file that `make data` fetches;
    with `guidance`, {<set>/<question id>: text}, the prompts' {guidance} says that text for that question and nothing for others."""
    values, drawn = sources("rubrics", name)
    if drawn.published:
        values["dimensions"] = literature.dimensions(drawn.published, [str(d) for d in drawn.dimensions])
    if values.pop("guidance", None):
        texts = {_question(key, name): f"{text}\n" for key, text in drawn.guidance.items()}
        for d in [d for d in values.get("dimensions") or [] if isinstance(d, dict)]:
            if "{guidance}" in (d["prompt"] or ""):
                d["prompts"] = {q: d["prompt"].replace("{guidance}\n", text) for q, text in texts.items()}
                d["prompt"] = d["prompt"].replace("{guidance}\n", "")
    return load(Rubric, "rubrics", name, values)


def _question(key: str, name: str) -> str:
    """The text of '<set>/<id>'."""
    folder, _, asked = key.partition("/")
    found = {q.id: q.text for q in questions(folder).questions}
    if asked not in found:
        raise UserError(f"params/rubrics/{name}.yaml: guidance for '{key}', but that set has no such question")
    return found[asked]
