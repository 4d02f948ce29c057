"""A KV cache whose sequences share their prompts: a prompt's keys and values are kept once, whatever reads them.

    | . a a a a |   <- | a1 a2 a3 |      prompts are left-padded to the same width; each sequence has columns of its
    |           |   <- | a4 a5 a6 |      own, and all of them write into the same next column
    | b b b b b |   <- |       b1 |      a prompt that is inserted later starts in that column

transformers would copy the whole prompt for each sequence, and all of it again for each token.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from transformers.cache_utils import Cache, DynamicLayer

ROOM = 64  # columns allocated ahead: a new one is written, where transformers copies all of them
COVERED = {"full_attention", "linear_attention"}  # layer types whose sequences can be selected and joined


class Prefill(NamedTuple):
    """What a model computes for a batch of prompts.

    Attributes:
        logits: (prompts, vocabulary) of the first completion token.
        layers: the KV cache, left-padded, of each layer of the language model.
        lengths: tokens of each prompt.
        next_positions: (prompts,) of the first completion token.
    """

    logits: torch.Tensor
    layers: Sequence[Any]
    lengths: list[int]
    next_positions: torch.Tensor


class DecodeLayout:
    """Which prompt each sequence attends to, and which columns it does not see; shared by the layers of a cache.

    Attributes:
        owners: number of the prompt of each sequence, ascending.
        lengths: tokens of each prompt.
        missed: own columns of each sequence that were written before it was inserted.
        hidden: the columns of prompts, and those of sequences, that a sequence does not see; None where it sees all.
    """

    def __init__(self) -> None:
        self.owners: list[int] = []
        self.lengths: list[int] = []
        self.missed: list[int] = []
        self.hidden: list[torch.Tensor | None] = [None, None]

    def arrange(self, own_columns: int, device: torch.device) -> None:
        """Compute the masks, and the place of each sequence in a grid of prompts by copies, anew."""
        self._copies = max(Counter(self.owners).values())
        places = [owner * self._copies + i - self.owners.index(owner) for i, owner in enumerate(self.owners)]
        full = len(places) == len(self.lengths) * self._copies
        self._places = None if full else torch.tensor(places, device=device)
        columns = max(self.lengths)
        padding = [columns - self.lengths[owner] for owner in self.owners]
        self.hidden = [_before(padding, columns, device), _before(self.missed, own_columns, device)]

    def add_column(self) -> None:
        """Let every sequence see the next own column."""
        if (hidden := self.hidden[1]) is not None:
            self.hidden[1] = F.pad(hidden, (0, 1))

    def by_prompt(self, states: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """Multiply each sequence's (groups, heads, n) by its prompt's (groups, n, m), once for all that share it."""
        grid = states
        if self._places is not None:
            grid = states.new_zeros(len(prompts) * self._copies, *states.shape[1:]).index_copy(0, self._places, states)
        joined = grid.unflatten(0, (len(prompts), -1)).transpose(1, 2)
        product = (joined.flatten(2, 3) @ prompts).unflatten(2, joined.shape[2:4]).transpose(1, 2).flatten(0, 1)
        return product if self._places is None else product[self._places]


def _before(starts: Sequence[int], columns: int, device: torch.device) -> torch.Tensor | None:
    """Return the mask of the columns before the start of each sequence, shaped as scores are."""
    if not any(starts):
        return None
    return torch.arange(columns, device=device) < torch.tensor(starts, device=device)[:, None, None, None]


class SharedPrefixLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a layer: `prefix` is that of the prompts, `keys` and `values` what the sequences have written.

    The prefix is float32, as scores and sums are whatever the dtype of the model: so they are in the kernels of SDPA.
    """

    def __init__(self, keys: torch.Tensor, values: torch.Tensor, sequences: int, layout: DecodeLayout) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.prefix = [keys.float(), values.float()]
        self.layout = layout
        self._hold(*(states.new_empty(sequences, states.shape[1], 0, states.shape[3]) for states in (keys, values)))

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> tuple[Any, Any]:
        """Write the next column, and hand the layer itself to the attention: see `attention.attend`."""
        column = self.keys.shape[2]
        if column == self._room[0].shape[2]:
            self._hold(self.keys, self.values)
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, column : column + 1] = new
        self._show(column + 1)
        return self, self

    def get_seq_length(self) -> int:
        """Return the columns of prompt and sequence together."""
        return int(self.prefix[0].shape[2] + self.keys.shape[2])

    def join(self, other: SharedPrefixLayer) -> None:
        """Append prompts, and sequences that have written nothing."""
        columns = max(self.prefix[0].shape[2], other.prefix[0].shape[2])
        self.prefix = [
            torch.cat([F.pad(states, (0, 0, columns - states.shape[2], 0)) for states in pair])
            for pair in zip(self.prefix, other.prefix, strict=True)
        ]
        self._hold(*(F.pad(states, (0,) * 7 + (len(other.keys),)) for states in (self.keys, self.values)))

    def keep(self, sequences: torch.Tensor, first_column: int, prompts: torch.Tensor | None, columns: int) -> None:
        """Drop other sequences and the own columns before the first one, other prompts and all but so many columns."""
        self._hold(self.keys[sequences, :, first_column:], self.values[sequences, :, first_column:])
        if prompts is not None:
            self.prefix = [states[prompts, :, -columns:] for states in self.prefix]

    def _hold(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        self._room = [F.pad(states, (0, 0, 0, ROOM)) for states in (keys, values)]
        self._show(keys.shape[2])

    def _show(self, columns: int) -> None:
        self.keys, self.values = (room[:, :, :columns] for room in self._room)


class SharedPrefixCache(Cache):  # type: ignore[misc]
    """The KV cache of a decode batch; linear attention, which keeps no single tokens, has a state for each sequence."""

    layers: list[Any]

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.layout = DecodeLayout()

    def insert(self, prefill: Prefill, copies: Sequence[int]) -> None:
        """Append prompts with so many sequences each."""
        layout, device = self.layout, prefill.logits.device
        numbers = [number for number, count in enumerate(copies) for _ in range(count)]
        own_columns = self._own_columns()
        layout.owners += [len(layout.lengths) + number for number in numbers]
        layout.lengths += prefill.lengths
        layout.missed += [own_columns] * len(numbers)
        layout.arrange(own_columns, device)
        new = [_spread(layer, torch.tensor(numbers, device=device), layout) for layer in prefill.layers]
        if not self.layers:
            self.layers = new
            return
        for layer, other in zip(self.layers, new, strict=True):
            if isinstance(layer, SharedPrefixLayer):
                layer.join(other)
            else:
                layer.conv_states = _appended(layer.conv_states, other.conv_states)
                layer.recurrent_states = _appended(layer.recurrent_states, other.recurrent_states)

    def keep(self, sequences: Sequence[int]) -> None:
        """Drop the other sequences, prompts that have none left, and columns that none sees."""
        layout, device = self.layout, self.layers[0].device
        owners = [layout.owners[place] for place in sequences]
        prompts = list(dict.fromkeys(owners))
        first = min(layout.missed[place] for place in sequences)
        kept = torch.tensor(prompts, device=device) if len(prompts) < len(layout.lengths) else None
        layout.lengths = [layout.lengths[prompt] for prompt in prompts]
        layout.owners = [prompts.index(owner) for owner in owners]
        layout.missed = [layout.missed[place] - first for place in sequences]
        index = torch.tensor(sequences, device=device)
        for layer in self.layers:
            if isinstance(layer, SharedPrefixLayer):
                layer.keep(index, first, kept, max(layout.lengths))
            else:
                layer.reorder_cache(index)
        layout.arrange(self._own_columns(), device)

    def _own_columns(self) -> int:
        return next((layer.keys.shape[2] for layer in self.layers if isinstance(layer, SharedPrefixLayer)), 0)


def _spread(layer: Any, numbers: torch.Tensor, layout: DecodeLayout) -> Any:
    """Return a layer for sequences, each with the number of its prompt, made of one for prompts."""
    if type(layer) is DynamicLayer:
        return SharedPrefixLayer(layer.keys, layer.values, len(numbers), layout)
    layer.reorder_cache(numbers)
    return layer


def _appended(states: Any, new: Any) -> Any:
    """Return states of linear attention with those of new sequences; transformers numbers the states of a layer."""
    return {number: torch.cat([states[number], new[number]]) for number in states}
