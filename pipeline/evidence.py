"""What a round knows of every sample before it judges: angles to the head's sub-centers, to the identity's consensus, to the rival, density.

Order: votes and dominant sub-centers (the paper's), then a calibration on a sample of the identities, from it the consensus of each identity,
twice again, then the consensus of all, and last a table of evidence per raw shard. Memory holds the centers, one bucket, and one shard.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcface_core.angles import angle_deg, rowwise_cosine
from arcface_core.noise.calibration import AngleHistogram, Calibration, angle_of_probability, fit_calibration
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
    with_direction,
)
from arcface_core.noise.consensus import competition, consensus
from arcface_core.noise.rivals import RivalSearch, belongs_elsewhere
from arcface_core.noise.rules import LEAST_MASS
from pipeline import tables
from pipeline.buckets import Buckets, split
from pipeline.config import Config
from pipeline.embed import read_embeddings
from pipeline.receipts import atomic
from pipeline.train import is_held_out, read_classes
from pipeline.within import WithinIdentity, open_arrays

CALIBRATION_SAMPLES = 1_000_000
SURELY_CLEAN = 0.1
"""Noise probability up to which a sample is well inside an identity."""
LEAST_SECOND = 3.0
"""Samples from which a second person in an identity counts."""
SPLIT_SHARE = 0.3
"""... and the share of the first person's samples that it must have."""
_REFINEMENTS = 2
_COMPETITIONS = 2


@dataclass(frozen=True)
class Identities:
    """All identities that have a sample, and what is known of each. C identities, K sub-centers, D dimensions."""

    names: list[str]
    index: dict[str, int]
    size_C: Tensor
    is_trained_C: Tensor
    """It has sub-centers in the head of this round, trained, or clustered where a model was given."""
    is_held_out_C: Tensor
    """Kept out of a training, so that no head has learned its noise. None is where nothing was trained."""
    centers_CKD: Tensor
    dominant_C: Tensor
    dominant_CD: Tensor
    consensus_CD: Tensor
    mass_C: Tensor
    second_CD: Tensor
    second_mass_C: Tensor
    gave_up_C: Tensor
    """Its first person stands under another name in greater number, so its consensus is its second person."""

    def class_of(self, identities: list[str]) -> Tensor:
        """Class indices, on the device of the centers."""
        return torch.tensor([self.index[name] for name in identities], dtype=torch.int64, device=self.centers_CKD.device)


@dataclass(frozen=True)
class Gathered:
    """Everything but the tables of evidence."""

    identities: Identities
    within: WithinIdentity
    buckets: Buckets
    rivals: RivalSearch
    head_own: AngleHistogram
    head_null: AngleHistogram
    """Angles to the head's dominant sub-centers, of a sample of the identities: what tells whether the head has learned."""
    pair_same: AngleHistogram
    pair_other: AngleHistogram
    """Angles of blind pairs of samples, of one identity and of two: what tells whether a model that was given sees identities."""

    def rows_of(self, stem: str, count: int) -> slice:
        """Numbers of a shard's samples in the round."""
        return slice(self.buckets.first_row[stem], self.buckets.first_row[stem] + count)


