"""What is run, typed and strict: every YAML under params/ is read here, and an unknown or missing key is an error."""

import difflib
from pathlib import Path
from typing import TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from emstudy import paths
from emstudy.errors import UserError
from emstudy.schema import (
    Analyze,
    Arm,
    Cell,
    Dimension,
    Domain,
    Evaluate,
    Finetune,
    Judge,
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
    "Arm",
    "Cell",
    "Dimension",
    "Domain",
    "Evaluate",
    "Finetune",
    "Judge",
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


def load(kind: type[T], folder: str, name: str) -> T:
    """The record params/<folder>/<name>.yaml; its name is the file's."""
    path = paths.PARAMS / folder / f"{name}.yaml"
    values = read_yaml(path)
    if "name" in values:
        raise UserError(f"{paths.show(path)}: unknown key 'name': the file's own name is used, remove the key")
    return check(kind, {"name": name, **values}, paths.show(path))


def model(name: str) -> Model:
    """Load params/models/<name>.yaml."""
    return load(Model, "models", name)


def domain(name: str) -> Domain:
    """Load params/domains/<name>.yaml."""
    return load(Domain, "domains", name)


def questions(name: str) -> Questions:
    """Load params/questions/<name>.yaml."""
    return load(Questions, "questions", name)


def judge(name: str) -> Judge:
    """Load params/judges/<name>.yaml."""
    return load(Judge, "judges", name)


def metrics() -> list[Metric]:
    """Load params/metrics.yaml."""
    path = paths.PARAMS / "metrics.yaml"
    return [
        check(Metric, {"name": k, **(v if isinstance(v, dict) else {})}, f"{paths.show(path)}: {k}")
        for k, v in read_yaml(path).items()
    ]


def study(name: str) -> Study:
    """Load params/studies/<name>.yaml and see that every file it names is there."""
    found = load(Study, "studies", name)
    where = f"params/studies/{name}.yaml"
    for d in {*found.domains, *found.evaluate.probe_domains}:
        domain(d)
    for m in found.models:
        model(m)
    for q in found.evaluate.question_sets:
        questions(q)
    judge(found.judge)
    if found.analyze.main_metric not in [m.name for m in metrics()]:
        raise UserError(f"{where}: main_metric '{found.analyze.main_metric}' is not in params/metrics.yaml")
    return found


def cells(study: Study) -> list[Cell]:
    """All cells of a study, base first. The base arm is one cell a model and seed: it is shared by all domains."""
    out = []
    for m in study.models:
        for seed in study.seeds:
            for arm in study.arms:
                domains = ["none"] if arm == "base" else study.domains
                out += [Cell(study=study.name, model=m, domain=d, arm=arm, seed=seed) for d in domains]
    return sorted(out, key=lambda c: (c.arm != "base", study.models.index(c.model)))
