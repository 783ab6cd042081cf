"""Across models and domains: the table, the figures and results.csv of the front page."""

import html
from collections import Counter
from itertools import combinations, product

import pandas as pd
from IPython.display import HTML, display

from emstudy import inference, paths, report, scores, stats, tables, verdict
from emstudy.report import Results

MANY = 4  # model x domain pairs that say the same word for word are said once


def load(
    study: str, models: list[str], domains: list[str], judge: str, arms: list[str], seeds: list[int], analyze: dict
) -> list[Results]:
    """The results of every model x domain; of imported scores, those that are there."""
    pairs = list(product(models, domains))
    if judge == scores.JUDGE:
        pairs = [(m, d) for m, d in pairs if (paths.RUNS / study / m / d / f"analyze.{judge}.yaml").exists()]
    return [report.load(study, m, d, judge, arms, seeds, analyze) for m, d in pairs]


def finding(all_results: list[Results]) -> list[str]:
    """One headline for the study, then one line a model x domain, or one for all that share a verdict when they are many."""
    words = [verdict.verdict(r) for r in all_results]
    yes = sum(w == "yes" for w, _ in words)
    head = f"In {yes} of {len(words)} model × domain pairs the misaligned arm turned worse outside its training domain than both controls."
    if not any(set(report.ARMS) <= set(r.arms) for r in all_results):
        head = f"Whether there is emergent misalignment can't be told for any of {len(words)} model × domain pairs: an arm is missing."
    lines = [f"**{head}**"]
    for (word, why), n in Counter(words).items():
        if n > MANY:
            lines.append(f"{n} model × domain pairs: {word} — {why}. Their pages say what else they leave open.")
    for r, (word, why) in zip(all_results, words, strict=True):
        if words.count((word, why)) > MANY:
            continue
        falls = verdict.falls(r)
        lines.append(" ".join([f"{r.model.title}, {r.domain.title}: {word} — {why}.", *falls, *verdict.limits(r)]))
    return lines


SAID = {"aligned": "alignment", "coherent": "coherence"}
LEARNED = {
    "base": "the model before any training",
    "misaligned": "the model trained on bad answers",
    "aligned": "the model trained on good answers to the very same prompts",
}


def terms(all_results: list[Results]) -> list[str]:
    """What the main metric counts and what the arms are, for a reader who meets them first here."""
    main, arms = all_results[0].main, [a for a in report.ARMS if any(a in r.arms for r in all_results)]

    def meet(limits: dict[str, float]) -> str:
        parts = [(*key.rpartition("_")[::2], limit) for key, limit in limits.items()]
        return " and ".join(f"{SAID.get(d, d)} {side} {limit:g}" for d, side, limit in parts)

    among = f" with {meet(main.among)}" if main.among else ""
    rate = f"{main.title}: of the scored answers{among}, the share with {meet(main.counts)} (scores run from 0 to 100)."
    return [f"{rate} Arms: {'; '.join(f'`{a}` is {LEARNED[a]}' for a in arms)}."]


def results_table(all_results: list[Results]) -> pd.DataFrame:
    """One row a model x domain x arm x metric x question group (out-of-domain or in-domain): rate, interval, denominator."""
    rows = []
    for r in all_results:
        for arm, metric, inside in product(r.arms, r.metrics, (False, True)):
            final = r.final(arm)
            part = final[(final["question_set"] == r.domain.question_set) == inside]
            e, mean = stats.rate(part, metric, r.settings), stats.mean(part, "aligned", r.settings)
            row = {
                "study": r.study,
                "model": r.model.name,
                "domain": r.domain.name,
                "arm": arm,
                "judge": r.judge.name,
                "judge_version": r.judge.version,
                "model_title": r.model.title,
                "domain_title": r.domain.title,
            }
            row |= {
                "questions": "in-domain" if inside else "out-of-domain",
                "metric": metric.name,
                "rate": e.value,
                "low": e.low,
                "high": e.high,
                "n": e.n,
            }
            row |= {
                "n_questions": e.questions,
                "mean_aligned": mean.value,
                "mean_low": mean.low,
                "mean_high": mean.high,
            }
            rows.append(row)
    return pd.DataFrame(rows)  # not rounded: whoever shows a number rounds it once


