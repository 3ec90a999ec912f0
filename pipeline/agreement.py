"""What is done within a bucket, where every identity is whole: votes, consensus, rivals of its samples. Each function is a part that any worker does."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcface_core.angles import angle_deg, rowwise_cosine
from arcface_core.noise.calibration import AngleHistogram, Calibration, angle_of_probability
from arcface_core.noise.centers import (
    angle_of,
    angle_to,
    cluster_groups,
    dominant,
    dominant_centers,
    groups_of_one_size,
    nearest_of,
    random_other,
    subcenter_angles,
    vote,
)
from arcface_core.noise.consensus import Consensus, competition, consensus
from arcface_core.noise.rivals import belongs_elsewhere
from pipeline.buckets import Bucket
from pipeline.files import mapped, mapped_tensor, save_array
from pipeline.gathered import SURELY_CLEAN, RoundFiles, loaded
from pipeline.models import load_tensors, save_tensors
from pipeline.rivals import open_rivals
from pipeline.threads import one_thread
from pipeline.within import kind_of_sample

Counts = NDArray[np.int64]
"""Of an AngleHistogram."""
_PAIRS_AT_ONCE = 1 << 13


@dataclass(frozen=True)
class BucketPart:
    """A bucket to work on."""

    files: RoundFiles
    number: int


class _Held:
    """A bucket in memory. Its identities are counted from 0, by rising class, so that nothing in here is as long as there are identities."""

    def __init__(self, part: BucketPart) -> None:
        self.bucket: Bucket = part.files.buckets.read(part.number)
        class_G, place_N = np.unique(self.bucket.class_N, return_inverse=True)
        self.class_N, self.class_G = torch.from_numpy(self.bucket.class_N), torch.from_numpy(class_G)
        self.place_N = torch.from_numpy(place_N.reshape(-1))
        """Identity of each sample, as a place in `class_G`."""
        self.vectors_ND = torch.from_numpy(self.bucket.unit_ND)
        self.device = part.files.device
        self.unit_ND = self.vectors_ND.to(self.device)
        self.salt_N = torch.from_numpy(self.bucket.salt_N)
        self.head_row_G = torch.from_numpy(mapped(part.files.head_row)[class_G])


@dataclass(frozen=True)
class VotePart(BucketPart):
    """`duplicate_angle_deg`: blind pairs further apart than this are counted; None: no pairs."""

    duplicate_angle_deg: float | None


@one_thread()
def vote_in(part: VotePart) -> tuple[Counts, Counts]:
    """Write the sub-centers of a bucket's identities and their votes; identities that no head was trained on get clusters. Angles of blind pairs."""
    held = _Held(part)
    is_trained_G = held.head_row_G >= 0
    centers_GKD = torch.zeros(len(held.class_G), part.files.subcenters, part.files.buckets.dim)
    if is_trained_G.any():
        centers_GKD[is_trained_G] = load_tensors(part.files.train / "head.safetensors")["centers"][held.head_row_G[is_trained_G]]
    centers_GKD = centers_GKD.to(held.unit_ND.device)
    untrained_N = (~is_trained_G[held.place_N]).nonzero()[:, 0]
    for place_g, row_gn in groups_of_one_size(held.place_N[untrained_N], part.files.buckets.dim):
        some_gnD = held.unit_ND[untrained_N[row_gn].to(centers_GKD.device)]
        centers_GKD[place_g.to(centers_GKD.device)] = cluster_groups(some_gnD, part.files.subcenters)
    angle_NK = subcenter_angles(held.unit_ND, held.place_N.to(centers_GKD.device), centers_GKD).cpu()
    votes_GK = vote(nearest_of(angle_NK)[0], held.place_N, len(held.class_G), part.files.subcenters)
    dominant_G = dominant(votes_GK)
    save_tensors(
        part.files.starts(part.number),
        {
            "class": held.class_G,
            "centers": centers_GKD,
            "dominant": dominant_G,
            "dominant_center": dominant_centers(centers_GKD, dominant_G.to(centers_GKD.device)),
        },
    )
    same, other = AngleHistogram(), AngleHistogram()
    if part.duplicate_angle_deg is not None:
        _count_pairs(held, part.duplicate_angle_deg, same, other)
    return same.counts.numpy(), other.counts.numpy()


