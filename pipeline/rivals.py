"""The search for rivals as files, so that every worker maps the one index and the one array of centers, and none has a copy."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from arcface_core.neighbors import NeighborIndex
from arcface_core.noise.rivals import RivalSearch
from pipeline.files import mapped_tensor, save_array
from pipeline.receipts import atomic, write_json


def write_rivals(folder: Path, search: RivalSearch) -> None:
    """Put a search into a new folder. An exhaustive one needs no more than its centers; it is for few identities."""
    folder.mkdir()
    save_array(folder / "centers.npy", search.centers_CD.cpu().numpy())
    save_array(folder / "rows.npy", search.rows_P.cpu().numpy())
    if search.index is not None and search.index.lists is not None:
        import faiss

        with atomic(folder / "lists.faiss") as temporary:
            faiss.write_index(search.index.lists, str(temporary))
    write_json(folder / "facts.json", {"recall": search.recall})


@lru_cache(maxsize=1)
def open_rivals(folder: Path, device: str) -> RivalSearch:
    """The search of a folder, opened once in a process; folders are never written twice. Threads may share it."""
    centers_CD, rows_P = mapped_tensor(folder / "centers.npy"), mapped_tensor(folder / "rows.npy")
    if (folder / "lists.faiss").exists():
        import faiss

        lists: Any = faiss.read_index(str(folder / "lists.faiss"), faiss.IO_FLAG_MMAP | faiss.IO_FLAG_READ_ONLY)
        mapped_lists: Any = faiss.downcast_InvertedLists(lists.invlists)
        mapped_lists.prefetch_nthread = 0  # it would start 32 threads for each search
        return RivalSearch(centers_CD, rows_P, NeighborIndex.of_lists(lists, json.loads((folder / "facts.json").read_text())["recall"]))
    centers_CD, rows_P = centers_CD.to(device), rows_P.to(device)
    return RivalSearch(centers_CD, rows_P, NeighborIndex(centers_CD[rows_P]) if len(rows_P) else None)
