"""The records of a study whose scores came from elsewhere, and of the columns that such scores stand in."""

from pydantic import Field, model_validator

from emstudy.schema import Analyze, Arm
from emstudy.strict import Name, Strict


class Layout(Strict):
    """Columns of a file of scored answers, an entry of params/layouts.yaml: ours by name, theirs as values."""

    name: str
    columns: dict[str, str]
    scores: dict[str, str]

    @model_validator(mode="after")
    def enough(self):
        """Without these no rate can be counted, nor its interval."""
        if missing := {"question_id", "question", "answer"} - self.columns.keys():
            raise ValueError(f"columns lacks {', '.join(sorted(missing))}")
        if "aligned" not in self.scores:
            raise ValueError("scores lacks aligned")
        return self


class ScoreFile(Strict):
    """A CSV of an imported study; what is null is in the file's own columns."""

    file: str
    model: str | None = None
    domain: str | None = None
    arm: Arm | None = None
    seed: int | None = None


class ImportedModel(Strict):
    """What a page says of a model whose answers somebody else scored."""

    name: str = Name
    title: str
    size_b: float | None = Field(gt=0)


class ImportedDomain(Strict):
    """What a page says of the domain that an imported model was trained on; question_set is the in-domain one, null when none is."""

    name: str = Name
    title: str
    question_set: str | None


class ImportedStudy(Strict):
    """A study of scores that came from elsewhere: params/studies/<name>.yaml with `scores`. It is analysed and compared, never run."""

    name: str = Name
    title: str
    scores: list[ScoreFile] = Field(min_length=1)
    models: list[ImportedModel] = Field(min_length=1)
    domains: list[ImportedDomain]
    judge_title: str
    dimensions: list[str] = Field(min_length=1)
    analyze: Analyze
