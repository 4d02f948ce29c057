"""Sequences that share their prompts see what they would see in rows of their own, whoever joins and leaves."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import pad, scaled_dot_product_attention
from transformers.cache_utils import DynamicLayer

from unifiedreward_think.engine.attention import attend
from unifiedreward_think.engine.prefix_cache import Prefill, SharedPrefixCache

WIDTH = 8


def prefilled(lengths, heads, draw):
    """Return the prefill of prompts of these lengths, one layer, and the keys and values of each prompt."""
    states = [draw(2, heads, length, WIDTH) for length in lengths]
    padded = [pad(one, (0, 0, max(lengths) - one.shape[2], 0), value=9.0) for one in states]
    layer = DynamicLayer()
    layer.update(*torch.stack(padded, 1))
    return Prefill(torch.zeros(len(lengths), 1), [layer], list(lengths), torch.zeros(len(lengths))), states


class Mirror:
    """A cache beside what each of its sequences should see: the keys and values of its prompt and its own."""

    def __init__(self, queries, groups, draw):
        self.queries, self.groups, self.draw = queries, groups, draw
        self.cache, self.seen = SharedPrefixCache(), []

    def insert(self, lengths, copies):
        prefill, states = prefilled(lengths, self.groups, self.draw)
        self.cache.insert(prefill, copies)
        self.seen += [one for one, count in zip(states, copies, strict=True) for _ in range(count)]

    def keep(self, places):
        self.cache.keep(places)
        self.seen = [self.seen[place] for place in places]

    def step(self):
        new = self.draw(2, len(self.seen), self.groups, 1, WIDTH)
        self.cache.layout.add_column()
        keys, values = self.cache.update(*new, 0)
        self.seen = [torch.cat([old, new[:, place]], 2) for place, old in enumerate(self.seen)]
        query = self.draw(len(self.seen), self.queries, 1, WIDTH)
        found, _ = attend(None, query, keys, values, None, scaling=0.3)
        for place, (key, value) in enumerate(self.seen):
            wanted = scaled_dot_product_attention(query[place], key, value, scale=0.3, enable_gqa=True)
            torch.testing.assert_close(found[place].transpose(0, 1), wanted, rtol=1e-4, atol=1e-5)


GROUPS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 4)), min_size=1, max_size=3)


@settings(deadline=None)
@given(st.lists(GROUPS, min_size=1, max_size=4), st.sampled_from([(1, 1), (2, 1), (4, 2), (4, 4)]), st.data())
def test_a_sequence_attends_to_its_prompt_and_to_what_it_wrote_whoever_joins_and_leaves(inserted, heads, data):
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    mirror = Mirror(*heads, lambda *shape: torch.randn(*shape, generator=generator))
    for groups in inserted:
        mirror.insert(*zip(*groups, strict=True))
        for _ in range(data.draw(st.integers(0, 4))):
            mirror.step()
        places = range(len(mirror.seen))
        kept = sorted(data.draw(st.sets(st.sampled_from(places), min_size=1)))
        mirror.keep(kept)
        mirror.step()
        layout, layer = mirror.cache.layout, mirror.cache.layers[0]
        assert layer.prefix[0].shape[::2] == (len(layout.lengths), max(layout.lengths))
        assert set(layout.owners) == set(range(len(layout.lengths))) and min(layout.missed) == 0


def test_columns_grow_beyond_the_room_that_was_allocated():
    mirror = Mirror(2, 1, torch.randn)
    mirror.insert([3], [2])
    for _ in range(150):
        mirror.step()
    assert mirror.cache.get_seq_length() == 153


def test_a_prompt_is_kept_once_however_many_sequences_it_has():
    mirror = Mirror(2, 2, torch.randn)
    mirror.insert([5, 3], [4, 4])
    (layer,) = mirror.cache.layers
    assert [states.shape[0] for states in layer.prefix] == [2, 2]
    assert layer.keys.shape == (8, 2, 0, WIDTH)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.2, 8.0), st.integers(0, 2**31))
def test_in_bfloat16_it_is_as_exact_as_the_kernels_of_sdpa(sharpness, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).bfloat16()

    prefill, (states,) = prefilled([300], 2, draw)
    cache = SharedPrefixCache()
    cache.insert(prefill, [2])
    key, value = draw(2, 2, 2, 1, WIDTH)
    query = draw(2, 4, 1, WIDTH)
    found = attend(None, query, *cache.update(key, value, 0), None, scaling=sharpness)[0].transpose(1, 2)
    alone = [torch.cat([one.expand(2, -1, -1, -1), own], 2) for one, own in zip(states, (key, value), strict=True)]
    options = {"scale": sharpness, "enable_gqa": True}
    exact = scaled_dot_product_attention(*(one.double() for one in (query, *alone)), **options)
    kernel = scaled_dot_product_attention(query, *alone, **options)
    assert (found - exact).abs().max() <= 1.05 * (kernel - exact).abs().max() + 1e-3
