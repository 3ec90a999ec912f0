"""What the samples of one identity say about each other: its consensus center, how well each sample agrees, near duplicates, a second person.

A head's sub-center is where training ended; it has been pulled by the noise that it was trained on. The consensus center is the mean of the
samples that agree with it, found from the sub-centers by a few steps of weighted means, and each sample is compared with the consensus of the
OTHERS. Works on groups of identities of one size, so that all is a few batched products and no sample is ever compared across identities.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from arcface_core.angles import angle_deg, cos_of_deg, normalize

__all__ = ["MAX_REFERENCES", "Consensus", "competition", "consensus"]

MAX_REFERENCES = 4096
"""In a larger identity each sample is compared with this many others, evenly spread over it."""
_STEPS = 3
_NEIGHBOURS = 5


@dataclass(frozen=True)
class _Group:
    """G identities of n samples, and what is near to what: `cos_Gnr` to the references, `near_Gnr` near duplicates and oneself, `copies_Gn` how many."""

    unit_GnD: Tensor
    reference_r: Tensor
    cos_Gnr: Tensor
    near_Gnr: Tensor
    copies_Gn: Tensor
    clean_probability: Callable[[Tensor], Tensor]

    def weigh(self, angle: Tensor) -> Tensor:
        return self.clean_probability(angle).nan_to_num(0.0)

    def settle(self, starts_GMD: Tensor, allowed_Gn: Tensor, trust_Gn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Centers [G, M, D], angles to the center of the others [G, n, M], agreement of each sample [G, n, M], after some steps from each start."""
        centers_GMD = normalize(starts_GMD)
        angle_GnM = _angle_without_self(self.unit_GnD, centers_GMD, None, None)
        for _ in range(_STEPS):
            weight_GnM = self.weigh(angle_GnM) * (allowed_Gn * trust_Gn / self.copies_Gn)[..., None]
            sums_GMD = weight_GnM.mT @ self.unit_GnD
            found_GM1 = sums_GMD.norm(dim=2, keepdim=True) > 1e-6
            centers_GMD = torch.where(found_GM1, normalize(sums_GMD), centers_GMD)
            own_GnM = weight_GnM * self.copies_Gn[..., None]  # what the sample and its near duplicates put into the sum
            angle_GnM = _angle_without_self(self.unit_GnD, centers_GMD, sums_GMD, own_GnM)
        return centers_GMD, angle_GnM, self.weigh(angle_GnM) * (allowed_Gn / self.copies_Gn)[..., None]


@dataclass(frozen=True, kw_only=True)
class Consensus:
    """Of G identities with n samples each; angles in degrees, NaN where there is nothing to compare with. What is not asked for is not computed.

    center_GD       unit consensus center; zero where no sample has a direction
    mass_G          how many samples agree with it, near duplicates counted once: the sum of their clean probabilities
    angle_Gn        of each sample to the consensus of the others, its near duplicates left out
    density_Gn      of each sample: the angle whose cosine is its mean cosine with its 5 nearest others, near duplicates left out
    duplicate_Gn    place in the group of the near duplicate that stands for this sample; its own place when it stands for itself
    second_GD       unit center of the samples that do not agree with the first; zero when there are none
    second_mass_G   how many agree with that one
    """

    center_GD: Tensor
    mass_G: Tensor
    angle_Gn: Tensor
    _group: _Group
    _worth_Gn: Tensor

    @cached_property
    def density_Gn(self) -> Tensor:
        return _density(self._group.cos_Gnr, self._group.near_Gnr)

    @cached_property
    def duplicate_Gn(self) -> Tensor:
        doubtful_Gn = self._group.weigh(self.angle_Gn) < 0.5
        return _stand_ins(self._group.near_Gnr, self.angle_Gn, doubtful_Gn, self._worth_Gn, self._group.reference_r)

    @property
    def second_GD(self) -> Tensor:
        return self._second[0]

    @property
    def second_mass_G(self) -> Tensor:
        return self._second[1]

    @cached_property
    def _second(self) -> tuple[Tensor, Tensor]:
        group = self._group
        rest_Gn = 1 - group.weigh(self.angle_Gn)
        closeness_Gnr = (group.cos_Gnr.clamp_min(0) ** 2).masked_fill(group.near_Gnr, 0.0)
        affinity_Gn = rest_Gn * (closeness_Gnr @ (rest_Gn / group.copies_Gn)[:, group.reference_r, None])[..., 0]
        first_G = torch.arange(len(rest_Gn), device=rest_Gn.device)
        starts_G1D = group.unit_GnD[first_G, affinity_Gn.argmax(dim=1)][:, None]
        centers_G1D, _, agreement_Gn1 = group.settle(starts_G1D, rest_Gn, torch.ones_like(rest_Gn))
        return centers_G1D[:, 0], agreement_Gn1[:, :, 0].sum(dim=1)


