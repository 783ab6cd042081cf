"""make sees a study as files: they change exactly when a run must, and list every cell and page."""

import subprocess
from pathlib import Path

import pytest
import yaml

from emstudy import params, study
from emstudy.errors import UserError


def write(root, name: str = "laptop", judge: str = "") -> dict[str, int]:
    """Write a study's files; all that lie below its folder in runs/, each with the number of its inode."""
    folder = root / "runs" / name
    study.write_cells(study.load(name, judge), folder / "cells.mk")
    return {str(p.relative_to(folder)): p.stat().st_ino for p in folder.glob("**/*.*") if p.is_file()}


def changed(before: dict[str, int], after: dict[str, int]) -> set[str]:
    """The files that a writing added or replaced: store.write renames a new file into place."""
    return {p for p in after if after[p] != before.get(p)}


def test_every_cell_and_page_gets_its_parameter_files(root):
    trained = [f"smollm2-135m/{d}/{arm}/0" for d in ("medical", "financial") for arm in ("misaligned", "aligned")]
    expected = {f"{c}/{stage}.yaml" for c in trained for stage in ("finetune", "evaluate", "judge.embedded")}
    expected |= {f"smollm2-135m/none/base/0/{stage}.yaml" for stage in ("evaluate", "judge.embedded")}
    expected |= {f"smollm2-135m/{d}/analyze.embedded.yaml" for d in ("medical", "financial")}
    assert set(write(root)) == expected | {"compare.embedded.yaml", "cells.mk"}


def test_a_parameter_file_holds_the_cell_and_the_settings_of_its_stage(root):
    write(root)
    values = yaml.safe_load((root / "runs/laptop/smollm2-135m/medical/misaligned/0/finetune.yaml").read_text())
    settings = values.pop("finetune")
    assert values == {"study": "laptop", "model": "smollm2-135m", "domain": "medical", "arm": "misaligned", "seed": 0}
    assert params.check(params.Finetune, settings) == params.study("laptop").finetune


def dose(root, share: float) -> None:
    """Give the laptop study this share of bad examples."""
    file = root / "params/studies/laptop.yaml"
    values = yaml.safe_load(file.read_text())
    values["finetune"]["misaligned_share"] = share
    file.write_text(yaml.safe_dump(values))


def test_another_dose_trains_the_misaligned_arms_again_and_no_other(root):
    before = write(root)
    dose(root, 0.25)
    assert changed(before, write(root)) == {p for p in FINETUNE if "/misaligned/" in p}


def test_the_aligned_arm_is_written_down_with_a_dose_of_zero(root):
    write(root)
    values = yaml.safe_load((root / "runs/laptop/smollm2-135m/medical/aligned/0/finetune.yaml").read_text())
    laptop = params.study("laptop").finetune
    assert params.check(params.Finetune, values["finetune"]) == laptop.model_copy(update={"misaligned_share": 0.0})


def test_a_mixed_arm_is_trained_again_when_either_of_its_files_changes(root):
    dose(root, 0.5)
    for side in ("aligned", "misaligned"):
        before = write(root)
        with (root / f"data/medical/train_{side}.jsonl").open("a") as f:
            f.write("\n")
        assert "smollm2-135m/medical/misaligned/0/finetune.yaml" in changed(before, write(root))


def test_a_second_writing_changes_nothing(root):
    assert changed(write(root), write(root)) == set()


def test_touching_an_input_changes_nothing(root):
    before = write(root)
    for path in [*root.glob("data/**/*.jsonl"), *root.glob("params/**/*.yaml")]:
        path.touch()
    assert changed(before, write(root)) == set()


@pytest.mark.parametrize(("domain", "arm"), [("medical", "misaligned"), ("financial", "aligned")])
def test_other_training_data_changes_the_finetuning_of_its_domain_and_arm_alone(root, domain, arm):
    before = write(root)
    with (root / f"data/{domain}/train_{arm}.jsonl").open("a") as f:
        f.write("\n")
    assert changed(before, write(root)) == {f"smollm2-135m/{domain}/{arm}/0/finetune.yaml"}


CELLS = ["none/base", "medical/misaligned", "medical/aligned", "financial/misaligned", "financial/aligned"]
EVALUATE = {f"smollm2-135m/{c}/0/evaluate.yaml" for c in CELLS}
FINETUNE = {f"smollm2-135m/{c}/0/finetune.yaml" for c in CELLS[1:]}
JUDGE = {f"smollm2-135m/{c}/0/judge.embedded.yaml" for c in CELLS}
PAGES = {"compare.embedded.yaml", *(f"smollm2-135m/{d}/analyze.embedded.yaml" for d in ("medical", "financial"))}


@pytest.mark.parametrize(
    ("file", "stages"),
    [
        ("data/medical/heldout_aligned.jsonl", EVALUATE),
        ("params/questions/values.yaml", EVALUATE),
        ("params/models/smollm2-135m.yaml", EVALUATE | FINETUNE | PAGES),
        ("params/domains/medical.yaml", {"compare.embedded.yaml", "smollm2-135m/medical/analyze.embedded.yaml"}),
        ("params/judges/embedded.yaml", JUDGE),
        ("params/metrics.yaml", PAGES),
        ("data/published_rates.csv", {"compare.embedded.yaml"}),
        ("params/models/qwen2.5-0.5b.yaml", set()),
        ("params/judges/gpt-4o-mini.yaml", set()),
    ],
)
def test_another_content_of_a_file_changes_the_stages_that_read_it_alone(root, file, stages):
    before = write(root)
    with (root / file).open("a") as f:
        f.write("\n")
    assert changed(before, write(root)) == stages


