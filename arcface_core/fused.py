"""The head's softmax over identities, a few at a time: neither [B, C, K] cosines nor normalised copies of the centers ever exist.

    own[b]    = max over k of cos(b, own identity, k)
    others[b] = log of the sum over the other identities c of exp(scale * max over k of cos(b, c, k))

A cross-entropy with any margin is softplus(others - target), target = scale * margin(own): so margins, ranks and sampled identities stay outside,
in plain autograd. Forward: a matrix product per part of the identities, laid out [identity, k, sample], so that the max over k runs over whole
rows of samples, and a running log-sum-exp. Backward: p = exp(logit - others) per part, times the centers for the features, times the features
for the centers. Of the forward only the largest cosine and its k are kept, 5 bytes per sample and identity, and where even these do not fit the
budget they are computed again. Centers are divided by their lengths on the small side of each product.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

__all__ = ["own_and_others"]

_PART_BYTES = {"cpu": 16 << 20, "cuda": 256 << 20}
"""Centers and cosines of one part: on a CPU they stay in its cache, on a GPU they are enough to fill it."""
_LEAST_BUDGET_BYTES = 64 << 20
_PAIR_BYTES = 5


def own_and_others(
    unit_BD: Tensor,
    weight_RD: Tensor,
    own_B: Tensor,
    *,
    num_subcenters: int,
    scale: float,
    identities_S: Tensor | None = None,
    max_negative_cos: float | None = None,
    narrow: torch.dtype | None = None,
    part_size: int | None = None,
    budget_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """`own` in [-1, 1] and `others` in nats, both [B], differentiable by the unit features and by the centers, lengths included.

    `weight_RD`: centers of any length, class-major, float32 or float64, of the features' dtype. `own_B`: position of the own identity, or -1 where
    it is not among these: then `own` is 0. `identities_S`: ascending; only these take part, `own_B` counts among them, and the gradient of the
    centers is a sparse tensor of their rows. Of equal sub-centers the lowest k has the gradient. An identity's cosine above `max_negative_cos`
    (at exactly that it stays) leaves `others`; `others` is -inf where nobody is left. `narrow`: type to which the operands of the matrix products
    are rounded; sums stay in float32. `part_size`: identities at a time; `budget_bytes`: what may be kept for the backward pass, by default half
    of the centers' bytes, at least 64 MiB. Both change time and memory only.
    """
    count = len(weight_RD) // num_subcenters if identities_S is None else len(identities_S)
    row_bytes = weight_RD.element_size() * num_subcenters
    if part_size is None:
        part_size = max(16, _PART_BYTES.get(unit_BD.device.type, _PART_BYTES["cpu"]) // (row_bytes * (unit_BD.shape[1] + 2 * len(unit_BD))))
    if budget_bytes is None:
        budget_bytes = max(_LEAST_BUDGET_BYTES, count * row_bytes * unit_BD.shape[1] // 2)
    keeps = count * len(unit_BD) * _PAIR_BYTES <= budget_bytes
    how = _How(num_subcenters, scale, count, max(1, min(part_size, count)), keeps, max_negative_cos, narrow)
    own, others = _OwnAndOthers.apply(unit_BD, weight_RD, own_B, identities_S, how)  # type: ignore[no-untyped-call]
    return own, others


@dataclass(frozen=True)
class _How:
    subcenters: int
    scale: float
    identities: int
    part: int
    keeps: bool
    max_negative_cos: float | None
    narrow: torch.dtype | None


class _Parts:
    """Walks over the identities: the centers of a part, and where its own samples are. Holds the one buffer of cosines. Never waits for a GPU."""

    def __init__(self, unit_BD: Tensor, weight_RD: Tensor, own_B: Tensor, identities_S: Tensor | None, how: _How) -> None:
        self.unit_BD, self.own_B, self.identities_S, self.how = unit_BD, own_B, identities_S, how
        self.weight_CKD = weight_RD.view(-1, how.subcenters, weight_RD.shape[1])
        self.cos_PKB = unit_BD.new_empty(how.part, how.subcenters, len(unit_BD))

    def __iter__(self) -> Iterator[tuple[slice, Tensor, "_Own"]]:
        """Which identities; their centers [P * K, D]; and the samples whose own identity is among them."""
        for start in range(0, self.how.identities, self.how.part):
            stop = min(start + self.how.part, self.how.identities)
            chosen = self.weight_CKD[start:stop] if self.identities_S is None else self.weight_CKD[self.identities_S[start:stop]]
            row_B = self.own_B - start
            own = _Own((row_B >= 0) & (row_B < stop - start), row_B.clamp(0, stop - start - 1).unsqueeze(0))
            yield slice(start, stop), chosen.reshape(-1, chosen.shape[2]), own

    def nearest(self, rows_RD: Tensor, inverse_R: Tensor, best_PB: Tensor, nearest_PB: Tensor) -> None:
        """Writes the cosine to the nearest sub-center, and which it is, the lowest on a tie."""
        size, subcenters = len(best_PB), self.how.subcenters
        cos_PKB = self.cos_PKB[:size]
        _product(rows_RD, self.unit_BD.mT, cos_PKB.view(size * subcenters, -1), self.how.narrow)
        cos_PKB.view(size * subcenters, -1).mul_(inverse_R.unsqueeze(1))
        best_PB.copy_(cos_PKB[:, 0])
        nearest_PB.zero_()
        for k in range(1, subcenters):
            nearer = (cos_PKB[:, k] > best_PB).view(torch.uint8).mul_(k)
            torch.maximum(nearest_PB, nearer, out=nearest_PB)
            torch.maximum(best_PB, cos_PKB[:, k], out=best_PB)

    def split(self, grad_PB: Tensor, nearest_PB: Tensor) -> Tensor:
        """The gradient at its sub-center, zero at the others, [P, K, B]."""
        if self.how.subcenters == 1:
            return grad_PB.unsqueeze(1)
        split_PKB = self.cos_PKB[: len(grad_PB)].zero_()
        return split_PKB.scatter_(1, nearest_PB.long().unsqueeze(1), grad_PB.unsqueeze(1))


@dataclass(frozen=True)
class _Own:
    """Of a part: which samples' own identity is in it, [B], and at which row, [1, B] (any row for the others)."""

    is_here_B: Tensor
    row_1B: Tensor

    def of(self, values_PB: Tensor, elsewhere_B: Tensor) -> Tensor:
        """Each sample's value at its own identity, or what is given."""
        return torch.where(self.is_here_B, values_PB.gather(0, self.row_1B)[0], elsewhere_B)

    def put(self, values_PB: Tensor, own_B: Tensor | float) -> None:
        """Replaces each sample's value at its own identity, in place."""
        values_PB.scatter_(0, self.row_1B, torch.where(self.is_here_B, own_B, values_PB.gather(0, self.row_1B)[0]).unsqueeze(0))


