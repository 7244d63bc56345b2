"""The KV cache by itself: what it keeps, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kv_cache import KVCache


def new(**changes) -> KVCache:
    sizes = {"num_layers": 2, "batch_size": 3, "num_kv_heads": 2, "max_seq_len": 8, "head_dim": 4}
    return KVCache(**{**sizes, **changes})


def block(T: int, seed: int = 0, batch: int = 3) -> Tensor:
    return torch.randn(batch, 2, T, 4, generator=torch.Generator().manual_seed(seed))


def fill(cache: KVCache, T: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    returned = [
        cache.layer(i).append(
            block(T, seed + i, cache.batch_size), block(T, seed + 10 + i, cache.batch_size)
        )
        for i in range(cache.num_layers)
    ]
    cache.advance(T)
    return [(k.clone(), v.clone()) for k, v in returned]


def test_everything_appended_comes_back_in_order():
    cache = new()
    fill(cache, 3, seed=0)
    (k0, _), (k1, v1) = fill(cache, 2, seed=100)
    assert cache.length == 5
    torch.testing.assert_close(k0, torch.cat((block(3, 0), block(2, 100)), dim=2))
    torch.testing.assert_close(k1, torch.cat((block(3, 1), block(2, 101)), dim=2))
    torch.testing.assert_close(v1, torch.cat((block(3, 11), block(2, 111)), dim=2))


def test_it_writes_in_place():
    cache = new()
    fill(cache, 1)
    before = cache._keys.data_ptr()
    fill(cache, 1)
    assert cache._keys.data_ptr() == before
    assert cache.nbytes == 2 * 2 * 3 * 2 * 8 * 4 * 4


def test_truncated_positions_are_written_again():
    cache = new()
    fill(cache, 4)
    cache.truncate(2)
    (k, _), _ = fill(cache, 1, seed=50)
    torch.testing.assert_close(k, torch.cat((block(4)[:, :, :2], block(1, 50)), dim=2))


@pytest.mark.parametrize("index", [[2, 0, 0], [1], [0, 1, 2, 2, 1]])
def test_reordered_rows_are_the_old_ones(index):
    cache = new()
    cache.starts = torch.tensor([0, 1, 2])
    ((k, _), _) = fill(cache, 3)
    cache.reorder(torch.tensor(index))
    assert cache.batch_size == len(index)
    assert cache.starts is not None
    assert cache.starts.tolist() == [[0, 1, 2][i] for i in index]
    ((again, _), _) = fill(cache, 1, seed=70)
    torch.testing.assert_close(again[:, :, :3], k[index])


def test_positions_and_masks_of_ragged_rows():
    cache = new()
    cache.starts = torch.tensor([0, 2, 1])
    assert cache.positions(3).tolist() == [[0, 1, 2], [0, 0, 0], [0, 0, 1]]
    keep = cache.keep(3)
    assert keep is not None
    assert keep.shape == (3, 1, 3, 3)
    assert keep[1, 0].tolist() == [[False] * 3, [False] * 3, [False, False, True]]
    fill(cache, 3)
    assert cache.positions(2).tolist() == [[3, 4], [1, 2], [2, 3]]
    keep = cache.keep(2)
    assert keep is not None
    assert keep[2, 0].tolist() == [
        [False, True, True, True, False],
        [False, True, True, True, True],
    ]


def test_even_rows_need_no_mask():
    cache = new()
    cache.starts = torch.zeros(3, dtype=torch.long)
    assert cache.starts is None
    assert cache.keep(2) is None
    assert cache.positions(2).tolist() == [0, 1]


def test_it_refuses_what_does_not_fit():
    cache = new()
    with pytest.raises(ValueError, match="max_seq_len 8"):
        cache.layer(0).append(block(9), block(9))
    with pytest.raises(ValueError, match="must both be"):
        cache.layer(0).append(block(2, batch=2), block(2, batch=2))
    with pytest.raises(ValueError, match="not graphs"):
        cache.layer(0).append(block(2).requires_grad_(), block(2))
    with pytest.raises(ValueError, match="cannot advance"):
        new().advance(1)
    with pytest.raises(ValueError, match="cannot truncate"):
        new().truncate(1)
    with pytest.raises(ValueError, match="beyond"):
        new().reorder(torch.tensor([3]))
    with pytest.raises(ValueError, match="num_layers"):
        new(num_layers=0)
    with pytest.raises(ValueError, match="floating"):
        new(dtype=torch.int64)
    for starts in (torch.tensor([0, 1]), torch.tensor([-1, 0, 0]), torch.zeros(3)):
        with pytest.raises(ValueError, match="starts"):
            new().starts = starts
    cache = new()
    fill(cache, 1)
    with pytest.raises(ValueError, match="empty"):
        cache.starts = torch.tensor([1, 0, 0])
