"""What writing one token after another needs: room for keys and values, and attention of a single token."""

import torch
from torch.nn.functional import pad
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BLOCK = 32  # tokens by which the cache grows
GROUPED = "grouped"  # the attention below, by the name that transformers knows it by


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer with room for BLOCK tokens more: appending each by concatenation would copy all the others.

    Attention sees the whole room, which stays contiguous; the mask hides what is not written yet.
    """

    def __init__(self):
        super().__init__()
        self.length = 0

    def update(self, key_states, value_states, *args, **kwargs):
        """Write the new states behind the others; all of the room."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = (t.new_empty(*t.shape[:2], 0, t.shape[3]) for t in (key_states, value_states))
        room, _ = self.get_mask_sizes(key_states.shape[-2])
        start, self.length = self.length, self.length + key_states.shape[-2]
        if more := room - self.keys.shape[-2]:
            self.keys, self.values = (pad(t, (0, 0, 0, more)) for t in (self.keys, self.values))
        self.keys[:, :, start : self.length] = key_states
        self.values[:, :, start : self.length] = value_states
        return self.keys, self.values

    def get_mask_sizes(self, query_length):
        """(the room there is after so many tokens more, 0)."""
        return -(-(self.length + query_length) // BLOCK) * BLOCK, 0

    def get_seq_length(self):
        """Tokens written so far."""
        return self.length

    def batch_select_indices(self, indices):
        """Keep these rows."""
        self.keys, self.values = self.keys.index_select(0, indices), self.values.index_select(0, indices)


def grouped(module, query, key, value, attention_mask, scaling=None, **kwargs):
    """Attention for one new token a row as two plain products over the heads that share keys; the rest is left to SDPA.

    On a CPU this takes half the time of its fused kernel, which is made for long queries. The rest: more tokens, or a mask to be added.
    """
    if query.shape[2] > 1 or (attention_mask is not None and attention_mask.dtype != torch.bool):
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    rows, heads, _, width = query.shape
    shared = query.view(rows, key.shape[1], heads // key.shape[1], width) * scaling
    scores = (shared @ key.transpose(-1, -2)).float()
    if attention_mask is not None:
        scores = scores.masked_fill(~attention_mask, -torch.inf)
    return (scores.softmax(-1).to(value.dtype) @ value).view(rows, 1, heads, width), None


AttentionInterface.register(GROUPED, grouped)
AttentionMaskInterface.register(GROUPED, sdpa_mask)
