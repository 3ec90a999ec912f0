"""insightface's training set: `train.rec`, `train.idx`, `train.lst` and `property`, such as arcface_torch's MXFaceDataset reads; `val/` likewise.

Record 0 has no picture but two numbers, the first key behind the pictures and the first behind the identities. Pictures have the keys from 1,
those of an identity together, and their class index as label; then a record for each identity has the range of its keys. Labels are float32,
which holds whole numbers up to 2^24: where keys go beyond that, there is no record 0 and none of identities, and pictures have the keys from 0,
which the same readers take for "every record is a picture".

Clean shards are mixed and this form is sorted, so it takes two passes, each over stretches: first every clean shard's crops are written anew by
identity (a run), then each part of the record file is gathered from its stretch of every run. All sizes are known before, so the parts are
written into one file by several processes.
Source: insightface, `recognition/arcface_torch/dataset.py` (MXFaceDataset); MXNet, `recordio.py` (IRHeader) and `tools/im2rec.py` (.lst).
"""

import hashlib
import io
import json
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import recordio
from pipeline.errors import BadInput
from pipeline.exporters.base import FileFacts, Job, Split, write_whole
from pipeline.exporters.stream import read_facts
from pipeline.fanout import each_of, fan_out
from pipeline.hashed import HashedFile
from pipeline.proven import proven_crops
from pipeline.receipts import Progress, atomic, write_json

ABOUT = "insightface's train.rec, .idx, .lst and property, sorted by identity"
SAMPLE_BYTES = "(size + 3) // 4 * 4 + 32 + 70"
EXACT = 2**24
"""Above, float32 does not hold every whole number."""
PART_BYTES = 64 * 2**20
_HEADER = np.dtype([("magic", "<u4"), ("length", "<u4"), ("flag", "<u4"), ("label", "<f4"), ("id", "<u8"), ("id2", "<u8")])
_RANGE = np.dtype([*((name, _HEADER[name]) for name in _HEADER.names or ()), ("start", "<f4"), ("end", "<f4")])
_PER_CALL = 1000
"""Pieces that are written at once; systems take 1,024."""
_MAGIC = int.from_bytes(recordio.MAGIC, "little")


@dataclass(frozen=True)
class _Shard:
    job: Job
    number: int


@dataclass(frozen=True)
class _Longer:
    """Records that are longer than their pictures' sizes tell, since these hold the magic."""

    rank_M: NDArray[np.int64]
    before_M: NDArray[np.int64]
    """Bytes more up to and without each; one more than ranks, the last is all."""

    def before(self, rank: int) -> int:
        return int(self.before_M[np.searchsorted(self.rank_M, rank)])


@dataclass(frozen=True)
class _Part:
    job: Job
    split: Split
    number: int
    longer: _Longer


def write(job: Job, progress: Progress | None = None) -> list[FileFacts]:
    """The files of an export. Raises BadInput: when there are more identities than float32 tells apart."""
    if any(split.identities > EXACT for split in job.splits):
        raise BadInput(
            f"A .rec file has labels in float32, which tells {EXACT:,} identities apart. Export as webdataset, or with --min-images."
        )
    numbers = sorted(set(pq.read_table(job.plan / "by_shard.parquet", columns=["shard"])["shard"].to_pylist()))
    total = len(numbers) + sum(split.parts for split in job.splits)
    _runs(job).mkdir(exist_ok=True)
    fan_out(_write_run, [_Shard(job, number) for number in numbers], workers=job.workers, progress=_shifted(progress, 0, total))
    longer = {split: _longer(job, split) for split in job.splits}
    digests = {split: _open(job, split, longer[split]) for split in job.splits}
    parts = [_Part(job, split, number, longer[split]) for split in job.splits for number in range(split.parts)]
    written = each_of(_write_part, parts, workers=job.workers, progress=_shifted(progress, len(numbers), total))
    hashed = {split: _head_bytes(split) for split in job.splits}
    for part, end in zip(parts, written, strict=True):  # while others write theirs
        _hash(_where(job, part.split) / "train.rec", hashed[part.split], end, digests[part.split])
        hashed[part.split] = end
    return [file for split in job.splits for file in _finish(job, split, longer[split], digests[split])]


def _shifted(progress: Progress | None, before: int, total: int) -> Progress | None:
    return (lambda done, _: progress(before + done, total)) if progress else None


def _runs(job: Job) -> Path:
    return job.plan / "runs"


def _where(job: Job, split: Split) -> Path:
    return job.folder / ("" if split.name == "train" else split.name)


def first_key(split: Split) -> int:
    """1, or 0 where there are too many keys for a record 0 that tells of them."""
    return 1 if split.samples + 1 + split.identities <= EXACT else 0


