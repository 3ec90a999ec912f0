"""Contamination: identities and images of the crawl that also stand in a set kept for evaluation (`protect.sets`).

An image matches when its bytes are those of a protected image, or its embedding lies within `isolate.duplicate_angle_deg` of one. An identity
matches when its consensus lies within `protect.angle_deg` of a protected image. Everything found is a row; whether it is left out of the clean
shards is `protect.exclude`.
"""

import hashlib
import pickle
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from arcface_core.angles import angle_deg, normalize
from arcface_core.neighbors import NeighborIndex
from pipeline import shards, tables
from pipeline.config import Config, IngestConfig, as_dict
from pipeline.embed import features_of, read_embeddings
from pipeline.embedders import load_embedder
from pipeline.errors import BadInput
from pipeline.examine import examine
from pipeline.models import load_tensors, pick_device
from pipeline.receipts import Counts, Progress, Receipt, atomic, fingerprint, mark_of, run_stage
from pipeline.sources.base import Item
from pipeline.sums import file_sha256
from pipeline.verification_bin import read_bin

VERSION = 1
_BATCH = 256
_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
_GIVE = "Give a .bin file of insightface or a folder of JPEG, PNG or WebP images."


@dataclass(frozen=True)
class _Protected:
    names: list[tuple[str, str]]
    """(set, image) of each."""
    sha256: dict[str, int]
    unit_PD: Tensor


def protect(
    raw: Path, train: Path, embeddings: Path, noise: Path, out: Path, config: Config, *, progress: Progress | None = None
) -> Receipt:
    """Receipt of `out`: contamination.parquet, a row for every match. The backbone of `train` embeds the protected images.

    Progress counts pictures: those of the sets, which are embedded, and then the crawl's samples, which are looked up among them.
    Raises BadInput for a set that is no insightface `.bin` file and no folder of images.
    """
    sets = [Path(name) for name in config.protect.sets]
    settings = as_dict(config.protect) | {"duplicate_angle_deg": config.isolate.duplicate_angle_deg}
    held = {f"set {number}": _mark(path) for number, path in enumerate(sets)}
    mark = fingerprint("protect", VERSION, settings, raw=mark_of(raw), embeddings=mark_of(embeddings), noise=mark_of(noise), **held)

    def work(folder: Path) -> Counts:
        stems = shards.shard_stems(raw)
        samples = [int(pq.read_metadata(embeddings / f"{stem}.parquet").num_rows) for stem in stems]
        protected = sum(map(_count, sets))
        total, done = protected + sum(samples), protected
        known = _embedded(sets, train, config, (lambda count: progress(count, total)) if progress else None)
        index = NeighborIndex(known.unit_PD)
        rows = _identities(raw, noise, known, index, config.protect.angle_deg)
        identities = len(rows)
        for stem, count in zip(stems, samples, strict=True):
            rows += _images(raw / f"{stem}.parquet", embeddings / f"{stem}.parquet", known, index, config.isolate.duplicate_angle_deg)
            done += count
            if progress:
                progress(done, total)
        with atomic(folder / "contamination.parquet") as temporary:
            pq.write_table(pa.Table.from_pylist(rows, schema=tables.CONTAMINATION), temporary)
        return {"protected_images": len(known.names), "identities": identities, "images": len(rows) - identities}

    return run_stage(out, stage="protect", mark=mark, work=work)


def require_set(path: Path) -> None:
    """Raise BadInput when no set stands there, by a look at its kind: a folder with a picture, or a file that begins as a pickle does."""
    if not path.is_dir() and not path.is_file():
        raise BadInput(f"There is no set to protect at {path}. {_GIVE}")
    if path.is_dir() and not any(map(_is_picture, path.rglob("*"))):
        raise BadInput(f"{path} holds no image to protect. {_GIVE}")
    if path.is_file() and not _begins_as_pickle(path):
        raise BadInput(f"{path} is no verification file of insightface. {_GIVE}")


def _begins_as_pickle(path: Path) -> bool:
    """Of any protocol: from 2 on with its number, before with a mark or a list."""
    try:
        with path.open("rb") as file:
            return file.read(1) in {pickle.PROTO, pickle.MARK, pickle.EMPTY_LIST}
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}. {_GIVE}") from error


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in _SUFFIXES and path.is_file()