class _OwnAndOthers(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, unit_BD: Tensor, weight_RD: Tensor, own_B: Tensor, identities_S: Tensor | None, how: _How
    ) -> tuple[Tensor, Tensor]:
        parts = _Parts(unit_BD, weight_RD, own_B, identities_S, how)
        kept = how.identities if how.keeps else how.part
        best_SB = unit_BD.new_empty(kept, len(unit_BD))
        nearest_SB = unit_BD.new_empty(kept, len(unit_BD), dtype=torch.uint8)
        inverse_SK = unit_BD.new_empty(how.identities, how.subcenters)
        own, others = unit_BD.new_zeros(len(unit_BD)), unit_BD.new_full((len(unit_BD),), -torch.inf)
        for part, rows_RD, at_own in parts:
            inverse_SK[part] = _inverse_lengths(rows_RD).view(-1, how.subcenters)
            place = part if how.keeps else slice(0, part.stop - part.start)
            best_PB = best_SB[place]
            parts.nearest(rows_RD, inverse_SK[part].view(-1), best_PB, nearest_SB[place])
            logits_PB = best_PB * how.scale
            if how.max_negative_cos is not None:
                logits_PB.masked_fill_(best_PB > how.max_negative_cos, -torch.inf)
            own = at_own.of(best_PB, own)
            at_own.put(logits_PB, -torch.inf)
            others = torch.logaddexp(others, torch.logsumexp(logits_PB, dim=0))
        held = (best_SB, nearest_SB) if how.keeps else ()
        ctx.save_for_backward(unit_BD, weight_RD, own_B, identities_S, inverse_SK, others, *held)
        ctx.how = how
        return own, others

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_own_B: Tensor, grad_others_B: Tensor) -> tuple[Tensor | None, ...]:
        unit_BD, weight_RD, own_B, identities_S, inverse_SK, others_B, *held = ctx.saved_tensors
        how: _How = ctx.how
        parts = _Parts(unit_BD, weight_RD, own_B, identities_S, how)
        if not held:
            held = [unit_BD.new_empty(how.part, len(unit_BD)), unit_BD.new_empty(how.part, len(unit_BD), dtype=torch.uint8)]
        grad_unit_BD = torch.zeros_like(unit_BD)
        added_BD = torch.empty_like(unit_BD)
        grad_rows_RD = weight_RD.new_empty(how.identities * how.subcenters, weight_RD.shape[1]) if ctx.needs_input_grad[1] else None
        for part, rows_RD, at_own in parts:
            place = part if how.keeps else slice(0, part.stop - part.start)
            best_PB, nearest_PB = held[0][place], held[1][place]
            inverse_R = inverse_SK[part].view(-1)
            if not how.keeps:
                parts.nearest(rows_RD, inverse_R, best_PB, nearest_PB)
            grad_PB = (best_PB * how.scale).sub_(others_B).exp_()
            if how.max_negative_cos is not None:
                grad_PB.masked_fill_(best_PB > how.max_negative_cos, 0.0)
            grad_PB.mul_(grad_others_B * how.scale)
            at_own.put(grad_PB, grad_own_B)
            grad_PKB = parts.split(grad_PB, nearest_PB)
            along_R = (grad_PKB * best_PB.unsqueeze(1)).sum(dim=2).view(-1)
            grad_RB = grad_PKB.view(len(rows_RD), -1).mul_(inverse_R.unsqueeze(1))
            grad_unit_BD += _product(grad_RB.mT, rows_RD, added_BD, how.narrow)
            if grad_rows_RD is not None:
                target = grad_rows_RD[part.start * how.subcenters : part.stop * how.subcenters]
                _product(grad_RB, unit_BD, target, how.narrow)
                target.addcmul_(rows_RD, (along_R * inverse_R.square()).unsqueeze(1), value=-1)  # a longer center is no nearer one
        return grad_unit_BD, _placed(grad_rows_RD, weight_RD, identities_S, how.subcenters), None, None, None


