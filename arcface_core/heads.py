"""Sub-center ArcFace head: K centers for an identity, of which the nearest to a sample answers for it. K = 1 is ArcFace.

Noise may settle in a center of its own without pulling the one that the clean samples share. Nothing keeps sub-centers apart or together.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from arcface_core.angles import cosine, normalize
from arcface_core.fused import own_and_others
from arcface_core.margins import Margin

__all__ = ["SubCenterHead"]

_EXACT_NATS = 50.0
"""softplus(x) is x beyond: the difference, exp(-50), is below the spacing of float64 there."""


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

    def logits(self, features_BD: Tensor, class_index_B: Tensor) -> Tensor:
        """`scale * cos`, [B, C], with the margin on the own identity: the definition, in B x C x K memory. `forward` gives its cross-entropy."""
        with torch.autocast(features_BD.device.type, enabled=False):
            cos_BCK = cosine(features_BD, self.weight).reshape(len(features_BD), self.num_classes, self.num_subcenters)
            cos_BC = cos_BCK.max(dim=2).values
            own_B1 = class_index_B.unsqueeze(1)
            return self.scale * cos_BC.scatter(1, own_B1, self.margin(cos_BC.gather(1, own_B1)))

    def forward(self, features_BD: Tensor, class_index_B: Tensor) -> Tensor:
        """Mean cross-entropy of the batch, in nats, float32 or wider.

        Under autocast on a GPU that has bfloat16, the operands of the matrix products are rounded to it, and their sums, the margin and the softmax
        stay float32: a cosine is then off by some 1e-4. On a CPU autocast changes nothing here. Raises ValueError for a class index that the
        head does not have, and for no sample.
        """
        self._check(features_BD, class_index_B)
        narrow = _narrow(features_BD.device)
        with torch.autocast(features_BD.device.type, enabled=False):
            own_B, others_B = own_and_others(
                normalize(features_BD),
                self.weight,
                class_index_B,
                num_subcenters=self.num_subcenters,
                scale=self.scale,
                narrow=narrow,
            )
            return functional.softplus(others_B - self.scale * self.margin(own_B), threshold=_EXACT_NATS).mean()

    def _check(self, features_BD: Tensor, class_index_B: Tensor) -> None:
        if len(features_BD) == 0 or len(features_BD) != len(class_index_B):
            raise ValueError(f"A batch is one class index for each of one sample or more; got {len(class_index_B)} for {len(features_BD)}.")
        least, most = class_index_B.aminmax()
        if not (int(least) >= 0 and int(most) < self.num_classes):
            raise ValueError(f"Class indices are 0 to {self.num_classes - 1}; got {int(least)} to {int(most)}.")

    @torch.no_grad()
    def unit_centers(self) -> Tensor:
        """The sub-centers as unit rows, [C, K, D]."""
        return normalize(self.weight).reshape(self.num_classes, self.num_subcenters, -1).clone()


def _narrow(device: torch.device) -> torch.dtype | None:
    on_gpu = device.type == "cuda" and torch.is_autocast_enabled("cuda")
    return torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else None
