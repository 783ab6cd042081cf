"""The records of what is asked for: endpoints and their limits, rubrics, judges."""

import re
from typing import Literal

from pydantic import Field, model_validator

from emstudy import store
from emstudy.strict import Name, Strict

COLUMN = r"[a-z][a-z0-9_]*(?<!_raw)(?<!_status)"
# what a dimension can't be called: other columns of tables of answers
TAKEN = {*store.ANSWERS, "judge", "judge_version", "file", "family", "characters"}


class Prices(Strict):
    """Dollars for a million tokens, sent and received."""

    input: float = Field(ge=0)
    output: float = Field(ge=0)


class Endpoint(Strict):
    """How an OpenAI-compatible endpoint may be used: side by side, how fast, how long to wait, for how much money."""

    concurrency: int = Field(gt=0, description="requests under way at once")
    max_wait_seconds: float = Field(gt=0, description="patience with one request, whatever Retry-After asks for")
    tokens_a_minute: int | None = Field(gt=0, description="null: no limit but the endpoint's own")
    budget_usd: float | None = Field(ge=0, description="no request is sent that could pass it; null: no limit")
    batch: bool = Field(description="ask through the Batch API: half the price, replies within a day")
    usd_per_million_tokens: Prices

    def dollars(self, tokens_in: float, tokens_out: float) -> float:
        """What so many tokens cost."""
        prices = self.usd_per_million_tokens
        return (tokens_in * prices.input + tokens_out * prices.output) / 1e6


class Dimension(Strict):
    """One thing a judge scores from 0 to 100; a prompt holds {question} and {answer}."""

    name: str
    prompt: str | None
    prompts: dict[str, str] = Field(
        default={}, description="prompts of the questions, by their text, that have one of their own"
    )


class Rubric(Strict):
    """What a judge behind an endpoint is asked: params/rubrics/<name>.yaml."""

    name: str = Name
    title: str
    scale: tuple[float, float] = Field(
        description="lowest and highest score that the prompts ask for; pages show 0 to 100"
    )
    unscored: dict[str, Literal["refusal", "code"]] = Field(description="replies that are no score, and their status")
    dimensions: list[Dimension] = Field(min_length=1)

    @model_validator(mode="after")
    def usable(self):
        """A scale has two ends, and a dimension that asks nothing scores nothing."""
        if self.scale[0] >= self.scale[1]:
            raise ValueError(f"scale takes the lowest and the highest score, found {list(self.scale)}")
        names = [d.name for d in self.dimensions]
        for name in names:
            if not re.fullmatch(COLUMN, name) or name in TAKEN or names.count(name) > 1:
                raise ValueError(
                    f"a dimension's name is a column of judged.csv: small letters, digits and '_', a letter first, no '_raw' or '_status' at its end, "
                    f"each once, none of {', '.join(sorted(TAKEN))}; found '{name}'"
                )
        for d in self.dimensions:
            if not d.prompt or not all("{answer}" in p for p in (d.prompt, *d.prompts.values())):
                raise ValueError(f"the prompt of '{d.name}' needs {{answer}}, and most need {{question}}")
        return self


class Judge(Strict):
    """A judge: params/judges/<name>.yaml. An endpoint's dimensions are those of its rubric."""

    name: str = Name
    title: str
    kind: Literal["embedded", "openai", "imported"]
    version: str
    model: str | None
    rubric: Rubric | None
    logprobs: bool = Field(description="score by token probabilities where the endpoint gives them")
    temperature: float = Field(
        default=0,
        ge=0,
        le=2,
        description="of an endpoint; above 0 the judge is sampled, and an audit says how far it moves",
    )
    dtype: Literal["bfloat16", "float32"] | None = Field(description="what an embedded judge computes in")
    endpoint: Endpoint | None
    dimensions: list[Dimension] = Field(min_length=1)

    @model_validator(mode="after")
    def endpoint_is_whole(self):
        """An endpoint needs to be told which model to ask, how, and what."""
        if self.kind == "openai" and None in (self.model, self.rubric, self.endpoint):
            raise ValueError("a judge of kind openai needs model, rubric and endpoint")
        if self.kind == "embedded" and self.dtype is None:
            raise ValueError("a judge of kind embedded needs a dtype: bfloat16 or float32")
        return self
