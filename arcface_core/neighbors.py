"""Top-k cosine search: exact blocked torch, which is the oracle, and faiss where the problem is large.

The exact search packs (cosine, index) into one int64 that sorts like the pair, so that ties are decided by the index and not by the
thread that came first: `torch.topk` alone promises no order among equals. Nothing else in arcface_core imports faiss.
"""

import math
from importlib.util import find_spec
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcface_core.angles import normalize

__all__ = ["BACKENDS", "NeighborIndex", "top_k"]

BACKENDS = ("auto", "exact", "faiss", "ivf")
_QUERIES_PER_BLOCK, _KEYS_PER_BLOCK = 1024, 16384  # 64 MiB of cosines at a time
_QUERIES_PER_PART = 1 << 15  # so that copies of the queries stay small
_COSINES_AT_ONCE = 1 << 20
_LIST_AFTER_LIST = 16  # queries for each inverted list from which a product per list beats a scan per query
_SMALL_PROBLEM = 1 << 26  # cosines; below it a faiss index costs more to build than it saves
_MANY_KEYS = 8_192  # above it an exhaustive search costs more than all the rest of an isolation
_RECALL_QUERIES, _RECALL_K = 256, 5
_LOW_BITS = (1 << 32) - 1
_MAGNITUDE_BITS = (1 << 31) - 1


