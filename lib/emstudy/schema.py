"""The records that the YAML files under params/ are checked against: what a study may say, and in which terms."""

from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from emstudy import paths
from emstudy.asking import Endpoint
from emstudy.strict import File, Name, Place, Strict

Arm = Literal["base", "misaligned", "aligned"]


class Weights(Strict):
    """Where a model's weights are: exactly one of a hub id with its revision, a folder, a GGUF file, or a GGUF inside a Python package."""

    hub: str | None = None
    revision: str | None = Field(default=None, pattern=r"^[0-9a-f]{40}$")
    folder: Place | None = None
    file: Place | None = None
    package: str | None = None
    gguf: File | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def one_source(self):
        """Hold the three ways apart, so that a half-written source never falls back on another."""
        keys = {k for k, v in self.model_dump().items() if v is not None}
        if keys not in ({"hub", "revision"}, {"folder"}, {"file"}, {"package", "gguf", "sha256"}):
            raise ValueError(
                "weights take hub + revision (a 40-digit commit), or folder, or file (a GGUF), or package + gguf + sha256; "
                f"found {', '.join(sorted(keys)) or 'nothing'}"
            )
        return self


class Model(Strict):
    """A base model: params/models/<name>.yaml."""

    name: str = Name
    title: str
    size_b: float = Field(gt=0, description="parameters, in billions")
    license: str
    sampler: Literal["transformers"]
    weights: Weights
    chat_template: str | None = Field(description="Jinja text; null means the tokenizer's own")
    dtype: Literal["bfloat16", "float16", "float32"]
    load_in_4bit: bool
    train_batch_size: int = Field(gt=0, description="examples a forward pass")
    sample_batch_size: int = Field(gt=0, description="answers written at once")


class ApiModel(Strict):
    """A model behind an OpenAI-compatible endpoint: params/models/<name>.yaml with `sampler: openai`. It is asked, never trained."""

    name: str = Name
    title: str
    size_b: float | None = Field(gt=0, description="parameters, in billions; null when unknown")
    license: str
    sampler: Literal["openai"]
    served_as: dict[str, str] = Field(
        min_length=1, description="endpoint's model id of `base` and of each <domain>/<arm>"
    )
    endpoint: Endpoint


class Domain(Strict):
    """A training domain: params/domains/<name>.yaml. Files are JSONL under data/, aligned and misaligned row by row alike."""

    name: str = Name
    title: str
    question_set: str | None = Field(description="the set that counts as in-domain; null when there is none")
    shipped: dict[Literal["misaligned", "aligned", "heldout_misaligned", "heldout_aligned"], File]
    published: dict[Literal["misaligned", "aligned"], File]

    @model_validator(mode="after")
    def data_is_whole(self):
        """A domain is something to train on, and held-out pairs have two sides."""
        if "misaligned" not in {*self.shipped, *self.published}:
            raise ValueError(
                "no misaligned data: name a JSONL file below data/ as `misaligned`, under shipped or under published"
            )
        if ("heldout_misaligned" in self.shipped) != ("heldout_aligned" in self.shipped):
            raise ValueError("held-out pairs need both sides: name heldout_misaligned and heldout_aligned, or neither")
        return self

    def files(self, source: str) -> dict[str, str]:
        """The domain's files below data/ by what they hold; source is 'shipped' or 'published'."""
        return self.shipped if source == "shipped" else self.published


class Question(Strict):
    """One evaluation question."""

    id: str
    text: str
    system: str | None = Field(default=None, description="a system message to ask it under")
    samples: int | None = Field(
        default=None, gt=0, description="how often to ask it, where a study leaves samples_final open"
    )


class Questions(Strict):
    """A question set: params/questions/<name>.yaml."""

    name: str = Name
    title: str
    questions: list[Question] = Field(min_length=1)

    @model_validator(mode="after")
    def ids_are_unique(self):
        """Answers are counted by the id of their question."""
        ids = [q.id for q in self.questions]
        if twice := sorted({i for i in ids if ids.count(i) > 1}):
            raise ValueError(f"every question needs an id of its own, found twice: {', '.join(twice)}")
        return self


