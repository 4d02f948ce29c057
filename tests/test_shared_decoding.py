"""Rows that share their prompts see what they would see in rows of their own."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import scaled_dot_product_attention

from unifiedreward_think.engine.prefix_cache import PrefixCache, PrefixLayer

WIDTH = 8
END = 7  # the token that ends a row


def shared(lengths, copies, heads, draw):
    """Return a cache of one layer, with prompts of these lengths, and the keys and values of each prompt."""
    longest = max(lengths)
    states = [draw(2, heads, length, WIDTH) for length in lengths]
    filled = [torch.nn.functional.pad(one, (0, 0, longest - one.shape[2], 0), value=9.0) for one in states]
    mask = torch.tensor([[0] * (longest - length) + [1] * length for length in lengths]).bool()
    keys, values = torch.stack(filled, 1)
    return PrefixCache([PrefixLayer(keys, values, copies)], mask, copies, [END]), states


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=3),
    st.integers(1, 4),
    st.sampled_from([(1, 1), (2, 1), (4, 2), (4, 4)]),
    st.integers(1, 70),
    st.floats(0, 0.2),
    st.integers(0, 2**31),
)
def test_a_row_attends_to_its_prompt_and_to_what_it_wrote_until_it_leaves(
    lengths, copies, heads, written, leaving, seed
):
    queries, groups = heads
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    cache, states = shared(lengths, copies, groups, draw)
    rows = len(lengths) * copies
    keys, values = draw(2, rows, groups, written, WIDTH)
    staying = torch.ones(rows, dtype=torch.bool)
    for token in range(written):
        cache.leave()
        assert cache.rows.tolist() == staying.nonzero().flatten().tolist()
        cache.update(keys[cache.rows, :, token : token + 1], values[cache.rows, :, token : token + 1], 0)
        drawn = torch.where(torch.rand(rows, generator=generator) < leaving, END, END + 1)
        if token < written - 1 and (staying & (drawn != END)).any():  # the last one stays
            assert not cache.note_ended(drawn[:, None], None).any()
            staying &= drawn != END
    assert cache.get_seq_length() == max(lengths) + written
    query = draw(rows, queries, 1, WIDTH)
    found = cache.attend(0, query[cache.rows], 0.3)
    for place, row in enumerate(cache.rows.tolist()):
        prompt = states[row // copies]
        alone = [torch.cat([before, own[row]], 1)[None] for before, own in zip(prompt, (keys, values), strict=True)]
        wanted = scaled_dot_product_attention(query[row, None], *alone, scale=0.3, enable_gqa=True)
        torch.testing.assert_close(found[place, None].transpose(1, 2), wanted, rtol=1e-4, atol=1e-5)


def test_when_all_rows_have_ended_the_last_ones_go_on_for_other_ranks():
    cache, _ = shared([3], 2, 1, torch.randn)
    cache.note_ended(torch.tensor([[END], [END]]), None)
    cache.leave()
    assert cache.rows.tolist() == [0, 1]


def test_a_prompt_is_kept_once_however_many_rows_it_has():
    cache, _ = shared([5, 3], 4, 2, torch.randn)
    assert [states.shape[0] for states in cache.layers[0].prefix] == [2, 2]
    assert cache.layers[0].keys.shape == (8, 2, 0, WIDTH)


def test_several_tokens_at_a_time_are_refused_by_the_key_that_turns_sharing_off():
    cache, _ = shared([5], 2, 1, torch.randn)
    with pytest.raises(RuntimeError, match="shared_prefix: false"):
        cache.attend(0, torch.randn(2, 1, 3, WIDTH), 1.0)


@settings(deadline=None, max_examples=20)
@given(st.floats(0.2, 8.0), st.integers(0, 2**31))
def test_in_bfloat16_it_is_as_exact_as_the_kernels_of_sdpa(sharpness, seed):
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, generator=generator).bfloat16()

    cache, (states,) = shared([300], 2, 2, draw)
    key, value = draw(2, 2, 2, 1, WIDTH)
    cache.update(key, value, 0)
    query = draw(2, 4, 1, WIDTH)
    found = cache.attend(0, query, sharpness).transpose(1, 2)
    alone = [torch.cat([one.expand(2, -1, -1, -1), own], 2) for one, own in zip(states, (key, value), strict=True)]
    options = {"scale": sharpness, "enable_gqa": True}
    exact = scaled_dot_product_attention(*(one.double() for one in (query, *alone)), **options)
    kernel = scaled_dot_product_attention(query, *alone, **options)
    assert (found - exact).abs().max() <= 1.05 * (kernel - exact).abs().max() + 1e-3