def gather(raw: Path, train: Path, embeddings: Path, stems: list[str], folder: Path, device: torch.device, config: Config) -> Gathered:
    """Votes, consensus and near duplicates of a round. Temporary files go into `folder`."""
    folder.mkdir(exist_ok=True)
    table = pq.read_table(raw / "identities.parquet", filters=[("samples", ">", 0)])
    names: list[str] = table["identity"].to_pylist()
    index = {name: number for number, name in enumerate(names)}
    buckets = split(embeddings, stems, index, folder / "buckets")
    trained, learned_CKD = read_classes(train)
    subcenters, dim = learned_CKD.shape[1:]
    centers_CKD = torch.zeros(len(names), subcenters, dim)
    is_trained_C = torch.zeros(len(names), dtype=torch.bool)
    rows = torch.tensor([index[name] for name in trained], dtype=torch.int64)
    centers_CKD[rows], is_trained_C[rows] = learned_CKD, True
    centers_CKD = centers_CKD.to(device)
    counts_CK = torch.zeros(len(names), subcenters, dtype=torch.int64)
    within = open_arrays(folder / "samples", buckets.samples, subcenters, raw, embeddings, stems)
    for bucket in buckets:
        class_N, unit_ND = torch.from_numpy(bucket.class_N), torch.from_numpy(bucket.unit_ND).to(device)
        untrained_N = (~is_trained_C[class_N]).nonzero()[:, 0]
        for identity_G, place_Gn in groups_of_one_size(class_N[untrained_N], dim):
            centers_CKD[identity_G.to(device)] = cluster_groups(unit_ND[untrained_N[place_Gn].to(device)], subcenters)
        angle_NK = subcenter_angles(unit_ND, class_N.to(device), centers_CKD).cpu()
        within.subcenter_deg_NK[bucket.row_N] = angle_NK.numpy()
        counts_CK += vote(nearest_of(angle_NK)[0], class_N, len(names), subcenters)
    dominant_C = dominant(counts_CK).to(device)
    dominant_CD = dominant_centers(centers_CKD, dominant_C)
    known = Identities(
        names=names,
        index=index,
        size_C=torch.from_numpy(table["samples"].to_numpy().copy()),
        is_trained_C=is_trained_C,
        is_held_out_C=(_held_out(names, config) & ~is_trained_C).to(device),
        centers_CKD=centers_CKD,
        dominant_C=dominant_C,
        dominant_CD=dominant_CD,
        consensus_CD=torch.zeros_like(dominant_CD),
        mass_C=torch.zeros(len(names), device=device),
        second_CD=torch.zeros_like(dominant_CD),
        second_mass_C=torch.zeros(len(names), device=device),
        gave_up_C=torch.zeros(len(names), dtype=torch.bool, device=device),
    )
    head_own, head_null = _head_angles(buckets, known, within)
    _settle(buckets, known, within, fit_calibration(head_own, head_null), config.isolate.duplicate_angle_deg)
    present_C = known.mass_C >= LEAST_MASS
    pairs = _pair_angles(buckets, config.isolate.duplicate_angle_deg)
    return Gathered(known, within, buckets, RivalSearch(known.consensus_CD, present_C), head_own, head_null, *pairs)


def _held_out(names: list[str], config: Config) -> Tensor:
    return torch.tensor([is_held_out(name, share=config.evaluate.holdout, seed=config.seed) for name in names], dtype=torch.bool)


def _sample(buckets: Buckets) -> list[int]:
    """Numbers of the first buckets, until they hold enough samples to calibrate on."""
    chosen, held = [], 0
    for number in range(buckets.count):
        chosen.append(number)
        held += len(buckets.read(number).row_N) if buckets.count > 1 else buckets.samples
        if held >= CALIBRATION_SAMPLES:
            break
    return chosen


def _head_angles(buckets: Buckets, known: Identities, within: WithinIdentity) -> tuple[AngleHistogram, AngleHistogram]:
    """Own and null angles to the head's dominant sub-centers, of identities in the head: centers clustered beside trained ones follow their samples."""
    own, null = AngleHistogram(), AngleHistogram()
    present_P = with_direction(known.dominant_CD)
    device = known.centers_CKD.device
    for number in _sample(buckets):
        bucket = buckets.read(number)
        class_N, unit_ND = torch.from_numpy(bucket.class_N), torch.from_numpy(bucket.unit_ND)
        chosen_N = known.is_trained_C[class_N]
        class_N, unit_ND = class_N[chosen_N].to(device), unit_ND[chosen_N].to(device)
        angle_NK = torch.from_numpy(within.subcenter_deg_NK[bucket.row_N[chosen_N.numpy()]].copy())
        own.add(angle_of(angle_NK, known.dominant_C[class_N].cpu()))
        salt_N = _salt(within.key_N[bucket.row_N[chosen_N.numpy()]]).to(device)
        null.add(angle_to(unit_ND, random_other(class_N, salt_N, present_P), known.dominant_CD))
    return own, null


