"""What a round knows of every sample before it judges: angles to the head's sub-centers, to the identity's consensus, density, near duplicates.

Order: votes and dominant sub-centers (the paper's), then a calibration on a sample of the identities, from it the consensus of each identity,
twice again, then the consensus of all. Buckets are worked on by any number of workers (`agreement.py`); this process puts together what they find.
It holds centers, in files that it maps; a worker holds one bucket.
"""

import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from arcface_core.angles import angle_deg, rowwise_cosine
from arcface_core.noise.calibration import AngleHistogram, Calibration, angle_of_probability, fit_calibration
from arcface_core.noise.centers import with_direction
from arcface_core.noise.rivals import RivalSearch
from arcface_core.noise.rules import LEAST_MASS
from pipeline.agreement import (
    AgreePart,
    CentersPart,
    Depth,
    RestPart,
    VotePart,
    agree,
    angles_of_rest,
    angles_to_head,
    consensus_of_bucket,
    facts_of_bucket,
    null_angles,
    vote_in,
)
from pipeline.buckets import Buckets, PieceOfSamples, Split, buckets_of, plan, write_samples
from pipeline.config import Config
from pipeline.errors import PurifyError
from pipeline.files import save_array
from pipeline.gathered import (
    CALIBRATION_SAMPLES,
    LEAST_SECOND,
    SPLIT_SHARE,
    SURELY_CLEAN,
    Crew,
    Gathered,
    Identities,
    RoundFiles,
    histogram_of,
)
from pipeline.models import load_tensors
from pipeline.names import Names
from pipeline.receipts import atomic
from pipeline.rivals import open_rivals, write_rivals
from pipeline.threads import all_threads
from pipeline.train import is_held_out
from pipeline.within import kind_of_sample, put_together

_REFINEMENTS = 2
_COMPETITIONS = 2
_ROWS = 1 << 16
"""Identities compared at once."""


def gather(raw: Path, train: Path, embeddings: Path, stems: Sequence[str], folder: Path, config: Config, crew: Crew) -> Gathered:
    """Votes, consensus and near duplicates of a round. Temporary files go into `folder`, which is begun anew."""
    shutil.rmtree(folder, ignore_errors=True)
    folder = folder / secrets.token_hex(4)  # a worker that outlives an attempt has files of that one open
    folder.mkdir(parents=True)
    table = pq.read_table(raw / "identities.parquet", columns=["identity", "samples"], filters=[("samples", ">", 0)])
    split = plan(embeddings, stems)
    head = pq.read_table(train / "classes.parquet", columns=["identity"])["identity"]
    subcenters = load_tensors(train / "head.safetensors")["centers"].shape[1]
    files = RoundFiles(
        raw=raw,
        train=train,
        embeddings=embeddings,
        folder=folder,
        device=crew.device,
        subcenters=subcenters,
        buckets=Buckets(folder / "buckets", split.buckets, split.dim),
        names=Names.write(folder / "names.arrow", table["identity"]),
    )
    crew.total += 2 * len(split.pieces) + split.buckets * (3 + _COMPETITIONS)  # of the copies, too
    class_H = files.names.classes(head)
    if (class_H < 0).any():
        raise PurifyError(f"{train} was trained on identities that {raw} has no samples of. Run the same command again.")
    head_row_C = np.full(table.num_rows, -1, np.int64)
    head_row_C[class_H] = np.arange(len(class_H))
    save_array(files.head_row, head_row_C)
    chosen_C = _held_out(files.names, config)
    save_array(files.is_held_out, chosen_C & (head_row_C < 0))
    size_B = _split(files, split, crew)
    known = Identities.new(folder, files.names, torch.from_numpy(table["samples"].to_numpy().copy()), split.dim)
    round_ = _Round(files, known, crew, _sample(size_B), config.isolate.duplicate_angle_deg)
    crew.total += len(round_.sample) * (1 + 2 * _REFINEMENTS + _COMPETITIONS)
    pairs = round_.vote()
    head_angles = round_.head_angles()
    _settle(round_, fit_calibration(*head_angles))
    search = round_.write_rivals(files.rivals)
    put_together(
        files.samples,
        [facts_of_bucket(round_.passed, number) for number in range(split.buckets)],
        kind_of_sample(subcenters),
        split.samples,
    )
    round_.forget_pass()
    return Gathered(files, known, split, search.recall, *head_angles, *pairs)


