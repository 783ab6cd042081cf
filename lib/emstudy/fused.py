"""A training step's small operations as one autograd function each, for frozen base weights under LoRA.

Written out in torch's own operations they pass over every activation some twenty times, which on a CPU takes nearly as long as the
matrix products. Each function here keeps its input and works out its gradient in a few passes; sums are in fp32, results in the input's
dtype, rounded once.
"""

from functools import partial

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.autograd import Function
from torch.nn.functional import cross_entropy, log_softmax, silu
from transformers.activations import ACT2FN

CHUNK = 128  # answer tokens whose logits stand in memory at a time: 25 MB at a vocabulary of 49,152


class RmsNorm(Function):
    """x / rms(x) * w, source: Zhang and Sennrich (2019), Root mean square layer normalization. w is frozen."""

    @staticmethod
    def forward(ctx, x, weight, eps):
        """(..., width) -> (..., width)."""
        squares = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).square_()
        inverse = squares.div_(x.shape[-1]).add_(eps).rsqrt_()
        ctx.save_for_backward(x, weight, inverse)
        return (x * inverse).mul_(weight).to(x.dtype)

    @staticmethod
    def backward(ctx, grad):
        """Gradient of x alone: (g w - n mean(g w n)) / rms(x), n the normalised x."""
        x, weight, inverse = ctx.saved_tensors
        given, normed = (grad * weight).float(), x * inverse
        along = (given * normed).mean(-1, keepdim=True)
        return given.addcmul_(normed, along, value=-1).mul_(inverse).to(x.dtype), None, None


class SwiGlu(Function):
    """silu(gate) * up, source: Shazeer (2020), GLU variants improve transformer."""

    @staticmethod
    def forward(ctx, gate, up):
        """Two of (..., width) -> one."""
        ctx.save_for_backward(gate, up)
        return silu(gate).mul_(up)

    @staticmethod
    def backward(ctx, grad):
        """Gradients of gate and up."""
        gate, up = ctx.saved_tensors
        return torch.ops.aten.silu_backward(grad * up, gate), silu(gate).mul_(grad)


class LowRank(Function):
    """base + scale * x A^T B^T, added to `base` in place: what LoRA adds to a layer's output."""

    @staticmethod
    def forward(ctx, base, x, a, b, scale):
        """(..., outputs), (..., inputs), A (r, inputs), B (outputs, r) in fp32 -> (..., outputs)."""
        a, b = (t.to(x.dtype) for t in (a, b))
        low = x.flatten(0, -2) @ a.T
        base.view(-1, base.shape[-1]).addmm_(low, b.T, alpha=scale)
        ctx.mark_dirty(base)
        ctx.save_for_backward(x, a, b, low)
        ctx.scale = scale
        return base

    @staticmethod
    def backward(ctx, grad):
        """Gradients of base, x, A and B."""
        x, a, b, low = ctx.saved_tensors
        rows = grad.flatten(0, -2)
        back = (rows @ b).mul_(ctx.scale)
        of_x = (back @ a).view_as(x) if ctx.needs_input_grad[1] else None
        of_b = (low.T @ rows).T.float() * ctx.scale
        return grad, of_x, (back.T @ x.flatten(0, -2)).float(), of_b, None


class AnswerLoss(Function):
    """Cross entropy summed over tokens, from hidden states: logits of CHUNK tokens at a time, and their gradient while they are there."""

    @staticmethod
    def forward(ctx, hidden, weight, targets):
        """(n, width), the frozen head (vocabulary, width), (n) -> nats."""
        total, back = hidden.new_zeros((), dtype=torch.float32), torch.empty_like(hidden)
        for start in range(0, len(hidden), CHUNK):
            at = slice(start, start + CHUNK)
            logp = log_softmax((hidden[at] @ weight.T).float(), -1)
            of_target = targets[at, None]
            total -= logp.gather(-1, of_target).sum()
            wrong = logp.exp_().scatter_add_(-1, of_target, logp.new_full(of_target.shape, -1.0))
            torch.mm(wrong.to(hidden.dtype), weight, out=back[at])
        ctx.save_for_backward(back)
        return total

    @staticmethod
    def backward(ctx, grad):
        """Gradient of hidden."""
        (back,) = ctx.saved_tensors
        return back * grad, None, None


def answer_loss(hidden: torch.Tensor, head: nn.Module, targets: torch.Tensor) -> torch.Tensor:
    """Cross entropy (nats) summed over the targets (n) from hidden states (n, width); the plain way where the head is trained itself."""
    if isinstance(head, nn.Linear) and head.bias is None and not head.weight.requires_grad:
        return AnswerLoss.apply(hidden, head.weight, targets)
    return cross_entropy(head(hidden).float(), targets, reduction="sum")


def quicken(model: nn.Module) -> None:
    """Have a peft model's RMS norms, SwiGLU blocks and LoRA layers run as the functions above; what is built otherwise stays as it is."""
    for module in model.modules():
        if hasattr(module, "variance_epsilon") and not module.weight.requires_grad:
            module.forward = partial(_norm, module)
        elif hasattr(module, "gate_proj") and isinstance(module.act_fn, type(ACT2FN["silu"])):
            module.forward = partial(_mlp, module)
        elif isinstance(module, LoraLayer) and module.lora_A:  # an embedding has none
            module.forward = partial(_lora, module)


def _norm(module, x):
    return RmsNorm.apply(x, module.weight, module.variance_epsilon)


def _mlp(module, x):
    return module.down_proj(SwiGlu.apply(module.gate_proj(x), module.up_proj(x)))


def _lora(module, x):
    (name,) = module.active_adapters
    base = module.base_layer(x)
    x = module.lora_dropout[name](x)
    a, b = module.lora_A[name].weight, module.lora_B[name].weight
    return LowRank.apply(base, x, a, b, module.scaling[name])