def _mark(path: Path) -> str:
    require_set(path)
    if path.is_dir():
        listed = "\n".join(f"{file.relative_to(path)} {file.stat().st_size} {file.stat().st_mtime_ns}" for file in _files(path))
        return hashlib.sha256(listed.encode()).hexdigest()
    return file_sha256(path)


def _files(folder: Path) -> list[Path]:
    return sorted(filter(_is_picture, folder.rglob("*")))


def _contents(path: Path) -> Iterator[tuple[str, bytes]]:
    if path.is_dir():
        for file in _files(path):
            yield str(file.relative_to(path)), file.read_bytes()
    else:
        for number, content in enumerate(read_bin(path)[0]):
            yield f"image {number}", bytes(content)


def _count(path: Path) -> int:
    return len(_files(path)) if path.is_dir() else len(read_bin(path)[0])


def _embedded(sets: list[Path], train: Path, config: Config, told: Callable[[int], None] | None) -> _Protected:
    """The images of all sets. `told` is called with the number of those that are embedded, from 0 on."""
    embedder = load_embedder(train, pick_device(config.device))
    names: list[tuple[str, str]] = []
    digests: dict[str, int] = {}
    parts: list[Tensor] = []
    waiting: list[bytes] = []

    def embed_waiting() -> None:
        if waiting:
            parts.append(normalize(torch.from_numpy(features_of(waiting, embedder))))
            waiting.clear()
        if told:
            told(len(names))

    if told:
        told(0)
    for path in sets:
        before = len(names)
        for name, content in _contents(path):
            [(row, crop)] = examine(Item(name, "protected", content), IngestConfig())
            if crop is None:
                raise BadInput(f"{path}, {name}: {row['status']}, {row['status_detail']}. A protected set is of aligned, whole images.")
            digests[hashlib.sha256(content).hexdigest()] = len(names)
            names.append((path.stem, name))
            waiting.append(crop)
            if len(waiting) == _BATCH:
                embed_waiting()
        if len(names) == before:
            raise BadInput(f"{path} holds no image to protect. {_GIVE}")
    embed_waiting()
    return _Protected(names, digests, torch.cat(parts).cpu())


def _nearest(vectors_ND: Tensor, index: NeighborIndex) -> tuple[list[int], list[float]]:
    cos_N1, place_N1 = index.search(vectors_ND, 1)
    return place_N1[:, 0].tolist(), angle_deg(cos_N1[:, 0]).tolist()


def _identities(raw: Path, noise: Path, known: _Protected, index: NeighborIndex, most_deg: float) -> list[dict[str, Any]]:
    names = pq.read_table(raw / "identities.parquet", filters=[("samples", ">", 0)])["identity"].to_pylist()
    consensus_CD = load_tensors(noise / "centers.safetensors")["consensus"]
    there_C = (consensus_CD != 0).any(dim=1).tolist()
    places, angles = _nearest(consensus_CD, index)
    return [
        _row("identity", name, None, None, known.names[place], angle)
        for name, there, place, angle in zip(names, there_C, places, angles, strict=True)
        if there and angle <= most_deg
    ]


def _images(twin: Path, embedded: Path, known: _Protected, index: NeighborIndex, most_deg: float) -> list[dict[str, Any]]:
    table = pq.read_table(twin, columns=["source_uri", "sample_id", "identity", "content_sha256"], filters=[("status", "=", "ok")])
    item_of = {row["source_uri"]: row for row in table.to_pylist()}
    uris, _, _, vectors = read_embeddings(embedded)
    if not uris:
        return []
    places, angles = _nearest(torch.from_numpy(np.array(vectors)), index)
    rows = []
    for uri, place, angle in zip(uris, places, angles, strict=True):
        item = item_of[uri]
        same = known.sha256.get(item["content_sha256"])
        if same is not None:
            rows.append(_row("image", item["identity"], item["sample_id"], uri, known.names[same], 0.0))
        elif angle <= most_deg:
            rows.append(_row("image", item["identity"], item["sample_id"], uri, known.names[place], angle))
    return rows


def _row(kind: str, identity: str, sample: str | None, uri: str | None, image: tuple[str, str], angle: float) -> dict[str, Any]:
    return {
        "kind": kind,
        "identity": identity,
        "sample_id": sample,
        "source_uri": uri,
        "protected_set": image[0],
        "protected_image": image[1],
        "angle_deg": angle,
    }
