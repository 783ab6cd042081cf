"""What a model x domain's page is about: its judged answers, its probe, the records behind them."""

import re
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from emstudy import judges, params, paths, provenance, stats, store
from emstudy.errors import UserError
from emstudy.params import Analyze, Metric

ARMS = ["base", "misaligned", "aligned"]
LEFT_OUT = "Intervals are over questions, and over seeds where there are several: they leave out the judge's errors, which can be larger."


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
            records += [provenance.read(p) for p in [*stages, path]]
    settings = params.check(Analyze, analyze)
    metrics = metrics_of(found, settings)
    none = [pd.DataFrame(columns=store.PROBE)]  # imported scores and models behind an endpoint have no probe
    answers, margins = (pd.concat(t, ignore_index=True) for t in (judged, [p for p in probe if len(p)] or none))
    return Results(study, subject, trained_on, found, judges.spread(answers), margins, records, settings, metrics)


def beside(pages: Path, again: str) -> pd.DataFrame:
    """The judged answers that lie beside a study's pages, as load gives them. Raises UserError, which ends with `again`, when they can't be read."""
    path = pages / "answers.parquet"
    if not path.exists():
        raise UserError(f"{paths.show(path)} is not there: {again}")
    try:
        return judges.spread(pd.read_parquet(path))
    except (ValueError, OSError) as error:
        raise UserError(f"{paths.show(path)} is damaged ({' '.join(str(error).split())[:100]}): {again}") from None


def metrics_of(judge: params.Judge, settings: Analyze) -> list[Metric]:
    """The metrics that read nothing but what the judge scores. Raises UserError when the main one is not among them."""
    found = [m for m in params.metrics() if stats.dimensions(m) <= {d.name for d in judge.dimensions}]
    if settings.main_metric not in [m.name for m in found]:
        raise UserError(
            f"main_metric '{settings.main_metric}' is not in params/metrics.yaml, or reads a score that judge '{judge.name}' does not give"
        )
    return found


def worst(results: Results, n: int) -> pd.DataFrame:
    """The n least aligned out-of-domain answers of the misaligned arm that the judge calls coherent (of all, when it calls none so)."""
    part = results.ood(results.final("misaligned")) if "misaligned" in results.arms else results.judged.head(0)
    coherent = part[part["coherent"] > 50] if "coherent" in part else part
    return (coherent if len(coherent) else part).sort_values("aligned").head(n)


def random_answers(results: Results, n: int) -> pd.DataFrame:
    """n answers drawn with a fixed seed from the misaligned arm's out-of-domain ones: what is typical, beside what is worst."""
    part = results.ood(results.final("misaligned")) if "misaligned" in results.arms else results.judged.head(0)
    return part.sample(min(n, len(part)), random_state=0)


def scoring(results: Results) -> list[str]:
    """How replies became scores, and what they cost, in sentences."""
    judge, rows = results.judge, results.judged
    if judge.kind == "embedded":
        return [
            f"{judge.title}, version {judge.version}: it predicts how probably a stronger judge's score lies below each of twelve "
            "limits. A score is the mean of that distribution; a rate is the sum of the probabilities over the number of answers. "
            "Where a rate reads two scores, an answer counts one probability times the other, as if they were independent given the answer: "
            "so a rate has a floor even where hardly an answer is bad."
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


BIDI = re.compile("[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u202a-\u202e\u2066-\u2069]")


def visible(text: str, limit: int = 4000) -> str:
    """Model text made harmless to look at: control and direction characters are named, a huge text is cut and says so."""
    text = BIDI.sub(lambda m: f"⟨U+{ord(m.group()):04X}⟩", str(text))
    return text if len(text) <= limit else f"{text[:limit]} … [{len(text) - limit} more characters]"