class NeighborIndex:
    """Keys, once, to be searched part by part.

    `backend`: what searches, one of `exact` (blocked matmul on the keys' device), `faiss` (`IndexFlatIP`, exhaustive too, on all GPUs that faiss
    sees), `ivf` (`IndexIVFFlat`, 4 sqrt(M) lists of which a sixteenth is probed, 64 at most: approximate). `recall`: of the 5 nearest that the exact search
    finds for 256 of the keys, the share that this index finds; 1.0 for the exhaustive ones. `lists`: the faiss index of `ivf`, else None.
    """

    def __init__(self, keys_MD: Tensor, *, backend: str = "auto", expected_queries: int = 1 << 40) -> None:
        """`auto`: exact while expected_queries x M cosines are few or without faiss, exhaustive faiss to 8,192 keys or on a GPU, else ivf.

        Raises ValueError when a key is not finite, or the backend is unknown or not installed.
        """
        if backend not in BACKENDS:
            raise ValueError(f"unknown backend {backend!r}: choose one of {', '.join(BACKENDS)}")
        if backend in ("faiss", "ivf") and find_spec("faiss") is None:
            raise ValueError(f"backend {backend!r} is not installed: install the extra `cpu` or `gpu`, or use backend='exact'")
        if not bool(keys_MD.isfinite().all()):
            raise ValueError("the keys hold NaN or infinity: leave those rows out and map the indices back")
        if backend == "auto":
            backend = _fitting(keys_MD, expected_queries)
        self.backend, self.recall, self._shape = backend, 1.0, keys_MD.shape
        self._keys_MD: Tensor | None = normalize(keys_MD).float() if backend == "exact" else None
        self._index: Any = None if backend == "exact" else _faiss_index(keys_MD, approximate=backend == "ivf")
        if backend == "ivf":
            self.recall = self._measured_recall(keys_MD)

    @classmethod
    def of_lists(cls, index: Any, recall: float) -> Self:
        """The index that `lists` of another one is, however it came here: read from a disk, or mapped from it."""
        self = cls.__new__(cls)
        self.backend, self.recall, self._shape = "ivf", recall, torch.Size([index.ntotal, index.d])
        self._keys_MD, self._index = None, index
        return self

    @property
    def lists(self) -> Any:
        return self._index if self.backend == "ivf" else None

    def search(self, queries_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Cosines (float32, in [-1, 1]) and indices (int64) of the k keys nearest to each query, both [N, k], best first.

        Rows need not be unit vectors; a zero row has cosine 0 to everything. Ties go to the lowest index (`exact`; faiss promises no order).
        A query that is not finite has no neighbour: its cosines are NaN and its indices -1. So have the places that `ivf` could not fill.
        Raises ValueError when k is not in 1..M or shapes disagree.
        """
        count, dim = self._shape
        if queries_ND.ndim != 2 or queries_ND.shape[1] != dim:
            raise ValueError(
                f"the search wants queries [N, D] and keys [M, D] of one D, got {tuple(queries_ND.shape)} and {tuple(self._shape)}: "
                "embed both with the same backbone"
            )
        if not 1 <= k <= count:
            raise ValueError(f"k must be in 1..{count}, the number of keys, got {k}: ask for fewer neighbours")
        parts = [self._search(part_BD, k) for part_BD in torch.split(queries_ND, _QUERIES_PER_PART)]  # of none, one empty part
        return torch.cat([cos for cos, _ in parts]), torch.cat([index for _, index in parts])

    def _search(self, queries_BD: Tensor, k: int) -> tuple[Tensor, Tensor]:
        answers_B = queries_BD.isfinite().all(dim=1)
        unit_BD = normalize(queries_BD.where(answers_B[:, None], torch.zeros_like(queries_BD))).float()
        if self._keys_MD is not None:
            cos_Bk, index_Bk = _exact(unit_BD, self._keys_MD, k)
        else:
            found = _by_faiss(self._index, unit_BD.cpu().contiguous().numpy(), k)
            cos_Bk, index_Bk = (torch.from_numpy(part).to(queries_BD.device) for part in found)
        nothing_Bk = ~answers_B[:, None].expand_as(index_Bk) | (index_Bk < 0)
        return cos_Bk.clamp(-1.0, 1.0).masked_fill(nothing_Bk, torch.nan), index_Bk.masked_fill(nothing_Bk, -1)

    def _measured_recall(self, keys_MD: Tensor) -> float:
        step = max(1, len(keys_MD) // _RECALL_QUERIES)
        asked = keys_MD[::step][:_RECALL_QUERIES]
        k = min(_RECALL_K, len(keys_MD))
        _, found = self.search(asked, k)
        probed, self._index.nprobe = self._index.nprobe, self._index.nlist  # all lists: the exact search, without another copy of the keys
        _, truth = self.search(asked, k)
        self._index.nprobe = probed
        return float((truth[:, :, None] == found[:, None, :]).any(dim=2).float().mean())


def top_k(queries_ND: Tensor, keys_MD: Tensor, k: int, *, backend: str = "auto") -> tuple[Tensor, Tensor]:
    """`NeighborIndex(keys, backend).search(queries, k)`, for keys that are searched once."""
    if keys_MD.ndim != 2:
        raise ValueError(f"the search wants keys [M, D], got {tuple(keys_MD.shape)}: embed both with the same backbone")
    return NeighborIndex(keys_MD, backend=backend, expected_queries=len(queries_ND)).search(queries_ND, k)


def _fitting(keys_MD: Tensor, queries: int) -> str:
    if find_spec("faiss") is None or keys_MD.device.type != "cpu" or queries * len(keys_MD) <= _SMALL_PROBLEM or len(keys_MD) < 4096:
        return "exact"
    return "faiss" if len(keys_MD) <= _MANY_KEYS or _gpus() else "ivf"


def _gpus() -> int:
    import faiss

    return int(getattr(faiss, "get_num_gpus", lambda: 0)())


def _exact(unit_ND: Tensor, keys_MD: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosines and indices by blocked matmul, merging the best k of each block of keys into those of the blocks before it."""
    best: list[Tensor] = []
    for unit_BD in torch.split(unit_ND, _QUERIES_PER_BLOCK):
        packed_Bk = torch.empty(len(unit_BD), 0, dtype=torch.int64, device=unit_BD.device)
        for start in range(0, len(keys_MD), _KEYS_PER_BLOCK):
            block_MD = keys_MD[start : start + _KEYS_PER_BLOCK]
            index_M = torch.arange(start, start + len(block_MD), device=unit_BD.device)
            candidates = torch.cat([packed_Bk, _pack(unit_BD @ block_MD.mT, index_M)], dim=1)
            packed_Bk = candidates.topk(min(k, candidates.shape[1]), dim=1).values
        best.append(packed_Bk)
    return _unpack(torch.cat(best) if best else torch.empty(0, k, dtype=torch.int64, device=unit_ND.device))


def _pack(cos_BM: Tensor, index_M: Tensor) -> Tensor:
    """int64 keys that sort by cosine first and then by falling index: the float's bits, made monotone, above the complement of the index."""
    bits = (cos_BM + 0.0).view(torch.int32)  # + 0.0 turns -0.0, whose bits differ, into 0.0
    monotone = (bits ^ ((bits >> 31) & _MAGNITUDE_BITS)).long()
    return (monotone << 32) | (_LOW_BITS - index_M)


def _unpack(packed_Nk: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and indices that `_pack` put together."""
    monotone = (packed_Nk >> 32).int()
    return (monotone ^ ((monotone >> 31) & _MAGNITUDE_BITS)).view(torch.float32), _LOW_BITS - (packed_Nk & _LOW_BITS)


def _faiss_index(keys_MD: Tensor, *, approximate: bool) -> Any:
    """A faiss index over the directions of keys: exhaustive, sharded over the GPUs if faiss has any, or inverted lists. Holds the only copy of them."""
    import faiss

    count, dim = keys_MD.shape
    index: Any = faiss.IndexFlatIP(dim)
    if approximate:
        lists = max(1, int(4 * math.sqrt(count)))
        index = faiss.IndexIVFFlat(index, dim, lists, faiss.METRIC_INNER_PRODUCT)
        step = max(1, count // (64 * lists))
        index.cp.min_points_per_centroid = 1  # it warns on the screen below 39, and few keys train well enough
        index.train(_unit(keys_MD[::step]))
        index.nprobe = min(64, max(8, lists // 16))
    if _gpus() > 0:
        options = faiss.GpuMultipleClonerOptions()
        options.shard = True
        index = faiss.index_cpu_to_all_gpus(index, options)
    for part_BD in torch.split(keys_MD, _KEYS_PER_BLOCK):
        index.add(_unit(part_BD))
    return index


def _unit(keys_MD: Tensor) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = normalize(keys_MD).float().cpu().contiguous().numpy()
    return unit


def _by_faiss(index: Any, unit_BD: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Cosines and indices."""
    import faiss

    if type(index) is faiss.IndexIVFFlat and len(unit_BD) * index.nprobe >= _LIST_AFTER_LIST * index.nlist:
        return _list_after_list(index, unit_BD, k)
    cos_Bk, index_Bk = index.search(unit_BD, k)
    return cos_Bk, index_Bk


def _list_after_list(index: Any, unit_BD: NDArray[np.float32], k: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """What `index.search` finds, for many queries: each list is multiplied once with all that probe it, where a scan for every query would wait for
    memory. Source: faiss.contrib.big_batch_search, which writes on the screen."""
    import faiss

    list_Bp = index.quantizer.search(unit_BD, index.nprobe)[1]
    query_N = (list_Bp.ravel().astype(np.uint16 if index.nlist < 1 << 16 else np.int64)).argsort(kind="stable") // index.nprobe
    ends = [0, *np.bincount(list_Bp.ravel(), minlength=index.nlist).cumsum().tolist()]
    best = faiss.ResultHeap(len(unit_BD), k, keep_max=True)
    for number in range(index.nlist):
        size = index.invlists.list_size(number)
        if size == 0:
            continue
        ids = faiss.rev_swig_ptr(index.invlists.get_ids(number), size)
        keys = faiss.rev_swig_ptr(index.invlists.get_codes(number), size * index.d * 4).view(np.float32).reshape(size, index.d)
        at_once = max(1, _COSINES_AT_ONCE // size)
        for first in range(ends[number], ends[number + 1], at_once):
            asked_n = query_N[first : min(first + at_once, ends[number + 1])]
            cos_nM = torch.from_numpy(unit_BD[asked_n]) @ torch.from_numpy(keys).T
            best.add_result_subset(asked_n, cos_nM.numpy(), ids)
    best.finalize()
    return best.D, best.I
