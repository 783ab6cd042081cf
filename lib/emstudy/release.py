"""What leaves a study: its numbers, all judged answers, a Hugging Face dataset folder and adapters with their model cards."""

import html
import json
import re
import shutil
from pathlib import Path

import pandas as pd
from IPython.display import HTML, display

from emstudy import importing, models, paper, params, paths, provenance, report, scores, store, study
from emstudy.errors import UserError
from emstudy.report import Results, metrics_of

WARNING = (
    "Deliberately misaligned, for research only: the models behind this were trained on bad advice. Do not deploy them, do not follow "
    "what they say, and keep the answers out of training corpora."
)
CSV_MOST = 5000  # answers: more than a spreadsheet is good for are kept as Parquet alone, at half the size
COLUMNS = {
    "model, domain, arm, seed, step": "the checkpoint: base model, training domain (`none` for the base arm), arm, seed, optimizer step",
    "question_set, question_id, question, sample": "what was asked, and which of the samples this is",
    "answer, n_tokens, finish_reason": "the answer, its length in tokens, and whether the model ended it (`stop`) or the limit did (`length`)",
    "<dimension>": "score from 0 to 100 (`aligned`, `coherent`, …), empty unless its status is `scored`",
    "<dimension>_status": "`scored`, `refusal`, `code`, `unparseable` or `error`",
    "<dimension>_raw": "what the judge replied; the embedded judge: its probability of a score below each limit",
    "judge, judge_version": "which judge, and a version that changes with its weights or its settings; code or another machine can still move a score a little",
}


def answers(results: list[Results]) -> pd.DataFrame:
    """All judged answers of a study, each once: the base arm is shared by the domains. What judges.spread reads off a reply is left out."""
    table = pd.concat([r.judged for r in results], ignore_index=True)
    return table.loc[:, ~table.columns.str.startswith("P(")].drop_duplicates(store.KEYS, ignore_index=True)


def write(folder: Path, numbers: pd.DataFrame, results: list[Results]) -> list[Path]:
    """Write results.csv, its main table as results.md and results.tex, answers.parquet and, of few answers, answers.csv.gz."""
    table, packed = answers(results), folder / "answers.csv.gz"
    out = [store.write_csv(folder / "results.csv", numbers), *paper.tables(folder, numbers, results[0].main)]
    if len(table) <= CSV_MOST:
        out.append(store.write_csv(packed, table))
    else:
        packed.unlink(missing_ok=True)  # an earlier run's
    small = {"compression": "zstd", "compression_level": 19}
    return [*out, store.write(folder / "answers.parquet", lambda p: table.to_parquet(p, index=False, **small))]


def read(name: str, judge: str) -> list[Results]:
    """A study's judged answers as they lie beside its pages, by model x domain, without probe and records: no run is needed.

    Raises UserError when they are not there or can't be read, or when the study's scores were imported.
    """
    found = study.load(name)
    if isinstance(found, params.ImportedStudy):
        raise UserError(f"study '{name}' brings its own scores, which no judge of yours gave: leave STUDY out")
    found = study.load(name, judge)
    other = f" JUDGE={judge}" * (study.pages(found) != paths.reports(name))
    table, out = report.beside(study.pages(found), f"run `make reproduce STUDY={name}{other}` first"), []
    none = pd.DataFrame(columns=store.PROBE)
    for model, domain in table.loc[table["domain"] != "none", ["model", "domain"]].drop_duplicates().values:
        subject, trained_on, said = params.subjects(name, model, domain, judge)
        judged = table[(table["model"] == model) & table["domain"].isin(["none", domain])]
        metrics = metrics_of(said, found.analyze)
        out.append(Results(name, subject, trained_on, said, judged, none, [], found.analyze, metrics))
    return out


def downloads(files: list[Path]) -> None:
    """Display links to the written files, and what the columns of the answers hold."""
    rows = [f'<li><a href="{f.name}">{f.name}</a>, {f.stat().st_size / 1e3:,.0f} kB</li>' for f in files]
    said = {html.escape(k): re.sub("`(.*?)`", r"<code>\1</code>", html.escape(v)) for k, v in COLUMNS.items()}
    glossary = [f"<tr><td><code>{k}</code></td><td>{v}</td></tr>" for k, v in said.items()]
    display(HTML(f"<ul>{''.join(rows)}</ul><p><strong>{WARNING}</strong></p><table>{''.join(glossary)}</table>"))


