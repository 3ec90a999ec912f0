"""Exact search against plain float64 loops; faiss against the exact search."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from arcface_core import neighbors
from arcface_core.neighbors import top_k


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 12))
def test_exact_equals_plain_loops(seed: int, keys: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    # Whole numbers make exact ties, which must go to the lowest index.
    query, key = (torch.randint(-2, 3, (n, 4), generator=generator).float() for n in (9, keys))
    k = min(k, keys)
    cos, index = top_k(query, key, k, backend="exact")
    for row, q in enumerate(query.tolist()):
        wanted = []
        for j, other in enumerate(key.tolist()):
            size = math.hypot(*q) * math.hypot(*other)
            wanted.append((sum(a * b for a, b in zip(q, other, strict=True)) / size if size else 0.0, j))
        best = sorted(wanted, key=lambda pair: -pair[0])[:k]
        assert cos[row].tolist() == pytest.approx([value for value, _ in best], abs=1e-6)
        assert len(set(index[row].tolist())) == k
        assert [wanted[j][0] for j in index[row].tolist()] == pytest.approx([value for value, _ in best], abs=1e-6)


def test_equal_keys_go_to_the_lowest_index() -> None:
    assert top_k(torch.ones(1, 3), torch.ones(6, 3), 4, backend="exact")[1].tolist() == [[0, 1, 2, 3]]


def test_blocks_make_no_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    query, key = torch.randn(50, 8), torch.randn(70, 8)
    whole = top_k(query, key, 5, backend="exact")
    monkeypatch.setattr(neighbors, "_KEYS_PER_BLOCK", 16)
    monkeypatch.setattr(neighbors, "_QUERIES_PER_BLOCK", 7)
    parts = top_k(query, key, 5, backend="exact")
    assert torch.equal(whole[1], parts[1]) and torch.allclose(whole[0], parts[0], atol=1e-6)


def test_faiss_agrees_with_the_exact_search() -> None:
    pytest.importorskip("faiss")
    query, key = torch.randn(40, 16), torch.randn(300, 16)
    exact, found = top_k(query, key, 7, backend="exact"), top_k(query, key, 7, backend="faiss")
    assert torch.equal(exact[1], found[1]) and torch.allclose(exact[0], found[0], atol=1e-5)


def test_a_query_without_direction_has_no_neighbour() -> None:
    cos, index = top_k(torch.tensor([[float("nan"), 1.0], [0.0, 0.0]]), torch.eye(2), 1, backend="exact")
    assert bool(cos[0].isnan()) and index.tolist() == [[-1], [0]] and cos[1].tolist() == [0.0]


def test_wrong_use_says_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"k must be in 1\.\.2"):
        top_k(torch.ones(1, 2), torch.ones(2, 2), 3)
    with pytest.raises(ValueError, match="choose one of auto, exact, faiss, ivf"):
        top_k(torch.ones(1, 2), torch.ones(2, 2), 1, backend="annoy")
    with pytest.raises(ValueError, match="keys hold NaN"):
        top_k(torch.ones(1, 2), torch.full((2, 2), float("nan")), 1)


def test_the_approximate_index_says_its_recall(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    keys = torch.randn(6000, 16, generator=torch.Generator().manual_seed(0))
    index = neighbors.NeighborIndex(keys, backend="ivf")
    asked = keys[:: 6000 // 256][:256]
    truth, found = top_k(asked, keys, 5, backend="exact")[1], index.search(asked, 5)[1]
    wanted = sum(len(set(a) & set(b)) for a, b in zip(truth.tolist(), found.tolist(), strict=True)) / truth.numel()
    assert index.recall == pytest.approx(wanted) and 0.5 < index.recall <= 1.0
    assert neighbors.NeighborIndex(keys, backend="faiss").recall == 1.0


def test_auto_takes_the_exact_search_for_few_keys_and_lists_for_many(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(neighbors, "_gpus", lambda: 0)
    monkeypatch.setattr(neighbors, "_MANY_KEYS", 5000)
    assert neighbors.NeighborIndex(torch.randn(100, 8)).backend == "exact"
    assert neighbors.NeighborIndex(torch.randn(4500, 8)).backend == "faiss"
    assert neighbors.NeighborIndex(torch.randn(5500, 8)).backend == "ivf"


def test_many_queries_find_list_after_list_what_a_scan_for_each_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    keys = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
    index, queries = neighbors.NeighborIndex(keys, backend="ivf"), torch.randn(700, 16, generator=torch.Generator().manual_seed(1))
    queries[5], queries[6] = 0.0, torch.nan
    cos, found = index.search(queries, 3)
    monkeypatch.setattr(neighbors, "_LIST_AFTER_LIST", 1 << 40)
    scanned_cos, scanned = index.search(queries, 3)
    unit = queries.nan_to_num().norm(dim=1) > 0
    assert torch.equal(found[unit], scanned[unit]) and torch.allclose(cos, scanned_cos, atol=1e-6, equal_nan=True)
    again = neighbors.NeighborIndex.of_lists(index.lists, index.recall)
    assert torch.equal(again.search(queries, 3)[1], scanned) and again.recall == index.recall
