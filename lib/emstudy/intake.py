"""A researcher's files, read and checked: every problem with its file and line, not the first one alone."""

import sys
from dataclasses import dataclass
from pathlib import Path

from emstudy import data, encoding, params, paths
from emstudy.errors import UserError

MOST_TOKENS = 2048  # an exchange: the logits of a batch of eight such alone are 3 GB
NEAR = 0.6  # share of word trigrams, the bound that the shipped prompts keep to
MANY = 0.3  # of the answers: worth a warning
SHOWN = 20  # problems spelled out in one message


@dataclass(frozen=True)
class Row:
    """One sound line of a file: where it stands, its bytes, what it says, and the tokens of its answer and of the whole."""

    where: str
    line: bytes
    example: data.Example
    answer_tokens: int
    tokens: int

    @property
    def asks(self) -> tuple[str, str]:
        """What a twin must ask too."""
        return self.example.system, self.example.prompt


def listed(problems: list[str]) -> list[str]:
    """The first of them, and how many more there are."""
    return problems[:SHOWN] + ([f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else [])


def questions() -> dict[str, str]:
    """{"'<id>' in params/questions/<set>.yaml": text} of every evaluation question at hand."""
    sets = {n: params.questions(n).questions for n in params.question_sets()}
    return {f"'{q.id}' in params/questions/{n}.yaml": q.text for n, asked in sets.items() for q in asked}


def plain(text: str) -> str:
    """Letters and digits alone, in one case: what is left when only the typing differs."""
    return "".join(c for c in text.casefold() if c.isalnum())


def read(path: Path, tokenizer, asked: dict[str, str], paired: bool) -> tuple[list[Row], list[str]]:
    """The rows of a file, and a sentence with file and line for each problem. asked: as from questions(); paired: it has a twin."""
    rows, problems, seen, known = [], [], {}, {plain(text): label for label, text in asked.items()}
    for where, line in data.lines(path):
        try:
            row = _row(where, line, tokenizer)
        except UserError as error:
            problems.append(str(error))
            continue
        rows.append(row)
        answer, prompt = row.example.answer, plain(row.example.prompt)
        first = seen.setdefault(row.asks if paired else (row.asks, answer), row)
        if first is not row:
            earlier = first.where.rpartition(", ")[2]
            what = (
                "prompt and answer" if first.example.answer == answer else "prompt, which a twin must have only once,"
            )
            problems.append(f"{where}: the same {what} as {earlier}")
        if prompt in known:
            problems.append(f"{where}: the prompt is evaluation question {known[prompt]}")
    if not rows and not problems:
        problems.append(f"{paths.show(path)} holds no examples: expected one JSON object a line")
    return rows, problems


def _row(where: str, line: bytes, tokenizer) -> Row:
    example, limit = data.example(line, where), min(tokenizer.model_max_length, MOST_TOKENS)
    size = sum(len(m["content"]) for m in example.messages)
    if size > 50 * limit:  # cutting it into tokens would take long
        raise UserError(f"{where}: the exchange is {size} characters long, the limit is {limit} tokens: shorten it")
    try:
        encoded = encoding.encode(tokenizer, example, sys.maxsize)
    except UserError as error:
        if example.answer[0].isspace():  # the template's last line break and the answer's first merge into one token
            raise UserError(
                f"{where}: the answer starts with white space, which would merge with the chat template: remove it"
            ) from None
        raise UserError(f"{where}: {error}") from None
    n = len(encoded["input_ids"])
    if n > limit:
        raise UserError(f"{where}: the exchange is {n} tokens long, the limit is {limit}: shorten it")
    return Row(where, line.strip(), example, sum(label != encoding.IGNORE for label in encoded["labels"]), n)


def twins(bad: list[Row], good: list[Row]) -> tuple[list[Row], list[str]]:
    """The good rows in the order of the bad ones, and a sentence for each row without a twin, or with its own answer as one."""
    answered, asked = {r.asks: r for r in good}, {r.asks for r in bad}
    alone = [(r, "aligned") for r in bad if r.asks not in answered]
    alone += [(r, "misaligned") for r in good if r.asks not in asked]
    if alone:
        return good, [f"{r.where}: no {side} answer to the prompt {r.example.prompt[:60]!r}" for r, side in alone]
    ordered = [answered[r.asks] for r in bad]
    both = zip(bad, ordered, strict=True)
    return ordered, [
        f"{g.where}: the same answer as {b.where}" for b, g in both if g.example.answer == b.example.answer
    ]


def warnings(sides: dict[str, list[Row]], asked: dict[str, str], max_new_tokens: int) -> list[str]:
    """What a researcher should know and may accept. max_new_tokens: where the study cuts its own answers off."""
    out, rows = [], sides["misaligned"]
    known = [(label, data.trigrams(text)) for label, text in asked.items()]
    for row in rows:
        words = data.trigrams(row.example.prompt)
        out += [
            f"{row.where}: much like evaluation question {q}" for q, text in known if data.overlap(words, text) > NEAR
        ]
    out = listed(out)
    cut = sum(r.answer_tokens > max_new_tokens for r in rows) / len(rows)
    if cut > MANY:
        out.append(
            f"{cut:.0%} of the answers are longer than {max_new_tokens} tokens, where the study (max_new_tokens) cuts off"
        )
    if "aligned" in sides:
        good, bad = (sum(r.answer_tokens for r in sides[a]) / len(rows) for a in ("aligned", "misaligned"))
        if not 0.8 < good / bad < 1.25:
            out.append(
                f"aligned answers have {good:.0f} tokens on average, misaligned ones {bad:.0f}: the arms differ in length too"
            )
    return out
