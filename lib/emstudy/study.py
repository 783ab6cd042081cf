"""A study as make sees it: its cells, the parameters of every notebook run, and what it would cost."""

from pathlib import Path

import yaml

from emstudy import data, params, paths, store
from emstudy.params import Cell, Study

# measured on two cores for the 135M model: real tokens a second; other sizes and machines scale from there
TOKENS_A_SECOND = {"train": 350, "sample": 350, "judge": 1200}
TOKENS_AN_ANSWER = 70
TOKENS_AN_EXAMPLE = 120


def load(name: str, judge: str = "") -> Study:
    """A study, with its judge replaced when one is named."""
    study = params.study(name)
    if judge:
        params.judge(judge)
    return study.model_copy(update={"judge": judge or study.judge})


def pages(study: Study) -> Path:
    """The folder of a study's pages: one for each judge, and reports/ itself only for the default study as it is written."""
    own = study.judge == params.study(study.name).judge
    return paths.reports(study.name if own else f"{study.name}-{study.judge}")


def stage_parameters(study: Study, cell: Cell) -> dict[str, dict]:
    """The parameters of a cell's notebooks, by stage."""
    cell_part = cell.model_dump()
    out = {
        "evaluate": {**cell_part, "evaluate": study.evaluate.model_dump()},
        "judge": {**cell_part, "judge": study.judge},
    }
    if cell.arm != "base":
        out["finetune"] = {**cell_part, "finetune": study.finetune.model_dump()}
    return out


def inputs(study: Study, cell: Cell) -> dict[str, list[Path]]:
    """The files under params/ and data/ that each stage of a cell reads: when one changes, make runs the stage again."""
    model = paths.PARAMS / "models" / f"{cell.model}.yaml"
    domains = [params.domain(d) for d in study.evaluate.probe_domains]
    held = [paths.DATA / d.shipped[f"heldout_{arm}"] for d in domains for arm in ("aligned", "misaligned")]
    sets = [paths.PARAMS / "questions" / f"{q}.yaml" for q in study.evaluate.question_sets]
    out = {"evaluate": [model, *sets, *held], "judge": [paths.PARAMS / "judges" / f"{study.judge}.yaml"]}
    if cell.arm != "base":
        out["finetune"] = [model, data.training_file(params.domain(cell.domain), cell.arm, study.finetune.data)]
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


def write_cells(study: Study, target: Path) -> None:
    """Write all parameter files of a study and the makefile fragment that lists its cells and pages."""
    trained, every, needs, listed = [], [], [], []
    suffix = study.judge
    for cell in params.cells(study):
        folder, read = cell.folder, inputs(study, cell)
        for stage, values in stage_parameters(study, cell).items():
            name = f"judge.{suffix}" if stage == "judge" else stage
            write_parameters(folder / f"{name}.yaml", values, read[stage])
        every.append(paths.show(folder))
        if cell.arm != "base":
            trained.append(paths.show(folder))
    reports = pages(study)
    shared = {
        "study": study.name,
        "judge": study.judge,
        "arms": list(study.arms),
        "seeds": list(study.seeds),
        "analyze": study.analyze.model_dump(),
    }
    metrics = [paths.PARAMS / "metrics.yaml"]
    for m in study.models:
        for d in study.domains:
            folder = paths.RUNS / study.name / m / d
            write_parameters(folder / f"analyze.{suffix}.yaml", {**shared, "model": m, "domain": d}, metrics)
            page = paths.show(reports / m / f"{d}.html")
            listed.append(page)
            cells = [c.folder for c in params.cells(study) if c.model == m and c.domain in ("none", d)]
            needs.append(
                f"{paths.show(folder)}/analyze.{suffix}.ipynb: "
                + " ".join(f"{paths.show(c)}/judge.{suffix}.ipynb" for c in cells)
            )
            needs.append(f"{page}: {paths.show(folder)}/analyze.{suffix}.ipynb")
    folder = paths.RUNS / study.name
    write_parameters(
        folder / f"compare.{suffix}.yaml",
        {**shared, "models": list(study.models), "domains": list(study.domains)},
        [*metrics, paths.DATA / "published_rates.csv"],
    )
    analyses = [f"{paths.show(folder)}/{m}/{d}/analyze.{suffix}.ipynb" for m in study.models for d in study.domains]
    needs.append(f"{paths.show(folder)}/compare.{suffix}.ipynb: {' '.join(analyses)}")
    head = {
        "TRAINED": trained,
        "CELLS": every,
        "PAGES": listed,
        "ANALYSES": analyses,
        "COMPARE": [f"{paths.show(folder)}/compare.{suffix}.ipynb"],
    }
    head |= {"INDEX": [paths.show(reports / "index.html")], "JUDGE_NAME": [suffix]}
    store.write_if_changed(target, "\n".join([*(f"{k} := {' '.join(v)}" for k, v in head.items()), *needs, ""]))


def plan(study: Study) -> list[dict]:
    """What each cell would take, without running it: examples, answers, tokens, hours on two cores, judge tokens and dollars."""
    judge = params.judge(study.judge)
    asked = sum(len(params.questions(q).questions) for q in study.evaluate.question_sets)
    rows = []
    for cell in params.cells(study):
        f, e = study.finetune, study.evaluate
        size = params.model(cell.model).size_b / 0.135
        examples = 0 if cell.arm == "base" else f.train_examples * f.num_train_epochs
        along = 0 if cell.arm == "base" else f.checkpoints_first_epoch + f.num_train_epochs - 2
        answers = asked * (e.samples_final + max(0, along) * e.samples_along)
        train, sample = examples * TOKENS_AN_EXAMPLE, answers * TOKENS_AN_ANSWER
        hours = size * (train / TOKENS_A_SECOND["train"] + sample / TOKENS_A_SECOND["sample"]) / 3600
        sent = answers * sum(len((d.prompt or "").split()) * 1.4 + TOKENS_AN_ANSWER + 30 for d in judge.dimensions)
        if judge.kind == "embedded":
            hours += answers * (TOKENS_AN_ANSWER + 30) / TOKENS_A_SECOND["judge"] / 3600
        price = judge.usd_per_million_tokens
        cost = (sent * price["input"] + answers * len(judge.dimensions) * 3 * price["output"]) / 1e6
        rows.append(
            {
                "cell": str(cell),
                "examples": examples,
                "answers": answers,
                "tokens": train + sample,
                "cpu hours": round(hours, 2),
                "judge tokens": round(sent) if cost else 0,
                "judge USD": round(cost, 2),
            }
        )
    return rows
