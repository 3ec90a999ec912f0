"""How far the samples of an identity agree on one sub-center, as training goes on: what the noise is isolated by."""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from arcface_core.heads import SubCenterHead

__all__ = ["Votes"]

_KEPT = 0.9


@dataclass
class Votes:
    """`votes_CK`: for each identity and sub-center the samples that were nearest to it; each newer batch makes the older count nine tenths."""

    votes_CK: Tensor

    @classmethod
    def none(cls, head: SubCenterHead) -> Self:
        """No votes yet."""
        return cls(torch.zeros(head.num_classes, head.num_subcenters, device=head.weight.device))

    @torch.no_grad()
    def share(self, features_BD: Tensor, class_index_B: Tensor, head: SubCenterHead) -> Tensor:
        """Share of the samples, of all processes, that are nearest to the sub-center that most of their identity were nearest to before (the lowest on a
        tie), in 0..1; NaN where no identity was seen before. Then the samples vote."""
        class_index_B, nearest_B = head.nearest(features_BD, class_index_B)
        before_BK = self.votes_CK[class_index_B]
        is_known_B = before_BK.sum(dim=1) > 0
        agrees_B = (before_BK.argmax(dim=1) == nearest_B) & is_known_B
        self.votes_CK[class_index_B] = before_BK * _KEPT
        self.votes_CK.index_put_((class_index_B, nearest_B), torch.ones_like(nearest_B, dtype=torch.float32), accumulate=True)
        return agrees_B.sum() / is_known_B.sum()
