"""A model x domain's judged answers and probe, and the tables of its page."""

import re
from dataclasses import dataclass
from functools import cache

import pandas as pd

from emstudy import inference, judges, params, seeds, stats, store
from emstudy.errors import UserError
from emstudy.params import Analyze, Metric

ARMS = ["base", "misaligned", "aligned"]


@dataclass(frozen=True, eq=False)  # one is itself alone, so that what is bootstrapped from it can be kept
class Results:
    """All arms and seeds of one model x domain: judged answers, probe rows, and the records behind them."""

    study: str
    model: params.Model | params.ApiModel | params.ImportedModel
    domain: params.Domain | params.ImportedDomain
    judge: params.Judge
    judged: pd.DataFrame
    probe: pd.DataFrame
    records: list[dict]
    settings: Analyze
    metrics: list[Metric]

    @property
    def arms(self) -> list[str]:
        """The arms at hand, in the order every page uses."""
        return [a for a in ARMS if a in set(self.judged["arm"])]

    @property
    def main(self) -> Metric:
        """The metric that the finding speaks of."""
        return next(m for m in self.metrics if m.name == self.settings.main_metric)

    def final(self, arm: str) -> pd.DataFrame:
        """An arm's judged answers at its last checkpoint."""
        return last_step(self.judged[self.judged["arm"] == arm])

    def ood(self, judged: pd.DataFrame) -> pd.DataFrame:
        """Only answers to out-of-domain questions: those EM is about."""
        return judged[judged["question_set"] != self.domain.question_set]

    def probe_final(self, arm: str) -> pd.DataFrame:
        """An arm's probe at its last checkpoint."""
        return last_step(self.probe[self.probe["arm"] == arm])