def consensus(
    embeddings_GnD: Tensor,
    starts_GKD: Tensor,
    clean_probability: Callable[[Tensor], Tensor],
    *,
    duplicate_angle_deg: float = 12.0,
    trust_Gn: Tensor | None = None,
    worth_Gn: Tensor | None = None,
) -> Consensus:
    """The consensus of G identities.

    starts_GKD            sub-centers of each identity; a zero row is a start that does not exist
    clean_probability     of a tensor of angles in degrees: the probability 0..1 that a sample at this angle is of the identity; NaN counts as 0
    duplicate_angle_deg   two samples within this angle (inclusive) are one photograph
    trust_Gn              weight 0..1 that each sample has in finding the center (`competition`); and in the choice among starts; 1 by default
    worth_Gn              of near duplicates the one of most worth stands for the others, if it agrees with the consensus; equal by default

    From every start: weights = clean probability of the angle to the center of the others, divided by the number of near duplicates; center =
    weighted mean; three times. The start that ends with most mass wins, ties to the lowest. The second center is found likewise among
    what is left. Source: ours; the weighted mean is one step of mean shift (Comaniciu and Meer 2002) with a calibrated kernel.
    """
    unit_GnD = normalize(embeddings_GnD.nan_to_num(0.0, 0.0, 0.0))
    _, size, _ = unit_GnD.shape
    reference_r = torch.arange(size, device=unit_GnD.device)
    if size > MAX_REFERENCES:
        reference_r = (torch.arange(MAX_REFERENCES, device=unit_GnD.device) * size) // MAX_REFERENCES
    cos_Gnr = unit_GnD @ unit_GnD[:, reference_r].mT
    is_self_nr = torch.arange(size, device=unit_GnD.device)[:, None] == reference_r
    near_Gnr = ((cos_Gnr >= cos_of_deg(duplicate_angle_deg)) | is_self_nr) & (cos_Gnr > 0)
    copies_Gn = 1 + (near_Gnr & ~is_self_nr).sum(dim=2) * (size / len(reference_r))
    group = _Group(unit_GnD, reference_r, cos_Gnr, near_Gnr, copies_Gn, clean_probability)
    everyone_Gn = torch.ones_like(copies_Gn)
    trust_Gn = everyone_Gn if trust_Gn is None else trust_Gn
    centers_GMD, angle_GnM, agreement_GnM = group.settle(starts_GKD, everyone_Gn, trust_Gn)
    exists_GM = (starts_GKD != 0).any(dim=2)
    mass_GM = agreement_GnM.sum(dim=1)
    best_G = (agreement_GnM * trust_Gn[..., None]).sum(dim=1).masked_fill(~exists_GM, -1.0).argmax(dim=1)
    group_G = torch.arange(len(best_G), device=best_G.device)
    return Consensus(
        center_GD=centers_GMD[group_G, best_G],
        mass_G=mass_GM[group_G, best_G],
        angle_Gn=angle_GnM[group_G, :, best_G],
        _group=group,
        _worth_Gn=everyone_Gn if worth_Gn is None else worth_Gn,
    )