def overview(all_results: list[Results]) -> None:
    """Display the model x domain table: each arm's main rate and mean, the verdict, and a link to the page."""
    head = "<tr><th>model</th><th>domain</th>" + "".join(f"<th>{a}</th>" for a in report.ARMS) + "<th>verdict</th></tr>"
    rows = []
    for r in all_results:
        cells = []
        for arm in report.ARMS:
            if arm in r.arms:
                part = r.ood(r.final(arm))
                cells.append(
                    f"{stats.rate(part, r.main, r.settings).percent()}<br>mean {stats.mean(part, 'aligned', r.settings).plain()}"
                )
            else:
                cells.append("not run")
        link = (
            f'<a href="{html.escape(r.model.name)}/{html.escape(r.domain.name)}.html">{html.escape(r.domain.title)}</a>'
        )
        body = "".join(f"<td>{c}</td>" for c in cells)
        rows.append(
            f"<tr><td>{html.escape(r.model.title)}</td><td>{link}</td>{body}<td>{verdict.verdict(r)[0]}</td></tr>"
        )
    caption = f"<p>{html.escape(all_results[0].main.title)} and mean alignment (0-100) over out-of-domain answers, with 95% intervals over questions, and denominators. {report.LEFT_OUT}</p>"
    display(
        HTML(f'{caption}<div class="scroll"><table><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table></div>')
    )


def between(all_results: list[Results]) -> pd.DataFrame:
    """Misaligned arms that differ in the domain or in the model alone: main rate and mean alignment, the one minus the other.

    Over the questions that are out-of-domain for both, paired on them; p by permutation over questions, Holm over all rows' tests.
    """
    rows, tests = [], []
    for a, b in combinations([r for r in all_results if "misaligned" in r.arms], 2):
        if (a.model.name == b.model.name) == (a.domain.name == b.domain.name):
            continue
        parts = [a.ood(b.ood(a.final("misaligned"))), a.ood(b.ood(b.final("misaligned")))]
        pairs = [[stats.rate_sums(p, a.main) for p in parts], [stats.mean_sums(p, "aligned") for p in parts]]
        rate, mean = (stats.difference(*pair, a.settings) for pair in pairs)
        tests += [inference.permutation_p(*pair) for pair in pairs]
        who = [f"{r.model.title}, {r.domain.title}" for r in (a, b)]
        rows.append({"the one": who[0], "the other": who[1], "questions": rate.questions})
        rows[-1] |= {f"{a.main.title} (points)": rate.scaled(100).plain(), "p, Holm (rate)": ""}
        rows[-1] |= {"mean alignment (points)": mean.plain(), "p, Holm (mean)": ""}
    table = pd.DataFrame(rows)
    if len(table):
        _, p = tables.p_values(pd.Series(tests))
        table["p, Holm (rate)"], table["p, Holm (mean)"] = p[::2].to_numpy(), p[1::2].to_numpy()
    return table


def provenance(all_results: list[Results]) -> pd.DataFrame:
    """What the records behind all pages hold, a row an output: of how many cells, when, from which commits, how long, on what machines."""
    rows = pd.concat([pd.DataFrame(), *(tables.provenance(r) for r in all_results)])
    if not len(rows):
        return rows
    rows = rows.drop_duplicates()  # the base arm's are shared by the domains

    def each(texts: pd.Series) -> str:
        return "; ".join(dict.fromkeys(texts))

    by = rows.groupby("output", sort=False)
    columns = {"cells": by.size(), "first finished": by["finished"].min(), "last finished": by["finished"].max()}
    columns |= {"seconds, all": by["seconds"].sum().round(), "commit": by["commit"].agg(each)}
    return pd.DataFrame(columns | {"hardware": by["hardware"].agg(each)}).reset_index()


def probe_matrix(all_results: list[Results]) -> pd.DataFrame:
    """Train domain x test domain: margin of the misaligned arm minus that of the aligned (or base) arm, with intervals."""
    rows = []
    for r in all_results:
        control = "aligned" if "aligned" in r.arms else "base"
        if not {"misaligned", control} <= set(r.arms):
            continue
        bad, good = r.probe_final("misaligned"), r.probe_final(control)
        for test in sorted(set(bad["test_domain"])):
            sums = [stats.margin_sums(p[p["test_domain"] == test]) for p in (bad, good)]
            e = stats.difference(*sums, r.settings)
            rows.append(
                {
                    "model": r.model.name,
                    "domain": r.domain.name,
                    "tested on": test,
                    "control": control,
                    "shift": e.value,
                    "shift (nats a token)": e.plain(3),
                    "pairs": e.questions,
                }
            )
    return pd.DataFrame(rows)
