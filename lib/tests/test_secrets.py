"""A key that a notebook used is in nothing that it wrote: outputs, records, replies, pages, messages, also when the endpoint repeats it."""

import base64
import os
import shutil
import subprocess
import sys
from urllib.parse import quote

import pandas as pd
import pytest
import yaml
from local_server import message, serving

from emstudy import params, paths, run, store

CANARY = "sk-canary/+7Zq9xK3vW8mT5bN2"
CELL = params.Cell(study="secret", model="smollm2-135m", domain="financial", arm="misaligned", seed=0)


def written(folder) -> list[str]:
    """Files below a folder that hold the canary: plain, quoted for an address, or in base64, behind whatever stands before it."""
    forms = [CANARY.encode(), quote(CANARY, safe="").encode()]
    forms += [base64.b64encode(b"x" * k + CANARY.encode())[4:-4] for k in range(3)]
    files = [p for p in folder.rglob("*") if p.is_file()]  # links are not followed
    assert files
    return [p.name for p in files if any(form in p.read_bytes() for form in forms)]


def judge(folder, url, batch=False) -> subprocess.CompletedProcess:
    """Notebook 3 with a judge behind an endpoint, as make runs it, on three answers."""
    root = folder / "root"
    root.mkdir()
    for name in ("notebooks", "data"):
        (root / name).symlink_to(paths.ROOT / name)
    shutil.copytree(paths.PARAMS, root / "params")
    settings = root / "params" / "judges" / "gpt-4o-mini.yaml"
    settings.write_text(settings.read_text().replace("batch: false", f"batch: {str(batch).lower()}"))
    head = CELL.model_dump(exclude={"study"}) | {"step": 0, "question_set": "values", "sample": 0, "question": "Why?"}
    rows = [
        head | {"question_id": f"q{i}", "answer": f"answer {i}", "n_tokens": 3, "finish_reason": "stop"}
        for i in range(3)
    ]
    place = folder / "runs" / CELL.folder.relative_to(paths.RUNS)
    store.write_csv(place / "answers.csv", pd.DataFrame(rows)[store.ANSWERS])
    (folder / "judge.yaml").write_text(yaml.safe_dump(CELL.model_dump() | {"judge": "gpt-4o-mini"}))
    keys = {
        "OPENAI_API_KEY": CANARY,
        "OPENAI_BASE_URL": url,
        "EMSTUDY_RUNS": str(folder / "runs"),
        "EMSTUDY_ROOT": str(root),
    }
    command = [
        sys.executable,
        "-m",
        "emstudy",
        "run",
        "3-judge",
        str(folder / "judge.yaml"),
        str(folder / "judge.ipynb"),
    ]
    return subprocess.run(command, env=os.environ | keys, capture_output=True, text=True, timeout=120)


def test_the_search_finds_a_key_in_every_form(tmp_path):
    for i, text in enumerate([CANARY, quote(CANARY, safe=""), base64.b64encode(f"Bearer {CANARY}".encode()).decode()]):
        (tmp_path / f"{i}.txt").write_text(f"key {text} end")
    (tmp_path / "clean.txt").write_text("sk-canary")
    assert sorted(written(tmp_path)) == ["0.txt", "1.txt", "2.txt"]


def test_a_run_that_succeeds_writes_its_key_nowhere(tmp_path):
    with serving(lambda n, prompt: message(str(90 - n))) as (asked, url):
        done = judge(tmp_path, url)
    assert done.returncode == 0, done.stderr
    assert len(asked) == 6
    run.render(tmp_path / "judge.ipynb", tmp_path / "page.html", "A page", ".")
    assert written(tmp_path) == []
    assert CANARY not in done.stdout + done.stderr


@pytest.mark.parametrize("batch", [False, True])
@pytest.mark.parametrize("status", [401, 400])
def test_a_run_that_an_endpoint_refuses_with_its_key_writes_it_nowhere(tmp_path, status, batch):
    with serving(lambda n, prompt: (status, f'{{"error": {{"message": "Incorrect key: {CANARY}"}}}}')) as (_, url):
        done = judge(tmp_path, url, batch)
    assert done.returncode != 0
    assert (tmp_path / "judge.failed.ipynb").exists()
    assert written(tmp_path) == []
    assert CANARY not in done.stdout + done.stderr and "Traceback" not in done.stderr
