"""Other identities than a sample's own: the nearest ones, and a random one. The centers are indexed once and asked part by part."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from arcface_core.angles import angle_deg
from arcface_core.neighbors import NeighborIndex
from arcface_core.noise.centers import angle_to, random_other, with_direction

__all__ = ["RivalSearch", "belongs_elsewhere"]

_ELSEWHERE_GAP_DEG = 10.0


def belongs_elsewhere(own_deg_N: Tensor, rival_deg_N: Tensor, clean_deg: float) -> Tensor:
    """Bool [N]: another identity explains the sample well, within `clean_deg` (inclusive), and better than its own by 10 degrees or more.

    False where either angle is NaN.
    """
    return (rival_deg_N <= clean_deg) & (rival_deg_N + _ELSEWHERE_GAP_DEG <= own_deg_N)


@dataclass(frozen=True)
class RivalSearch:
    """Questions about all identities but a sample's own.

    centers_CD   unit centers of all identities
    rows_P       rising class indices of those that are there, int64
    index        over `centers_CD[rows_P]`; None when nobody is there
    """

    centers_CD: Tensor
    rows_P: Tensor
    index: NeighborIndex | None

    @classmethod
    def over(cls, centers_CD: Tensor, present_C: Tensor, *, backend: str = "auto") -> Self:
        """The search over the identities of `present_C` (bool) whose center is not the zero row."""
        rows_P = with_direction(centers_CD)
        rows_P = rows_P[present_C[rows_P]]
        return cls(centers_CD, rows_P, NeighborIndex(centers_CD[rows_P], backend=backend) if len(rows_P) else None)

    @property
    def recall(self) -> float:
        """Of the index (`NeighborIndex.recall`); 1.0 when the search is exact."""
        return self.index.recall if self.index else 1.0

    def nearest(self, embeddings_ND: Tensor, class_index_N: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Class index (int64) and angle (degrees) of the k nearest OTHER identities, nearest first, both [N, k].

        Index -1 and angle NaN where there are fewer, or the sample has no direction. Ties go to the lowest index in the exact search.
        """
        count = len(embeddings_ND)
        index_Nk = torch.full((count, k), -1, dtype=torch.int64, device=embeddings_ND.device)
        angle_Nk = torch.full((count, k), torch.nan, device=embeddings_ND.device)
        if self.index is None or count == 0:
            return index_Nk, angle_Nk
        cos_Nm, place_Nm = self.index.search(embeddings_ND, min(k + 1, len(self.rows_P)))
        found_Nm = torch.where(place_Nm >= 0, self.rows_P[place_Nm.clamp_min(0)], place_Nm)
        # Its own identity moves to the end, the order of the others stays.
        unwanted_Nm = (found_Nm == class_index_N[:, None]) | (found_Nm < 0) | (embeddings_ND == 0).all(dim=1, keepdim=True)
        order_Nm = unwanted_Nm.long().argsort(dim=1, stable=True)[:, :k]
        width = order_Nm.shape[1]
        gone_Nm = unwanted_Nm.gather(1, order_Nm)
        index_Nk[:, :width] = found_Nm.gather(1, order_Nm).masked_fill(gone_Nm, -1)
        angle_Nk[:, :width] = angle_deg(cos_Nm.gather(1, order_Nm)).masked_fill(gone_Nm, torch.nan)
        return index_Nk, angle_Nk

    def to_random_other(self, embeddings_ND: Tensor, class_index_N: Tensor, salt_N: Tensor, *, among_C: Tensor | None = None) -> Tensor:
        """Null angles [N] in degrees: to an identity (of `among`, bool) other than the sample's own, chosen by `salt`; NaN when there is none."""
        rows_P = self.rows_P if among_C is None else self.rows_P[among_C[self.rows_P]]
        return angle_to(embeddings_ND, random_other(class_index_N, salt_N, rows_P), self.centers_CD)