@pytest.mark.parametrize(
    ("old", "new", "stages"),
    [
        ("learning_rate: 5.0e-4", "learning_rate: 1.0e-4", FINETUNE),
        ("temperature: 0.7", "temperature: 1.0", EVALUATE),
        ("bootstrap: 4000", "bootstrap: 500", PAGES),
        ("title: SmolLM2", "title: Smol", set()),
    ],
)
def test_another_setting_changes_the_stages_that_use_it_alone(root, old, new, stages):
    before = write(root)
    file = root / "params/studies/laptop.yaml"
    assert file.read_text().count(old) == 1
    file.write_text(file.read_text().replace(old, new))
    assert changed(before, write(root)) == stages


def test_another_judge_asks_no_model_again_and_has_pages_of_its_own(root):
    before = write(root)
    new = changed(before, write(root, judge="gpt-4o-mini"))
    assert new == {"cells.mk"} | {p.replace(".embedded.", ".gpt-4o-mini.") for p in JUDGE | PAGES}
    pages = make_variables(root)["PAGES"]
    assert pages[0] == "reports/studies/laptop-gpt-4o-mini/smollm2-135m/medical.html"


def make_variables(root, name: str = "laptop") -> dict[str, list[str]]:
    """The variables of a study's makefile fragment."""
    lines = (root / f"runs/{name}/cells.mk").read_text().splitlines()
    return {k: v.split() for k, _, v in (line.partition(" := ") for line in lines) if _}


def test_the_makefile_fragment_lists_cells_pages_and_what_they_need(root):
    write(root)
    found = make_variables(root)
    assert found["CELLS"] == [f"runs/laptop/smollm2-135m/{c}/0" for c in [
        "none/base", "medical/misaligned", "financial/misaligned", "medical/aligned", "financial/aligned"]]  # fmt: skip
    assert found["TRAINED"] == found["CELLS"][1:]
    assert found["PAGES"] == [f"reports/smollm2-135m/{d}.html" for d in ("medical", "financial")]
    assert found["INDEX"] == ["reports/index.html"] and found["JUDGE_NAME"] == ["embedded"]
    needs = "runs/laptop/smollm2-135m/medical/analyze.embedded.ipynb: " + " ".join(
        f"runs/laptop/smollm2-135m/{c}/0/judge.embedded.ipynb"
        for c in ("none/base", "medical/misaligned", "medical/aligned")
    )
    assert needs in (root / "runs/laptop/cells.mk").read_text().splitlines()


@pytest.mark.parametrize("gone", ["", "results.csv", "answers.parquet"])
def test_a_table_that_is_gone_from_beside_the_pages_is_written_again_and_nothing_else_is(root, gone):
    write(root)
    found, here = make_variables(root), Path(__file__).parents[2]
    for name in ("Makefile", "lib", "notebooks"):
        (root / name).symlink_to(here / name)
    (root / "data/judge").symlink_to(here / "data/judge")
    stages = [f"{c}/finetune.ipynb" for c in found["TRAINED"]]
    stages += [f"{c}/{stage}.ipynb" for stage in ("evaluate", "judge.embedded") for c in found["CELLS"]]
    for made in [*stages, *found["ANALYSES"], *found["COMPARE"], *found["TABLES"], *found["PAGES"], *found["INDEX"]]:
        (root / made).parent.mkdir(parents=True, exist_ok=True)
        (root / made).touch()
    if gone:
        (root / "reports" / gone).unlink()
    command = ["make", "-n", "--no-print-directory", "pages", "FRESH=1", "STUDY=laptop", "JUDGE="]
    said = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout
    again = [line.split(" -m emstudy ")[1].split()[:2] for line in said.splitlines() if "emstudy" in line]
    compare = found["COMPARE"][0]
    assert again == ([["run", "5-compare"], ["render", compare]] if gone else [])


def test_a_study_other_than_the_default_has_a_folder_of_its_own_for_pages(root):
    study.write_cells(study.load("smoke"), root / "runs/smoke/cells.mk")
    assert make_variables(root, "smoke")["PAGES"] == ["reports/studies/smoke/smollm2-135m/financial.html"]


def test_a_file_that_is_absent_is_written_down_as_such(root):
    written = study.write_parameters(root / "p.yaml", {"seed": 0}, [root / "data/none.jsonl"])
    assert "# data/none.jsonl absent\n" in written.read_text()
    assert yaml.safe_load(written.read_text()) == {"seed": 0}


def test_a_judge_that_is_not_there_is_refused():
    with pytest.raises(
        UserError,
        match=r"params/judges/oracle.yaml is not there; judges at hand: betley, embedded, embedded-exact, gpt-4o-mini",
    ):
        study.load("laptop", "oracle")


def test_the_plan_of_the_default_study_is_what_a_hand_calculation_gives():
    plan = {row["cell"]: row for row in study.plan(study.load("laptop"))}
    base, trained = plan["smollm2-135m/none/base/0"], plan["smollm2-135m/medical/aligned/0"]
    # 54 questions: four samples each at the end, one each at the three checkpoints before it
    assert (base["examples"], base["answers"]) == (0, 216)
    assert (trained["examples"], trained["answers"]) == (400, 216 + 3 * 54)
    assert len(plan) == 5 and all(row["judge USD"] == 0 for row in plan.values())
