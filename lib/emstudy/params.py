"""What is run, typed and strict: every YAML under params/ is read here, and an unknown or missing key is an error."""

import difflib
from pathlib import Path
from typing import TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from emstudy import literature, paths
from emstudy.errors import UserError
from emstudy.schema import (
    Analyze,
    ApiModel,
    Arm,
    Cell,
    Dimension,
    Domain,
    Evaluate,
    Finetune,
    ImportedDomain,
    ImportedModel,
    ImportedStudy,
    Judge,
    Layout,
    Metric,
    Model,
    Question,
    Questions,
    Strict,
    Study,
    Weights,
)

__all__ = [
    "Analyze",
    "ApiModel",
    "Arm",
    "Cell",
    "Dimension",
    "Domain",
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
    "Strict",
    "Study",
    "Weights",
]

T = TypeVar("T", bound=Strict)


def explain(error: ValidationError, where: str, kind: type[BaseModel]) -> UserError:
    """Turn a pydantic error into sentences that name the file, the key, what was expected and what was found."""
    lines = []
    for e in error.errors():
        key = ".".join(str(p) for p in e["loc"])
        if e["type"] == "extra_forbidden":
            known = _keys(kind, e["loc"][:-1])
            near = difflib.get_close_matches(str(e["loc"][-1]), known, n=1)
            hint = f"; did you mean '{near[0]}'?" if near else f"; known keys: {', '.join(known)}"
            lines.append(f"{where}: unknown key '{key}'{hint}")
        elif e["type"] == "missing":
            lines.append(f"{where}: missing key '{key}': add it, every setting is written down")
        else:
            found = "" if e["type"] == "value_error" else f" (found {e['input']!r})"
            lines.append(f"{where}: {key + ': ' if key else ''}{e['msg'].removeprefix('Value error, ')}{found}")
    return UserError("\n".join(lines))


def _keys(kind: type[BaseModel], loc: tuple) -> list[str]:
    for part in loc:
        field = getattr(kind, "model_fields", {}).get(part)
        kind = next(iter(get_args(field.annotation)), field.annotation) if field else kind
    return sorted(getattr(kind, "model_fields", {}))


def check(kind: type[T], values: dict, where: str = "parameters") -> T:
    """Validate values against a record. Raises UserError, which names `where` and every wrong key."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise explain(error, where, kind) from None


def read_yaml(path: Path) -> dict:
    """A YAML mapping from disk. Raises UserError when it is absent, broken or no mapping."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        have = ", ".join(sorted(p.stem for p in path.parent.glob("*.yaml"))) or "none"
        raise UserError(f"{paths.show(path)} is not there; {path.parent.name} at hand: {have}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{paths.show(path)} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{paths.show(path)}: expected keys and values, found {type(values).__name__}")
    return values


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
    values = read_yaml(paths.PARAMS / "questions" / f"{name}.yaml")
    if file := values.pop("published", None):
        values["questions"] = literature.questions(file, values.pop("ids", None))
    return load(Questions, "questions", name, values)


def files(folder: str, name: str) -> list[Path]:
    """The YAML params/<folder>/<name>.yaml and the published file that it draws on, where it does."""
    path = paths.PARAMS / folder / f"{name}.yaml"
    values = read_yaml(path)
    return [path, *(paths.DATA / values[key] for key in ("published", "rubric") if isinstance(values.get(key), str))]


def question_sets() -> list[str]:
    """The names of the question sets at hand: all but those whose published file was not fetched."""
    names = sorted(p.stem for p in (paths.PARAMS / "questions").glob("*.yaml"))
    return [n for n in names if all(f.exists() for f in files("questions", n))]


def judge(name: str) -> Judge:
    """Load params/judges/<name>.yaml; with `rubric` its dimensions are names of prompts in a file that `make data` fetches."""
    values = read_yaml(paths.PARAMS / "judges" / f"{name}.yaml")
    if file := values.pop("rubric", None):
        values["dimensions"] = literature.dimensions(file, values.get("dimensions") or [])
    return load(Judge, "judges", name, values)


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
    scorer |= {"concurrency": 1, "max_wait_seconds": 1, "usd_per_million_tokens": {"input": 0, "output": 0}}
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
