"""Where a model's weights may be."""

import pytest
import torch

from emstudy import models, params, store
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
    monkeypatch.setattr(store, "fast_bf16", lambda: fast)
    loaded, stored = models.load_base(base), models.load_base(base.model_copy(update={"dtype": "float32"}))
    assert loaded.dtype == expected
    assert torch.equal(loaded.lm_head.weight.float(), stored.lm_head.weight)  # the very same weights
    assert models.arithmetic("float16") == torch.float16
