"""What is run, typed and strict: every YAML under params/ is read here, and an unknown or missing key is an error."""

from pathlib import Path
from typing import TypeVar

from emstudy import literature, paths
from emstudy.asking import Dimension, Endpoint, Judge, Rubric, Sources
from emstudy.errors import UserError
from emstudy.imported import ImportedDomain, ImportedModel, ImportedStudy, Layout
from emstudy.schema import (
    Analyze,
    ApiModel,
    Arm,
    Cell,
    Domain,
    Evaluate,
    Finetune,
    Metric,
    Model,
    Question,
    Questions,
    Study,
    Weights,
)
from emstudy.strict import Strict, check, read_yaml

__all__ = [
    "Analyze",
    "ApiModel",
    "Arm",
    "Cell",
    "Dimension",
    "Domain",
    "Endpoint",
    "Evaluate",
    "Finetune",
    "ImportedDomain",
    "ImportedModel",
    "ImportedStudy",
    "Judge",
    "Layout",
    "Metric",
    "Model",
    "Question",
    "Questions",
    "Rubric",
    "Strict",
    "Study",
    "Weights",
    "check",
    "read_yaml",
]

T = TypeVar("T", bound=Strict)


def load(kind: type[T], folder: str, name: str, values: dict | None = None) -> T:
    """The record params/<folder>/<name>.yaml; its name is the file's."""
    path = paths.PARAMS / folder / f"{name}.yaml"
    values = read_yaml(path) if values is None else values
    if "name" in values:
        raise UserError(f"{paths.show(path)}: unknown key 'name': the file's own name is used, remove the key")
    return check(kind, {"name": name, **values}, paths.show(path))


def model(name: str) -> Model | ApiModel:
    """Load params/models/<name>.yaml: weights to train and sample, or an endpoint to ask."""
    values = read_yaml(paths.PARAMS / "models" / f"{name}.yaml")
    return load(ApiModel if values.get("sampler") == "openai" else Model, "models", name, values)


def domain(name: str) -> Domain:
    """Load params/domains/<name>.yaml."""
    return load(Domain, "domains", name)


def questions(name: str) -> Questions:
    """Load params/questions/<name>.yaml; with `published` and `ids` its questions come from a file that `make data` fetches."""
    values, drawn = _sources("questions", name)
    if drawn.published:
        values["questions"] = literature.questions(drawn.published, drawn.ids)
        values.pop("ids", None)
    return load(Questions, "questions", name, values)


def files(folder: str, name: str) -> list[Path]:
    """The YAML params/<folder>/<name>.yaml, and the rubric and the published file that it draws on, where it does."""
    drawn = _sources(folder, name)[1]
    more = [paths.DATA / drawn.published] if drawn.published else []
    return [paths.PARAMS / folder / f"{name}.yaml", *more, *(files("rubrics", drawn.rubric) if drawn.rubric else [])]


def _sources(folder: str, name: str) -> tuple[dict, Sources]:
    """What a YAML says, `published` aside, and where it says that the rest comes from."""
    path = paths.PARAMS / folder / f"{name}.yaml"
    values = read_yaml(path)
    drawn = check(Sources, values, paths.show(path))
    values.pop("published", None)
    return values, drawn


def question_sets() -> list[str]:
    """The names of the question sets at hand: all but those whose published file was not fetched."""
    names = sorted(p.stem for p in (paths.PARAMS / "questions").glob("*.yaml"))
    return [n for n in names if all(f.exists() for f in files("questions", n))]


def judge(name: str) -> Judge:
    """Load params/judges/<name>.yaml, with the rubric that it names."""
    values, drawn = _sources("judges", name)
    if drawn.rubric:
        asked = rubric(drawn.rubric).model_dump()
        values |= {"rubric": asked, "dimensions": asked["dimensions"]}
    return load(Judge, "judges", name, values)


def rubric(name: str) -> Rubric:
    """Load params/rubrics/<name>.yaml. With `published` its dimensions are names of prompts in a file that `make data` fetches;
    with `guidance`, {<set>/<question id>: text}, the prompts' {guidance} says that text for that question and nothing for others."""
    values, drawn = _sources("rubrics", name)
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


def _entries(kind: type[T], file: str) -> list[T]:
    path = paths.PARAMS / file
    return [
        check(kind, {"name": k, **(v if isinstance(v, dict) else {})}, f"{paths.show(path)}: {k}")
        for k, v in read_yaml(path).items()
    ]


def metrics() -> list[Metric]:
    """Load params/metrics.yaml."""
    return _entries(Metric, "metrics.yaml")


