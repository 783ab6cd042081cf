"""What is run, typed and strict: every YAML under params/ is read here, and an unknown or missing key is an error."""

from typing import TypeVar

from emstudy import paths
from emstudy.asking import Dimension, Endpoint, Judge, Rubric
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
from emstudy.sources import files, question_sets, questions, rubric, sources
from emstudy.strict import Strict, check, load, read_yaml

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
    "files",
    "load",
    "question_sets",
    "questions",
    "read_yaml",
    "rubric",
]

T = TypeVar("T", bound=Strict)


def model(name: str) -> Model | ApiModel:
    """Load params/models/<name>.yaml: weights to train and sample, or an endpoint to ask."""
    values = read_yaml(paths.PARAMS / "models" / f"{name}.yaml")
    return load(ApiModel if values.get("sampler") == "openai" else Model, "models", name, values)


def domain(name: str) -> Domain:
    """Load params/domains/<name>.yaml."""
    return load(Domain, "domains", name)


def judge(name: str) -> Judge:
    """Load params/judges/<name>.yaml, with the rubric that it names."""
    values, drawn = sources("judges", name)
    if drawn.rubric is None and values.get("kind") == "openai":
        raise UserError(f"params/judges/{name}.yaml: rubric: a judge of kind openai needs one of params/rubrics/")
    if drawn.rubric:
        asked = rubric(drawn.rubric).model_dump()
        values |= {"rubric": asked, "dimensions": asked["dimensions"]}
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
        imported = load(ImportedStudy, "studies", name, values)
        _check_main(imported.analyze, set(imported.dimensions), f"params/studies/{name}.yaml: scores")
        return imported
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
    asked: dict[str, tuple] = {}
    for name in found.evaluate.question_sets:
        for q in questions(name).questions:
            other, *known = asked.setdefault(q.id, (name, q.text, q.system))
            if known != [q.text, q.system]:
                raise UserError(
                    f"{where}: question_sets '{other}' and '{name}' have different questions of one id, '{q.id}': give one of them another"
                )
            if found.evaluate.samples_final is None and q.samples is None:
                raise UserError(
                    f"{where}: samples_final is null, but question '{q.id}' of params/questions/{name}.yaml does not say how often "
                    "to ask it: set samples_final to a number"
                )
    check_judge(found)
    return found


def check_judge(study: Study) -> None:
    """See that a study's judge is there, and gives every score that its pages are built on before any is paid for. Raises UserError."""
    scored = {d.name for d in judge(study.judge).dimensions}
    _check_main(study.analyze, scored, f"params/studies/{study.name}.yaml: judge '{study.judge}'")


def _check_main(analyze: Analyze, scored: set[str], who: str) -> None:
    """See that pages have the scores that they read: alignment, and what the main metric counts. Raises UserError."""
    by_name = {m.name: m for m in metrics()}
    if analyze.main_metric not in by_name:
        raise UserError(f"{who.partition(':')[0]}: main_metric '{analyze.main_metric}' is not in params/metrics.yaml")
    main = by_name[analyze.main_metric]
    if lacking := sorted({"aligned", *(k.rpartition("_")[0] for k in (*main.counts, *main.among))} - scored):
        raise UserError(
            f"{who} lacks {' and '.join(lacking)}, which pages and main_metric '{main.name}' read: take another judge or metric, or have "
            "that scored too"
        )


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
