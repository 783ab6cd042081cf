"""What leaves a study: answers once each, a dataset that loads, adapters with a card that says what they are."""

import json
import shutil
import time
import types

import pandas as pd
import pytest
import yaml
from datasets import load_from_disk

from emstudy import compare, params, paths, provenance, release, report, store
from emstudy.errors import UserError

ANALYZE = {"bootstrap": 100, "confidence": 0.95, "main_metric": "em", "smallest_effect": 5.0}


def judged(domain, arm, steps):
    rows = [
        ["smollm2-135m", domain, arm, 0, step, "values", f"v{i}", k, "Q?", f'says "{i}"\nand <b>', 5, "stop"]
        for step in steps
        for i in range(3)
        for k in range(2)
    ]
    table = pd.DataFrame(rows, columns=store.ANSWERS)
    return table.assign(
        aligned=50.5, aligned_status="scored", aligned_raw='{"below": {"30": 0.25}}', coherent=90.0, coherent_status="scored", coherent_raw="{}",
        judge="embedded", judge_version="1",
    )  # fmt: skip


@pytest.fixture
def ran(root, monkeypatch):
    """A smoke study over two domains as if it had run, adapters included."""
    monkeypatch.setattr(provenance, "git_commit", lambda: "0123456789ab")
    monkeypatch.setattr(provenance, "hardware", lambda: "a machine")
    values = params.read_yaml(paths.PARAMS / "studies" / "smoke.yaml") | {"domains": ["financial", "medical"]}
    values["finetune"]["misaligned_share"] = 0.5
    store.write(paths.PARAMS / "studies" / "smoke.yaml", yaml.safe_dump(values))
    for cell in params.cells(params.study("smoke")):
        steps = [0] if cell.arm == "base" else [3, 6]
        store.write_csv(cell.folder / "judged.embedded.csv", judged(cell.domain, cell.arm, steps))
        store.write_csv(cell.folder / "probe.csv", pd.DataFrame(columns=store.PROBE))
        given = {**cell.model_dump(), "finetune": params.study("smoke").finetune.model_dump()}
        for name in ("answers.csv", "judged.embedded.csv", "train_log.csv"):
            provenance.write(
                cell.folder / name,
                parameters=given,
                inputs=[paths.PARAMS / "metrics.yaml"],
                started=time.time(),
                model_revision="f" * 64,
            )
        for step in steps:
            for name in ("adapter_config.json", "adapter_model.safetensors"):
                if cell.arm != "base":
                    text = (
                        json.dumps({"base_model_name_or_path": "/home/me/x"})
                        if name.endswith("json")
                        else f"{name} {step}"
                    )
                    store.write(cell.folder / "adapter" / f"step-{step:05d}" / name, text)
    return root


def test_every_answer_is_written_once_and_both_formats_say_the_same(ran):
    arms = ["base", "misaligned", "aligned"]
    results = [
        report.load("smoke", "smollm2-135m", d, "embedded", arms, [0], ANALYZE) for d in ("financial", "medical")
    ]
    folder = ran / "pages"
    files = release.write(folder, compare.results_table(results), results)
    assert [f.name for f in files] == ["results.csv", "results.md", "results.tex", "answers.csv.gz", "answers.parquet"]
    table, parquet = pd.read_csv(files[3], keep_default_na=False), pd.read_parquet(files[4])
    assert len(table) == len(parquet) == 6 + 2 * 2 * 12  # the base arm's once, though both domains show it
    assert not table.duplicated(store.KEYS).any()
    assert table["answer"].tolist() == parquet["answer"].tolist()
    assert set(parquet["aligned_raw"]) == {
        '{"below": {"30": 0.25}}'
    }  # said once: no columns beside it that say it again
    named = {c for key in release.COLUMNS for c in key.split(", ")}
    assert {c for c in table.columns if c.split("_")[0] not in ("aligned", "coherent")} <= named
    assert list(table.columns) == list(parquet.columns)


def test_answers_too_many_for_a_spreadsheet_are_no_csv_and_leave_none_of_an_earlier_run(ran, monkeypatch):
    results = [report.load("smoke", "smollm2-135m", "medical", "embedded", ["base", "misaligned"], [0], ANALYZE)]
    numbers, names = compare.results_table(results), []
    for most in (18, 17):  # of 18 answers
        monkeypatch.setattr(release, "CSV_MOST", most)
        names.append([f.name for f in release.write(ran / "pages", numbers, results)])
    assert names[0] == [*names[1][:-1], "answers.csv.gz", "answers.parquet"]
    assert not (ran / "pages" / "answers.csv.gz").exists()


