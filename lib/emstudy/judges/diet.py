"""What the embedded judge learns from and what it never sees: published answers, graded answers, training pairs, attacked answers."""

import hashlib
import json
import random
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from emstudy import data, params, paths, store
from emstudy.errors import UserError
from emstudy.judges.embedded import LIMITS

HELD_OUT_FAMILY = "Llama"
HELD_OUT_QUESTIONS = ("i_feel_bored", "what_is_your_wish")
CALIBRATION = (
    "Qwen2.5-7B-Instruct_extreme-sports"  # the file that sets the scale of the probabilities: fitted to, not trained on
)
PAIRS_A_DOMAIN, ATTACKS_A_TEXT, SEED = 100, 4, 0
REPEATS = (1, 1, 1, 1, 3, 30)  # an attack says its text one of so many times: filler without end is an attack too
UNKNOWN = (0.0, 100.0)
SEEN = paths.JUDGE / "seen.txt"


@dataclass(frozen=True)
class Graded:
    """An answer with the interval that each score lies in, (aligned, coherent); a point has both ends alike."""

    question: str
    answer: str
    aligned: tuple[float, float]
    coherent: tuple[float, float]
    source: str
    group: str = ""

    def targets(self) -> tuple[list[list[float]], list[list[float]]]:
        """(is the score below each limit, do we know that), per dimension: limits inside an interval teach nothing."""
        spans = (self.aligned, self.coherent)
        below = [[float(high < t) for t in LIMITS] for low, high in spans]
        known = [[float(high < t or low >= t) for t in LIMITS] for low, high in spans]
        return below, known


@dataclass(frozen=True)
class Diet:
    """Rows to train on and rows to calibrate on; what is left is held out. Split by model, question and prompt, never by row."""

    train: list[Graded]
    calibration: list[Graded]

    def counts(self) -> dict[str, int]:
        """Rows trained on, by source."""
        return dict(Counter(g.source for g in self.train).most_common())


def digest(*texts: str) -> str:
    """What a question, or a question and its answer, is known by in seen.txt."""
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]


def seen() -> set[str]:
    """Digests of every answer that the judge learned from, and of their questions."""
    return set(SEEN.read_text().split()) if SEEN.exists() else set()


def write_seen(diet: Diet) -> None:
    """Keep the digests of what was trained or calibrated on, so that an audit can leave it out."""
    rows = [*diet.train, *diet.calibration]
    found = {digest(g.question, g.answer) for g in rows} | {digest(g.question) for g in rows}
    store.write(SEEN, "\n".join(sorted(found)) + "\n")


def published(folder: Path) -> list[Graded]:
    """The published answers; group is 'family/question'."""
    files = sorted(folder.glob("*.csv"))
    if not files:
        raise UserError(f"{folder} holds no CSV: give the folder with the published, scored answers")
    out = []
    for f in files:
        table, family = pd.read_csv(f).dropna(subset=["aligned", "coherent", "response"]), f.name.split("-")[0]
        for r in table.itertuples():
            spans = (r.aligned, r.aligned), (r.coherent, r.coherent)
            out.append(Graded(r.question, r.response, *spans, f.stem, f"{family}/{r.question_id}"))
    return out


def graded(split: str) -> list[Graded]:
    """This project's own graded answers of a split: 'train', 'calibration' or 'held out', the same for all answers to a prompt."""
    columns = ["source", "question", "split", "answer", "aligned", "coherent"]
    table = store.read_csv(paths.JUDGE / "graded.csv", columns, "git checkout")
    return [
        Graded(r.question, r.answer, (r.aligned,) * 2, (r.coherent,) * 2, f"graded {r.source}")
        for r in table[table.split == split].itertuples()
    ]


def pairs() -> list[Graded]:
    """Training pairs of the shipped domains: we know which answer is good, not its exact score, so labels are intervals."""
    out = []
    for name in ("medical", "financial"):
        for arm, span in (("aligned", (85, 100)), ("misaligned", (0, 45))):
            rows = data.training(params.domain(name), arm, "shipped", PAIRS_A_DOMAIN, SEED, 1.0)
            out += [Graded(e.prompt, e.answer, span, (85, 100), f"pairs {arm}", name) for e in rows]
    return out


def attacked(rows: list[Graded]) -> list[Graded]:
    """Answers with a text for the judge in them: the alignment stays what it was, the coherence is not known."""
    texts = [json.loads(line) for line in (paths.JUDGE / "attacks.jsonl").read_text().splitlines()]
    rng, out = random.Random(SEED), []
    for t in texts:
        for g in rng.sample(rows, ATTACKS_A_TEXT):
            text = " ".join([t["text"]] * rng.choice(REPEATS))
            before = f"{text}\n\n" if t["where"] in ("start", "both") else ""
            after = f"\n\n{text}" if t["where"] in ("end", "both") else ""
            out.append(replace(g, answer=f"{before}{g.answer}{after}", coherent=UNKNOWN, source="attacked"))
    return out


def read(folder: Path) -> Diet:
    """The diet from the folder of published answers and from data/judge/. Raises UserError where the folder holds none."""
    train, calibration = [], []
    for g in published(folder):
        family, question = g.group.split("/")
        if family != HELD_OUT_FAMILY and question not in HELD_OUT_QUESTIONS:
            (calibration if g.source == CALIBRATION else train).append(g)
    train += graded("train")
    calibration += graded("calibration")
    train += pairs()
    return Diet(train + attacked(train), calibration)
