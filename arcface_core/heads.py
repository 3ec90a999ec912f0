"""Sub-center ArcFace head: K centers for an identity, of which the nearest to a sample answers for it. K = 1 is ArcFace.

Noise may settle in a center of its own without pulling the one that the clean samples share. Nothing keeps sub-centers apart or together.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from arcface_core.angles import cosine, normalize
from arcface_core.margins import Margin

__all__ = ["SubCenterHead"]


class SubCenterHead(nn.Module):
    """Cross-entropy over `scale * cos`, with a margin on the own identity. Source: paper, equations 3 and 7.

    cos[b, c] = max over k of cos(feature b, center c k), for every identity, negatives included: only the arg-max sub-center of an identity
    gets gradient, the lowest k on a tie. `weight` is [C * K, D], class-major (row = class_index * K + k), as insightface's.
    Raises ValueError for fewer than two identities, no sub-center, or a scale that is not positive.
    """

    def __init__(
        self, num_classes: int, embedding_dim: int, *, num_subcenters: int = 3, margin: Margin = Margin(), scale: float = 64.0
    ) -> None:
        super().__init__()
        if num_classes < 2 or num_subcenters < 1 or not scale > 0:
            raise ValueError(
                f"A head takes two identities or more, one sub-center or more, a positive scale; got {num_classes}, {num_subcenters}, {scale}."
            )
        self.num_classes, self.num_subcenters = num_classes, num_subcenters
        self.margin, self.scale = margin, scale
        self.weight = nn.Parameter(torch.empty(num_classes * num_subcenters, embedding_dim))
        nn.init.normal_(self.weight, std=0.01)

    def cosines(self, features_BD: Tensor) -> Tensor:
        """Cosine to every identity's nearest sub-center, in [-1, 1], [B, C], in float32 or wider whatever autocast says."""
        with torch.autocast(features_BD.device.type, enabled=False):
            cos_BCK = cosine(features_BD, self.weight).reshape(len(features_BD), self.num_classes, self.num_subcenters)
            return cos_BCK.max(dim=2).values

    def logits(self, features_BD: Tensor, class_index_B: Tensor) -> Tensor:
        """`scale * cos`, [B, C], with the margin on the own identity."""
        cos_BC = self.cosines(features_BD)
        own_B1 = class_index_B.unsqueeze(1)
        return self.scale * cos_BC.scatter(1, own_B1, self.margin(cos_BC.gather(1, own_B1)))

    def forward(self, features_BD: Tensor, class_index_B: Tensor) -> Tensor:
        """Mean cross-entropy of the batch, in nats. Raises ValueError for a class index that the head does not have."""
        if class_index_B.numel() and not (int(class_index_B.min()) >= 0 and int(class_index_B.max()) < self.num_classes):
            raise ValueError(
                f"Class indices are 0 to {self.num_classes - 1}; got {int(class_index_B.min())} to {int(class_index_B.max())}."
            )
        return functional.cross_entropy(self.logits(features_BD, class_index_B), class_index_B)

    @torch.no_grad()
    def unit_centers(self) -> Tensor:
        """The sub-centers as unit rows, [C, K, D]."""
        return normalize(self.weight).reshape(self.num_classes, self.num_subcenters, -1).clone()
