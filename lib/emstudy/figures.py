"""Figures and tables as notebooks and pages show them: one place for colours, one way to show model text."""

import hashlib
import html

import pandas as pd
import plotly.graph_objects as go
from IPython.display import HTML, Markdown, display

from emstudy import report, stats, tables
from emstudy.report import Results

# Okabe and Ito's palette: told apart by colour-blind readers, and an arm keeps its colour everywhere
COLORS = {"base": "#7a7a7a", "misaligned": "#d55e00", "aligned": "#0072b2"}
SYMBOLS = {"base": "square", "misaligned": "circle", "aligned": "diamond"}
SERIES = ["#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]


def dress(figure: go.Figure) -> go.Figure:
    """The one style of all figures, readable on light and dark paper."""
    figure.update_layout(
        template="none",
        font={"family": "system-ui, sans-serif", "size": 14, "color": "#444"},
        margin={"l": 70, "r": 20, "t": 40, "b": 60},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        legend={"orientation": "h", "y": figure.layout.legend.y or 1.02, "yanchor": "bottom"},
        modebar={"bgcolor": "rgba(0,0,0,0)", "color": "#999"},
        height=figure.layout.height or 380,
    )
    figure.update_xaxes(gridcolor="rgba(128,128,128,.25)", zerolinecolor="rgba(128,128,128,.5)", automargin=True)
    figure.update_yaxes(gridcolor="rgba(128,128,128,.25)", zerolinecolor="rgba(128,128,128,.5)", automargin=True)
    return figure


def show(figure: go.Figure, alt: str) -> None:
    """Display a figure twice over: live in JupyterLab, and as HTML that a page draws with its own plotly.js; alt says what it shows."""
    if not figure.data:
        display(Markdown(f"*Nothing to draw: {alt[0].lower()}{alt[1:]} needs data that this study does not have.*"))
        return
    dress(figure)
    config, name = (
        {"displaylogo": False, "responsive": True},
        hashlib.sha256((alt + figure.to_json()).encode()).hexdigest(),
    )
    body = figure.to_html(full_html=False, include_plotlyjs=False, config=config, div_id=f"figure-{name[:12]}")
    body = body.replace(
        "<script>", '<script type="module">', 1
    )  # a module waits for plotly.js, the page's text does not
    page = f'<figure role="img" aria-label="{html.escape(alt, quote=True)}">{body}</figure>'
    display({"application/vnd.plotly.v1+json": figure.to_plotly_json(), "text/html": page, "text/plain": alt}, raw=True)


def words(lines: list[str]) -> None:
    """Display computed sentences: the first as the headline, the others as a list."""
    display(Markdown("\n".join([lines[0], "", *[f"- {line}" for line in lines[1:]]])))


def heading(text: str) -> None:
    """Display a small heading."""
    display(HTML(f"<h3>{html.escape(text)}</h3>"))


def table(rows: pd.DataFrame) -> None:
    """Display a table; every text in it is escaped."""
    if not len(rows):
        display(Markdown("*Nothing to list: this study has no such data.*"))
        return
    clean = rows.astype(object).where(rows.notna(), "–")  # pandas writes a missing integer as <NA>
    clean = clean.map(lambda v: report.visible(v) if isinstance(v, str) else v)
    display(
        HTML(
            f'<div class="scroll">{clean.to_html(index=False, escape=True, border=0, float_format="{:.6g}".format)}</div>'
        )
    )


def answers(rows: pd.DataFrame) -> None:
    """Display answers in full with their scores, as text whatever they hold."""
    cards, dimensions = [], [c.removesuffix("_status") for c in rows.columns if c.endswith("_status")]
    for r in rows.to_dict("records"):
        found = [(d, r[d], r[f"{d}_status"]) for d in dimensions]
        scores = ", ".join(f"{d} {value:.0f}" if status == "scored" else f"{d} {status}" for d, value, status in found)
        head = html.escape(
            "{arm}, step {step}, {question_set}/{question_id}, sample {sample}: {scores}, {finish_reason}".format(
                **r | {"scores": scores}
            )
        )
        question, answer = (html.escape(report.visible(t)) for t in (r["question"], r["answer"]))
        cards.append(
            f'<article class="answer {r["arm"]}"><header>{head}</header><p class="q">{question}</p><p class="a">{answer}</p></article>'
        )
    display(HTML("\n".join(cards) or "<p>No answers to show.</p>"))


def error_bars(x: list[stats.Estimate], scale: float) -> dict:
    """Plotly error bars of estimates, scaled to the unit of the axis."""
    up, down = [scale * (e.high - e.value) for e in x], [scale * (e.value - e.low) for e in x]
    return {"type": "data", "array": up, "arrayminus": down, "thickness": 1.5, "color": "#888"}


def rates(results: Results) -> go.Figure:
    """Every metric's out-of-domain rate by arm, with 95% intervals; the denominator shows on hover."""
    figure = go.Figure()
    for arm in results.arms:
        found = [stats.rate(results.ood(results.final(arm)), m, results.settings) for m in results.metrics]
        figure.add_bar(
            name=arm,
            x=[m.title for m in results.metrics],
            y=[100 * e.value for e in found],
            error_y=error_bars(found, 100),
            marker_color=COLORS[arm],
            customdata=[e.percent() for e in found],
            hovertemplate=f"{arm}: %{{customdata}}<extra></extra>",
        )
    figure.update_layout(barmode="group", yaxis={"title": "out-of-domain answers (%)", "rangemode": "tozero"})
    return figure


def along(arm: str, rows: pd.DataFrame, value: str, scale: float) -> go.Scatter:
    """One arm's line over optimizer steps with its intervals; rows as in tables.trajectory."""
    up, down = rows[f"{value}_high"] - rows[value], rows[value] - rows[f"{value}_low"]
    return go.Scatter(
        name=arm,
        x=rows["step"],
        y=scale * rows[value],
        mode="lines+markers",
        line={"color": COLORS[arm]},
        marker={"symbol": SYMBOLS[arm], "size": 9},
        error_y={"type": "data", "array": scale * up, "arrayminus": scale * down},
        customdata=rows["n"],
        hovertemplate=f"{arm}, step %{{x}}: %{{y:.1f}} of %{{customdata}} answers<extra></extra>",
    )


def trajectory(results: Results, value: str) -> go.Figure:
    """'rate' (main metric, %) or a dimension's mean score over optimizer steps, with intervals."""
    scale = 100 if value == "rate" else 1
    figure = go.Figure([along(arm, part, value, scale) for arm, part in tables.trajectory(results).groupby("arm")])
    title = (
        f"{results.main.title} (% of out-of-domain answers)"
        if value == "rate"
        else f"mean {value} score, out of domain (0-100)"
    )
    figure.update_layout(xaxis={"title": "optimizer step (0 = before training)"}, yaxis={"title": title})
    return figure


def thresholds(results: Results) -> go.Figure:
    """Share of out-of-domain answers whose alignment is below each threshold: no single cut has to be trusted."""
    figure = go.Figure()
    for arm in results.arms:
        curve = stats.threshold_curve(results.ood(results.final(arm)), "aligned", range(5, 101, 5))
        figure.add_scatter(
            name=arm,
            x=curve["limit"],
            y=100 * curve["share"],
            mode="lines+markers",
            line={"color": COLORS[arm]},
            marker={"symbol": SYMBOLS[arm]},
            customdata=curve["n"],
            hovertemplate=f"{arm}: %{{y:.1f}}% of %{{customdata}} below %{{x}}<extra></extra>",
        )
    figure.update_layout(xaxis={"title": "alignment threshold"}, yaxis={"title": "out-of-domain answers below it (%)"})
    return figure


def probe(results: Results) -> go.Figure:
    """Mean probe margin over training with intervals, by arm; solid in-domain, dashed for the other domains' held-out pairs.

    Only pairs that were asked at every checkpoint: others at its ends would bend a line by themselves.
    """
    figure = go.Figure()
    for arm in [a for a in results.arms if a != "base"]:
        rows = results.probe[results.probe["arm"] == arm]
        start = results.probe_final("base").assign(step=0) if "base" in results.arms else rows.head(0)
        rows = pd.concat([start, rows])
        asked = rows.groupby(["test_domain", "pair"])["step"].transform("nunique")
        rows = rows[asked == rows["step"].nunique()]
        for inside, part in rows.groupby(rows["test_domain"] == results.domain.name):
            found = {k: stats.estimate(stats.margin_sums(at), results.settings) for k, at in part.groupby("step")}
            steps = [(k, e.questions, e.value, e.low, e.high) for k, e in found.items()]
            line = along(
                arm, pd.DataFrame(steps, columns=["step", "n", "margin", "margin_low", "margin_high"]), "margin", 1
            )
            line.update(
                name=f"{arm}, {'in-domain' if inside else 'other domains'}",
                line={"dash": "solid" if inside else "dash"},
                hovertemplate=f"{arm}, step %{{x}}: %{{y:.3f}} over %{{customdata}} pairs<extra></extra>",
            )
            figure.add_trace(line)
    figure.update_layout(
        xaxis={"title": "optimizer step (0 = before training)"},
        yaxis={"title": "misaligned margin (nats a token)"},
    )
    return figure


def loss(log: pd.DataFrame) -> go.Figure:
    """Training loss by optimizer step."""
    figure = go.Figure(go.Scatter(x=log["step"], y=log["loss"], mode="lines+markers", line={"color": SERIES[1]}))
    figure.update_layout(xaxis={"title": "optimizer step"}, yaxis={"title": "loss (nats an answer token)"}, height=300)
    return figure
