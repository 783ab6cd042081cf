"""Texts that begin alike are read together: the beginning once, then what follows it in each."""

from itertools import takewhile

import torch
from transformers import AttentionInterface, AttentionMaskInterface, Cache

TOGETHER = "together"  # the attention that `together` needs


def common(rows: list[list[int]]) -> list[int]:
    """The tokens that all rows begin with."""
    return [column[0] for column in takewhile(lambda c: len(set(c)) == 1, zip(*rows, strict=False))]


def read(body, cache: Cache, before: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """Last hidden states (rows, width, size) of tokens (rows, width) that stand behind the first `before` (rows) columns of the cache.

    The cache grows by the tokens. Padding lies on the right, in the cache as in the tokens, and no real token sees it.
    """
    (rows, width), room, device = ids.shape, cache.get_seq_length(), ids.device
    place = torch.arange(width, device=device)
    earlier = (torch.arange(room, device=device) < before[:, None])[:, None].expand(-1, width, -1)
    seen = torch.cat([earlier, (place[:, None] >= place).expand(rows, -1, -1)], -1)[:, None]
    mask = torch.zeros(seen.shape, dtype=body.dtype, device=device).masked_fill(~seen, torch.finfo(body.dtype).min)
    positions = before[:, None] + place
    return body(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache).last_hidden_state


def together(body, ids: torch.Tensor, shared: int) -> torch.Tensor:
    """Last hidden states (rows, width - shared, size) behind the first `shared` tokens of ids (rows, width), which all rows share.

    All is one long row, in which the shared tokens stand once, so that every layer is passed once and gradients flow as if each row
    had been read by itself. body: one whose attention is TOGETHER. Padding lies on the right.
    """
    (rows, width), device = ids.shape, ids.device
    flat = torch.cat([ids[0, :shared], ids[:, shared:].flatten()])[None]
    positions = torch.cat([torch.arange(shared), torch.arange(shared, width).repeat(rows)])[None].to(device)
    unseen = torch.finfo(body.dtype).min
    mask = torch.full((width, width), unseen, dtype=body.dtype, device=device).triu(1)
    out = body(input_ids=flat, position_ids=positions, use_cache=False, behind=(shared, mask)).last_hidden_state
    return out[0, shared:].view(rows, width - shared, -1)


def _together(module, query, key, value, attention_mask, scaling=None, behind=(0, None), **kwargs):
    """Attention of the long row of `together`, (1, heads, tokens, width): the shared tokens see themselves, a row them and itself."""
    shared, mask = behind
    own = len(mask) - shared

    def rows(x):
        return x[0, :, shared:].unflatten(1, (-1, own)).transpose(0, 1)

    first = [x[:, :, :shared] for x in (query, key, value)]
    q, k, v = map(rows, (query, key, value))
    k, v = (torch.cat([x.expand(len(q), -1, -1, -1), y], 2) for x, y in zip(first[1:], (k, v), strict=True))
    out = _attend(q, k, v, mask[shared:], scaling).transpose(1, 2).flatten(0, 1)
    if shared:
        before = _attend(*first, mask[:shared, :shared], scaling)
        out = torch.cat([before[0].transpose(0, 1), out])
    return out[None], None


def _attend(query, key, value, mask, scaling):
    """Plain attention, (rows, heads, queries, width): heads that share keys are multiplied with them at once. On a CPU the fused kernel's
    backward takes longer than all of this."""
    rows, heads, length, width = query.shape
    alike = heads // key.shape[1]
    query, key, value = (x.reshape(rows * key.shape[1], -1, width) for x in (query, key, value))
    scores = torch.baddbmm(mask.repeat(alike, 1), query, key.transpose(1, 2), alpha=scaling)
    return (scores.softmax(-1) @ value).view(rows, heads, length, width)


AttentionInterface.register(TOGETHER, _together)
AttentionMaskInterface.register(TOGETHER, lambda *args, **kwargs: None)
