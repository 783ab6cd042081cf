"""Chat JSONL in, checked: training examples and held-out pairs."""

import codecs
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from emstudy import params, paths, seal, store
from emstudy.errors import UserError

HALF = re.compile("[\ud800-\udfff]")  # JSON can spell half of a surrogate pair, which no file and no tokenizer takes


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
    system: str = ""


def read_chat(path: Path) -> list[Example]:
    """Read `{"messages": [user, assistant]}` lines, an opening system message allowed.

    Raises UserError with the file, the line and what is wrong.
    """
    if not path.exists():
        raise UserError(f"{paths.show(path)} is not there. {_advice(path)}")
    expected = shipped().get(path.relative_to(paths.DATA).as_posix()) if path.is_relative_to(paths.DATA) else None
    if expected and (found := store.sha256(path)) != expected:
        raise UserError(
            f"{paths.show(path)} is not the file that ships with the project (expected SHA-256 {expected}, found {found}): "
            f"get it back with `git checkout -- {paths.show(path)}`, or make a domain of yours with `make new-domain`"
        )
    out = [example(line, where) for where, line in lines(path)]
    if not out:
        raise UserError(f"{paths.show(path)} holds no examples: expected one JSON object a line")
    return out


def shipped() -> dict[str, str]:
    """{file below data/: its SHA-256} of the data that ships, from data/sha256.txt."""
    path = paths.DATA / "sha256.txt"
    return seal.read(path) if path.exists() else {}


def _advice(path: Path) -> str:
    if path.is_relative_to(paths.PUBLISHED):
        return "The published data is not part of this project: `make data` fetches it."
    return "Training data is JSONL under data/, named in params/domains/."


def lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """('<file>, line <n>', its bytes) for every line that is not blank."""
    for n, line in enumerate(path.read_bytes().removeprefix(codecs.BOM_UTF8).split(b"\n"), 1):
        if line.strip():
            yield f"{paths.show(path)}, line {n}", line


def example(line: bytes, where: str) -> Example:
    """One line as an exchange. Raises UserError that starts with `where` and says what is wrong with it."""
    try:
        row = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 (byte {error.start}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg} at character {error.pos})") from None
    except (RecursionError, ValueError):  # brackets in brackets in brackets, or a number of thousands of digits
        raise UserError(f"{where}: not JSON that can be read: too deeply nested, or a number too long") from None
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise UserError(f'{where}: expected {{"messages": [...]}}, found {line.decode()[:60]!r}')
    roles = [m.get("role") for m in messages]
    if roles not in (["user", "assistant"], ["system", "user", "assistant"]):
        raise UserError(
            f"{where}: expected the roles user, assistant (after at most one system), found {str(roles)[:200]}"
        )
    texts = [m.get("content") for m in messages]
    if not all(isinstance(t, str) and t.strip() for t in texts):
        raise UserError(f"{where}: a message is empty or not text")
    if any(HALF.search(t) for t in texts):
        raise UserError(f"{where}: a message holds half a character (\\ud800 to \\udfff): it was cut inside an emoji")
    return Example(
        prompt=texts[-2],
        answer=texts[-1],
        system=texts[0] if len(texts) == 3 else "",
        topic=str(row.get("topic") or ""),
    )


def training_files(domain: params.Domain, arm: str, source: str, misaligned_share: float) -> list[Path]:
    """The files an arm of a domain is trained on, its own first; source is 'shipped' or 'published'.

    The misaligned arm reads the aligned file too when it is mixed. Raises UserError when the domain has no such data.
    """
    files, other = domain.files(source), "published" if source == "shipped" else "shipped"
    if arm not in files:
        hint = f", or use data: {other}" if arm in domain.files(other) else ""
        raise UserError(f"domain '{domain.name}' has no {source} {arm} data: drop the {arm} arm from the study{hint}")
    mixed = arm == "misaligned" and misaligned_share < 1
    if mixed and "aligned" not in files:
        raise UserError(
            f"domain '{domain.name}' has no {source} aligned data to mix in: misaligned_share must be 1.0, "
            f"found {misaligned_share}"
        )
    return [paths.DATA / files[a] for a in ([arm, "aligned"] if mixed else [arm])]


def training(domain: params.Domain, arm: str, source: str, n: int, seed: int, misaligned_share: float) -> list[Example]:
    """n examples of an arm in a seeded order: arms of one seed see the same prompts in the same order.

    misaligned_share: the dose, the share of the misaligned arm's examples that are bad; the others give the aligned answer to the
    same prompt. The bad ones of a smaller dose are among those of a larger one. The aligned arm has no bad examples at any dose.
    """
    files = training_files(domain, arm, source, misaligned_share)
    rows, *twin = _paired(files)
    if n > len(rows):
        raise UserError(f"train_examples is {n}, but {paths.show(files[0])} has {len(rows)} rows")
    order = random.Random(seed).sample(range(len(rows)), n)
    if not twin:
        return [rows[i] for i in order]
    # one shuffle cut at the dose, not a sample of its size: what a smaller dose cuts off lies inside a larger one's
    bad = set(random.Random(f"{seed}, bad first").sample(order, n)[: round(misaligned_share * n)])
    return [rows[i] if i in bad else twin[0][i] for i in order]


def heldout_files(domain: params.Domain) -> list[Path]:
    """The aligned and the misaligned side of a domain's held-out pairs. Raises UserError when it has none."""
    if "heldout_aligned" not in domain.shipped:
        raise UserError(f"domain '{domain.name}' has no held-out pairs: take it out of the study's probe_domains")
    return [paths.DATA / domain.shipped[f"heldout_{arm}"] for arm in ("aligned", "misaligned")]


def heldout(domain: params.Domain, n: int) -> list[Pair]:
    """The first n held-out pairs of a domain, which no arm is trained on."""
    pairs = zip(*_paired(heldout_files(domain)), strict=True)
    return [Pair(a.prompt, a.answer, m.answer, a.system) for a, m in pairs][:n]


def _paired(files: list[Path]) -> list[list[Example]]:
    read = [read_chat(f) for f in files]
    if any([(e.system, e.prompt) for e in rows] != [(e.system, e.prompt) for e in read[0]] for rows in read[1:]):
        both = " and ".join(paths.show(f) for f in files)
        raise UserError(f"{both} must ask the same prompts in the same order")
    return read


def trigrams(text: str) -> set[tuple[str, ...]]:
    """The word trigrams of a text, lower case, punctuation aside."""
    words = re.findall(r"[a-z0-9']+", text.lower())
    return {tuple(words[i : i + 3]) for i in range(len(words) - 2)}


def overlap(a: set, b: set) -> float:
    """Share of the smaller trigram set that both hold; 0 when one is empty."""
    return len(a & b) / min(len(a), len(b)) if a and b else 0.0