def _pair_angles(buckets: Buckets, duplicate_angle_deg: float) -> tuple[AngleHistogram, AngleHistogram]:
    """Angles of each sample to the one half an identity further on, and to the one half a bucket further on. Near duplicates say nothing here."""
    same, other = AngleHistogram(), AngleHistogram()

    def add(histogram: AngleHistogram, left_ND: Tensor, right_ND: Tensor) -> None:
        angle_N = angle_deg(rowwise_cosine(left_ND, right_ND))
        histogram.add(angle_N[angle_N > duplicate_angle_deg])

    for number in _sample(buckets):
        bucket = buckets.read(number)
        class_N, unit_ND = torch.from_numpy(bucket.class_N), torch.from_numpy(bucket.unit_ND)
        for _, place_Gn in groups_of_one_size(class_N, buckets.dim):
            if place_Gn.shape[1] > 1:
                add(same, unit_ND[place_Gn.flatten()], unit_ND[place_Gn.roll(place_Gn.shape[1] // 2, dims=1).flatten()])
        order_N = class_N.argsort(stable=True)
        partner_N = order_N.roll(len(order_N) // 2)
        apart_N = class_N[order_N] != class_N[partner_N]
        add(other, unit_ND[order_N[apart_N]], unit_ND[partner_N[apart_N]])
    return same, other


def _salt(key_N: NDArray[np.bytes_]) -> Tensor:
    """A pseudo-random number >= 0 for each sample_id, int64."""
    first_N = np.ascontiguousarray(key_N).view("<u8").reshape(len(key_N), key_N.itemsize // 8)[:, 0]
    return torch.from_numpy((first_N * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(33)).astype(np.int64))


def _settle(buckets: Buckets, known: Identities, within: WithinIdentity, calibration: Calibration, duplicate_angle_deg: float) -> None:
    """Fill in consensus and second centers.

    Of a sample of the identities twice, calibrating after each; then of all; then of all once more, now that every sample's rival is known,
    which tells look-alikes apart; and of those identities that gave their first person up, a last time.
    """
    sample = _sample(buckets)
    for _ in range(_REFINEMENTS):
        own, null = AngleHistogram(), AngleHistogram()
        for number in sample:
            own.add(_agree(buckets, number, known, within, calibration, duplicate_angle_deg))
        present_P = with_direction(known.consensus_CD)
        for number in sample:
            bucket = buckets.read(number)
            class_N = torch.from_numpy(bucket.class_N).to(known.consensus_CD.device)
            salt_N = _salt(within.key_N[bucket.row_N]).to(class_N.device)
            unit_ND = torch.from_numpy(bucket.unit_ND).to(class_N.device)
            null.add(angle_to(unit_ND, random_other(class_N, salt_N, present_P), known.consensus_CD))
        if own.total == 0:
            break
        calibration = fit_calibration(own, null)
    for number in range(buckets.count):
        _agree(buckets, number, known, within, calibration, duplicate_angle_deg)
    for _ in range(_COMPETITIONS):
        known.gave_up_C.logical_or_(_give_up(known, same_person_deg=angle_of_probability(calibration, SURELY_CLEAN) / 2))
        rivals = RivalSearch(known.consensus_CD.clone(), known.mass_C >= LEAST_MASS)
        competing = _calibrate_rest(buckets, sample, within, rivals, calibration, null)
        for number in range(buckets.count):
            _agree(buckets, number, known, within, competing, duplicate_angle_deg, rivals=rivals)


def _calibrate_rest(
    buckets: Buckets, sample: list[int], within: WithinIdentity, rivals: RivalSearch, calibration: Calibration, null: AngleHistogram
) -> Calibration:
    """The calibration of the samples that do not belong elsewhere."""
    clean_deg, rest = angle_of_probability(calibration, 0.5), AngleHistogram()
    for number in sample:
        bucket = buckets.read(number)
        own_N = torch.from_numpy(within.angle_deg_N[bucket.row_N])
        unit_ND, class_N = torch.from_numpy(bucket.unit_ND), torch.from_numpy(bucket.class_N)
        _, rival_deg_N1 = rivals.nearest(unit_ND, class_N, 1)
        rest.add(own_N[~belongs_elsewhere(own_N, rival_deg_N1[:, 0], clean_deg)])
    return fit_calibration(rest, null) if rest.total else calibration


def _give_up(known: Identities, *, same_person_deg: float) -> Tensor:
    """Identities [C] that give their first person up: a larger identity has the same one, and there is a second person who is nobody else's.

    Their second center becomes their consensus. One who stands under a name alone is more probably the name's than one who has a name elsewhere.
    """
    is_other_person_C = angle_deg(rowwise_cosine(known.consensus_CD, known.second_CD)) > same_person_deg
    has_second_C = is_other_person_C & (known.second_mass_C >= LEAST_SECOND) & (known.second_mass_C >= SPLIT_SHARE * known.mass_C)
    has_second_C &= ~known.gave_up_C
    asked = has_second_C.nonzero()[:, 0]
    gave_up_C = torch.zeros_like(has_second_C)
    if len(asked):
        search = RivalSearch(known.consensus_CD, known.mass_C >= LEAST_MASS)
        (other, away), (_, second_away) = (search.nearest(centers[asked], asked, 1) for centers in (known.consensus_CD, known.second_CD))
        is_same = (away[:, 0] <= same_person_deg) & (known.mass_C[other[:, 0]] > known.mass_C[asked])
        gave_up_C[asked] = is_same & ~(second_away[:, 0] <= same_person_deg)
        known.consensus_CD[gave_up_C] = known.second_CD[gave_up_C]
    return gave_up_C


def _agree(
    buckets: Buckets,
    number: int,
    known: Identities,
    within: WithinIdentity,
    calibration: Calibration,
    duplicate_angle_deg: float,
    *,
    rivals: RivalSearch | None = None,
) -> Tensor:
    """Consensus of the identities of one bucket, written into `known` and `within`. The angles [N] of its samples."""
    bucket = buckets.read(number)
    device = known.centers_CKD.device
    class_N = torch.from_numpy(bucket.class_N)
    unit_ND = torch.from_numpy(bucket.unit_ND).to(device)
    # Where all embeddings lie close together, so do different photographs.
    duplicate_angle_deg = min(duplicate_angle_deg, angle_of_probability(calibration, SURELY_CLEAN) / 4)
    trust_N = torch.ones(len(class_N), device=device)
    worth_N = torch.from_numpy(within.worth_N[bucket.row_N]).to(device)
    if rivals is not None:
        _, rival_deg_N1 = rivals.nearest(unit_ND, class_N.to(device), 1)
        own_deg_N = angle_to(unit_ND, class_N.to(device), known.consensus_CD)
        trust_N = competition(own_deg_N, rival_deg_N1[:, 0])
    angle_N = torch.full((len(class_N),), torch.nan)
    for identity_G, place_Gn in groups_of_one_size(class_N, buckets.dim):
        identity_G, here_Gn = identity_G.to(device), place_Gn.to(device)
        starts_GKD = known.centers_CKD[identity_G]
        again_G = known.gave_up_C[identity_G]
        starts_GKD[again_G] = 0.0
        starts_GKD[again_G, 0] = known.consensus_CD[identity_G[again_G]]
        found = consensus(
            unit_ND[here_Gn],
            starts_GKD,
            _clean(calibration),
            duplicate_angle_deg=duplicate_angle_deg,
            trust_Gn=trust_N[here_Gn],
            worth_Gn=worth_N[here_Gn],
        )
        known.consensus_CD[identity_G], known.mass_C[identity_G] = found.center_GD, found.mass_G
        known.second_CD[identity_G], known.second_mass_C[identity_G] = found.second_GD, found.second_mass_G
        rows = torch.from_numpy(bucket.row_N)[place_Gn]
        angle_N[place_Gn] = found.angle_Gn.cpu()
        within.angle_deg_N[rows.numpy()] = found.angle_Gn.cpu().numpy()
        within.density_deg_N[rows.numpy()] = found.density_Gn.cpu().numpy()
        within.stand_in_N[rows.numpy()] = rows.gather(1, found.duplicate_Gn.cpu()).numpy()
    return angle_N


def _clean(calibration: Calibration) -> Callable[[Tensor], Tensor]:
    return lambda angle: 1 - calibration.noise_probability(angle.flatten()).view(angle.shape)


EVIDENCE_ONLY = {"null_angle_deg": pa.float32(), "next_other_angle_deg": pa.float32()}
"""Columns of a table of evidence that the noise table leaves out: the angle to a random other identity, and to the second nearest other."""


def write_evidence(embedded: Path, out: Path, stem: str, gathered: Gathered) -> None:
    """The evidence of one raw shard, in the order of its embeddings."""
    known, device = gathered.identities, gathered.identities.centers_CKD.device
    uris, identities, quality, vectors = read_embeddings(embedded)
    count = len(uris)
    rows = gathered.rows_of(stem, count)
    keys = gathered.within.key_N[rows].astype(str).tolist()
    stand_in_N = gathered.within.stand_in_N[rows]
    is_copy_N = stand_in_N != np.arange(rows.start, rows.stop)
    unit_ND = torch.from_numpy(vectors.copy()).to(device)
    class_N = known.class_of(identities)
    angle_NK = torch.from_numpy(np.array(gathered.within.subcenter_deg_NK[rows]))
    nearest_N, nearest_deg_N = nearest_of(angle_NK)
    dominant_N = known.dominant_C[class_N].cpu()
    other_N2, other_deg_N2 = gathered.rivals.nearest(unit_ND, class_N, 2)
    salt_N = _salt(gathered.within.key_N[rows]).to(device)
    columns = {
        "sample_id": keys,
        "identity": identities,
        "source_uri": uris,
        "nearest_subcenter": nearest_N.numpy().astype(np.int16),
        "dominant_subcenter": dominant_N.numpy().astype(np.int16),
        "nearest_angle_deg": nearest_deg_N.numpy(),
        "angle_deg": angle_of(angle_NK, dominant_N).numpy(),
        "consensus_angle_deg": np.array(gathered.within.angle_deg_N[rows]),
        "density_angle_deg": np.array(gathered.within.density_deg_N[rows]),
        "other_identity": [known.names[number] if number >= 0 else None for number in other_N2[:, 0].tolist()],
        "other_angle_deg": other_deg_N2[:, 0].cpu().numpy(),
        "quality": quality,
        "near_duplicate_of": [
            gathered.within.key_N[row].decode() if is_copy else None for row, is_copy in zip(stand_in_N, is_copy_N, strict=True)
        ],
        "subcenter_angles_deg": angle_NK.nan_to_num(nan=90.0).tolist(),
        "null_angle_deg": _null_angle_deg(unit_ND, class_N, salt_N, gathered).cpu().numpy(),
        "next_other_angle_deg": other_deg_N2[:, 1].cpu().numpy(),
    }
    arrays = {name: pa.array(values, EVIDENCE_ONLY.get(name) or tables.NOISE.field(name).type) for name, values in columns.items()}
    with atomic(out) as temporary:
        pq.write_table(pa.table(arrays), temporary)


def _null_angle_deg(unit_ND: Tensor, class_N: Tensor, salt_N: Tensor, gathered: Gathered) -> Tensor:
    """Angle to a random other identity; of a held-out one to another held-out one, for no training has pushed those apart."""
    is_out_C = gathered.identities.is_held_out_C
    null_N = gathered.rivals.to_random_other(unit_ND, class_N, salt_N)
    among_N = gathered.rivals.to_random_other(unit_ND, class_N, salt_N, among_C=is_out_C)
    return torch.where(is_out_C[class_N] & ~among_N.isnan(), among_N, null_N)
