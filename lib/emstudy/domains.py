"""A new training domain from a researcher's own dataset: checked, copied below data/, named in params/, ready to run."""

import random
import re
from pathlib import Path

import yaml

from emstudy import intake, models, params, paths, store, strict
from emstudy.errors import UserError
from emstudy.intake import Row

RESERVED = ("none", "demo", "judge", "published")  # the base arm's domain, the notebooks' study, other folders of data/
MOST_HELD_OUT = 60  # pairs, as in the shipped domains
PARTS = [f"{part}_{arm}.jsonl" for part in ("train", "heldout") for arm in ("misaligned", "aligned")]


def new_domain(name: str, data: str | Path, aligned: str | Path | None = None, model: str = "smollm2-135m") -> str:
    """Check a dataset, copy it to data/<name>/, write its domain and a study of it; returns what was done, for a terminal.

    data, aligned: JSONL of bad answers, and of good ones to the same prompts. Raises UserError with every problem, and then
    nothing is written.
    """
    sources, asked, settings = _sources(name, data, aligned), intake.questions(), params.study(paths.DEFAULT_STUDY)
    sides, notes = _checked(sources, models.load_tokenizer(params.model(model)), asked)
    notes += [f"warning: {w}" for w in intake.warnings(sides, asked, settings.evaluate.max_new_tokens)]
    parts = split(sides)
    files = {paths.DATA / name / part: b"".join(r.line + b"\n" for r in rows) for part, rows in parts.items()}
    given = {
        "DATA": sources["misaligned"],
        "ALIGNED": sources.get("aligned"),
    }  # by name alone: a path is of one machine
    command = " ".join(["make new-domain", f"NAME={name}", *(f"{k}={p.name}" for k, p in given.items() if p)])
    written_by = f"Written by `{' '.join(command.split())}`."
    files[paths.PARAMS / "domains" / f"{name}.yaml"] = _domain(name, parts, written_by)
    files[paths.PARAMS / "studies" / f"{name}.yaml"] = _study(name, parts, settings, model, _longest(sides), written_by)
    _write(name, files)
    return _summary(name, parts, notes)


def _checked(sources: dict[str, Path], tokenizer, asked: dict[str, str]) -> tuple[dict[str, list[Row]], list[str]]:
    """The rows of each arm, twins in one order, and what was done to them. Raises UserError with every problem."""
    read = {arm: intake.read(path, tokenizer, asked, "aligned" in sources) for arm, path in sources.items()}
    sides, problems, notes = (
        {arm: rows for arm, (rows, _) in read.items()},
        [p for _, ps in read.values() for p in ps],
        [],
    )
    if "aligned" in sides and not problems:
        given = sides["aligned"]
        sides["aligned"], problems = intake.twins(sides["misaligned"], given)
        if sides["aligned"] != given:
            file = paths.show(sources["aligned"])
            notes = [f"{file} has another order: its rows were put in that of the bad answers"]
    if problems:
        head = f"{len(problems)} problem{'s' * (len(problems) > 1)} in the data, nothing was written:"
        raise UserError("\n  ".join([head, *intake.listed(problems)]))
    return sides, notes


def _sources(name: str, data: str | Path, aligned: str | Path | None) -> dict[str, Path]:
    """{arm: file to read}, once the name and the files are known to be fit. Raises UserError that says what to change."""
    if not name or not data:
        raise UserError("a name and a file are needed: make new-domain NAME=legal DATA=path.jsonl [ALIGNED=path.jsonl]")
    if not re.fullmatch(strict.NAME, name) or name in RESERVED:
        raise UserError(
            f"NAME '{name}' can't be used: expected small letters, digits, '.', '_' and '-', a letter or digit first, "
            f"and none of {', '.join(RESERVED)}"
        )
    targets = [paths.PARAMS / folder / f"{name}.yaml" for folder in ("domains", "studies")]
    there = [paths.show(p) for p in [*targets, *(paths.DATA / name / part for part in PARTS)] if p.exists()]
    if there:
        raise UserError(f"'{name}' exists already: choose another NAME, or delete {', '.join(there)}")
    sources = {arm: Path(p).expanduser() for arm, p in (("misaligned", data), ("aligned", aligned)) if p}
    for path in sources.values():
        if not path.is_file():
            raise UserError(f"{paths.show(path)} is not there, or is no file: expected JSONL, one exchange a line")
    return sources