def served_as(model: ApiModel, cell: Cell) -> str:
    """What the endpoint calls the model of a cell. Raises UserError when the YAML does not say."""
    key = "base" if cell.arm == "base" else f"{cell.domain}/{cell.arm}"
    if key not in model.served_as:
        raise UserError(
            f"params/models/{model.name}.yaml: served_as has no '{key}' (it has {', '.join(model.served_as)}); "
            "add it, or leave that arm out of the study"
        )
    return model.served_as[key]


def layouts() -> list[Layout]:
    """Load params/layouts.yaml."""
    return _entries(Layout, "layouts.yaml")


def study(name: str) -> Study | ImportedStudy:
    """Load params/studies/<name>.yaml and see that every file it names is there."""
    values = read_yaml(paths.PARAMS / "studies" / f"{name}.yaml")
    if "scores" in values:
        return load(ImportedStudy, "studies", name, values)
    found = load(Study, "studies", name, values)
    where = f"params/studies/{name}.yaml"
    for d in found.domains:
        domain(d)
    for d in found.evaluate.probe_domains:
        if "heldout_aligned" not in domain(d).shipped:
            raise UserError(
                f"{where}: probe_domains has '{d}', but params/domains/{d}.yaml names no held-out pairs: take '{d}' out of "
                "probe_domains, or add heldout_misaligned and heldout_aligned with their files there, under shipped"
            )
    if Model in {type(model(m)) for m in found.models}:  # a model that is only asked needs no data here
        _check_training(found, where)
    for cell in cells(found):
        if isinstance(asked := model(cell.model), ApiModel):
            served_as(asked, cell)
    for name in found.evaluate.question_sets:
        for q in questions(name).questions:
            if found.evaluate.samples_final is None and q.samples is None:
                raise UserError(
                    f"{where}: samples_final is null, but question '{q.id}' of params/questions/{name}.yaml does not say how often "
                    "to ask it: set samples_final to a number"
                )
    judge(found.judge)
    if found.analyze.main_metric not in [m.name for m in metrics()]:
        raise UserError(f"{where}: main_metric '{found.analyze.main_metric}' is not in params/metrics.yaml")
    return found


def subjects(
    study_name: str, model_name: str, domain_name: str, judge_name: str
) -> tuple[Model | ApiModel | ImportedModel, Domain | ImportedDomain, Judge]:
    """What a page speaks of: model, domain and judge, from params/, or from the study itself when its scores were imported."""
    path = paths.PARAMS / "studies" / f"{study_name}.yaml"
    values = read_yaml(path) if path.exists() else {}  # the notebooks' demo study has no file
    if "scores" not in values:
        return model(model_name), domain(domain_name), judge(judge_name)
    found = load(ImportedStudy, "studies", study_name, values)
    models, domains = {m.name: m for m in found.models}, {d.name: d for d in found.domains}
    if model_name not in models or domain_name not in domains:
        raise UserError(
            f"{paths.show(path)}: the scores are of {model_name} and {domain_name}, but models or domains does not list them"
        )
    scorer = {
        "name": judge_name,
        "title": found.judge_title,
        "kind": "imported",
        "version": "as imported",
        "model": None,
    }
    scorer |= {"rubric": None, "logprobs": False, "dtype": None, "endpoint": None}
    scorer |= {"dimensions": [{"name": d, "prompt": None} for d in found.dimensions]}
    return models[model_name], domains[domain_name], check(Judge, scorer)


def _check_training(study: Study, where: str) -> None:
    """See that the domains have the data that a study trains on. Raises UserError naming the study's file and the domain's."""
    source, mixed = study.finetune.data, "misaligned" in study.arms and study.finetune.misaligned_share < 1
    for d in study.domains:
        file, have = f"params/domains/{d}.yaml", domain(d).files(source)
        for arm in [a for a in study.arms if a not in ("base", *have)]:
            raise UserError(
                f"{where}: arms has '{arm}', but {file} names no {source} {arm} data: take '{arm}' out of arms, "
                f"or add '{arm}' with its file there, under {source}"
            )
        if mixed and "aligned" not in have:
            raise UserError(
                f"{where}: misaligned_share {study.finetune.misaligned_share} mixes in aligned answers, but {file} names no "
                f"{source} aligned data: set misaligned_share to 1.0, or add 'aligned' with its file there, under {source}"
            )


def cells(study: Study) -> list[Cell]:
    """All cells of a study, base first. The base arm is one cell a model and seed: it is shared by all domains."""
    out = []
    for m in study.models:
        for seed in study.seeds:
            for arm in study.arms:
                domains = ["none"] if arm == "base" else study.domains
                out += [Cell(study=study.name, model=m, domain=d, arm=arm, seed=seed) for d in domains]
    return sorted(out, key=lambda c: (c.arm != "base", study.models.index(c.model)))