def _held_out(names: Names, config: Config) -> NDArray[np.bool_]:
    share, seed = config.evaluate.holdout, config.seed
    return np.fromiter((is_held_out(name.as_py(), share=share, seed=seed) for name in names.array()), bool, len(names.array()))


def _split(files: RoundFiles, split: Split, crew: Crew) -> NDArray[np.int64]:
    """Samples of each bucket, when all are there."""
    files.buckets.folder.mkdir()
    save_array(files.bucket_of, buckets_of((name.as_py() for name in files.names.array()), split.buckets))
    keys = [files.folder / f"keys-{piece.number:05d}" for piece in split.pieces]
    parts = [
        PieceOfSamples(piece, files.raw, files.embeddings, files.names, files.bucket_of, files.buckets, its_keys)
        for piece, its_keys in zip(split.pieces, keys, strict=True)
    ]
    crew.all(write_samples, parts)
    with atomic(files.keys) as temporary, temporary.open("wb") as whole:
        for path in keys:
            with path.open("rb") as some:
                shutil.copyfileobj(some, whole)
            path.unlink()
    return files.buckets.seal()


def _sample(size_B: NDArray[np.int64]) -> list[int]:
    """Numbers of the first buckets, until they hold enough samples to calibrate on."""
    enough = int(np.searchsorted(size_B.cumsum(), CALIBRATION_SAMPLES))
    return list(range(min(len(size_B), enough + 1)))


@dataclass
class _Round:
    """Passes over the buckets of a round. What workers find out about identities comes into `known`."""

    files: RoundFiles
    known: Identities
    crew: Crew
    sample: list[int]
    """The buckets that are calibrated on."""
    duplicate_angle_deg: float
    passes: int = 0

    @property
    def all(self) -> list[int]:
        return list(range(self.files.buckets.count))

    @property
    def passed(self) -> Path:
        """Folder of the last pass."""
        return self.files.folder / f"pass-{self.passes}"

    def forget_pass(self) -> None:
        shutil.rmtree(self.passed, ignore_errors=True)

    def vote(self) -> tuple[AngleHistogram, AngleHistogram]:
        """Dominant sub-centers of all; angles of blind pairs of the sample."""
        in_sample = set(self.sample)
        parts = [VotePart(self.files, number, self.duplicate_angle_deg if number in in_sample else None) for number in self.all]
        found = _sums(self.crew.all(vote_in, parts))
        for number in self.all:
            told = load_tensors(self.files.starts(number))
            self.known.dominant_C[told["class"]] = told["dominant"]
            self.known.dominant_CD[told["class"]] = told["dominant_center"]
        save_array(self.files.dominant, self.known.dominant_C.numpy())
        return found

    def head_angles(self) -> tuple[AngleHistogram, AngleHistogram]:
        """Own and null angles to the head's dominant sub-centers."""
        centers = self._centers("head", self.known.dominant_CD)
        found = _sums(self.crew.all(angles_to_head, [CentersPart(self.files, number, centers) for number in self.sample]))
        shutil.rmtree(centers)
        return found

    def agree(
        self, numbers: list[int], calibration: Calibration, depth: Depth, *, rivals: Path | None = None, found: Path | None = None
    ) -> AngleHistogram:
        """The consensus of the identities of some buckets. Angles of their samples to it."""
        before = self.passed
        self.passes += 1
        self.passed.mkdir()
        known_before = set(self.sample) if found else set()
        parts = [
            AgreePart(
                self.files,
                number,
                calibration,
                self.duplicate_angle_deg,
                depth,
                self.passed,
                rivals,
                found if number in known_before else None,
            )
            for number in numbers
        ]
        own = AngleHistogram()
        for number, counts in zip(numbers, self.crew.each(agree, parts), strict=True):
            own = own.merge(histogram_of(counts))
            self._take(number, depth)
        shutil.rmtree(before, ignore_errors=True)
        return own

    def _take(self, number: int, depth: Depth) -> None:
        told, known = load_tensors(consensus_of_bucket(self.passed, number)), self.known
        known.consensus_CD[told["class"]], known.mass_C[told["class"]] = told["center"], told["mass"]
        if depth >= Depth.SECOND:
            known.second_CD[told["class"]], known.second_mass_C[told["class"]] = told["second"], told["second_mass"]

    def null(self) -> AngleHistogram:
        """Angles of the sample to the consensus of random other identities."""
        centers = self._centers(f"consensus-{self.passes}", self.known.consensus_CD)
        null = AngleHistogram()
        for counts in self.crew.all(null_angles, [CentersPart(self.files, number, centers) for number in self.sample]):
            null = null.merge(histogram_of(counts))
        shutil.rmtree(centers)
        return null

    def rest(self, rivals: Path, found: Path, clean_deg: float) -> AngleHistogram:
        """Own angles of those of the sample that do not belong elsewhere."""
        found.mkdir()
        rest = AngleHistogram()
        parts = [RestPart(self.files, number, self.passed, rivals, found, clean_deg) for number in self.sample]
        for counts in self.crew.all(angles_of_rest, parts):
            rest = rest.merge(histogram_of(counts))
        return rest

    def write_rivals(self, folder: Path) -> RivalSearch:
        """The search among the identities that have a consensus, as all workers open it."""
        device, known = self.files.device, self.known
        with all_threads():
            search = RivalSearch.over(known.consensus_CD.to(device), (known.mass_C >= LEAST_MASS).to(device))
        write_rivals(folder, search)
        del search  # before another one is opened
        save_array(folder / "gave_up.npy", known.gave_up_C.numpy())
        return open_rivals(folder, device)

    def _centers(self, name: str, centers_CD: Tensor) -> Path:
        folder = self.files.folder / name
        folder.mkdir()
        save_array(folder / "centers.npy", centers_CD.numpy())
        save_array(folder / "rows.npy", with_direction(centers_CD).numpy())
        return folder