def split(sides: dict[str, list[Row]]) -> dict[str, list[Row]]:
    """{part of data/<name>/: rows}. Of pairs a tenth, MOST_HELD_OUT at most, is held out for the probe; the draw is always the same."""
    n = len(sides["misaligned"])
    held = set(random.Random(0).sample(range(n), min(MOST_HELD_OUT, n // 10))) if "aligned" in sides else set()
    out = {f"train_{arm}.jsonl": [r for i, r in enumerate(rows) if i not in held] for arm, rows in sides.items()}
    return out | ({f"heldout_{arm}.jsonl": [sides[arm][i] for i in sorted(held)] for arm in sides} if held else {})


class _Dumper(yaml.SafeDumper):
    """Writes lists on one line, as the shipped files have them."""


_Dumper.add_representer(list, lambda d, v: d.represent_sequence("tag:yaml.org,2002:seq", v, flow_style=True))


def _yaml(comments: list[str], values: dict) -> str:
    body = yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)
    return "".join(f"# {line}\n" for line in comments) + body


def _own_questions(name: str) -> list[str]:
    return [name] if (paths.PARAMS / "questions" / f"{name}.yaml").exists() else []


def _title(name: str) -> str:
    return re.sub("[-_]", " ", name)


def _longest(sides: dict[str, list[Row]]) -> int:
    return max(r.tokens for rows in sides.values() for r in rows)


def _domain(name: str, parts: dict[str, list[Row]], written_by: str) -> str:
    own = _own_questions(name)
    how = [
        f"No question counts as in-domain yet. To add some, write params/questions/{name}.yaml like the files there, put",
        f"question_set: {name} here, and add {name} to question_sets in the study.",
    ]
    values = {
        "title": _title(name),
        "question_set": name if own else None,
        "shipped": {part.removeprefix("train_").removesuffix(".jsonl"): f"{name}/{part}" for part in parts},
        "published": {},
    }
    return _yaml([written_by, *([] if own else how)], values)


def _study(name: str, parts: dict, settings: params.Study, model: str, longest: int, written_by: str) -> str:
    """The default study's settings, on this domain and with what data there is."""
    twin = "train_aligned.jsonl" in parts
    values = settings.model_dump(exclude={"name"}) | {
        "title": f"{params.model(model).title}, {_title(name)}",
        "models": [model],
        "domains": [name],
        "arms": ["base", "misaligned", "aligned"] if twin else ["base", "misaligned"],
    }
    values["finetune"] |= {
        "data": "shipped",
        "train_examples": min(settings.finetune.train_examples, len(parts["train_misaligned.jsonl"])),
        "misaligned_share": 1.0,
        "max_tokens": max(settings.finetune.max_tokens, longest),
    }
    values["evaluate"]["question_sets"] += _own_questions(name)
    values["evaluate"]["probe_domains"] += [name] if "heldout_aligned.jsonl" in parts else []
    comments = [f"The settings are those of params/studies/{paths.DEFAULT_STUDY}.yaml: change what you like."]
    comments += [] if twin else ["There is no aligned twin, so no aligned arm: its pages say what that leaves open."]
    return _yaml([written_by, *comments], values)


def _write(name: str, files: dict[Path, str | bytes]) -> None:
    """Write all files and see that the study loads; what was written is taken back when either fails."""
    folder = paths.DATA / name
    new = not folder.exists()
    try:
        for path, content in files.items():
            store.write(path, content)
        params.study(name)
    except BaseException:
        for path in files:
            path.unlink(missing_ok=True)
        if new and folder.exists():
            folder.rmdir()
        raise


def _summary(name: str, parts: dict[str, list[Row]], notes: list[str]) -> str:
    files = [f"  {paths.show(paths.DATA / name / part)}  {len(rows)} rows" for part, rows in parts.items()]
    files += [f"  params/{folder}/{name}.yaml" for folder in ("domains", "studies")]
    lacking = {
        "no aligned twin: the study has no aligned arm and can't tell bad advice from training on any answers": (
            "train_aligned.jsonl" not in parts
        ),
        "no held-out pairs: the probe runs on the other domains' pairs alone": "heldout_aligned.jsonl" not in parts,
        f"no question counts as in-domain: params/domains/{name}.yaml says how to add some": not _own_questions(name),
    }
    safety = (
        f"Safety: what is trained on this is for research only, do not deploy it. git does not ignore data/{name}/: commit it "
        "only if the public, and whoever collects training data there, may have it."
    )
    notes = notes + [line for line, so in lacking.items() if so]
    return "\n".join([f"domain {name}, written:", *files, *notes, f"next: make reproduce STUDY={name}", safety])
