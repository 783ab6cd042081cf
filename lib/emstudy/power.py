"""What difference between two arms a study could see, and what study would see the one that matters, from the spread of answers."""

from bisect import bisect_left
from dataclasses import dataclass

import pandas as pd

from emstudy import inference, params, paths, report, stats
from emstudy.params import Study
from emstudy.report import Results

MOST = 2000  # questions: nobody asks more


@dataclass(frozen=True)
class Spread:
    """Variances of the difference misaligned - aligned: of the true one between questions, of one answer around its question and arm."""

    question: float
    answer: float


def spread(values: pd.Series, table: pd.DataFrame, control: str = "aligned") -> Spread:
    """From one value an answer of both arms (columns arm, question_id), by the method of moments."""
    groups = values.groupby([table["arm"], table["question_id"]])
    means, n = groups.mean().unstack("arm"), groups.size()
    answer = float((groups.var() * (n - 1)).sum() / (n - 1).sum()) if (n > 1).any() else 0.0
    noise = 2 * answer / float(n.mean())
    return Spread(max(0.0, float((means["misaligned"] - means[control]).var()) - noise), answer)


def enough(results: Results) -> str:
    """What study would tell: the least out-of-domain questions with which this one's answers and seeds would find smallest_effect."""
    matters, seeds = results.settings.smallest_effect, results.judged["seed"].nunique()
    needed = []
    for control in ("base", "aligned"):
        table = pd.concat([results.ood(results.final(a)) for a in ("misaligned", control)])
        table = table[table["aligned_status"] == "scored"]
        if table["arm"].nunique() < 2:
            return "nothing was scored, so nothing can be said"
        size = {"samples": round(len(table) / table.groupby(["arm", "seed", "question_id"]).ngroups), "seeds": seeds}
        seen, tried = spread(table["aligned"].astype(float), table, control), range(3, MOST + 1)
        needed.append(tried[0] + bisect_left(tried, -matters, key=lambda q: -_detectable(seen, questions=q, **size)))
    asked = results.ood(results.judged)["question_id"].nunique()
    if max(needed) > MOST:
        return f"no number of questions up to {MOST} would tell: it takes more answers a question, or more seeds"
    if max(needed) > asked:
        return f"about {max(needed)} out-of-domain questions would tell ({asked} were asked), going by how these answers spread"
    return f"the {asked} questions asked should have told, going by how their answers spread: more seeds would"


def _detectable(seen: Spread, **size) -> float:
    return inference.detectable(seen.question, seen.answer, 0.0, **size)


def measured() -> dict[str, Spread]:
    """The spread of mean alignment and of the main rate (in points) in the default study, averaged over its domains; {} before it ran."""
    pages, default = paths.reports(paths.DEFAULT_STUDY), params.study(paths.DEFAULT_STUDY)
    if not (pages / "answers.parquet").exists():
        return {}
    table = report.beside(pages, "run `make reproduce` again")
    main = next(m for m in params.metrics() if m.name == default.analyze.main_metric)
    table = report.last_step(table)
    hit, among = stats.counts(table, main)
    found: dict[str, list[Spread]] = {"mean alignment": [], main.title: []}
    for d in default.domains:
        own = (table["domain"] == d) & (table["question_set"] != params.domain(d).question_set)
        for title, values in zip(found, (table["aligned"].astype(float), 100 * hit * among), strict=True):
            found[title].append(spread(values[own], table[own]))
    return {
        k: Spread(*(sum(getattr(s, part) for s in v) / len(v) for part in ("question", "answer")))
        for k, v in found.items()
    }


def sentence(study: Study) -> str:
    """What `make plan` says of a study's power, for the domain with the fewest out-of-domain questions."""
    known = measured()
    if not known:
        return "What difference it could see is not known: the default study has no pages yet to take the spread from."
    sets = {q: params.questions(q).questions for q in study.evaluate.question_sets}
    outside = [
        [q for name, part in sets.items() if name != params.domain(d).question_set for q in part] for d in study.domains
    ]
    fewest = min(outside, key=len)
    samples = round(sum(study.evaluate.samples_final or q.samples for q in fewest) / len(fewest))
    size = {"questions": len(fewest), "samples": samples, "seeds": len(study.seeds)}
    least = " and ".join(f"{_detectable(s, **size):.1f} points of {title}" for title, s in known.items())
    matters = study.analyze.smallest_effect
    can = _detectable(known["mean alignment"], **size) <= matters
    return (
        f"With {size['questions']} out-of-domain questions, {samples} answers each and {size['seeds']} seed(s), four studies of five would "
        f"find a difference between arms of {least}.\nThat takes the spread between questions and answers from the default study's pages "
        "and what seeds add as nothing: with more than one seed it is the best case.\n"
        f"A fall of {matters:g} points of mean alignment (smallest_effect) is {'within' if can else 'out of'} its reach."
    )
