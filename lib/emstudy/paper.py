"""What a paper or a README takes from a study: a table in Markdown and LaTeX, and its figures as pictures."""

from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import plotly.io

from emstudy import compare, compare_figures, figures, params, paths, published, store, study
from emstudy.errors import UserError
from emstudy.report import LEFT_OUT, Results

SIZE = {"width": 900, "height": 420, "scale": 2}  # pixels of an SVG; a PNG has twice as many each way


def markdown(rows: pd.DataFrame) -> str:
    """A table as Markdown."""
    lines = ["| " + " | ".join(map(str, rows.columns)) + " |", "|" + " --- |" * len(rows.columns)]
    return "\n".join(lines + ["| " + " | ".join(map(str, r)) + " |" for r in rows.itertuples(index=False)])


def table(numbers: pd.DataFrame, metric: params.Metric) -> pd.DataFrame:
    """One metric and mean alignment out of domain by model, domain and arm, from the rows of results.csv."""
    found = numbers[(numbers["metric"] == metric.name) & (numbers["questions"] == "out-of-domain")]
    rows = [
        {
            "model": r.model_title,
            "domain": r.domain,
            "arm": r.arm,
            f"{metric.title} (95% interval over questions)": f"{100 * r.rate:.1f}% [{100 * r.low:.1f}, {100 * r.high:.1f}]",
            "answers": r.n,
            "mean alignment, 0-100 (95% interval over questions)": f"{r.mean_aligned:.1f} [{r.mean_low:.1f}, {r.mean_high:.1f}]",
        }
        for r in found.itertuples()
    ]
    return pd.DataFrame(rows)


def tables(folder: Path, numbers: pd.DataFrame, metric: params.Metric) -> list[Path]:
    """Write results.md and results.tex (for the booktabs package) into a study's folder of pages, with what the intervals leave out."""
    rows = table(numbers, metric)
    tex = rows.to_latex(index=False, escape=True, column_format="lllrrr")
    written = {
        "results.md": f"{markdown(rows)}\n\n{LEFT_OUT}\n",
        "results.tex": f"{tex}\n\\smallskip\\noindent {LEFT_OUT}\n",
    }
    return [store.write(folder / name, text) for name, text in written.items()]


def drawn(results: list[Results]) -> dict[str, go.Figure]:
    """The main figures of a study by file name, those with something to draw."""
    matrix = compare.probe_matrix(results)
    out = {
        "domains": compare_figures.domains(compare.results_table(results)),
        "trajectories": compare_figures.trajectories(results, "aligned"),
        "published": published.figure(published.rates(results)),
        "probe": compare_figures.matrix_figure(matrix) if len(matrix) else go.Figure(),
    }
    for r in results:
        out[f"{r.model.name}-{r.domain.name}"] = figures.rates(r)
    return {name: figure for name, figure in out.items() if figure.data}


def pictures(name: str) -> None:
    """Write a study's main figures as PNG and SVG beside its pages. Without Chrome or Chromium it says what is missing, and writes nothing."""
    found = study.load(name)
    if isinstance(found, params.ImportedStudy):
        raise UserError(f"study '{name}' brings its own scores: pictures are drawn of studies that ran here")
    whole = found.models, found.domains, found.judge, found.arms, found.seeds, found.analyze.model_dump()
    results = compare.load(name, *whole)
    folder = paths.reports(name) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    chosen = {stem: figures.dress(f).update_layout(paper_bgcolor="white") for stem, f in drawn(results).items()}
    files = [(f, folder / f"{stem}.{kind}") for stem, f in chosen.items() for kind in ("png", "svg")]
    try:
        plotly.io.write_images([f for f, _ in files], [p for _, p in files], **SIZE)
    except (RuntimeError, OSError, ValueError) as error:
        raise UserError(
            f"no pictures were drawn, which takes Chrome or Chromium ({type(error).__name__}): install one, pages need none"
        ) from None
    print(f"written: {len(files)} pictures in {paths.show(folder)}")
