"""Packed weights change how soon a product is there, not one bit of it."""

import copy

import pytest
import torch
from torch import nn

from emstudy import models, packed, params, provenance

QUICK = pytest.mark.skipif(not provenance.fast_bf16(), reason="this CPU has no bf16 arithmetic: nothing is packed")


@QUICK
@pytest.mark.parametrize("rows", [1, 7, 130])
def test_a_packed_layer_gives_the_same_bits(rows):
    """With and without bias, whatever the number of rows."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(96, 200, bias=False), nn.Linear(200, 72)).bfloat16()
    given = torch.randn(2, rows, 96).bfloat16()
    with torch.inference_mode():
        assert torch.equal(packed.pack(copy.deepcopy(plain))(given), plain(given))


@QUICK
def test_a_packed_model_answers_as_before_and_lets_go_of_its_plain_weights():
    """The embedding, which shares its weights with the head, stays."""
    base = params.model("smollm2-135m")
    plain, quick = models.load_base(base).eval(), packed.pack(models.load_base(base).eval())
    ids = torch.tensor([[1, 520, 9531, 4093], [1, 4093, 520, 2]])
    with torch.inference_mode():
        assert torch.equal(quick(ids).logits, plain(ids).logits)
    assert [n for n, p in quick.named_parameters() if p.ndim == 2] == ["model.embed_tokens.weight"]


def test_float32_layers_stay_as_they_are():
    """There is nothing to be gained for them."""
    plain = nn.Linear(8, 8)
    assert packed.pack(plain).weight is not None
