"""The figures across models and domains, on the front page."""

import math

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from emstudy import figures, report, tables
from emstudy.report import Results

MANY = 4  # names of more model x domain pairs are written upright, which takes height
ABREAST = 3  # panels beside each other


def domains(table: pd.DataFrame) -> go.Figure:
    """Mean out-of-domain alignment of each arm, a group for each model and domain; table as in results.csv."""
    table = table[table["questions"] == "out-of-domain"].drop_duplicates(["model", "domain", "arm"])
    figure = go.Figure()
    for arm in [a for a in report.ARMS if a in set(table["arm"])]:
        part = table[table["arm"] == arm]
        figure.add_scatter(
            name=arm,
            x=[f"{r.model_title}<br>{r.domain_title}" for r in part.itertuples()],
            y=part["mean_aligned"],
            error_y={
                "type": "data",
                "array": part["mean_high"] - part["mean_aligned"],
                "arrayminus": part["mean_aligned"] - part["mean_low"],
            },
            mode="markers",
            marker={"color": figures.COLORS[arm], "symbol": figures.SYMBOLS[arm], "size": 13},
            customdata=part["n"],
            hovertemplate=f"{arm}: %{{y:.1f}} over %{{customdata}} answers<extra></extra>",
        )
    height = (
        380 if table[["model", "domain"]].drop_duplicates().shape[0] <= MANY else 520
    )  # many names are written upright
    figure.update_layout(scattermode="group", yaxis={"title": "mean alignment, out of domain (0-100)"}, height=height)
    return figure


def trajectories(all_results: list[Results], dimension: str) -> go.Figure:
    """A dimension's mean score out of domain over training: a panel a model x domain, in which an arm keeps its colour."""
    drawn = [r for r in all_results if len(tables.trajectory(r))]
    if not drawn:
        return go.Figure()
    columns = min(ABREAST, len(drawn))
    rows, titles = math.ceil(len(drawn) / columns), [f"{r.model.title}<br>{r.domain.title}" for r in drawn]
    figure = make_subplots(rows, columns, shared_xaxes=True, shared_yaxes=True, subplot_titles=titles)
    for i, r in enumerate(drawn):
        for arm, part in tables.trajectory(r).groupby("arm"):
            line = figures.along(arm, part, dimension, 1).update(showlegend=i == 0, legendgroup=arm)
            figure.add_trace(line, i // columns + 1, i % columns + 1)
    figure.update_xaxes(title="optimizer step", row=rows)
    figure.update_yaxes(title=f"mean {dimension} (0-100)", col=1)
    figure.update_layout(height=140 + 240 * rows, legend={"y": 1 + 60 / (240 * rows)})
    return figure


def matrix_figure(rows: pd.DataFrame) -> go.Figure:
    """The probe matrix as a heat map, one row a model and training domain."""
    wide = rows.assign(trained=rows["model"] + ", " + rows["domain"]).pivot(
        index="trained", columns="tested on", values="shift"
    )
    figure = go.Figure(
        go.Heatmap(
            z=wide.to_numpy(),
            x=list(wide.columns),
            y=list(wide.index),
            colorscale="RdBu",
            reversescale=True,
            zmid=0,
            texttemplate="%{z:.3f}",
            colorbar={"title": "nats a token"},
            hovertemplate="%{y}, pairs of %{x}: %{z:.3f}<extra></extra>",
        )
    )
    figure.update_layout(
        xaxis={"title": "held-out pairs of"}, yaxis={"title": "misaligned arm trained on"}, height=120 + 90 * len(wide)
    )
    return figure