def _count_pairs(held: _Held, duplicate_angle_deg: float, same: AngleHistogram, other: AngleHistogram) -> None:
    """Angles of each sample to the one half an identity further on, and to the one half a bucket further on. Near duplicates say nothing here."""

    def add(histogram: AngleHistogram, left_N: Tensor, right_N: Tensor) -> None:
        for left_B, right_B in zip(torch.split(left_N, _PAIRS_AT_ONCE), torch.split(right_N, _PAIRS_AT_ONCE), strict=True):
            angle_B = angle_deg(rowwise_cosine(held.vectors_ND[left_B], held.vectors_ND[right_B]))
            histogram.add(angle_B[angle_B > duplicate_angle_deg])

    for _, row_Gn in groups_of_one_size(held.place_N, held.vectors_ND.shape[1]):
        if row_Gn.shape[1] > 1:
            add(same, row_Gn.flatten(), row_Gn.roll(row_Gn.shape[1] // 2, dims=1).flatten())
    order_N = held.place_N.argsort(stable=True)
    partner_N = order_N.roll(len(order_N) // 2)
    apart_N = held.place_N[order_N] != held.place_N[partner_N]
    add(other, order_N[apart_N], partner_N[apart_N])


@dataclass(frozen=True)
class CentersPart(BucketPart):
    """`centers`: folder of a center of each identity (`centers.npy`) and of who has one (`rows.npy`)."""

    centers: Path


@one_thread()
def angles_to_head(part: CentersPart) -> tuple[Counts, Counts]:
    """Own and null angles to the head's dominant sub-centers, of identities in the head: centers clustered beside trained ones follow their samples."""
    held = _Held(part)
    starts = load_tensors(part.files.starts(part.number))
    chosen_N = (held.head_row_G >= 0)[held.place_N]
    own, null = AngleHistogram(), AngleHistogram()
    angle_NK = subcenter_angles(held.vectors_ND, held.place_N, starts["centers"])[chosen_N]
    own.add(angle_of(angle_NK, starts["dominant"][held.place_N[chosen_N]]))
    null.add(_null_angles(part, held.vectors_ND[chosen_N], held.class_N[chosen_N], held.salt_N[chosen_N]))
    return own.counts.numpy(), null.counts.numpy()


@one_thread()
def null_angles(part: CentersPart) -> Counts:
    """Angles of a bucket's samples to the center of a random other identity."""
    held, null = _Held(part), AngleHistogram()
    null.add(_null_angles(part, held.vectors_ND, held.class_N, held.salt_N))
    return null.counts.numpy()


def _null_angles(part: CentersPart, unit_ND: Tensor, class_N: Tensor, salt_N: Tensor) -> Tensor:
    other_N = random_other(class_N, salt_N, mapped_tensor(part.centers / "rows.npy"))
    return angle_to(unit_ND, other_N, mapped_tensor(part.centers / "centers.npy"))


class Depth(IntEnum):
    """How much is wanted of the consensus of an identity."""

    CENTER = 1
    SECOND = 2
    """... and who else is there."""
    SAMPLES = 3
    """... and all facts of its samples."""


@dataclass(frozen=True)
class AgreePart(BucketPart):
    """`passed`: folder of the pass. `rivals`: folder of the search; None before there is one. `found`: folder of the rival angles, where they are known."""

    calibration: Calibration
    duplicate_angle_deg: float
    depth: Depth
    passed: Path
    rivals: Path | None = None
    found: Path | None = None


@one_thread()
def agree(part: AgreePart) -> Counts:
    """Write the consensus of a bucket's identities, and with depth SAMPLES the facts of its samples. Angles of samples to it."""
    held = _Held(part)
    device = held.unit_ND.device
    # Where all embeddings lie close together, so do different photographs.
    duplicate_angle_deg = min(part.duplicate_angle_deg, angle_of_probability(part.calibration, SURELY_CLEAN) / 4)
    trust_N = torch.ones(len(held.place_N), device=device)
    worth_N = torch.from_numpy(held.bucket.worth_N).to(device)
    centers_GKD = load_tensors(part.files.starts(part.number))["centers"].to(device)
    starts_GKD = centers_GKD
    if part.rivals is not None:
        mine_GD, again_G = _before_rivals(part.rivals, held)
        rival_deg_N = mapped_tensor(_of_bucket(part.found, part.number)) if part.found else _rival_angles(part.rivals, held)
        own_deg_N = angle_to(held.unit_ND, held.place_N.to(device), mine_GD.to(device))
        trust_N = competition(own_deg_N, rival_deg_N.to(device))
        starts_GKD = centers_GKD.clone()
        starts_GKD[again_G] = 0.0
        starts_GKD[again_G, 0] = mine_GD[again_G].to(device)
    found = _Pass(held, part)
    for place_g, row_gn in groups_of_one_size(held.place_N, part.files.buckets.dim):
        here_gn = row_gn.to(device)
        group = consensus(
            held.unit_ND[here_gn],
            starts_GKD[place_g.to(device)],
            _clean(part.calibration),
            duplicate_angle_deg=duplicate_angle_deg,
            trust_Gn=trust_N[here_gn],
            worth_Gn=worth_N[here_gn],
        )
        found.add(group, place_g, row_gn)
    found.write(part, centers_GKD)
    own = AngleHistogram()
    own.add(found.angle_N)
    return own.counts.numpy()


class _Pass:
    """What one pass finds out about a bucket, on the processor."""

    def __init__(self, held: _Held, part: AgreePart) -> None:
        groups, samples, dim = len(held.class_G), len(held.place_N), part.files.buckets.dim
        self.held, self.depth = held, part.depth
        self.center_GD, self.mass_G = torch.zeros(groups, dim), torch.zeros(groups)
        self.second_GD, self.second_mass_G = torch.zeros(groups, dim), torch.zeros(groups)
        self.angle_N = torch.full((samples,), torch.nan)
        self.facts_N = np.zeros(samples, kind_of_sample(part.files.subcenters))

    def add(self, group: Consensus, place_g: Tensor, row_gn: Tensor) -> None:
        self.center_GD[place_g], self.mass_G[place_g] = group.center_GD.cpu(), group.mass_G.cpu()
        self.angle_N[row_gn] = group.angle_Gn.cpu()
        if self.depth >= Depth.SECOND:
            self.second_GD[place_g], self.second_mass_G[place_g] = group.second_GD.cpu(), group.second_mass_G.cpu()
        if self.depth >= Depth.SAMPLES:
            self.facts_N["density"][row_gn.numpy()] = group.density_Gn.cpu().numpy()
            self.facts_N["stand_in"][row_gn.numpy()] = self.held.bucket.row_N[row_gn.gather(1, group.duplicate_Gn.cpu()).numpy()]

    def write(self, part: AgreePart, centers_GKD: Tensor) -> None:
        if self.depth >= Depth.SAMPLES:
            self.facts_N["row"], self.facts_N["class"] = self.held.bucket.row_N, self.held.bucket.class_N
            self.facts_N["angle"] = self.angle_N.numpy()
            place_N = self.held.place_N.to(centers_GKD.device)
            self.facts_N["subcenters"] = subcenter_angles(self.held.unit_ND, place_N, centers_GKD).cpu().numpy()
            save_array(facts_of_bucket(part.passed, part.number), self.facts_N)
        tensors = {"class": self.held.class_G, "angle": self.angle_N, "center": self.center_GD, "mass": self.mass_G}
        if self.depth >= Depth.SECOND:
            tensors |= {"second": self.second_GD, "second_mass": self.second_mass_G}
        save_tensors(consensus_of_bucket(part.passed, part.number), tensors)


def consensus_of_bucket(passed: Path, number: int) -> Path:
    return passed / f"{number:05d}.safetensors"


def facts_of_bucket(passed: Path, number: int) -> Path:
    return passed / f"{number:05d}.facts.npy"


def _of_bucket(folder: Path, number: int) -> Path:
    return folder / f"{number:05d}.npy"


def _clean(calibration: Calibration) -> Callable[[Tensor], Tensor]:
    return lambda angle: 1 - calibration.noise_probability(angle.flatten()).view(angle.shape)


def _before_rivals(rivals: Path, held: _Held) -> tuple[Tensor, Tensor]:
    """Consensus centers [G, D] of a bucket's identities as their rivals see them, and which of these gave their first person up."""
    class_G = held.class_G.numpy()
    return torch.from_numpy(mapped(rivals / "centers.npy")[class_G]), loaded(rivals / "gave_up.npy")[held.class_G]


def _rival_angles(rivals: Path, held: _Held) -> Tensor:
    """Angle of each sample to the nearest other identity."""
    return open_rivals(rivals, held.device).nearest(held.unit_ND, held.class_N.to(held.device), 1)[1][:, 0]


@dataclass(frozen=True)
class RestPart(BucketPart):
    """`passed`: folder of the pass before. `found`: folder for the rival angles. `clean_deg`: within it a sample is more probably clean than not."""

    passed: Path
    rivals: Path
    found: Path
    clean_deg: float


@one_thread()
def angles_of_rest(part: RestPart) -> Counts:
    """Own angles of the samples that do not belong elsewhere; the angle of every sample to its rival is written."""
    held, rest = _Held(part), AngleHistogram()
    own_N = load_tensors(consensus_of_bucket(part.passed, part.number))["angle"]
    rival_N = _rival_angles(part.rivals, held).cpu()
    save_array(_of_bucket(part.found, part.number), rival_N.numpy())
    rest.add(own_N[~belongs_elsewhere(own_N, rival_N, part.clean_deg)])
    return rest.counts.numpy()