def competition(own_deg_N: Tensor, rival_deg_N: Tensor) -> Tensor:
    """Trust 0..1 in a sample that lies at these angles to its own identity's consensus and to the nearest other one: 1/2 where both are equal.

    Where a third of an identity is one look-alike, the kernel of the consensus holds both people and their common mean; that a sample is nearer
    to the other identity tells them apart. A logistic curve of 4 degrees: about the deviation of an angle to a mean of ten. NaN trusts.
    """
    return torch.sigmoid((rival_deg_N - own_deg_N) / 4).nan_to_num(1.0)


def _angle_without_self(unit_GnD: Tensor, centers_GMD: Tensor, sums_GMD: Tensor | None, own_GnM: Tensor | None) -> Tensor:
    """Degrees [G, n, M] between sample i and sum m without i's own share `own` of it; NaN where nothing is left. |S - w x| by the law of cosines."""
    cos_GnM = unit_GnD @ centers_GMD.mT
    there_GnM = (unit_GnD != 0).any(dim=2, keepdim=True) & (centers_GMD != 0).any(dim=2)[:, None]
    if sums_GMD is None or own_GnM is None:
        return angle_deg(cos_GnM).masked_fill(~there_GnM, torch.nan)
    length_G1M = sums_GMD.norm(dim=2)[:, None]
    left_GnM = (length_G1M**2 - 2 * own_GnM * cos_GnM * length_G1M + own_GnM**2).clamp_min(0).sqrt()
    nothing_GnM = left_GnM <= 1e-3 * own_GnM.clamp_min(1e-3)
    others_GnM = (cos_GnM * length_G1M - own_GnM) / left_GnM.clamp_min(1e-9)
    return angle_deg(others_GnM).masked_fill(~there_GnM | nothing_GnM, torch.nan)


def _density(cos_Gnr: Tensor, near_Gnr: Tensor) -> Tensor:
    others_Gnr = cos_Gnr.masked_fill(near_Gnr, -2.0)
    best_Gnk = others_Gnr.topk(min(_NEIGHBOURS, others_Gnr.shape[2]), dim=2).values
    known_Gnk = best_Gnk > -2.0
    mean_Gn = best_Gnk.masked_fill(~known_Gnk, 0.0).sum(dim=2) / known_Gnk.sum(dim=2)
    return angle_deg(mean_Gn).masked_fill(~known_Gnk.any(dim=2), torch.nan)


def _stand_ins(near_Gnr: Tensor, angle_Gn: Tensor, doubtful_Gn: Tensor, worth_Gn: Tensor, reference_r: Tensor) -> Tensor:
    """Keep-one rule: of near duplicates the best stands for those near to IT, then the next best.

    The best agrees with the consensus, then is of most worth, then nearest to the consensus; ties to the first.

    A chain a - b - c of which only neighbours are near is not one set: what a stands for is what is near to a.
    """
    size = angle_Gn.shape[1]
    stand_in_Gn = torch.arange(size, device=angle_Gn.device).expand_as(angle_Gn).clone()
    mutual_Gr = near_Gnr.sum(dim=1) > 1  # references that are near to somebody else
    for group in mutual_Gr.any(dim=1).nonzero()[:, 0].tolist():
        references = reference_r[mutual_Gr[group]]
        angle_r, worth_r = angle_Gn[group, references].nan_to_num(nan=torch.inf).tolist(), worth_Gn[group, references].tolist()
        doubtful_r = doubtful_Gn[group, references].tolist()
        order = sorted(range(len(references)), key=lambda at: (doubtful_r[at], -worth_r[at], angle_r[at]))
        places = mutual_Gr[group].nonzero()[:, 0][order].tolist()
        taken_n = torch.zeros(size, dtype=torch.bool, device=angle_Gn.device)
        for place in places:
            head = int(reference_r[place])
            if not taken_n[head]:
                follows_n = near_Gnr[group, :, place] & ~taken_n
                stand_in_Gn[group, follows_n] = head
                taken_n |= follows_n
    return stand_in_Gn
