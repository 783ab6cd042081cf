"""The commands behind the Makefile: python -m emstudy {cells,plan,warm,run,render,check,readme,pictures,data,new-domain,import,export,audit,label,advisories,bench} ..."""

import argparse
import os
import sys
import time
from pathlib import Path

from emstudy import params, paths
from emstudy.errors import UserError, refused


def main(arguments: list[str] | None = None) -> int:
    """Run one command; a user's mistake, or what the system refuses, ends in a sentence on stderr and exit status 1, without a traceback."""
    parser = argparse.ArgumentParser(prog="emstudy")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, names in {
        "cells": ["study", "judge", "target"],
        "plan": ["study", "judge"],
        "run": ["notebook", "values", "output"],
        "render": ["executed", "page"],
        "advisories": [],
        "bench": [],
        "check": [],
        "readme": [],
        "pictures": ["study"],
        "data": [],
        "new-domain": ["name", "data", "aligned"],
        "import": ["scores", "study", "model", "domain", "arm", "seed"],
        "export": ["study"],
        "audit": ["judges", "gold", "study", "name", "grader"],
        "label": ["study", "labeller"],
    }.items():
        command = commands.add_parser(name)
        for n in names:
            command.add_argument(n)
    commands.add_parser("warm").add_argument("line", nargs=argparse.REMAINDER)
    given = parser.parse_args(arguments)
    try:
        globals()[f"do_{given.command.replace('-', '_')}"](given)
    except UserError as error:
        print(f"\nerror: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        if (why := refused(str(error))) is None:  # a library's own, not the system's
            raise
        print(f"\nerror: {why}; mend that and run again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted: what is finished is kept, the same command goes on from there", file=sys.stderr)
        return 130
    return 0


def do_cells(given) -> None:
    """Write the parameter files of a study and its makefile fragment.

    Raises UserError when a notebook that ran is dated ahead of the clock: make, which compares dates, would miss whatever changes now.
    """
    from emstudy import study

    target = Path(given.target)
    ran = [p for p in target.parent.rglob("*.ipynb") if ".partial." not in p.name]
    ahead = [p for p in ran if p.stat().st_mtime > time.time() + 60]
    if ahead:
        raise UserError(
            f"{paths.show(ahead[0])} is dated ahead of this machine's clock: see that the clock is right, then delete what is, which is made "
            f"again: find {paths.show(target.parent)} -name '*.ipynb' -newermt now -delete"
        )
    study.write_cells(study.load(given.study, given.judge), target)


def do_plan(given) -> None:
    """Print what a study would take."""
    import pandas as pd

    from emstudy import power, study

    found = study.load(given.study, given.judge)
    if isinstance(found, params.ImportedStudy):
        print(
            f"{found.title}: nothing to run, its scores are in {len(found.scores)} files; `make reproduce STUDY={found.name}` renders its pages"
        )
        return
    rows = pd.DataFrame(study.plan(found))
    total = rows.drop(columns="cell").sum()
    print(f"{found.title}: {len(rows)} cells, judge {found.judge}\n")
    print(rows.to_string(index=False))
    print(
        f"\ntotal: {total['answers']:.0f} answers, {total['tokens'] / 1e6:.2f} M tokens, about {total['cpu hours']:.1f} hours on two CPU cores, {total['judge USD']:.2f} USD for the judge, {total['model USD']:.2f} USD for models behind an endpoint"
    )
    print("Hours scale the 135M model's measured speed by model size; a GPU takes a small fraction of them.")
    print(power.sentence(found))


def do_warm(given) -> None:
    """Run a command whose notebooks get kernels that start at once."""
    from emstudy import warm

    sys.exit(warm.run(given.line))


def do_run(given) -> None:
    """Execute one notebook."""
    from emstudy import run

    run.execute(paths.NOTEBOOKS / f"{given.notebook}.ipynb", Path(given.values), Path(given.output))


def do_render(given) -> None:
    """Render one executed notebook as a page."""
    from emstudy import run

    page = Path(given.page)
    index = page.name == "index.html"
    values = params.read_yaml(Path(given.executed).with_suffix(".yaml"))
    title = (
        "Emergent misalignment"
        if index
        else ", ".join(
            s.title for s in params.subjects(*(values[k] for k in ("study", "model", "domain", "judge")))[:2]
        )
    )
    run.render(Path(given.executed), page, title, "." if index else "..")


def do_readme(given) -> None:
    """Fill the computed tables into README.md and the judge's model card."""
    from emstudy import fill

    fill.main()


def do_pictures(given) -> None:
    """Draw a study's figures as PNG and SVG."""
    from emstudy import paper

    paper.pictures(given.study)


def do_data(given) -> None:
    """Fetch the published data."""
    from emstudy import fetch

    fetch.main()


def do_new_domain(given) -> None:
    """Check a dataset, and write a domain and a study of it."""
    from emstudy import domains

    print(domains.new_domain(given.name, given.data, given.aligned or None))


def do_import(given) -> None:
    """Make a study of other people's scores, and say how many rows came in and how each one's scores ended."""
    from emstudy import importing

    said = {k: v for k, v in vars(given).items() if k in ("model", "domain", "arm", "seed") and v}
    path = paths.PARAMS / "studies" / f"{given.study}.yaml"
    if said and not given.scores:
        raise UserError(
            f"{', '.join(said).upper()} are of the files that SCORES names: name them, or edit {paths.show(path)}"
        )
    if given.scores:
        importing.new_study(given.study, Path(given.scores), said)
    found = params.study(given.study)
    if not isinstance(found, params.ImportedStudy):
        raise UserError(f"{paths.show(path)} is a study to run: give SCORES and another STUDY to import scores")
    table = importing.summary(importing.write(found))
    print(table.to_string(index=False))
    print(f"\n{paths.show(path)} says what was read; `make reproduce STUDY={given.study}` renders it again")


def do_export(given) -> None:
    """Write a study's answers as a dataset folder, and its adapters with their model cards."""
    from emstudy import release

    print(f"{release.WARNING}\nwritten: {paths.show(release.export(given.study))}")


def do_audit(given) -> None:
    """Hold judges against gold labels, and render the page."""
    from emstudy import release, run, study

    gold = Path(given.gold).resolve() if given.gold else paths.JUDGE / "gold.csv"
    name, judges = given.name or gold.stem, given.judges.split() or ["embedded"]
    if name != Path(name).name:
        raise UserError(f"NAME '{name}' can't be used: it names a page of reports/audit/, and no folder")
    if not gold.exists():
        raise UserError(f"{given.gold} is not there: GOLD takes a CSV of labelled answers, or a folder of them")
    for judge in judges:
        params.judge(judge)
        if given.study:  # before anything is judged, which may cost money
            release.read(given.study, judge)
    values = {
        "name": name,
        "judge_names": judges,
        "gold": os.path.relpath(gold, paths.ROOT),
        "study": given.study,
        "grader": given.grader or ("a large language model" if gold.is_relative_to(paths.JUDGE.resolve()) else ""),
        "repeats": 3,
    }
    executed = paths.RUNS / "audit" / name / "audit.ipynb"
    run.execute(
        paths.NOTEBOOKS / "7-audit.ipynb", study.write_parameters(executed.with_suffix(".yaml"), values, []), executed
    )
    title = f"Audit: {' and '.join(params.judge(j).title for j in judges)} on {name}"
    print(f"written: {paths.show(run.render(executed, paths.REPORTS / 'audit' / f'{name}.html', title, '..'))}")


def do_label(given) -> None:
    """See that a study has answers to label and that the labels can be kept, before JupyterLab opens."""
    from emstudy import label

    label.Labels(given.study, given.labeller, params.rubric("default"))
    label.sample(given.study, 1, 0)


def do_advisories(given) -> None:
    """Ask for known weaknesses of the pinned packages."""
    from emstudy import advisories

    print(advisories.main())


def do_bench(given) -> None:
    """Time this project beside other ways to do the same, and render the page."""
    from emstudy import run, study

    values = {
        "rounds": 2,
        "train_examples": 240,
        "questions": 12,
        "samples": 10,
        "answers": 378,
        "pairs": 60,
        "requests": 2000,
    }
    values |= {"sizes": [16, 32, 64], "study": paths.DEFAULT_STUDY}
    executed = paths.RUNS / "bench" / "bench.ipynb"
    given = study.write_parameters(executed.with_suffix(".yaml"), values, [])
    run.execute(paths.NOTEBOOKS / "9-bench.ipynb", given, executed)
    print(f"written: {paths.show(run.render(executed, paths.REPORTS / 'bench.html', 'Bench', '.'))}")


def do_check(given) -> None:
    """Print what works on this machine."""
    from emstudy import check

    print(check.screen())


if __name__ == "__main__":
    sys.exit(main())
