"""Rows that a model writes side by side: one that ends leaves at once, and a waiting prompt takes its place.

    | . . a a a a | a1 a2 a3 |        a prompt is read once; each of its completions starts with a copy of what the
    | b b b b b b | b1 b2    |        model made of it (keys and values)
    | . c c c c c | c1       |        prompts end in the same column, filled up on the left

All rows write into the same next column. When rows leave, the others are selected from the cache, and columns that are
empty in all of them are cut off; a new prompt is read on its own and joins at the right edge. What a row writes does
not depend on its neighbours, up to the rounding of sums in batches of other shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from transformers import GenerationConfig, TopPLogitsWarper
from transformers.cache_utils import DynamicLayer

from unifiedreward_think.engine import prefixes
from unifiedreward_think.engine.sampling import Sampling

FITTING = {"full_attention", "linear_attention"}  # layers whose cache rows can be selected and joined
ROOM = 64  # columns


class Columns(DynamicLayer):  # type: ignore[misc]
    """Keys and values of a layer with room on the right: a new column is written, where transformers copies all."""

    def __init__(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.set(keys, values)

    def set(self, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Hold these from now on."""
        self._room = [F.pad(states, (0, 0, 0, ROOM)) for states in (keys, values)]
        self._show(keys.shape[2])

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any) -> Any:
        """See transformers."""
        start = self.keys.shape[2]
        end = start + key_states.shape[2]
        if end > self._room[0].shape[2]:
            self.set(self.keys, self.values)
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:, :, start:end] = new
        return self._show(end)

    def _show(self, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys, self.values = (room[:, :, :columns] for room in self._room)
        return self.keys, self.values


@dataclass(eq=False)
class Row:
    """A completion that is being written.

    Attributes:
        generator: draws its tokens; None takes the most probable ones.
        tokens: what it holds so far.
        complete: whether it has left.
    """

    generator: torch.Generator | None = None
    tokens: list[int] = field(default_factory=list)
    complete: bool = False


class Slots:
    """The rows that a model is writing.

    Args:
        network: the model.
        sampling: how tokens are drawn.
        ended: whether a row is complete; asked after each of its tokens.
        on_tokens: takes the newest token of each row.
    """

    def __init__(
        self,
        network: Any,
        sampling: Sampling,
        *,
        ended: Callable[[Row], bool],
        on_tokens: Callable[[torch.Tensor], object],
    ) -> None:
        self._network = network
        self._ended = ended
        self._on_tokens = on_tokens
        self._sampling = sampling
        defaults = network.generation_config
        self._read = GenerationConfig(
            max_new_tokens=1,
            do_sample=False,
            use_cache=True,
            output_logits=True,
            return_dict_in_generate=True,
            eos_token_id=defaults.eos_token_id,
            pad_token_id=defaults.pad_token_id,
        )
        self.rows: list[Row] = []
        self._cache: Any = None
        self._mask = self._last = self._next = torch.empty(0)  # (rows, columns); (rows,) last token, next position

    def add(self, inputs: Mapping[str, Any], rows: Sequence[Sequence[Row]]) -> None:
        """Read prompts, filled up on the left, and give each of them its rows, which write their first token."""
        scores, cache, mask, following = prefixes.read(self._network, inputs) or self._generated(inputs)
        owners = [number for number, own in enumerate(rows) for _ in own]
        spread = torch.tensor(owners, device=mask.device)
        for number, layer in enumerate(cache.layers):
            if type(layer) is DynamicLayer:
                cache.layers[number] = Columns(layer.keys[spread], layer.values[spread])
            else:
                layer.reorder_cache(spread)
        mask, following = mask[spread], following[spread]
        last = self._written(scores[spread], [row for own in rows for row in own])
        if self.rows:
            columns = max(mask.shape[1], self._mask.shape[1])
            mask = torch.cat([_widened(self._mask, columns, 1), _widened(mask, columns, 1)])
            last, following = torch.cat([self._last, last]), torch.cat([self._next, following])
            _join(self._cache, cache, columns)
        else:
            self._cache = cache
        self._mask, self._last, self._next = mask, last, following
        self.rows += [row for own in rows for row in own]

    def _generated(self, inputs: Mapping[str, Any]) -> prefixes.Reading:
        """Read prompts as `generate` does it for this family."""
        with torch.inference_mode():
            # Not synced: each rank of a training with ZeRO-3 judges pairs of its own.
            output = self._network.generate(**inputs, generation_config=self._read, synced_gpus=False)
        mask = inputs["attention_mask"]
        following = mask.sum(1)
        if getattr(self._network.model, "rope_deltas", None) is not None:  # positions of pictures are no count
            following = following + self._network.model.rope_deltas.flatten()
        return prefixes.Reading(output.logits[0], output.past_key_values, mask, following)

    def step(self) -> None:
        """Let every row write a token."""
        self._mask = F.pad(self._mask, (0, 1), value=1)
        with torch.inference_mode():
            output = self._network(
                input_ids=self._last[:, None],
                attention_mask=self._mask,
                position_ids=self._next[:, None],
                past_key_values=self._cache,
                use_cache=True,
            )
        self._last = self._written(output.logits[:, -1].float(), self.rows)
        self._next = self._next + 1

    def leave(self) -> None:
        """Let the rows that are complete leave."""
        for row in self.rows:
            row.complete = self._ended(row)
        if any(row.complete for row in self.rows):
            self._keep([place for place, row in enumerate(self.rows) if not row.complete])

    def _written(self, scores: torch.Tensor, rows: Sequence[Row]) -> torch.Tensor:
        drawn = draw(scores, rows, self._sampling)
        self._on_tokens(drawn)
        for row, token in zip(rows, drawn.tolist(), strict=True):
            row.tokens.append(token)
        return drawn

    def _keep(self, places: list[int]) -> None:
        self.rows = [self.rows[place] for place in places]
        if not places:
            self._cache = None
            return
        index = torch.tensor(places, device=self._mask.device)
        self._mask, self._last, self._next = self._mask[index], self._last[index], self._next[index]
        empty = int(self._mask.any(0).int().argmax())
        self._mask = self._mask[:, empty:]
        for layer in self._cache.layers:
            if isinstance(layer, Columns):
                layer.set(layer.keys[index, :, empty:], layer.values[index, :, empty:])
            else:
                layer.reorder_cache(index)


def draw(scores: torch.Tensor, rows: Sequence[Row], sampling: Sampling) -> torch.Tensor:
    """Return the next token of each row: the most probable one, or one drawn with the row's own generator.

    Adding Gumbel noise and taking the maximum is exact sampling from the tempered, nucleus-cut distribution, and a row
    does not depend on its neighbours.
    """
    if sampling.temperature == 0:
        return scores.argmax(-1)
    tempered = scores / sampling.temperature
    if sampling.top_p < 1:
        tempered = TopPLogitsWarper(sampling.top_p)(None, tempered)
    noise = torch.empty_like(tempered)
    for own, row in zip(noise, rows, strict=True):
        own.exponential_(generator=row.generator)
    return (tempered - noise.log()).argmax(-1)


def _widened(states: torch.Tensor, columns: int, dim: int) -> torch.Tensor:
    """Return states with empty columns on the left, so that they are `columns` wide in dimension `dim`."""
    missing = columns - states.shape[dim]
    return F.pad(states, (0, 0) * (states.dim() - 1 - dim) + (missing, 0)) if missing else states


def _join(cache: Any, new: Any, columns: int) -> None:
    """Append the rows of one cache to another."""
    for layer, other in zip(cache.layers, new.layers, strict=True):
        if isinstance(layer, Columns):
            pairs = (layer.keys, other.keys), (layer.values, other.values)
            layer.set(*(torch.cat([_widened(states, columns, 2) for states in pair]) for pair in pairs))
        else:
            layer.conv_states = _appended(layer.conv_states, other.conv_states)
            layer.recurrent_states = _appended(layer.recurrent_states, other.recurrent_states)


def _appended(states: Any, new: Any) -> Any:
    """Return states of linear attention with those of new rows; transformers 5.23 numbers them, older ones have one."""
    if isinstance(states, dict):
        return {number: _appended(states[number], new[number]) for number in states}
    return torch.cat([states, new])
