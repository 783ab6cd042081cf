"""For a person in JupyterLab: which runs are here, and what do two models say to the same question?"""

import pandas as pd

from emstudy import evaluate, judges, models, params, paths, sample, store

SETTINGS = {"temperature": 0.7, "top_p": 0.95, "top_k": 50, "max_new_tokens": 120}


def runs() -> pd.DataFrame:
    """Every cell under runs/ that has answers, and by which judges they were scored."""
    rows = []
    for path in sorted(paths.RUNS.glob("*/*/*/*/*/answers.csv")):
        study, model, domain, arm, seed = path.parent.relative_to(paths.RUNS).parts
        scored = ", ".join(
            sorted(p.name.removeprefix("judged.").removesuffix(".csv") for p in path.parent.glob("judged.*.csv"))
        )
        rows.append(
            {
                "study": study,
                "model": model,
                "domain": domain,
                "arm": arm,
                "seed": seed,
                "judged by": scored or "nobody yet",
            }
        )
    return pd.DataFrame(rows, columns=["study", "model", "domain", "arm", "seed", "judged by"])


def side_by_side(cell: params.Cell, question: str, samples: int) -> pd.DataFrame:
    """Answers of the untrained model and of the cell's last checkpoint to one question, one row a sample."""
    model = params.model(cell.model)
    tokenizer = models.load_tokenizer(model)
    settings = params.Evaluate(
        question_sets=["values"],
        samples_along=0,
        samples_final=samples,
        probe_domains=[],
        probe_pairs_along=0,
        probe_pairs_final=0,
        **SETTINGS,
    )
    last = list(evaluate.checkpoints(cell).values())[-1]
    columns = {}
    for name, adapter in {"base": None, f"{cell.domain}, {cell.arm}": last}.items():
        merged = models.load_merged(model, adapter)
        asks = [sample.Ask("explore", "question", question, samples)]
        columns[name] = [a.text for a in sample.sample(merged, tokenizer, asks, settings, samples, cell.seed, name)]
    return pd.DataFrame(columns)


def judged(cell: params.Cell, judge: str) -> pd.DataFrame:
    """A cell's judged answers."""
    return store.read_csv(
        cell.folder / f"judged.{judge}.csv", [*store.ANSWERS, *judges.judged_columns(params.judge(judge))], "judge"
    )
