"""A study as make sees it: its cells, the parameters of every notebook run, and what it would cost."""

from itertools import product
from pathlib import Path

import yaml

from emstudy import data, importing, params, paths, scores, store
from emstudy.errors import UserError
from emstudy.params import Cell, ImportedStudy, Model, Study

# measured on two cores for the 135M model: real tokens a second; other sizes and machines scale from there
TOKENS_A_SECOND = {"train": 350, "sample": 350, "judge": 1200}
TOKENS_AN_ANSWER = 70
TOKENS_AN_EXAMPLE = 120
TOKENS_A_QUESTION = 30


def load(name: str, judge: str = "") -> Study | ImportedStudy:
    """A study, with its judge replaced when one is named. Raises UserError when its scores came with it."""
    study = params.study(name)
    if isinstance(study, ImportedStudy):
        if judge not in ("", scores.JUDGE):
            raise UserError(f"study '{name}' brings its own scores: leave JUDGE out")
        return study
    if judge:
        study = study.model_copy(update={"judge": judge})
        params.check_judge(study)
    return study


def pages(study: Study | ImportedStudy) -> Path:
    """The folder of a study's pages: one for each judge, and reports/ itself only for the default study as it is written."""
    own = isinstance(study, ImportedStudy) or study.judge == params.study(study.name).judge
    return paths.reports(study.name if own else f"{study.name}-{study.judge}")


def stage_parameters(study: Study, cell: Cell) -> dict[str, dict]:
    """The parameters of a cell's notebooks, by stage."""
    cell_part = cell.model_dump()
    out = {
        "evaluate": {**cell_part, "evaluate": study.evaluate.model_dump()},
        "judge": {**cell_part, "judge": study.judge},
    }
    if is_trained(cell):
        out["finetune"] = {**cell_part, "finetune": study.finetune.model_dump()}
        if cell.arm == "aligned":  # none of its examples is bad, and another dose is no reason to train it again
            out["finetune"]["finetune"]["misaligned_share"] = 0.0
    return out


def is_trained(cell: Cell) -> bool:
    """Does this study train the cell itself? Not the base arm, and not a model behind an endpoint."""
    return cell.arm != "base" and isinstance(params.model(cell.model), Model)


def inputs(study: Study, cell: Cell) -> dict[str, list[Path]]:
    """The files under params/ and data/ that each stage of a cell reads: when one changes, make runs the stage again."""
    model = paths.PARAMS / "models" / f"{cell.model}.yaml"
    domains = [params.domain(d) for d in study.evaluate.probe_domains]
    held = [f for d in domains for f in data.heldout_files(d)]
    sets = [f for q in study.evaluate.question_sets for f in params.files("questions", q)]
    out = {"evaluate": [model, *sets, *held], "judge": params.files("judges", study.judge)}
    if is_trained(cell):
        f = study.finetune
        out["finetune"] = [
            model,
            *data.training_files(params.domain(cell.domain), cell.arm, f.data, f.misaligned_share),
        ]
    return out


def write_parameters(path: Path, values: dict, read: list[Path]) -> Path:
    """Write a notebook's parameters, with the hashes of the files it will read: the file changes exactly when the run must."""
    lines = [f"# {paths.show(p)} {store.sha256(p)[:16] if p.exists() else 'absent'}" for p in read]
    text = "\n".join(
        [
            "# written by `make`; the lines below name what this run reads",
            *lines,
            yaml.safe_dump(values, sort_keys=False, allow_unicode=True),
        ]
    )
    store.write_if_changed(path, text)
    return path


def write_stages(study: Study) -> list[Cell]:
    """Write the parameter files of every cell's stages; the cells."""
    cells = params.cells(study)
    for cell in cells:
        read = inputs(study, cell)
        for stage, values in stage_parameters(study, cell).items():
            name = f"judge.{study.judge}" if stage == "judge" else stage
            write_parameters(cell.folder / f"{name}.yaml", values, read[stage])
    return cells


