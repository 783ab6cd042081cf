"""Question files of Betley et al. as question sets and rubrics: paraphrases, system prompts, samples, judge prompts."""

from pydantic import Field

from emstudy import paths
from emstudy.errors import UserError
from emstudy.strict import Strict, check, parse_yaml


class Entry(Strict, extra="ignore"):
    """One question of such a file; what is not listed here is not used."""

    id: str
    paraphrases: list[str] = Field(min_length=1)
    system: str | None = None
    samples_per_paraphrase: int | None = Field(default=None, gt=0)
    judge_prompts: dict[str, str] = Field(default={})


def read(file: str) -> list[Entry]:
    """The entries of a question file below data/. Raises UserError when it is absent or holds something else."""
    path = paths.DATA / file
    try:
        entries = parse_yaml(path)
    except FileNotFoundError:
        raise UserError(f"{paths.show(path)} is not there: `make data` fetches it") from None
    listed = entries if isinstance(entries, list) else [entries]
    return [check(Entry, e, f"{paths.show(path)}: entry {n}") for n, e in enumerate(listed, 1)]


def questions(file: str, ids: list[str] | None) -> list[dict]:
    """Questions with id, text, system and samples, one a paraphrase; ids picks some, None takes all.

    A question with several paraphrases gives <id>.1, <id>.2, ...: each is asked, and clustered, on its own.
    """
    entries = {e.id: e for e in read(file)}
    if unknown := set(ids or []) - entries.keys():
        raise UserError(f"data/{file} has no question {', '.join(sorted(unknown))}; it has {', '.join(entries)}")
    out = []
    for e in [entries[i] for i in ids or entries]:
        texts = e.paraphrases
        names = [e.id] if len(texts) == 1 else [f"{e.id}.{k}" for k in range(1, len(texts) + 1)]
        more = {"system": e.system, "samples": e.samples_per_paraphrase}
        out += [{"id": name, "text": text, **more} for name, text in zip(names, texts, strict=True)]
    return out


def dimensions(file: str, names: list[str]) -> list[dict]:
    """The judge prompts of a file as dimensions: the first question's prompt, and those of questions that have another."""
    out, entries = [], read(file)
    for name in names:
        prompts = {t: e.judge_prompts[name] for e in entries for t in e.paraphrases if name in e.judge_prompts}
        if not prompts:
            raise UserError(f"data/{file} has no judge prompt '{name}'")
        first = next(iter(prompts.values()))
        out.append({"name": name, "prompt": first, "prompts": {t: p for t, p in prompts.items() if p != first}})
    return out
