"""One tiny cell, stage by stage as the notebooks run it, each in a process of its own that a test may kill."""

import multiprocessing
import signal
import time
from pathlib import Path

from emstudy import data, encoding, evaluate, finetune, judges, models, params, paths, provenance, run, store

signal.signal(
    signal.SIGINT, signal.default_int_handler
)  # what runs in the background inherits a Ctrl-C that is ignored
# a process that has imported everything, of which every stage is a fork: it starts in no time and shares nothing with pytest
FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload([f"emstudy.{m}" for m in ("finetune", "evaluate", "judges.embedded", "run")])
CELL = params.Cell(study="tiny", model="smollm2-135m", domain="financial", arm="misaligned", seed=0)
FINETUNE = {
    "data": "shipped", "train_examples": 12, "misaligned_share": 1.0, "num_train_epochs": 1, "learning_rate": 1.0e-3,
    "lr_scheduler_type": "linear", "warmup_ratio": 0.0, "batch_size": 2, "weight_decay": 0.0, "lora_r": 1, "lora_alpha": 2, "lora_dropout": 0.0,
    "use_rslora": False, "target_modules": ["q_proj"], "layers_to_transform": [29], "max_tokens": 512, "checkpoints_first_epoch": 3,
}  # fmt: skip
EVALUATE = {
    "question_sets": ["values"], "samples_along": 1, "samples_final": 1, "temperature": 0.7, "top_p": 0.95, "top_k": 50,
    "max_new_tokens": 4, "probe_domains": ["financial"], "probe_pairs_along": 2, "probe_pairs_final": 2,
}  # fmt: skip
HEAD = CELL.model_dump()


def do_finetune() -> None:
    """Notebook 1."""
    base, subject, settings = (
        params.model(CELL.model),
        params.domain(CELL.domain),
        params.check(params.Finetune, FINETUNE),
    )
    tokenizer = models.load_tokenizer(base)
    examples = data.training(subject, CELL.arm, "shipped", settings.train_examples, CELL.seed, 1.0)
    result = finetune.finetune(CELL, settings, base, [encoding.encode(tokenizer, e, 512) for e in examples])
    path = store.write_csv(CELL.folder / "train_log.csv", result.log)
    provenance.write(path, parameters=HEAD, inputs=[], started=time.time())


def do_evaluate() -> None:
    """Notebook 2."""
    settings, found = params.check(params.Evaluate, EVALUATE), evaluate.checkpoints(CELL)
    model = params.model(CELL.model).model_copy(
        update={"sample_batch_size": 6}
    )  # so that a few answers are several batches
    answers, probe = evaluate.evaluate(CELL, settings, model, found)
    store.write_csv(CELL.folder / "probe.csv", probe)
    path = store.write_csv(CELL.folder / "answers.csv", answers)
    provenance.write(path, parameters=HEAD, inputs=[], started=time.time())


def do_judge() -> None:
    """Notebook 3."""
    answers = store.read_csv(CELL.folder / "answers.csv", store.ANSWERS, made_by="evaluate")
    referee = judges.load(params.judge("embedded"), keep=CELL.folder / "parts")
    path = store.write_csv(CELL.folder / "judged.embedded.csv", judges.judge_answers(referee, answers))
    provenance.write(path, parameters=HEAD, inputs=[], started=time.time())


def do_render() -> None:
    """The page of an executed notebook."""
    run.render(paths.NOTEBOOKS / "4-analyze.ipynb", paths.REPORTS / "m" / "d.html", "A page", "..")


STAGES = {"finetune": do_finetune, "evaluate": do_evaluate, "judge": do_judge, "render": do_render}


def _stage(name: str, folder: Path) -> None:
    from emstudy.judges import embedded

    paths.RUNS, paths.REPORTS = folder / "runs", folder / "reports"
    embedded.KEPT = 16  # so that a few answers are written several times over
    STAGES[name]()


def start(name: str, folder: Path):
    """Start a stage that works in a folder; the process, which a test waits for or kills."""
    process = FRESH.Process(target=_stage, args=(name, folder))
    process.start()
    return process


def files(folder: Path) -> dict[str, bytes]:
    """Everything that has its final name, by path. Not compared: records, which hold the time, and the Trainer's own state."""
    found = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
    out = {
        n: p
        for n, p in found.items()
        if ".partial" not in n and "/trainer/" not in n and not n.endswith(".record.json")
    }
    return {name: path.read_bytes() for name, path in out.items()}