def write_pages(study: Study | ImportedStudy, judge: str, cells: list[Cell]) -> tuple[dict[str, list[str]], list[str]]:
    """Write the parameters of all pages of a study; make's lists of pages and notebooks, and the rules that say what each needs."""
    runs, reports = paths.RUNS / study.name, pages(study)
    judged = f"judge.{judge}.ipynb" if isinstance(study, Study) else f"judged.{judge}.csv"
    metrics = [paths.PARAMS / "metrics.yaml"]
    shared = {"study": study.name, "judge": judge, "analyze": study.analyze.model_dump()}
    pairs = importing.pairs(cells) if isinstance(study, ImportedStudy) else list(product(study.models, study.domains))
    listed, analyses, rules = [], [], []
    for m, d in pairs:
        own = [c for c in cells if c.model == m and c.domain in ("none", d)]
        folder, page = runs / m / d, paths.show(reports / m / f"{d}.html")
        values = {**shared, "model": m, "domain": d, **_spread(own)}
        write_parameters(folder / f"analyze.{judge}.yaml", values, [*metrics, *_subjects(study, [m], [d], own)])
        executed = f"{paths.show(folder)}/analyze.{judge}.ipynb"
        rules += [f"{executed}: " + " ".join(f"{paths.show(c.folder)}/{judged}" for c in own)]
        rules += [f"{page}: {executed}"]
        listed, analyses = [*listed, page], [*analyses, executed]
    models, domains = (list(dict.fromkeys(p[k] for p in pairs)) for k in (0, 1))
    values = {**shared, "models": models, "domains": domains, **_spread(cells)}
    read = [*metrics, paths.DATA / "published_rates.csv", *_subjects(study, models, domains, cells)]
    write_parameters(runs / f"compare.{judge}.yaml", values, read)
    compare = f"{paths.show(runs)}/compare.{judge}.ipynb"
    lists = {
        "PAGES": listed,
        "ANALYSES": analyses,
        "COMPARE": [compare],
        "INDEX": [paths.show(reports / "index.html")],
        "TABLES": [paths.show(reports / name) for name in ("results.csv", "answers.parquet")],
    }
    return lists, [*rules, f"{compare}: {' '.join(analyses)}"]


def _subjects(study: Study | ImportedStudy, models: list[str], domains: list[str], cells: list[Cell]) -> list[Path]:
    """The files that say what models and domains are called and which questions are in-domain; with imported scores also the cells'
    own, since make misses one that is gone."""
    if isinstance(study, ImportedStudy):
        brought = [c.folder / f"judged.{scores.JUDGE}.csv" for c in cells]
        return [paths.PARAMS / "studies" / f"{study.name}.yaml", *brought]
    names = [*(("models", m) for m in models), *(("domains", d) for d in domains)]
    return [paths.PARAMS / kind / f"{name}.yaml" for kind, name in names]


def _spread(cells: list[Cell]) -> dict[str, list]:
    """The arms and seeds that cells span, in the order they come."""
    return {"arms": list(dict.fromkeys(c.arm for c in cells)), "seeds": sorted({c.seed for c in cells})}


def write_cells(study: Study | ImportedStudy, target: Path) -> None:
    """Write all parameter files of a study and the makefile fragment that lists its cells and pages. Imported scores are read anew."""
    if isinstance(study, ImportedStudy):
        judge, cells, staged = scores.JUDGE, list(importing.write(study)), []
    else:
        judge, cells = study.judge, write_stages(study)
        staged = cells
    trained = [c for c in staged if is_trained(c)]
    lists, rules = write_pages(study, judge, cells)
    lists = {
        "TRAINED": [paths.show(c.folder) for c in trained],
        "CELLS": [paths.show(c.folder) for c in staged],
        **lists,
    }
    lists |= {"JUDGE_NAME": [judge]}
    store.write_if_changed(target, "\n".join([*(f"{k} := {' '.join(v)}" for k, v in lists.items()), *rules, ""]))


def plan(study: Study) -> list[dict]:
    """What each cell would take, without running it: examples, answers, tokens, hours on two cores, judge tokens and dollars."""
    judge = params.judge(study.judge)
    asked = [q for name in study.evaluate.question_sets for q in params.questions(name).questions]
    rows = []
    for cell in params.cells(study):
        f, e = study.finetune, study.evaluate
        model = params.model(cell.model)
        size = model.size_b / 0.135 if isinstance(model, Model) else 0  # an endpoint computes elsewhere
        examples = f.train_examples * f.num_train_epochs if is_trained(cell) else 0
        along = f.checkpoints_first_epoch + f.num_train_epochs - 2 if is_trained(cell) else 0
        answers = sum((e.samples_final or q.samples) + max(0, along) * e.samples_along for q in asked)
        train, sample = examples * TOKENS_AN_EXAMPLE, answers * TOKENS_AN_ANSWER
        hours = size * (train / TOKENS_A_SECOND["train"] + sample / TOKENS_A_SECOND["sample"]) / 3600
        sent = answers * sum(
            len((d.prompt or "").split()) * 1.4 + TOKENS_AN_ANSWER + TOKENS_A_QUESTION for d in judge.dimensions
        )
        if judge.kind == "embedded":
            hours += answers * (TOKENS_AN_ANSWER + TOKENS_A_QUESTION) / TOKENS_A_SECOND["judge"] / 3600
        received = answers * len(judge.dimensions) * 3
        cost = judge.endpoint.dollars(sent, received) if judge.endpoint else 0.0
        asking = 0.0 if isinstance(model, Model) else model.endpoint.dollars(answers * TOKENS_A_QUESTION, sample)
        rows.append(
            {
                "cell": str(cell),
                "examples": examples,
                "answers": answers,
                "tokens": train + sample,
                "cpu hours": round(hours, 2),
                "judge tokens": round(sent) if cost else 0,
                "judge USD": round(cost, 2),
                "model USD": round(asking, 2),
            }
        )
    return rows