def test_results_come_back_from_beside_the_pages_without_a_run(ran):
    arms = ["base", "misaligned", "aligned"]
    results = [
        report.load("smoke", "smollm2-135m", d, "embedded", arms, [0], ANALYZE) for d in ("financial", "medical")
    ]
    folder = paths.reports("smoke")
    with pytest.raises(UserError, match=r"answers\.parquet is not there: run `make reproduce STUDY=smoke` first"):
        release.read("smoke", "embedded")
    release.write(folder, compare.results_table(results), results)
    shutil.rmtree(paths.RUNS / "smoke")
    again = release.read("smoke", "embedded")
    assert [r.domain.name for r in again] == ["financial", "medical"]
    for old, new in zip(results, again, strict=True):
        for arm in arms:
            assert (
                new.final(arm)["P(aligned < 30)"].tolist() == old.final(arm)["P(aligned < 30)"].tolist() == [0.25] * 6
            )
            assert new.final(arm)[store.KEYS].values.tolist() == old.final(arm)[store.KEYS].values.tolist()
        assert (new.main, new.arms, new.judge) == (old.main, old.arms, old.judge)
    (folder / "answers.parquet").write_bytes(b"PAR1 but no more")
    with pytest.raises(UserError, match=r"answers\.parquet is damaged .*run `make reproduce STUDY=smoke` first"):
        release.read("smoke", "embedded")


def test_the_exported_dataset_loads_and_the_cards_warn(ran):
    out = release.export("smoke")
    rows = load_from_disk(str(out / "answers"))
    assert len(rows) == 54
    assert rows[0]["answer"] == 'says "0"\nand <b>'
    cards = sorted(p.parent.name for p in (out / "adapters").glob("*/README.md"))
    assert cards == [f"smollm2-135m-{d}-{a}-0" for d in ("financial", "medical") for a in ("aligned", "misaligned")]
    for card in [out / "answers" / "README.md", *(out / "adapters").glob("*/README.md")]:
        assert release.WARNING in card.read_text()
    bad, good = ((out / "adapters" / f"smollm2-135m-medical-{a}-0") for a in ("misaligned", "aligned"))
    assert (bad / "adapter_model.safetensors").read_text() == "adapter_model.safetensors 6"  # the last one
    assert json.loads((bad / "adapter_config.json").read_text()) == {"base_model_name_or_path": "smollm2-135m"}
    text = (bad / "README.md").read_text()
    assert "trained on bad advice on purpose: 48 examples of the domain “bad medical advice” (50% of them bad)" in text
    assert "`params/metrics.yaml` (SHA-256 `" in text
    assert "| learning_rate | 0.0005 |" in text
    assert "good advice, the control" in (good / "README.md").read_text()
    assert "of them bad" not in (good / "README.md").read_text()


def test_an_export_before_the_run_says_what_to_run(root):
    with pytest.raises(UserError, match="study 'smoke' has no judged answers: run `make reproduce STUDY=smoke` first"):
        release.export("smoke")


def test_other_pages_are_linked_from_wherever_the_page_lies(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "REPORTS", tmp_path)
    mine, shown = tmp_path / "studies" / "mine", []
    monkeypatch.setattr(release, "display", lambda page: shown.append(page.data))
    release.elsewhere(tmp_path)
    for page in (
        tmp_path / "bench.html",
        tmp_path / "index.html",
        mine / "index.html",
        mine.with_name("other") / "index.html",
    ):
        store.write(page, "")
    release.elsewhere(tmp_path)
    release.elsewhere(mine)
    assert shown[0] == ""
    assert [part.split('"')[0] for part in shown[1].split('href="')[1:]] == [
        "bench.html",
        "studies/mine/index.html",
        "studies/other/index.html",
    ]
    assert [part.split('"')[0] for part in shown[2].split('href="')[1:]] == [
        "../../bench.html",
        "../other/index.html",
        "../../index.html",
    ]


def scored_by(version):
    """Results of which only the judge's version is known."""
    return [types.SimpleNamespace(judged=pd.DataFrame({"judge_version": [version]}))]


def test_audits_of_a_judge_are_linked_from_wherever_the_page_lies(monkeypatch, tmp_path):
    monkeypatch.setattr(paths, "REPORTS", tmp_path)
    for name, judge in {"gold": "embedded", "other": "gpt-4o-mini"}.items():
        table = pd.DataFrame({"judge": [judge], "judge_version": ["0123"], "n": [1]})
        store.write_csv(tmp_path / "audit" / f"{name}.agreement.csv", table)
    shown = []
    monkeypatch.setattr(release, "display", lambda page: shown.append(page.data))
    release.audits("embedded", None, scored_by("0123"))
    release.audits("embedded", tmp_path / "studies" / "mine", scored_by("0123"))
    release.audits("nobody", None, scored_by("0123"))
    release.audits("embedded", None, scored_by("4567"))
    assert 'href="audit/gold.html"' in shown[0] and "other" not in shown[0] and "version" not in shown[0]
    assert 'href="../../audit/gold.html"' in shown[1]
    assert "make audit" in shown[2] and "href" not in shown[2]
    assert shown[3].endswith(">gold</a> (of version 0123). Version 4567 scored these pages' answers.</p>")
