"""Top-k cosine search: exact blocked torch, which is the oracle, and faiss where the problem is large.

The exact search packs (cosine, index) into one int64 that sorts like the pair, so that ties are decided by the index and not by the
thread that came first: `torch.topk` alone promises no order among equals. This is the only file that imports faiss.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from arcface_core.angles import normalize

__all__ = ["BACKENDS", "top_k"]

BACKENDS = ("auto", "exact", "faiss")
_QUERIES_PER_BLOCK, _KEYS_PER_BLOCK = 1024, 16384  # 64 MiB of cosines at a time
_SMALL_PROBLEM = 1 << 26  # cosines; below it a faiss index costs more to build than it saves
_LOW_BITS = (1 << 32) - 1
_MAGNITUDE_BITS = (1 << 31) - 1


def top_k(queries_ND: Tensor, keys_MD: Tensor, k: int, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """Cosines (float32, in [-1, 1]) and indices (int64) of the k keys nearest to each query, both [N, k], best first.

    Rows need not be unit vectors; a zero row has cosine 0 to everything. Ties go to the lowest index ("exact"; faiss promises no order).
    A query that is not finite has no neighbour: its cosines are NaN and its indices -1.
    `backend`: "exact" (blocked matmul on the tensors' device, 64 MiB of cosines at a time), "faiss" (`IndexFlatIP`, exhaustive too, on all
    GPUs that faiss sees), or "auto": faiss if it is installed, the tensors are on the CPU and the problem is large; else exact.

    Raises ValueError when k is not in 1..M, shapes disagree, a key is not finite, or the backend is unknown or not installed.
    """
    if queries_ND.ndim != 2 or keys_MD.ndim != 2 or queries_ND.shape[1] != keys_MD.shape[1]:
        raise ValueError(
            f"top_k wants queries [N, D] and keys [M, D] of one D, got {tuple(queries_ND.shape)} and {tuple(keys_MD.shape)}: "
            "embed both with the same backbone"
        )
    if not 1 <= k <= len(keys_MD):
        raise ValueError(f"k must be in 1..{len(keys_MD)}, the number of keys, got {k}: ask for fewer neighbours")
    if backend not in BACKENDS:
        raise ValueError(f"unknown backend {backend!r}: choose one of {', '.join(BACKENDS)}")
    if backend == "faiss" and find_spec("faiss") is None:
        raise ValueError("backend 'faiss' is not installed: install the extra `cpu` or `gpu`, or use backend='exact'")
    if not bool(keys_MD.isfinite().all()):
        raise ValueError("the keys hold NaN or infinity: leave those rows out and map the indices back")
    answers_N = queries_ND.isfinite().all(dim=1)
    queries_ND = queries_ND.where(answers_N[:, None], torch.zeros_like(queries_ND))
    if backend == "auto":
        large = len(queries_ND) * len(keys_MD) > _SMALL_PROBLEM and queries_ND.device.type == "cpu"
        backend = "faiss" if large and find_spec("faiss") is not None else "exact"
    cos_Nk, index_Nk = (_faiss if backend == "faiss" else _exact)(queries_ND, keys_MD, k)
    nothing_Nk = ~answers_N[:, None].expand_as(index_Nk)
    return cos_Nk.clamp(-1.0, 1.0).masked_fill(nothing_Nk, torch.nan), index_Nk.masked_fill(nothing_Nk, -1)


def _exact(queries_ND: Tensor, keys_MD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines and indices by blocked matmul, merging the best k of each block of keys into those of the blocks before it."""
    keys_MD = normalize(keys_MD).float()
    best: list[Tensor] = []
    for queries_BD in torch.split(queries_ND, _QUERIES_PER_BLOCK):
        unit_BD = normalize(queries_BD).float()
        packed_Bk = torch.empty(len(unit_BD), 0, dtype=torch.int64, device=unit_BD.device)
        for start in range(0, len(keys_MD), _KEYS_PER_BLOCK):
            block_MD = keys_MD[start : start + _KEYS_PER_BLOCK]
            index_M = torch.arange(start, start + len(block_MD), device=unit_BD.device)
            candidates = torch.cat([packed_Bk, _pack(unit_BD @ block_MD.mT, index_M)], dim=1)
            packed_Bk = candidates.topk(min(k, candidates.shape[1]), dim=1).values
        best.append(packed_Bk)
    return _unpack(torch.cat(best) if best else torch.empty(0, k, dtype=torch.int64, device=queries_ND.device))


def _pack(cos_BM: Tensor, index_M: Tensor) -> Tensor:
    """int64 keys that sort by cosine first and then by falling index: the float's bits, made monotone, above the complement of the index."""
    bits = (cos_BM + 0.0).view(torch.int32)  # + 0.0 turns -0.0, whose bits differ, into 0.0
    monotone = (bits ^ ((bits >> 31) & _MAGNITUDE_BITS)).long()
    return (monotone << 32) | (_LOW_BITS - index_M)


def _unpack(packed_Nk: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and indices that `_pack` put together."""
    monotone = (packed_Nk >> 32).int()
    return (monotone ^ ((monotone >> 31) & _MAGNITUDE_BITS)).view(torch.float32), _LOW_BITS - (packed_Nk & _LOW_BITS)


def _faiss(queries_ND: Tensor, keys_MD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines and indices by an exhaustive faiss index, sharded over the GPUs if faiss has any."""
    import faiss

    index: Any = faiss.IndexFlatIP(keys_MD.shape[1])
    if getattr(faiss, "get_num_gpus", lambda: 0)() > 0:
        options = faiss.GpuMultipleClonerOptions()
        options.shard = True
        index = faiss.index_cpu_to_all_gpus(index, options)
    index.add(normalize(keys_MD).float().cpu().contiguous().numpy())
    cos_Nk, index_Nk = index.search(normalize(queries_ND).float().cpu().contiguous().numpy(), k)
    return torch.from_numpy(cos_Nk).to(queries_ND.device), torch.from_numpy(index_Nk).to(queries_ND.device)
