"""Texts that begin alike are read together: the beginning once, then what follows it in each."""

import torch
from transformers import Cache


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
