"""What several tests share: the small real model and its tokenizer, and a root for runs that is no one else's."""

import shutil

import made_up
import pytest

from emstudy import models, params, paths, provenance, report


@pytest.fixture(scope="session")
def base():
    """The parameters of the model that ships with the project."""
    return params.model("smollm2-135m")


@pytest.fixture(scope="session")
def tokenizer(base):
    """Its tokenizer."""
    return models.load_tokenizer(base)


@pytest.fixture(scope="session")
def model(base):
    """The model itself, in the dtype that a study uses."""
    return models.load_base(base).eval()


@pytest.fixture(scope="session")
def exact(base):
    """The model in float32, where two ways to compute the same number agree."""
    return models.load_base(base.model_copy(update={"dtype": "float32"})).eval()


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A copy of what a study reads, to write into."""
    for name in ("PARAMS", "DATA"):
        old = getattr(paths, name)
        shutil.copytree(old, tmp_path / old.name, ignore=shutil.ignore_patterns("judge", "published"))
        monkeypatch.setattr(paths, name, tmp_path / old.name)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(paths, "REPORTS", tmp_path / "reports")
    return tmp_path


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """An empty runs/ folder."""
    monkeypatch.setattr(paths, "RUNS", tmp_path / "runs")
    return tmp_path / "runs"


@pytest.fixture
def study(monkeypatch, tmp_path):
    """A function that writes a study with these mean alignments and probe margins by arm, and loads it."""
    monkeypatch.setattr(paths, "RUNS", tmp_path)
    monkeypatch.setattr(provenance, "git_commit", lambda: "0123456789abcdef+changes")
    monkeypatch.setattr(provenance, "hardware", lambda: "a machine")

    def make(levels, margins=None, **more):
        made_up.write(tmp_path, levels, margins, **more)
        return report.load("s", "smollm2-135m", "financial", "embedded", list(levels), [0], made_up.ANALYZE)

    return make
