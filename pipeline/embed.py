"""One embedding for every stored crop, averaged with its mirror image, raw shard by raw shard."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from arcface_core.angles import normalize
from pipeline import shards, tables
from pipeline.config import Config
from pipeline.embedders import Embedder, load_embedder
from pipeline.fanout import fan_out
from pipeline.models import pick_device
from pipeline.receipts import Counts, Progress, Receipt, atomic, fingerprint, link, mark_of, read, run_stage

VERSION = 3
_NAMES = ["sample_id", "identity", "source_uri"]


def embed(raw: Path, train: Path, out: Path, config: Config, *, progress: Progress | None = None) -> Receipt:
    """Receipt of `out`: a Parquet file of embeddings per raw shard. Finished shards are not embedded again after a kill, nor, when the crawl grew,
    those that `out` has by the same model from the same tar and rows: they are linked. On a GPU one process embeds, else `config.workers` do."""
    model = mark_of(train)
    mark = fingerprint("embed", VERSION, {}, raw=mark_of(raw), train=model)

    def work(folder: Path) -> Counts:
        on_gpu = pick_device(config.device).type != "cpu"
        stems = shards.shard_stems(raw)
        taken_over = [stem for stem in stems if _is_of(out / f"{stem}.parquet", raw / stem, model)]
        for stem in taken_over:
            link(out / f"{stem}.parquet", folder / f"{stem}.parquet")
        todo = [
            _Shard(raw / stem, folder / f"{stem}.parquet", train, model, config.device, config.embed.batch_size)
            for stem in stems
            if not (folder / f"{stem}.parquet").exists()
        ]
        fan_out(embed_shard, todo, workers=1 if on_gpu else config.workers, progress=progress)
        _loaded.cache_clear()
        samples = sum(int(pq.read_metadata(folder / f"{stem}.parquet").num_rows) for stem in stems)
        return {"samples": samples, "shards": len(stems), "taken_over": len(taken_over)}

    return run_stage(out, stage="embed", mark=mark, work=work)


def embed_again(earlier: Path, out: Path, *, progress: Progress | None = None) -> Receipt:
    """Receipt of `out`: the embeddings of a round before, for a round of the same model. Files of one disk are shared, not copied."""
    mark = fingerprint("embed", VERSION, {}, earlier=mark_of(earlier))

    def work(folder: Path) -> Counts:
        stems = shards.shard_stems(earlier)
        for number, stem in enumerate(stems):
            link(earlier / f"{stem}.parquet", folder / f"{stem}.parquet")
            if progress:
                progress(number + 1, len(stems))
        counts = read(earlier)
        return {} if counts is None else counts.counts

    return run_stage(out, stage="embed", mark=mark, work=work)


def _samples(stem: Path) -> pa.Table:
    """The rows of a raw shard that are embedded, in order."""
    columns = [*_NAMES, "crop_offset", "crop_size"]
    return pq.read_table(stem.with_suffix(".parquet"), columns=columns, filters=[("status", "=", "ok")]).sort_by("crop_offset")


def _made_of(stem: Path, model: str) -> dict[bytes, bytes]:
    tar = shards.read_facts(stem.with_suffix(".parquet"))["tar_sha256"]
    return {b"tar_sha256": tar.encode(), b"model": model.encode(), b"embed_version": str(VERSION).encode()}


def _is_of(embedded: Path, stem: Path, model: str) -> bool:
    """True when `embedded` is what embedding this raw shard by this model would give: a row can change its status or name while the tar stays."""
    if not embedded.exists() or not _made_of(stem, model).items() <= (pq.read_schema(embedded).metadata or {}).items():
        return False
    has: dict[str, list[str]] = pq.read_table(embedded, columns=_NAMES).to_pydict()
    wanted: dict[str, list[str]] = _samples(stem).select(_NAMES).to_pydict()
    return has == wanted


@dataclass(frozen=True)
class _Shard:
    stem: Path
    out: Path
    train: Path
    model: str
    """The mark of `train`."""
    device: str
    batch_size: int


@lru_cache(maxsize=1)
def _loaded(train: Path, model: str, device: str) -> Embedder:
    """Once per process and training, as `model` tells it from what stood in its folder before."""
    return load_embedder(train, pick_device(device))


def embed_shard(part: _Shard) -> None:
    """Write the embeddings of one raw shard, in the order of its crops."""
    embedder = _loaded(part.train, part.model, part.device)
    twin = _samples(part.stem)
    offsets, sizes = twin["crop_offset"].to_pylist(), twin["crop_size"].to_pylist()
    features = []
    with shards.CropReader(part.stem.with_suffix(".tar"), deep=True) as reader:
        for start in range(0, len(offsets), part.batch_size):
            end = start + part.batch_size
            contents = [reader.read(offset, size) for offset, size in zip(offsets[start:end], sizes[start:end], strict=True)]
            features.append(features_of(contents, embedder))
    feature_ND = np.concatenate(features) if features else np.zeros((0, embedder.dim), np.float32)
    unit_ND = normalize(torch.from_numpy(feature_ND)).numpy()
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(unit_ND.reshape(-1)), unit_ND.shape[1])
    schema = tables.embeddings(unit_ND.shape[1])
    quality = pa.array(np.linalg.norm(feature_ND, axis=1).astype(np.float32))
    table = pa.Table.from_arrays([twin["sample_id"], twin["identity"], twin["source_uri"], quality, vectors], schema=schema)
    with atomic(part.out) as temporary:
        pq.write_table(table.replace_schema_metadata({**schema.metadata, **_made_of(part.stem, part.model)}), temporary, compression="zstd")


def features_of(contents: Sequence[bytes], embedder: Embedder) -> NDArray[np.float32]:
    """Features [N, D] of stored crops: the mean of what the embedder makes of the image and of its mirror image, not normalised."""
    with ThreadPoolExecutor(4) as pool:
        pixels = np.stack(list(pool.map(lambda content: shards.decode_crop(content, embedder.input_px), contents)))
    return features_of_pixels(pixels, embedder)


def features_of_pixels(pixels_BHWC: NDArray[np.uint8], embedder: Embedder) -> NDArray[np.float32]:
    """`features_of`, of RGB crops [B, input_px, input_px, 3]."""
    images = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2)
    both = (embedder.embed(images) + embedder.embed(images.flip(-1))) / 2
    features: NDArray[np.float32] = both.numpy()
    return features


def read_embeddings(path: Path) -> tuple[list[str], list[str], NDArray[np.float32], NDArray[np.float32]]:
    """(source_uri, identity, quality [N], unit embeddings [N, D]) of one shard."""
    table = pq.read_table(path)
    return table["source_uri"].to_pylist(), table["identity"].to_pylist(), table["quality"].to_numpy(), vectors_of(table["embedding"])


def vectors_of(column: pa.ChunkedArray) -> NDArray[np.float32]:
    """Embeddings [N, D] of a column of them."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False) if len(column) else np.zeros(0, np.float32)
    vectors: NDArray[np.float32] = flat.reshape(-1, column.type.list_size)
    return vectors
