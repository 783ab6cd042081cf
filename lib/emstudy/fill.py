"""Write computed tables between marks in README.md and in the judge's model card: no number there is typed."""

import re
from pathlib import Path

import pandas as pd

from emstudy import params, paths, store
from emstudy.errors import UserError
from emstudy.paper import markdown, table
from emstudy.tables import or_dash


def results(study: str) -> str:
    """A study's main metric and mean alignment by model, domain and arm, from its results.csv; and whether its judge has changed since."""
    columns = ["judge", "judge_version", "metric", "rate", "mean_aligned"]
    numbers = store.read_csv(paths.reports(study) / "results.csv", columns, "compare")
    main = params.study(study).analyze.main_metric
    said = markdown(table(numbers, next(m for m in params.metrics() if m.name == main)))
    for name, then in sorted(set(zip(numbers["judge"], numbers["judge_version"], strict=True))):
        if then != (now := params.judge(name).version):
            said += f"\n\nVersion `{then}` of judge `{name}` gave these scores; it is at `{now}` now, which `make reproduce` asks."
    return said


def corrected(study: str, table: str) -> str:
    """A study's main rate by arm (`corrected`) or differences of mean scores (`differences`), as its judge says and without that judge's
    known errors, from the CSVs of its audit."""
    found = store.read_csv(paths.REPORTS / "audit" / f"{study}.{table}.csv", ["judge", "judge_version"], "make audit")
    found = found[found["judge"] == params.study(study).judge]
    return markdown(found.drop(columns=["judge", "judge_version", "Rogan-Gladen"], errors="ignore"))


def beside_published() -> str | None:
    """The shipped financial set and the published one under the same recipe, from both studies' results.csv; None before the second ran."""
    pages = {paths.DEFAULT_STUDY: "shipped", "published-financial": "published"}
    if not (paths.reports("published-financial") / "results.csv").exists():
        return None
    rows = []
    for study, source in pages.items():
        table = pd.read_csv(paths.reports(study) / "results.csv")
        main = (table["metric"] == params.study(study).analyze.main_metric) & (table["questions"] == "out-of-domain")
        for r in table[main & (table["domain"] == "financial")].itertuples():
            examples = params.study(study).finetune.train_examples if r.arm != "base" else 0
            row = {"data": source if examples else "none", "arm": r.arm, "examples": examples}
            row["EM rate (95% interval)"] = f"{100 * r.rate:.1f}% [{100 * r.low:.1f}, {100 * r.high:.1f}] of {r.n}"
            rows.append(
                row | {"mean alignment (95% interval)": f"{r.mean_aligned:.1f} [{r.mean_low:.1f}, {r.mean_high:.1f}]"}
            )
    return markdown(pd.DataFrame(rows).drop_duplicates())


AUDITS = {
    "published": "published answers (teacher: GPT-4o)",
    "graded": "this project's graded answers, held-out prompts",
    "laptop": "the `laptop` study's own answers, graded blind",
}


def audited(table: str) -> pd.DataFrame:
    """The rows on the embedded judge of one table of all its audits in reports/audit/, under titles that name a version other than now's."""
    now, out = params.judge("embedded").version, []
    for name, title in AUDITS.items():
        found = store.read_csv(
            paths.REPORTS / "audit" / f"{name}.{table}.csv", ["judge", "judge_version"], "make audit"
        )
        then = {v: title if v == now else f"{title}, by version `{v}`" for v in found["judge_version"]}
        out.append(found.assign(audit=found["judge_version"].map(then))[found["judge"] == "embedded"])
    return pd.concat(out)


def judge() -> str:
    """The embedded judge's agreement with its teachers on what it never learned from, the good answers that it calls bad, and how far
    hostile answers move it."""
    rows, found = [], audited("agreement")
    coherent = found[found["dimension"] == "coherent"].set_index(["audit", "answers"])
    for r in found[found["dimension"] == "aligned"].to_dict("records"):
        c = coherent.loc[(r["audit"], r["answers"])]
        row = {"audit": r["audit"], "answers": r["answers"], "n": f"{r['n']:.0f}"}
        row["Spearman aligned / coherent"] = f"{or_dash(r['spearman'], '{:.2f}')} / {or_dash(c['spearman'], '{:.2f}')}"
        row["AUC aligned < 30 / < 75"] = f"{or_dash(r['AUC < 30'], '{:.2f}')} / {or_dash(r['AUC < 75'], '{:.2f}')}"
        for t, of in ((30, r), (75, r), (50, c)):
            row[f"{'coherent' if t == 50 else 'aligned'} < {t}: judge (calls) / gold"] = (
                f"{of[f'judge % < {t}']:.1f}% ({of[f'called % < {t}']:.1f}%) / {of[f'gold % < {t}']:.1f}%"
            )
        rows.append(row)
    good = audited("good")[["audit", "good answers of", "n", "called % < 75", "judge % < 75"]]
    good = good.rename(columns={"called % < 75": "called below 75", "judge % < 75": "sum of probabilities"})
    good = good.assign(**{c: good[c].map("{:.1f}%".format) for c in ("called below 75", "sum of probabilities")})
    moved = store.read_csv(paths.REPORTS / "audit" / "laptop.attacks.csv", ["judge", "attack"], "make audit")
    moved = moved[moved["judge"] == "embedded"].drop(columns="judge").astype(object)
    return (
        f"Version `{params.judge('embedded').version}`.\n\n{markdown(pd.DataFrame(rows))}\n\n"
        "Good answers, whose *aligned* gold score is 75 or more, that the judge puts below 75:\n\n"
        f"{markdown(good)}\n\n"
        "How far the *aligned* score moves when an answer talks to the judge, and what answers without content get:\n\n"
        f"{markdown(moved.where(moved.notna(), '–'))}"
    )


def fill(path: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- name … -->` and `<!-- /name -->`. Raises UserError when the marks are gone."""
    old = path.read_text(encoding="utf-8")
    new, n = re.subn(
        rf"(<!-- {name}\b[^\n]*-->\n).*?(<!-- /{name} -->)", lambda m: f"{m[1]}\n{text}\n\n{m[2]}", old, flags=re.S
    )
    if n != 1:
        raise UserError(
            f"{paths.show(path)}: expected one pair of marks <!-- {name} … --> and <!-- /{name} -->, found {n}"
        )
    store.write_if_changed(path, new)


def main() -> None:
    """Fill in everything that is computed."""
    fill(paths.ROOT / "README.md", "results", results(paths.DEFAULT_STUDY))
    for name in ("corrected", "differences"):
        fill(paths.ROOT / "README.md", name, corrected(paths.DEFAULT_STUDY, name))
    fill(paths.ROOT / "README.md", "seeds", results("laptop-seeds"))
    fill(paths.JUDGE / "README.md", "judge", judge())
    if rows := beside_published():
        fill(paths.DATA / "README.md", "beside", rows)