def record_sizes(size_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bytes of the records of pictures of these sizes, none of which holds the magic: two words, IRHeader, the picture, zeros."""
    return _HEADER.itemsize + (size_N + 3) // 4 * 4


def _write_run(shard: _Shard) -> None:
    """The crops of one clean shard by (split, class, row); `.ids` has their sample_ids, `.json` the pictures that hold the magic."""
    job = shard.job
    stem = _runs(job) / f"clean-{shard.number:06d}"
    if stem.with_suffix(".json").exists():
        return
    rows = pq.read_table(job.plan / "by_shard.parquet", filters=[("shard", "=", shard.number)])
    clean = job.clean / stem.name
    facts, offset_N, size_N = read_facts(f"{clean}.parquet", rows["row"].to_numpy(), rows["class_index"])
    run_N, place_N = rows["run_offset"].to_numpy(), rows["run_row"].to_numpy()
    content = bytearray(int(size_N.sum()))
    longer: list[tuple[str, int, int]] = []
    at = 0
    for crops in proven_crops(clean.with_suffix(".tar"), offset_N, size_N):
        for crop in crops:
            content[run_N[at] : run_N[at] + len(crop)] = crop
            if count := recordio.count_magics(crop):
                longer.append((rows["split"][at].as_py(), rows["rank"][at].as_py(), 4 * count))
            at += 1
    ids = np.empty(len(place_N), "S64")
    ids[place_N] = facts["sample_id"].to_pylist()
    for suffix, written in ((".bin", content), (".ids", ids.tobytes())):
        with atomic(stem.with_suffix(suffix)) as temporary:
            temporary.write_bytes(written)
    write_json(stem.with_suffix(".json"), longer)


def _longer(job: Job, split: Split) -> _Longer:
    told = [one for path in sorted(_runs(job).glob("*.json")) for one in json.loads(path.read_text("utf-8")) if one[0] == split.name]
    told.sort(key=lambda one: one[1])
    ranks = np.array([rank for _, rank, _ in told], np.int64)
    return _Longer(ranks, np.concatenate([[0], np.cumsum([more for *_, more in told])]).astype(np.int64))


def _write_part(part: _Part) -> int:
    """The records of one part, in their place in the record file, and its lines of .idx and .lst. Returns the byte at which they end."""
    job, split = part.job, part.split
    done = job.parts / f"{split.name}-{part.number:06d}.json"
    if done.exists():
        return int(json.loads(done.read_text("utf-8"))["end"])
    rows = pq.read_table(job.plan / "samples.parquet", filters=[("split", "=", split.name), ("part", "=", part.number)])
    crops, ids = _gathered(job, rows)
    size_N, class_N, rank_N = (rows[name].to_numpy() for name in ("size", "class_index", "rank"))
    key_N = rank_N + first_key(split)
    header_N = np.zeros(len(rank_N), _HEADER)
    header_N["magic"], header_N["length"] = _MAGIC, size_N + recordio.IMAGE_HEADER_BYTES
    header_N["label"], header_N["id"] = class_N, key_N
    words = memoryview(header_N.tobytes())
    start = _head_bytes(split) + int(rows["record_at"][0].as_py()) + part.longer.before(int(rank_N[0]))
    pieces: list[bytes | memoryview] = []
    offset_N = np.empty(len(rank_N), np.int64)
    at = start
    longer = set(part.longer.rank_M.tolist())
    for number, (crop, rank) in enumerate(zip(crops, rank_N.tolist(), strict=True)):
        header = words[number * _HEADER.itemsize : (number + 1) * _HEADER.itemsize]
        offset_N[number] = at
        if rank in longer:
            pieces.append(recordio.framed(bytes(header[8:]) + crop))
            at += len(pieces[-1])
        else:
            pieces += (header, crop, bytes(-len(crop) % 4))
            at += _HEADER.itemsize + len(crop) + -len(crop) % 4
    with (_where(job, split) / "train.rec").open("rb+", buffering=0) as file:
        file.seek(start)
        _write_all(file, pieces)
        os.fsync(file.fileno())
    lines = zip(key_N.tolist(), offset_N.tolist(), class_N.tolist(), ids, strict=True)
    texts = [(f"{key}\t{offset}\n", f"{key}\t{label:f}\t{name}.jpg\n") for key, offset, label, name in lines]
    for column, suffix in enumerate((".idx", ".lst")):
        (_runs(job) / f"{split.name}-{part.number:06d}{suffix}").write_text("".join(text[column] for text in texts), "ascii")
    write_json(done, {"end": at})
    return at


def _write_all(file: io.FileIO, pieces: list[bytes | memoryview]) -> None:
    """Write pieces one after the other, many in a call and without putting them together."""
    for first in range(0, len(pieces), _PER_CALL):
        some = pieces[first : first + _PER_CALL]
        count = os.writev(file.fileno(), some)
        if count < sum(map(len, some)):  # a disk that fills, a signal
            left = memoryview(b"".join(some))[count:]
            while left:
                left = left[file.write(left) :]


def _hash(path: Path, start: int, end: int, digest: "hashlib._Hash") -> None:
    memory = memoryview(bytearray(min(end - start, 2**20)))
    with path.open("rb", buffering=0) as file:
        file.seek(start)
        while start < end and (count := file.readinto(memory[: end - start])):
            digest.update(memory[:count])
            start += count


def _gathered(job: Job, rows: pa.Table) -> tuple[list[memoryview], list[str]]:
    """(crops, sample_ids) of rows of the plan: of every run one stretch is read."""
    shard_N, run_N, size_N, place_N = (rows[name].to_numpy() for name in ("shard", "run_offset", "size", "run_row"))
    crops: list[memoryview] = [memoryview(b"")] * len(shard_N)
    ids = [""] * len(shard_N)
    for shard in np.unique(shard_N).tolist():
        mine = np.flatnonzero(shard_N == shard)
        stem = _runs(job) / f"clean-{shard:06d}"
        low, first = int(run_N[mine].min()), int(place_N[mine].min())
        content = memoryview(_stretch(stem.with_suffix(".bin"), low, int((run_N[mine] + size_N[mine]).max()) - low))
        names = np.frombuffer(_stretch(stem.with_suffix(".ids"), 64 * first, 64 * len(mine)), "S64")
        for row, begin, size, place in zip(
            mine.tolist(), (run_N[mine] - low).tolist(), size_N[mine].tolist(), place_N[mine].tolist(), strict=True
        ):
            crops[row] = content[begin : begin + size]
            ids[row] = names[place - first].decode()
    return crops, ids


def _stretch(path: Path, start: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(start)
        return file.read(size)


def _head_bytes(split: Split) -> int:
    return _RANGE.itemsize * first_key(split)


def _open(job: Job, split: Split, longer: _Longer) -> "hashlib._Hash":
    """SHA-256 of what stands before the pictures of the record file, which has that and its full length then."""
    path = _where(job, split) / "train.rec"
    path.parent.mkdir(exist_ok=True)
    size = _pictures_end(job, split, longer) + _RANGE.itemsize * split.identities * first_key(split)
    if not path.exists() or path.stat().st_size != size:
        with path.open("wb") as file:
            file.truncate(size)
    head = (
        _ranges(np.array([0]), np.array([split.samples + 1]), np.array([split.samples + 1 + split.identities])) if first_key(split) else b""
    )
    with path.open("rb+") as file:
        file.write(head)
    return hashlib.sha256(head)


def _pictures_end(job: Job, split: Split, longer: _Longer) -> int:
    last = pq.read_table(
        job.plan / "samples.parquet", columns=["record_at", "size"], filters=[("split", "=", split.name), ("rank", "=", split.samples - 1)]
    ).to_pylist()[0]
    return _head_bytes(split) + int(last["record_at"]) + int(record_sizes(np.array(last["size"]))) + int(longer.before_M[-1])


def _finish(job: Job, split: Split, longer: _Longer, digest: "hashlib._Hash") -> list[FileFacts]:
    """The records behind the pictures, which tell of keys, and the files beside the records. `digest` is of all before."""
    folder = _where(job, split)
    prefix = "" if split.name == "train" else f"{split.name}/"
    names = pq.read_table(job.plan / "identities.parquet", columns=["samples"], filters=[("split", "=", split.name)])["samples"].to_numpy()
    end = _pictures_end(job, split, longer)
    behind = split.samples + 1
    last_C = np.cumsum(names) + 1
    tail = _ranges(np.arange(behind, behind + split.identities), last_C - names, last_C) if first_key(split) else b""
    with (folder / "train.rec").open("rb+") as file:
        file.seek(end)
        file.write(tail)
        file.flush()
        os.fsync(file.fileno())
    digest.update(tail)
    parts = [f"{split.name}-{number:06d}" for number in range(split.parts)]
    with HashedFile(folder / "train.idx") as index:
        if first_key(split):
            index.write(b"0\t0\n")
        _append(index, job, [f"{part}.idx" for part in parts])
        if first_key(split):
            lines = (f"{behind + row}\t{end + row * _RANGE.itemsize}\n" for row in range(split.identities))
            index.write("".join(lines).encode())
    with HashedFile(folder / "train.lst") as listed:
        _append(listed, job, [f"{part}.lst" for part in parts])
    return [
        FileFacts(f"{prefix}train.rec", end + len(tail), digest.hexdigest(), split.samples),
        FileFacts.of(index, f"{prefix}train.idx"),
        FileFacts.of(listed, f"{prefix}train.lst", split.samples),
        write_whole(job, f"{prefix}property", f"{split.identities},112,112\n".encode()),
    ]


def _ranges(key_M: NDArray[np.int64], start_M: NDArray[np.int64], end_M: NDArray[np.int64]) -> bytes:
    """Records of two numbers and no picture."""
    record_M = np.zeros(len(key_M), _RANGE)
    record_M["magic"], record_M["length"], record_M["flag"], record_M["id"] = _MAGIC, _RANGE.itemsize - 8, 2, key_M
    record_M["start"], record_M["end"] = start_M, end_M
    return record_M.tobytes()


def _append(file: HashedFile, job: Job, names: list[str]) -> None:
    for name in names:
        file.write((_runs(job) / name).read_bytes())