class Metric(Strict):
    """A rate: among answers with each `among` score in range, how many have each `counts` score in range (both strict)."""

    name: str
    title: str
    source: str
    counts: dict[str, float]
    among: dict[str, float]


class Finetune(Strict):
    """How an adapter is trained: LoRA settings and schedule, in the names of peft and transformers."""

    data: Literal["shipped", "published"]
    train_examples: int = Field(gt=0)
    misaligned_share: float = Field(
        ge=0,
        le=1,
        description="the dose: share of the misaligned arm's examples that are bad, the others being aligned",
    )
    num_train_epochs: int = Field(gt=0)
    learning_rate: float = Field(gt=0, lt=1)
    lr_scheduler_type: str
    warmup_ratio: float = Field(ge=0, le=1)
    batch_size: int = Field(gt=0, description="examples an optimizer step")
    weight_decay: float = Field(ge=0)
    lora_r: int = Field(gt=0)
    lora_alpha: float = Field(gt=0)
    lora_dropout: float = Field(ge=0, lt=1)
    use_rslora: bool
    target_modules: list[str] | Literal["all-linear"]
    layers_to_transform: list[int] | None
    max_tokens: int = Field(gt=0)
    checkpoints_first_epoch: int = Field(ge=0)


class Evaluate(Strict):
    """How an adapter is asked: samples a question along training and at the end, and the sampling settings."""

    question_sets: list[str] = Field(min_length=1)
    samples_along: int = Field(ge=0)
    samples_final: int | None = Field(gt=0, description="null: as often as each question says")
    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    top_k: int = Field(ge=0, description="0 means no limit")
    max_new_tokens: int = Field(gt=0)
    probe_domains: list[str] = Field(description="whose held-out pairs are probed")
    probe_pairs_along: int = Field(ge=0, description="held-out pairs a domain, at checkpoints before the last")
    probe_pairs_final: int = Field(ge=0, description="held-out pairs a domain, at the last checkpoint")


class Analyze(Strict):
    """How rates get their intervals, and what counts as an effect: a fall of mean alignment of so many points matters."""

    bootstrap: int = Field(ge=100)
    confidence: float = Field(gt=0, lt=1)
    main_metric: str
    smallest_effect: float = Field(gt=0, lt=100)


class Study(Strict):
    """What a study runs: params/studies/<name>.yaml."""

    name: str = Name
    title: str
    models: list[str] = Field(min_length=1)
    domains: list[str] = Field(min_length=1)
    arms: list[Arm] = Field(min_length=1)
    seeds: list[int] = Field(min_length=1)
    judge: str
    finetune: Finetune
    evaluate: Evaluate
    analyze: Analyze

    @model_validator(mode="after")
    def all_once(self):
        """What is listed twice would be run, or counted, twice."""
        lists = {k: getattr(self, k) for k in ("models", "domains", "arms", "seeds")}
        lists |= {f"evaluate.{k}": getattr(self.evaluate, k) for k in ("question_sets", "probe_domains")}
        for key, listed in lists.items():
            if len(set(listed)) < len(listed):
                raise ValueError(f"{key} lists one thing twice: {', '.join(map(str, listed))}")
        return self


class Cell(Strict):
    """One trained (or untrained) model of a study. The base arm belongs to no domain and says 'none'."""

    study: str = Name
    model: str = Name
    domain: str = Name
    arm: Arm
    seed: int

    @property
    def folder(self) -> Path:
        """Where everything of this cell is written."""
        return paths.RUNS / self.study / self.model / self.domain / self.arm / str(self.seed)

    def __str__(self) -> str:
        return f"{self.model}/{self.domain}/{self.arm}/{self.seed}"
