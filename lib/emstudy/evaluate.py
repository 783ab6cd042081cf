"""Ask every checkpoint of a cell: answers to the study's questions, and the judge-free probe."""

import gc
from pathlib import Path

import pandas as pd

from emstudy import data, models, packed, params, paths, probe, remote, sample, store
from emstudy.errors import UserError


def checkpoints(cell: params.Cell) -> dict[int, Path | None]:
    """The cell's checkpoints by step; the base arm has step 0 and no adapter. Raises UserError when there is none."""
    if cell.arm == "base" or isinstance(params.model(cell.model), params.ApiModel):
        return {0: None}
    found = models.adapter_steps(cell.folder)
    if not found:
        raise UserError(
            f"{paths.show(cell.folder)} holds no adapter checkpoints: run the finetune notebook for {cell} first"
        )
    return dict(found)


def inputs(found: dict[int, Path | None]) -> list[Path]:
    """The adapter files that an evaluation rests on."""
    return [folder / "adapter_model.safetensors" for folder in found.values() if folder]


def evaluate(
    cell: params.Cell, settings: params.Evaluate, model: params.Model | params.ApiModel, found: dict[int, Path | None]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """(answers, probe) of all checkpoints, with store.ANSWERS and store.PROBE columns. A model behind an endpoint has no probe."""
    if isinstance(model, params.ApiModel):
        todo, seed = sample.asks(settings, settings.samples_final), sample.seed_of(cell.seed, 0)
        drawn = remote.sample(model, cell, todo, settings, seed, str(cell))
        return _answers(cell, 0, drawn), pd.DataFrame(columns=store.PROBE)
    tokenizer = models.load_tokenizer(model)
    tables = [
        _checkpoint(cell, settings, model, tokenizer, step, adapter, last=step == max(found))
        for step, adapter in found.items()
    ]
    answers, probed = (pd.concat(parts, ignore_index=True) for parts in zip(*tables, strict=True))
    return answers, probed


def _checkpoint(cell, settings, model, tokenizer, step: int, adapter: Path | None, last: bool) -> list[pd.DataFrame]:
    """[answers, probe] of one checkpoint. Both, and each batch of answers, are kept under parts/ as soon as they are whole, so that an
    interrupted run does not ask again; they are used again only for the very same settings, questions and adapter."""
    key = _key(settings, last, model, adapter)
    columns = {"answers": store.ANSWERS, "probe": store.PROBE}
    files = {kind: cell.folder / "parts" / f"step-{step:05d}.{key}.{kind}.csv" for kind in columns}
    if not all(f.exists() for f in files.values()):
        merged = packed.pack(models.load_merged(model, adapter))
        label, seed = f"{cell} step {step}", sample.seed_of(cell.seed, step)
        todo = sample.asks(settings, settings.samples_final if last else settings.samples_along)
        batches = files["answers"].with_suffix("")
        drawn = sample.sample(merged, tokenizer, todo, settings, model.sample_batch_size, seed, label, batches)
        n_pairs = settings.probe_pairs_final if last else settings.probe_pairs_along
        pairs = {d: data.heldout(params.domain(d), n_pairs) for d in settings.probe_domains}
        probed = probe.probe(merged, tokenizer, pairs, tokenizer.model_max_length, 32, f"{label} probe")
        store.write_csv(files["answers"], _answers(cell, step, drawn))
        store.write_csv(files["probe"], _stamp(cell, step, probed, store.PROBE))
        del merged
        gc.collect()
    return [store.read_csv(f, columns[kind], "evaluate") for kind, f in files.items()]


def _key(settings: params.Evaluate, last: bool, model: params.Model, adapter: Path | None) -> str:
    weights = store.sha256(adapter / "adapter_model.safetensors") if adapter else ""
    sets = [params.questions(q).model_dump_json() for q in settings.question_sets]
    pairs = [store.sha256(f) for d in settings.probe_domains for f in data.heldout_files(params.domain(d))]
    return f"{sample.seed_of(settings.model_dump_json(), last, model.model_dump_json(), weights, *sets, *pairs):012x}"


def _stamp(cell: params.Cell, step: int, table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    head = {"model": cell.model, "domain": cell.domain, "arm": cell.arm, "seed": cell.seed, "step": step}
    return table.assign(**head).reindex(columns=columns)


def _answers(cell: params.Cell, step: int, drawn: list[sample.Answer]) -> pd.DataFrame:
    rows = [
        {"question_set": a.ask.question_set, "question_id": a.ask.question_id, "sample": a.sample, "question": a.ask.question,
         "answer": a.text, "n_tokens": a.n_tokens, "finish_reason": a.finish_reason}
        for a in drawn
    ]  # fmt: skip
    table = _stamp(cell, step, pd.DataFrame(rows, columns=store.ANSWERS[5:]), store.ANSWERS)
    return table.sort_values(["question_set", "question_id", "sample"], ignore_index=True)


def counts(answers: pd.DataFrame) -> pd.DataFrame:
    """Answers by step and question set, with their median length and how many were cut off."""
    groups = answers.groupby(["step", "question_set"])
    cut = answers["finish_reason"].eq("length").groupby([answers["step"], answers["question_set"]]).sum()
    table = pd.DataFrame(
        {
            "questions": groups["question_id"].nunique(),
            "answers": groups.size(),
            "median tokens": groups["n_tokens"].median(),
            "cut off": cut,
        }
    )
    return table.reset_index()
