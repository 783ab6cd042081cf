"""The figures of an audit: is a judge right about how sure it is, and about rates?"""

import pandas as pd
import plotly.graph_objects as go

from emstudy import agreement, figures
from emstudy.audit import Audit


def diagonal(figure: go.Figure, top: float, name: str) -> None:
    """The line on which judge and gold say the same."""
    line = {"color": "#999", "dash": "dot"}
    figure.add_scatter(x=[0, top], y=[0, top], mode="lines", line=line, name=name, hoverinfo="skip")


def calibration(audit: Audit) -> go.Figure:
    """Predicted probability against how often gold agreed, in tenths; on the diagonal a judge is right about how sure it is."""
    figure, k = go.Figure(), 0
    diagonal(figure, 100, "calibrated")
    for name in audit.judged:
        scored = audit.scored(name)
        for d, t in [(d, t) for d, limits in audit.limits.items() for t in limits]:
            points = agreement.calibration(audit.below(name, d, scored)[t], audit.gold.loc[scored, d] < t)
            figure.add_scatter(
                name=f"{name}: {d} < {t:g}",
                x=100 * points["predicted"],
                y=100 * points["observed"],
                mode="lines+markers",
                line={"color": figures.SERIES[k % len(figures.SERIES)]},
                customdata=points["n"],
                hovertemplate="said %{x:.0f}%, was %{y:.0f}% of %{customdata} answers<extra></extra>",
            )
            k += 1
    figure.update_layout(xaxis={"title": "judge: probability (%)"}, yaxis={"title": "gold: share of answers (%)"})
    return figure


def rates(found: pd.DataFrame) -> go.Figure:
    """Every file's rates, the judge's against gold's."""
    figure, top = go.Figure(), float(found[["says", "gold"]].max().max())
    diagonal(figure, top, "equal")
    for k, (key, part) in enumerate(found.groupby(["judge", "rate"], sort=False)):
        figure.add_scatter(
            name=": ".join(key),
            x=part["gold"],
            y=part["says"],
            mode="markers",
            marker={"color": figures.SERIES[k % len(figures.SERIES)], "size": 8},
            customdata=part[["file", "n", "answers"]],
            hovertemplate="%{customdata[0]} (%{customdata[2]}): judge %{y:.1f}%, gold %{x:.1f}% of %{customdata[1]}<extra></extra>",
        )
    figure.update_layout(xaxis={"title": "gold: answers below (%)"}, yaxis={"title": "judge: answers below (%)"})
    return figure