def last_step(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of each cell's last checkpoint."""
    return table[table["step"] == table.groupby(["model", "domain", "arm", "seed"])["step"].transform("max")]


def load(study: str, model: str, domain: str, judge: str, arms: list[str], seeds: list[int], analyze: dict) -> Results:
    """Read every arm and seed of a model x domain. Raises UserError naming the notebook to run when a file is missing."""
    subject, trained_on, found = params.subjects(study, model, domain, judge)
    columns = [*store.ANSWERS, *judges.judged_columns(found)]
    imported = found.kind == "imported"
    judged, probe, records = [], [], []
    for arm in arms:
        for seed in seeds:
            cell = params.Cell(study=study, model=model, domain="none" if arm == "base" else domain, arm=arm, seed=seed)
            path = cell.folder / f"judged.{judge}.csv"
            if imported and not path.exists():  # not every arm was scored with every seed
                continue
            judged.append(store.read_csv(path, columns, "judge"))
            stages = [] if imported else [cell.folder / "answers.csv"]
            if not imported:
                probe.append(store.read_csv(cell.folder / "probe.csv", store.PROBE, "evaluate"))
            if arm != "base" and isinstance(subject, params.Model):
                stages.insert(0, cell.folder / "train_log.csv")
            records += [store.read_record(p) for p in [*stages, path]]
    settings = params.check(Analyze, analyze)
    metrics = [m for m in params.metrics() if stats.dimensions(m) <= {d.name for d in found.dimensions}]
    if settings.main_metric not in [m.name for m in metrics]:
        raise UserError(
            f"main_metric '{settings.main_metric}' is not in params/metrics.yaml, or reads a score that judge '{judge}' does not give"
        )
    none = [pd.DataFrame(columns=store.PROBE)]  # imported scores and models behind an endpoint have no probe
    answers, margins = (pd.concat(t, ignore_index=True) for t in (judged, [p for p in probe if len(p)] or none))
    return Results(study, subject, trained_on, found, judges.spread(answers), margins, records, settings, metrics)


def rates(results: Results) -> pd.DataFrame:
    """Every metric by arm, out-of-domain (Wilson's interval beside ours) and in-domain, each with interval and denominator."""
    rows = []
    for metric in results.metrics:
        for arm in results.arms:
            final = results.final(arm)
            inside = final[final["question_set"] == results.domain.question_set]
            out, within = (stats.rate(p, metric, results.settings) for p in (results.ood(final), inside))
            low, high = inference.wilson(out.value * out.n, out.n, results.settings.confidence)
            rows.append(
                {
                    "metric": metric.title,
                    "arm": arm,
                    "out-of-domain": out.percent(),
                    "Wilson": or_dash(low, f"[{100 * low:.1f}, {100 * high:.1f}]"),
                    "in-domain": within.percent(),
                    "definition": metric.source,
                }
            )
    return pd.DataFrame(rows)


def by_seed(results: Results) -> pd.DataFrame:
    """Mean alignment out of domain of each seed by arm, and the share of variance that seeds, questions and the rest hold; empty with one seed."""
    rows = []
    for arm in results.arms:
        sums = stats.mean_sums(results.ood(results.final(arm)), "aligned")
        if not stats.several(sums):
            continue
        per_seed = sums.groupby("seed").sum()
        row = {"arm": arm} | {f"seed {k}": f"{v:.1f}" for k, v in (per_seed["num"] / per_seed["den"]).items()}
        row |= {"all seeds": stats.estimate(sums, results.settings).plain()}
        shares = seeds.components(seeds.grid(sums)).shares()
        rows.append(row | {f"variance: {k}": or_dash(100 * v, "{:.0f}%") for k, v in shares.items()})
    return pd.DataFrame(rows)


def means(results: Results) -> pd.DataFrame:
    """Main rate and mean scores by question set and arm, with answer lengths and truncation: how far does the change reach?"""
    rows = []
    own = results.domain.question_set
    for name in sorted(set(results.judged["question_set"]), key=lambda s: (s == own, s)):
        for arm in results.arms:
            part = results.final(arm)
            part = part[part["question_set"] == name]
            row = {"questions": f"{name} ({'in' if name == own else 'out-of'}-domain)", "arm": arm}
            row[results.main.title] = stats.rate(part, results.main, results.settings).percent()
            row |= {
                f"mean {d.name}": stats.mean(part, d.name, results.settings).plain() for d in results.judge.dimensions
            }
            row |= {"median tokens": or_dash(part["n_tokens"].median(), "{:.0f}")}
            known = part["finish_reason"][part["finish_reason"] != ""]
            row |= {"cut off": or_dash(100 * (known == "length").mean(), "{:.0f}%")}
            rows.append(row)
    return pd.DataFrame(rows)


def or_dash(value, form: str) -> str:
    """A number in a format, a dash where there is none."""
    return "–" if pd.isna(value) else form.format(value)


@cache
def trajectory(results: Results) -> pd.DataFrame:
    """Per arm and checkpoint, out of domain: main rate and every dimension's mean with intervals. The base arm is step 0 of both others.

    Empty where no checkpoint along training is known: imported scores, and models behind an endpoint.
    """
    values = ["rate", *[d.name for d in results.judge.dimensions]]
    columns, rows = ["arm", "step", "n", *[f"{v}{end}" for v in values for end in ("", "_low", "_high")]], []
    for arm in [a for a in results.arms if a != "base"]:
        trained = results.judged[results.judged["arm"] == arm]
        if not trained["step"].max() > 0:
            continue
        start = results.final("base").assign(step=0) if "base" in results.arms else trained.head(0)
        for step, part in pd.concat([start, trained]).groupby("step"):
            part = results.ood(part)
            found = [stats.rate(part, results.main, results.settings)]
            found += [stats.mean(part, name, results.settings) for name in values[1:]]
            rows.append({"arm": arm, "step": step, "n": found[0].n})
            for name, e in zip(values, found, strict=True):
                rows[-1] |= {name: e.value, f"{name}_low": e.low, f"{name}_high": e.high}
    return pd.DataFrame(rows, columns=columns)


def questions(results: Results) -> pd.DataFrame:
    """Mean alignment of each question by arm, the largest fall first."""
    final = pd.concat([results.final(a) for a in results.arms])
    kept = final[final["aligned_status"] == "scored"]
    table = kept.pivot_table(
        index=["question_set", "question_id", "question"], columns="arm", values="aligned", aggfunc="mean"
    )
    answers = final.groupby(["question_set", "question_id", "question"]).size().rename("answers")
    table = table.reindex(index=answers.index, columns=results.arms).astype(float)  # also where nothing was scored
    if {"misaligned", "aligned"} <= set(results.arms):
        table["misaligned - aligned"] = table["misaligned"] - table["aligned"]
        table = table.sort_values("misaligned - aligned")
    return table.round(1).join(answers).reset_index()


def probe_table(results: Results) -> pd.DataFrame:
    """Probe at the last checkpoint: mean margin with interval, and how often the misaligned answer wins, by arm and test domain."""
    rows = []
    for arm in results.arms:
        for test, part in results.probe_final(arm).groupby("test_domain"):
            margin, wins = (stats.estimate(stats.margin_sums(part, w), results.settings) for w in (False, True))
            where = "in-domain" if test == results.domain.name else "out-of-domain"
            rows.append(
                {
                    "arm": arm,
                    "held-out pairs of": test,
                    "which is": where,
                    "margin (nats a token)": margin.plain(3),
                    "misaligned answer wins": wins.percent() + " pairs",
                }
            )
    return pd.DataFrame(rows)


def worst(results: Results, n: int) -> pd.DataFrame:
    """The n least aligned coherent out-of-domain answers of the misaligned arm (least aligned of all when none is coherent)."""
    part = results.ood(results.final("misaligned")) if "misaligned" in results.arms else results.judged.head(0)
    coherent = part[part["coherent"] > 50] if "coherent" in part else part
    return (coherent if len(coherent) else part).sort_values("aligned").head(n)


def random_answers(results: Results, n: int) -> pd.DataFrame:
    """n answers drawn with a fixed seed from the misaligned arm's out-of-domain ones: what is typical, beside what is worst."""
    part = results.ood(results.final("misaligned")) if "misaligned" in results.arms else results.judged.head(0)
    return part.sample(min(n, len(part)), random_state=0)


def unscored(results: Results) -> pd.DataFrame:
    """How the judge's replies ended, by dimension: every row of a dimension adds up to all answers."""
    return judges.unscored(results.judged, [d.name for d in results.judge.dimensions])


def scoring(results: Results) -> list[str]:
    """How replies became scores, and what they cost, in sentences."""
    judge, rows = results.judge, results.judged
    if judge.kind == "embedded":
        return [
            f"{judge.title}, version {judge.version}: it predicts how probably a stronger judge's score lies below each of twelve "
            "limits. A score is the mean of that distribution; a rate is the sum of the probabilities over the number of answers."
        ]
    if judge.kind == "imported":
        return [f"{judge.title}: the numbers of the file, from 0 to 100."]
    raw = pd.concat([rows.loc[rows[f"{d.name}_status"] == "scored", f"{d.name}_raw"] for d in judge.dimensions])
    weighed = int(raw.str.startswith('{"reply"').sum())
    costs = [r["spent"] for r in results.records if r.get("spent")]
    tokens = sum(c["tokens_in"] + c["tokens_out"] for c in costs)
    return [
        f"{judge.title}, asked as {judge.model} with rubric {judge.rubric.name}: {weighed} scores are means over token "
        f"probabilities, {len(raw) - weighed} were read from the reply's words.",
        f"Judging took {tokens / 1e6:.2f} M tokens, {sum(c['usd'] for c in costs):.2f} USD at the prices in params/.",
    ]


def provenance(results: Results) -> pd.DataFrame:
    """One row a record: what was written, when, from which commit, in how many seconds, on what."""
    rows = []
    for r in results.records:
        p = r["parameters"]
        rows.append(
            {
                "output": r["output"],
                "cell": "/".join(str(p[k]) for k in ("domain", "arm", "seed")),
                "finished": r["finished"],
                "seconds": r["seconds"],
                "commit": r["git_commit"][:12] + ("+changes" if "+" in r["git_commit"] else ""),
                "hardware": r["hardware"],
            }
        )
    return pd.DataFrame(rows)


BIDI = re.compile("[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str, limit: int = 4000) -> str:
    """Model text made harmless to look at: control and direction characters are named, a huge text is cut and says so."""
    text = BIDI.sub(lambda m: f"⟨U+{ord(m.group()):04X}⟩", str(text))
    return text if len(text) <= limit else f"{text[:limit]} … [{len(text) - limit} more characters]"
