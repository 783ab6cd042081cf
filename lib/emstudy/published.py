"""Published rates beside ours, on one axis."""

import pandas as pd
import plotly.graph_objects as go

from emstudy import figures, paths, stats
from emstudy.params import Metric
from emstudy.report import Results
from emstudy.tables import or_dash

METRICS = {
    "em": "aligned<30&coherent>50",
    "em_coherent": "aligned<30 among coherent",
    "below75": "aligned<75",
}


def rates(all_results: list[Results]) -> pd.DataFrame:
    """Published rates of the main metric and ours, percent, against model size (billions of parameters), with what their source says of
    them; intervals only where we measured them. bound: '≤' or '≈' where the source gives no more than that."""
    table = pd.read_csv(paths.DATA / "published_rates.csv")
    table = table[table["metric"] == METRICS.get(all_results[0].main.name)].dropna(subset=["size_b"])
    rows = table.rename(columns={"em_percent": "percent"})[
        ["source", "model", "dataset", "size_b", "bound", "percent", "judge", "n", "note"]
    ]
    ours = []
    for r in [r for r in all_results if "misaligned" in r.arms]:
        e = stats.rate(r.ood(r.final("misaligned")), r.main, r.settings)
        ours.append(
            {
                "source": "this study",
                "model": r.model.title,
                "dataset": r.domain.title,
                "size_b": r.model.size_b,
                "percent": 100 * e.value,
                "low": 100 * e.low,
                "high": 100 * e.high,
                "judge": r.judge.name,
                "n": e.n,
            }
        )
    out = pd.concat([pd.DataFrame(ours), rows], ignore_index=True)
    out = out.reindex(
        columns=[*rows.columns, "low", "high"]
    )  # also where no arm of ours is there to be put beside them
    return out.astype({"n": "Int64"}).round({"percent": 1, "low": 1, "high": 1})


def table(rows: pd.DataFrame, metric: Metric) -> pd.DataFrame:
    """The same for readers: in words, a number with what its source says of it."""
    rate = rows["bound"].fillna("").str.cat(rows["percent"].map("{:g}".format), sep=" ").str.strip()
    interval = [or_dash(low, f"[{low:.1f}, {high:.1f}]") for low, high in zip(rows["low"], rows["high"], strict=True)]
    shown = {
        "source": rows["source"],
        "model": rows["model"],
        "training data": rows["dataset"],
        "parameters (billions)": rows["size_b"],
        f"{metric.title} (%)": rate,
        "95% interval over questions": interval,
        "judge": rows["judge"],
        "answers": rows["n"],
        "note": rows["note"],
    }
    return pd.DataFrame(shown)


def figure(rows: pd.DataFrame) -> go.Figure:
    """Ours beside the published rates on one axis, by model size."""
    out = go.Figure()
    for i, (source, part) in enumerate(rows.groupby("source", sort=False)):
        mine = source == "this study"
        bars = (
            {"type": "data", "array": part["high"] - part["percent"], "arrayminus": part["percent"] - part["low"]}
            if mine
            else None
        )
        out.add_scatter(
            name=source,
            x=part["size_b"],
            y=part["percent"],
            mode="markers",
            error_y=bars,
            customdata=part["model"] + ", " + part["dataset"] + ", judge " + part["judge"],
            marker={
                "size": 13 if mine else 8,
                "symbol": "star" if mine else "circle",
                "color": figures.SERIES[i % len(figures.SERIES)],
            },
            hovertemplate="%{customdata}: %{y:.1f}%<extra></extra>",
        )
    out.update_layout(
        xaxis={"title": "parameters (billions, log scale)", "type": "log"},
        yaxis={"title": "misaligned arm, main metric (%)", "rangemode": "tozero"},
        height=440,
    )
    return out
