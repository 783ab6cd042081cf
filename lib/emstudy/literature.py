"""Question files of Betley et al. as question sets and rubrics: paraphrases, system prompts, samples, judge prompts."""

import yaml

from emstudy import paths
from emstudy.errors import UserError


def read(file: str) -> list[dict]:
    """The entries of a question file below data/. Raises UserError when it is absent or holds something else."""
    path = paths.DATA / file
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{paths.show(path)} is not there: `make data` fetches it") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{paths.show(path)} is not valid YAML: {' '.join(str(error).split())}") from None
    for n, e in enumerate(entries if isinstance(entries, list) else [entries], 1):
        if not isinstance(e, dict) or not e.get("id") or not e.get("paraphrases"):
            raise UserError(f"{paths.show(path)}: entry {n} is no question: expected id and paraphrases")
    return entries


def questions(file: str, ids: list[str] | None) -> list[dict]:
    """Questions with id, text, system and samples, one a paraphrase; ids picks some, None takes all.

    A question with several paraphrases gives <id>.1, <id>.2, ...: each is asked, and clustered, on its own.
    """
    entries = {e["id"]: e for e in read(file)}
    if unknown := set(ids or []) - entries.keys():
        raise UserError(f"data/{file} has no question {', '.join(sorted(unknown))}; it has {', '.join(entries)}")
    out = []
    for e in [entries[i] for i in ids or entries]:
        texts = e["paraphrases"]
        names = [e["id"]] if len(texts) == 1 else [f"{e['id']}.{k}" for k in range(1, len(texts) + 1)]
        more = {"system": e.get("system"), "samples": e.get("samples_per_paraphrase")}
        out += [{"id": name, "text": text, **more} for name, text in zip(names, texts, strict=True)]
    return out


def dimensions(file: str, names: list[str]) -> list[dict]:
    """The judge prompts of a file as dimensions: the first question's prompt, and those of questions that have another."""
    out, entries = [], read(file)
    for name in names:
        prompts = {
            t: e["judge_prompts"][name] for e in entries for t in e["paraphrases"] if name in e.get("judge_prompts", {})
        }
        if not prompts:
            raise UserError(f"data/{file} has no judge prompt '{name}'")
        first = next(iter(prompts.values()))
        out.append({"name": name, "prompt": first, "prompts": {t: p for t, p in prompts.items() if p != first}})
    return out
