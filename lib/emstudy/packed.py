"""Linear layers whose weights lie in the order that the CPU's matrix kernels read, from the start and not anew at every product."""

from functools import partial

import torch
from torch import nn

from emstudy import provenance


def pack(model: nn.Module) -> nn.Module:
    """The model itself, for inference alone from now on: its bf16 linear layers give the same bits sooner, the fewer rows the more so.

    Elsewhere than on a CPU with bf16 arithmetic nothing changes. The plain weights are let go, embeddings that share them aside.
    """
    if not provenance.fast_bf16():
        return model
    for module in model.modules():
        if type(module) is nn.Linear and module.weight.dtype == torch.bfloat16 and module.weight.device.type == "cpu":
            weights = torch.ops.mkldnn._reorder_linear_weight(module.weight.detach())
            module.forward = partial(_linear, weights, module.bias)
            module.weight = None
    return model


def _linear(weights: torch.Tensor, bias: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    # what torch.compile makes of a frozen linear layer; torch has no public name for it
    return torch.ops.mkldnn._linear_pointwise(x, weights, bias, "none", [], "")
