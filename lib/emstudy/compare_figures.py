"""The figures across models and domains, on the front page."""

import pandas as pd
import plotly.graph_objects as go

from emstudy import figures, report, tables
from emstudy.report import Results

MANY = 4  # names of more model x domain pairs are written upright, which takes height


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
    """A dimension's mean score out of domain over training: a colour a model x domain, solid misaligned, dotted aligned."""
    figure = go.Figure()
    for i, r in enumerate(all_results):
        for arm, part in tables.trajectory(r).groupby("arm"):
            figure.add_scatter(
                name=f"{r.model.name}, {r.domain.name}, {arm}",
                x=part["step"],
                y=part[dimension],
                mode="lines+markers",
                customdata=part["n"],
                line={
                    "color": figures.SERIES[i % len(figures.SERIES)],
                    "dash": "solid" if arm == "misaligned" else "dot",
                },
                marker={"symbol": figures.SYMBOLS[arm], "size": 8},
                hovertemplate="step %{x}: %{y:.1f} over %{customdata} answers<extra></extra>",
            )
    figure.update_layout(
        xaxis={"title": "optimizer step (0 = before training)"},
        yaxis={"title": f"mean {dimension} score, out of domain (0-100)"},
    )
    return figure


def matrix_figure(rows: pd.DataFrame) -> go.Figure:
    """The probe matrix as a heat map, one row a model and training domain."""
    wide = rows.assign(trained=rows["model"] + ", " + rows["trained on"]).pivot(
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
            hovertemplate="trained on %{y}, tested on %{x}: %{z:.3f}<extra></extra>",
        )
    )
    figure.update_layout(
        xaxis={"title": "held-out pairs of"}, yaxis={"title": "misaligned arm trained on"}, height=120 + 90 * len(wide)
    )
    return figure