def _inverse_lengths(rows_RD: Tensor) -> Tensor:
    """1 / length; of a zero vector 1, as `normalize` has it: at 90 degrees to anything, and free to move."""
    length_R: Tensor = torch.linalg.vector_norm(rows_RD, dim=1)
    length_R.masked_fill_(length_R == 0, 1.0)
    return length_R.reciprocal_()


def _product(a: Tensor, b: Tensor, out: Tensor, narrow: torch.dtype | None) -> Tensor:
    """`a @ b`, into `out`, of operands rounded to `narrow`."""
    if narrow is None:
        return torch.mm(a, b, out=out)
    if a.is_cuda:
        return torch.mm(a.to(narrow), b.to(narrow), out_dtype=torch.float32, out=out)
    return torch.mm(a.to(narrow).float(), b.to(narrow).float(), out=out)


def _placed(grad_rows_RD: Tensor | None, weight_RD: Tensor, identities_S: Tensor | None, subcenters: int) -> Tensor | None:
    if grad_rows_RD is None or identities_S is None:
        return grad_rows_RD
    rows = (identities_S.unsqueeze(1) * subcenters + torch.arange(subcenters, device=identities_S.device)).view(1, -1)
    return torch.sparse_coo_tensor(rows, grad_rows_RD, weight_RD.shape, is_coalesced=True, check_invariants=False)
