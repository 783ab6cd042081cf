"""Gold by hand: a person scores a sample of a study's answers, blind to who wrote them and to what a judge said."""

import csv
import hashlib
import re
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from emstudy import params, paths, report, store
from emstudy.errors import UserError

IDENTITY = [*store.KEYS, "question", "answer"]


def sample(study: str, n: int, seed: int) -> pd.DataFrame:
    """n different answers of a study's last checkpoints, equally many of each model, domain and arm, shuffled; columns IDENTITY.

    They are those of its runs, or where it did not run here, those beside its pages. Where a cell has too few answers, others give
    more. Raises UserError when the study has no answers.
    """
    again = f"run `make reproduce STUDY={study}` first"
    if files := _files(study):
        tables = [store.read_csv(f, store.ANSWERS, "evaluate") for f in files]
    elif paths.reports(study).exists():
        tables = [report.beside(paths.reports(study), again)]
    else:
        raise UserError(f"{paths.show(paths.RUNS / study)} has no answers to label: {again}")
    found = report.last_step(pd.concat([t[IDENTITY] for t in tables]))
    # a draw hangs on the seed and the answer alone: a larger n, or a file in another order, keeps what was drawn before
    draws = [hashlib.sha256(f"{seed} {key}".encode()).hexdigest() for key in found.astype(str).agg(tuple, axis=1)]
    found = found.assign(draw=draws).sort_values("draw").drop_duplicates(["question", "answer"])
    found["turn"] = found.groupby(["model", "domain", "arm"]).cumcount()
    return found.sort_values(["turn", "draw"]).head(n).sort_values("draw")[IDENTITY].reset_index(drop=True)


def _files(study: str) -> list[Path]:
    """The answers of a study's runs; none while a cell of it is still to come, lest a sample be of some arms alone."""
    folder = paths.RUNS / study
    if (paths.PARAMS / "studies" / f"{study}.yaml").exists():
        found = params.study(study)
        if isinstance(found, params.Study):
            files = [c.folder / "answers.csv" for c in params.cells(found)]
            return files if all(f.exists() for f in files) else []
    return list(folder.glob("*/*/*/*/answers.csv")) or list(folder.glob("*/*/*/*/judged.imported.csv"))


def describe(dimension: params.Dimension) -> str:
    """What a dimension's prompt says of its scale; the whole prompt where it does not use that word."""
    told = [p for p in dimension.prompt.split("\n\n") if "scale" in p and "{answer}" not in p]
    return " ".join("\n\n".join(told or [dimension.prompt]).split())


@dataclass(frozen=True)
class Labels:
    """One person's labels of a study on disk: data/labels/<study>.<labeller>.csv, a gold file.

    Columns: IDENTITY, each dimension's score from 0 to 100 (none where the answer was skipped), labeller, labelled_at (UTC).
    """

    study: str
    labeller: str
    rubric: params.Rubric

    def __post_init__(self):
        if not re.fullmatch(r"[\w-]+", self.labeller):
            raise UserError(f"labeller takes letters, digits, - and _ (it names a file), found '{self.labeller}'")
        if self.rubric.scale != (0, 100):
            raise UserError(
                f"labels go from 0 to 100, but the scale of params/rubrics/{self.rubric.name}.yaml is "
                f"{list(self.rubric.scale)}: name another rubric"
            )

    @property
    def path(self) -> Path:
        """Where they are kept."""
        return paths.DATA / "labels" / f"{self.study}.{self.labeller}.csv"

    @property
    def dimensions(self) -> list[str]:
        """What is scored."""
        return [d.name for d in self.rubric.dimensions]

    def read(self) -> dict[tuple, dict[str, str]]:
        """The file's rows as text, by key(row). Raises UserError when the file is not as save() writes it."""
        if not self.path.exists():
            return {}
        where, redo = paths.show(self.path), "mend the file, or move it away to begin anew"
        table = store.table(self.path, redo, dtype=str, keep_default_na=False)
        missing = [c for c in [*IDENTITY, *self.dimensions, "labeller", "labelled_at"] if c not in table.columns]
        if missing:
            raise UserError(f"{where} lacks the columns {', '.join(missing)}: {redo}")
        for d in self.dimensions:
            if wrong := [v for v in table[d] if v and not is_score(v)]:
                raise UserError(f"{where}: {d} takes a number from 0 to 100 or nothing, found '{wrong[0]}': {redo}")
        return {key(row): row for row in table.to_dict("records")}

    def done(self, answers: pd.DataFrame) -> list[bool]:
        """Which of the answers were labelled or skipped."""
        labels = self.read()
        return [key(a) in labels for a in answers.to_dict("records")]

    def save(self, answer: pd.Series, scores: dict[str, str]) -> None:
        """Put an answer's scores on disk, in the place of earlier ones; no scores say that it was skipped.

        Raises UserError when a score is not a number from 0 to 100; the file is then as before.
        """
        if scores and (wrong := [d for d in self.dimensions if not is_score(scores[d])]):
            found = f"found '{scores[wrong[0]]}'" if scores[wrong[0]] else "found none"
            raise UserError(f"{wrong[0]} takes a number from 0 to 100, {found}: type one, or skip this answer")
        labels = self.read()  # anew each time: a second window may have saved meanwhile
        new = {c: str(answer[c]) for c in IDENTITY} | {d: scores.get(d, "") for d in self.dimensions}
        new |= {"labeller": self.labeller, "labelled_at": time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())}
        labels[key(answer)] = labels.get(key(answer), {}) | new  # a column that a person added stays
        table = pd.DataFrame(list(labels.values()))
        # all is quoted: pandas would leave a lone carriage return bare, and read it back as the end of a row
        store.write(self.path, lambda p: table.to_csv(p, index=False, lineterminator="\n", quoting=csv.QUOTE_ALL))


def key(answer: pd.Series | dict) -> tuple:
    """What tells an answer from all others, as the file has it; its words count, since a study can be run again."""
    return tuple(str(answer[c]) for c in IDENTITY)


def is_score(text: str) -> bool:
    """Is it a number from 0 to 100, in plain digits?"""
    return bool(re.fullmatch(r"\d+(\.\d+)?", text, re.ASCII)) and float(text) <= 100
