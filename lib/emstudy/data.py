"""Chat JSONL in, checked: training examples and held-out pairs."""

import codecs
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path

from emstudy import params, paths
from emstudy.errors import UserError


@dataclass(frozen=True)
class Example:
    """One exchange: what the user asks and what the assistant answers; `system` is empty when the data has none."""

    prompt: str
    answer: str
    system: str = ""
    topic: str = ""

    @property
    def messages(self) -> list[dict]:
        """The exchange in chat form, ready for a template."""
        head = [{"role": "system", "content": self.system}] if self.system else []
        return [*head, {"role": "user", "content": self.prompt}, {"role": "assistant", "content": self.answer}]


@dataclass(frozen=True)
class Pair:
    """A prompt with its aligned and its misaligned answer."""

    prompt: str
    aligned: str
    misaligned: str


def read_chat(path: Path) -> list[Example]:
    """Read `{"messages": [user, assistant]}` lines, an opening system message allowed.

    Raises UserError with the file, the line and what is wrong.
    """
    if not path.exists():
        raise UserError(f"{paths.show(path)} is not there. {_advice(path)}")
    out = []
    for n, line in enumerate(path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if line.strip():
            out.append(_example(line, f"{paths.show(path)}, line {n}"))
    if not out:
        raise UserError(f"{paths.show(path)} holds no examples: expected one JSON object a line")
    return out


def _advice(path: Path) -> str:
    if path.is_relative_to(paths.PUBLISHED):
        return "The published data is not part of this project: decrypt the authors' archive and put the file there."
    return "Training data is JSONL under data/, named in params/domains/."


def _example(line: bytes, where: str) -> Example:
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg} at character {error.pos})") from None
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise UserError(f'{where}: expected {{"messages": [...]}}, found {line.decode()[:60]!r}')
    roles = [m.get("role") for m in messages]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        raise UserError(f"{where}: expected the roles user, assistant (after at most one system), found {roles}")
    texts = [m.get("content") for m in messages]
    if not all(isinstance(t, str) and t.strip() for t in texts):
        raise UserError(f"{where}: a message is empty or not text")
    return Example(
        prompt=texts[-2], answer=texts[-1], system=texts[0] if len(texts) == 3 else "", topic=row.get("topic", "")
    )


def training_file(domain: params.Domain, arm: str, source: str) -> Path:
    """The file an arm of a domain is trained on; source is 'shipped' or 'published'."""
    if source == "published" and arm not in domain.published:
        raise UserError(
            f"domain '{domain.name}' has no published {arm} data: drop the {arm} arm from the study, or use data: shipped"
        )
    return paths.DATA / (domain.shipped[arm] if source == "shipped" else domain.published[arm])


def training(domain: params.Domain, arm: str, source: str, n: int, seed: int) -> list[Example]:
    """n examples of an arm in a seeded order: arms of one seed see the same prompts in the same order."""
    rows = read_chat(training_file(domain, arm, source))
    if n > len(rows):
        raise UserError(
            f"train_examples is {n}, but {paths.show(training_file(domain, arm, source))} has {len(rows)} rows"
        )
    order = random.Random(seed).sample(range(len(rows)), n)
    return [rows[i] for i in order]


def heldout(domain: params.Domain, n: int) -> list[Pair]:
    """The first n held-out pairs of a domain, which no arm is trained on."""
    files = [paths.DATA / domain.shipped[f"heldout_{arm}"] for arm in ("aligned", "misaligned")]
    aligned, misaligned = (read_chat(f) for f in files)
    if [a.prompt for a in aligned] != [m.prompt for m in misaligned]:
        raise UserError(
            f"{paths.show(files[0])} and {paths.show(files[1])} must ask the same prompts in the same order"
        )
    return [Pair(a.prompt, a.answer, m.answer) for a, m in zip(aligned, misaligned, strict=True)][:n]


def trigrams(text: str) -> set[tuple[str, ...]]:
    """The word trigrams of a text, lower case, punctuation aside."""
    words = re.findall(r"[a-z0-9']+", text.lower())
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def overlap(a: set, b: set) -> float:
    """Share of the smaller trigram set that both hold; 0 when one is empty."""
    return len(a & b) / min(len(a), len(b)) if a and b else 0.0
