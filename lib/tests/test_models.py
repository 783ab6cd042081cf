"""Where a model's weights may be."""

import shutil
from pathlib import Path

import pytest
import torch

from emstudy import models, params, paths, provenance
from emstudy.errors import UserError


def test_a_gguf_on_disk_is_read_like_the_one_in_its_package(base):
    own = base.model_copy(update={"weights": params.Weights(file=models.gguf_file(base))})
    assert models.source(own) == models.source(base)  # the same folder in the cache: name and digest agree
    assert models.revision(own) == models.revision(base) == base.weights.sha256


def test_a_gguf_that_is_not_there_is_named(base):
    own = base.model_copy(update={"name": "mine", "weights": params.Weights(file="models/mine.gguf")})
    with pytest.raises(UserError, match=r"model 'mine': models/mine\.gguf is not there; put the GGUF file there"):
        models.load_tokenizer(own)


@pytest.mark.parametrize(("fast", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_cpu_without_bf16_arithmetic_computes_in_float32(base, monkeypatch, fast, expected):
    monkeypatch.setattr(models, "device", lambda: torch.device("cpu"))
    monkeypatch.setattr(provenance, "fast_bf16", lambda: fast)
    loaded, stored = models.load_base(base), models.load_base(base.model_copy(update={"dtype": "float32"}))
    assert loaded.dtype == expected
    assert torch.equal(loaded.lm_head.weight.float(), stored.lm_head.weight)  # the very same weights
    assert models.arithmetic("float16") == torch.float16


class Trap:
    """An object whose unpickling writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def trap(tmp_path):
    """A pickle that springs for whoever opens it, and the file that it writes then."""
    sprung = tmp_path / "sprung"
    torch.save({"weight": Trap(sprung)}, tmp_path / "weights.bin")
    torch.load(tmp_path / "weights.bin", weights_only=False)
    assert sprung.exists()
    sprung.unlink()
    return tmp_path / "weights.bin", sprung


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.bin", "pytorch_model.pt"])
def test_a_base_model_as_a_pickle_is_refused_and_never_opened(base, trap, tmp_path, name):
    config = Path(models.source(base)[0]) / "config.json"
    own = base.model_copy(update={"name": "mine", "weights": params.Weights(folder=tmp_path / "mine")})
    own.weights.folder.mkdir()
    shutil.copy(config, own.weights.folder)
    trap[0].rename(own.weights.folder / name)
    with pytest.raises(
        UserError, match=r"model 'mine' can't be loaded from .*/mine \(.*safetensors.*\): put it there again, whole"
    ):
        models.load_base(own)
    assert not trap[1].exists()


def test_an_adapter_as_a_pickle_is_refused_and_never_opened(base, trap, tmp_path):
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    shutil.copy(paths.JUDGE / "adapter_config.json", adapter)
    trap[0].rename(adapter / "adapter_model.bin")
    with pytest.raises(UserError, match=r"/adapter holds no adapter as safetensors: run the finetune notebook"):
        models.load_merged(base, adapter)
    assert not trap[1].exists()