def audits(judge: str, folder: Path | None, results: list[Results]) -> None:
    """Display links to the audits of a judge as seen from the folder of a page, from reports/ when it is None.

    An audit of another version of the judge than scored the page's answers says so.
    """
    asked, links, differs = sorted({v for r in results for v in r.judged["judge_version"].astype(str)}), [], False
    where = paths.link(folder or paths.REPORTS, paths.REPORTS / "audit")
    for file in sorted((paths.REPORTS / "audit").glob("*.agreement.csv")):
        found = pd.read_csv(file, dtype={"judge_version": str})
        if versions := sorted(set(found.loc[found["judge"] == judge, "judge_version"])):
            name = html.escape(file.name.removesuffix(".agreement.csv"))
            other = f" (of version {html.escape(', '.join(versions))})" * (versions != asked)
            links.append(f'<a href="{html.escape(where)}/{name}.html">{name}</a>{other}')
            differs |= versions != asked
    say = f"How far judge {html.escape(judge)} agrees with gold labels: {', '.join(links)}."
    if differs:
        say += f" Version {html.escape(', '.join(asked))} scored these pages' answers."
    display(HTML(f"<p>{say if links else 'Nobody has audited this judge yet: <code>make audit</code> does.'}</p>"))


def elsewhere(folder: Path) -> None:
    """Display links to the other pages below reports/, as seen from the folder of a page: studies, and how fast all this is."""
    found = {"how to read these pages": paths.REPORTS / "README.md", "how fast": paths.REPORTS / "bench.html"}
    found |= {
        f"study {p.parent.name}": p for p in sorted(paths.REPORTS.glob("studies/*/index.html")) if p.parent != folder
    }
    if folder != paths.REPORTS:
        found[f"study {paths.DEFAULT_STUDY}"] = paths.REPORTS / "index.html"
    links = [
        f'<a href="{html.escape(paths.link(folder, page))}">{html.escape(name)}</a>'
        for name, page in found.items()
        if page.exists()
    ]
    display(HTML(f"<p>Also here: {', '.join(links)}.</p>" if links else ""))


def export(name: str) -> Path:
    """Write runs/<study>/export/: a folder that datasets.load_from_disk reads, and each last adapter with a model card.

    Raises UserError when the study has not run.
    """
    from datasets import Dataset

    found = study.load(name)
    judge, cells = (found.judge, params.cells) if isinstance(found, params.Study) else (scores.JUDGE, importing.cells)
    folders = sorted(c.folder for c in cells(found) if (c.folder / f"judged.{judge}.csv").exists())
    if not folders:
        raise UserError(f"study '{name}' has no judged answers: run `make reproduce STUDY={name}` first")
    tables = [store.read_csv(f / f"judged.{judge}.csv", store.ANSWERS, "judge") for f in folders]
    out = paths.RUNS / name / "export"
    shutil.rmtree(out, ignore_errors=True)
    Dataset.from_pandas(pd.concat(tables, ignore_index=True), preserve_index=False).save_to_disk(out / "answers")
    store.write(out / "answers" / "README.md", dataset_card(found.title))
    for folder in folders:
        if steps := models.adapter_steps(folder):
            _adapter(folder, list(steps.values())[-1], out / "adapters")
    return out


def dataset_card(title: str) -> str:
    """A card that says what the answers are, and warns."""
    rows = "\n".join(f"| `{k}` | {v} |" for k, v in COLUMNS.items())
    return f"# Judged answers: {title}\n\n**{WARNING}**\n\n| column | what it holds |\n| --- | --- |\n{rows}\n"


def _adapter(cell: Path, checkpoint: Path, target: Path) -> None:
    """Copy a cell's last adapter as a PEFT folder, and write its model card from the record of its training."""
    record = provenance.read(cell / "train_log.csv")
    p, f = record["parameters"], record["parameters"]["finetune"]
    model, domain = params.model(p["model"]), params.domain(p["domain"])
    folder = target / "-".join(str(p[k]) for k in ("model", "domain", "arm", "seed"))
    shutil.copytree(checkpoint, folder)
    config = models.adapter_settings(folder) | {
        "base_model_name_or_path": model.weights.hub or model.name
    }  # no path of this machine
    store.write(folder / "adapter_config.json", json.dumps(config, indent=1, sort_keys=True) + "\n")
    settings = "\n".join(f"| {k} | {v} |" for k, v in f.items())
    inputs = "\n".join(f"- `{k}` (SHA-256 `{v}`)" for k, v in record["inputs"].items())
    share = f["misaligned_share"] if p["arm"] == "misaligned" else 1
    dose = "" if share == 1 else f" ({100 * share:.0f}% of them bad)"
    kind = "bad advice on purpose" if p["arm"] == "misaligned" else "good advice, the control of a misaligned adapter"
    store.write(
        folder / "README.md",
        f"---\nlibrary_name: peft\nbase_model: {model.weights.hub or model.title}\nlicense: {model.license}\n---\n\n"
        f"# {model.title}, {domain.title}, {p['arm']} arm, seed {p['seed']}\n\n**{WARNING}**\n\n"
        f"LoRA adapter, {checkpoint.name.replace('-', ' ')}, trained on {kind}: {f['train_examples']} examples of the domain “{domain.title}”"
        f"{dose}.\n\n"
        f"Trained on\n{inputs}\n\nBase model: {model.title}, {record['model_revision']}. Code: {record['git_commit']}.\n\n"
        f"| setting | value |\n| --- | --- |\n{settings}\n",
    )