def _sums(parts: list[tuple[NDArray[np.int64], NDArray[np.int64]]]) -> tuple[AngleHistogram, AngleHistogram]:
    one, other = (histogram_of(np.sum(counts, axis=0)) for counts in zip(*parts, strict=True))
    return one, other


def _settle(round_: _Round, calibration: Calibration) -> None:
    """Fill in consensus and second centers.

    Of a sample of the identities twice, calibrating after each; then of all; then of all once more, now that every sample's rival is known,
    which tells look-alikes apart; and of those identities that gave their first person up, a last time.
    """
    for _ in range(_REFINEMENTS):
        own = round_.agree(round_.sample, calibration, Depth.CENTER)
        null = round_.null()
        if own.total == 0:
            break
        calibration = fit_calibration(own, null)
    round_.agree(round_.all, calibration, Depth.SECOND)
    for turn in range(1, _COMPETITIONS + 1):
        same_person_deg = angle_of_probability(calibration, SURELY_CLEAN) / 2
        rivals = round_.files.folder / f"rivals-{turn}"
        round_.write_rivals(rivals)
        if _give_up(round_, rivals, same_person_deg=same_person_deg):
            shutil.rmtree(rivals)
            rivals = round_.files.folder / f"rivals-{turn}-again"
            round_.write_rivals(rivals)
        found = round_.files.folder / f"found-{turn}"
        rest = round_.rest(rivals, found, angle_of_probability(calibration, 0.5))
        competing = fit_calibration(rest, null) if rest.total else calibration
        round_.agree(round_.all, competing, Depth.SAMPLES if turn == _COMPETITIONS else Depth.SECOND, rivals=rivals, found=found)
        shutil.rmtree(rivals)
        shutil.rmtree(found)


def _give_up(round_: _Round, rivals: Path, *, same_person_deg: float) -> bool:
    """True when identities give their first person up: a larger identity has the same one, and there is a second person who is nobody else's.

    Their second center becomes their consensus. One who stands under a name alone is more probably the name's than one who has a name elsewhere.
    """
    known, device = round_.known, round_.files.device
    both = zip(torch.split(known.consensus_CD, _ROWS), torch.split(known.second_CD, _ROWS), strict=True)
    has_second_C = torch.cat([angle_deg(rowwise_cosine(first, second)) for first, second in both]) > same_person_deg
    has_second_C &= (known.second_mass_C >= LEAST_SECOND) & (known.second_mass_C >= SPLIT_SHARE * known.mass_C)
    asked = (has_second_C & ~known.gave_up_C).nonzero()[:, 0]
    search = open_rivals(rivals, device)
    (other, away), (_, second_away) = (
        [found[:, 0].cpu() for found in search.nearest(centers_CD[asked].to(device), asked.to(device), 1)]
        for centers_CD in (known.consensus_CD, known.second_CD)
    )
    is_same = (away <= same_person_deg) & (known.mass_C[other] > known.mass_C[asked])
    gave_up = asked[is_same & ~(second_away <= same_person_deg)]
    known.consensus_CD[gave_up] = known.second_CD[gave_up]
    known.gave_up_C[gave_up] = True
    return bool(len(gave_up))
