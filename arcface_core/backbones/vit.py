"""The small vision transformers of arcface_torch: patches of 9 x 9 pixels, no class token, all patches joined into the feature.

Names of parameters are arcface_torch's, so that its weights load. While training, a share of the patches is left out of the blocks and stands in
the feature as `mask_token` (as in masked autoencoders), and blocks are skipped by chance for a sample (stochastic depth): both as in its recipes
for WebFace42M, both from torch's global generator. Attention is torch's own, which is the same mathematics in less memory.
Source: Dosovitskiy et al., ICLR 2021; He et al., CVPR 2022 (masking); Huang et al., ECCV 2016 (stochastic depth).
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

PATCH_PX = 9
_HEADS = 8
SIZES = {"vit_t": (256, 12, 0.0), "vit_s": (512, 12, 0.0), "vit_b": (512, 24, 0.05)}
"""Width, depth, and the share of patches that is masked while training."""
_MOST_DROPPED = 0.05
"""Chance at which the last block is skipped for a sample while training; of the blocks before in proportion."""


class _Attention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x_BLE: Tensor) -> Tensor:
        batch, length, width = x_BLE.shape
        q, k, v = self.qkv(x_BLE).view(batch, length, 3, _HEADS, width // _HEADS).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width))
        return out


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc2(nn.functional.relu6(self.fc1(x)))
        return out


class _Block(nn.Module):
    def __init__(self, width: int, dropped: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = _Attention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = _Mlp(width)
        self.dropped = dropped

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._sometimes(self.attn(self.norm1(x)))
        return x + self._sometimes(self.mlp(self.norm2(x)))

    def _sometimes(self, branch_BLE: Tensor) -> Tensor:
        """The branch, while training zero for some samples and larger for the others, so that its mean stays."""
        if not self.training or self.dropped == 0:
            return branch_BLE
        kept_B11 = branch_BLE.new_empty(len(branch_BLE), 1, 1).bernoulli_(1 - self.dropped)
        return branch_BLE * kept_B11 / (1 - self.dropped)


class _Patches(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, PATCH_PX, PATCH_PX)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        out: Tensor = self.proj(x_BCHW).flatten(2).transpose(1, 2)
        return out


class VisionTransformer(nn.Module):
    """[B, 3, H, W] in [-1, 1] -> features [B, embedding_dim], not normalised. H = W = `input_px`; pixels that fill no patch (4 of 112) are not seen."""

    def __init__(self, width: int, depth: int, masked: float, *, embedding_dim: int, input_px: int, dropout: float) -> None:
        super().__init__()
        self.patches = (input_px // PATCH_PX) ** 2
        self.masked = masked
        self.patch_embed = _Patches(width)
        self.pos_embed = nn.Parameter(torch.zeros(1, self.patches, width))
        self.blocks = nn.ModuleList(_Block(width, _MOST_DROPPED * number / (depth - 1)) for number in range(depth))
        self.norm = nn.LayerNorm(width)
        self.feature = nn.Sequential(
            nn.Linear(width * self.patches, width, bias=False),
            nn.BatchNorm1d(width, eps=2e-5),
            nn.Linear(width, embedding_dim, bias=False),
            nn.BatchNorm1d(embedding_dim, eps=2e-5),
        )
        self.dropout = nn.Dropout(dropout)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width), requires_grad=masked > 0)
        nn.init.normal_(self.mask_token, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed(x) + self.pos_embed
        order_BL = torch.rand(x.shape[:2], device=x.device).argsort(dim=1) if self.training and self.masked else None
        if order_BL is not None:
            seen_BL = order_BL[:, : max(1, int(self.patches * (1 - self.masked)))]
            x = x.gather(1, seen_BL[..., None].expand(-1, -1, x.shape[2]))
        for block in self.blocks:
            x = block(x)
        x = self.norm(x.float())
        if order_BL is not None:
            hidden = self.mask_token.expand(len(x), self.patches - x.shape[1], -1)
            place_BL = order_BL.argsort(dim=1)
            x = torch.cat([x, hidden], dim=1).gather(1, place_BL[..., None].expand(-1, -1, x.shape[2]))
        reduce, first_norm, project, last_norm = self.feature
        x = project(first_norm(reduce(self.dropout(x.flatten(1))).float()))
        out: Tensor = last_norm(x.float())
        return out
