"""No crop of a damaged shard is exported, wherever the damage is; what is read is what was written, whatever the size of the blocks."""

import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipeline import proven, tables
from pipeline.errors import BadShard
from pipeline.export import export_clean
from pipeline.proven import proven_crops
from pipeline.shards import CropReader, ShardWriter, check_shard, sample_id, shard_stems, table_of, write_twin
from tests.pipeline.clean_run import config, write_clean_run


@pytest.fixture
def tar(tmp_path: Path) -> tuple[Path, list[int], list[bytes]]:
    """(tar with its twin, offsets of its crops, crops of 1 to 3,000 bytes)."""
    random = np.random.default_rng(1)
    contents = [random.bytes(int(size)) for size in random.integers(1, 3000, 40)]
    path = tmp_path / "raw-000000.tar"
    with ShardWriter(path) as writer:
        offsets = [writer.add(sample_id("A", sha256(content).hexdigest()), {"jpg": content, "json": b"{}"})["jpg"] for content in contents]
    write_twin(path.with_suffix(".parquet"), table_of([], tables.ITEMS), writer.sidecar)
    return path, offsets, contents


@pytest.mark.parametrize("block", [100, 3000, 10_000, 2**22])
@pytest.mark.parametrize("step", [1, 7])
def test_crops_are_those_that_were_written(
    tar: tuple[Path, list[int], list[bytes]], monkeypatch: pytest.MonkeyPatch, block: int, step: int
) -> None:
    path, offsets, contents = tar
    monkeypatch.setattr(proven, "_BLOCK", block)
    sizes = np.array([len(content) for content in contents])
    batches = proven_crops(path, np.array(offsets)[::step], sizes[::step])
    assert [bytes(crop) for batch in batches for crop in batch] == contents[::step]
    assert list(proven_crops(path, np.array([], np.int64), np.array([], np.int64))) == []


def test_places_that_are_not_in_the_tar_are_refused(tar: tuple[Path, list[int], list[bytes]]) -> None:
    path, offsets, _ = tar
    for places, sizes in (
        ([offsets[1], offsets[0]], [1, 1]),
        ([offsets[0], offsets[0] + 1], [2, 1]),
        ([-1], [4]),
        ([0], [10**9]),
        ([9], [-1]),
    ):
        with pytest.raises(BadShard, match="do not lie one after the other"):
            list(proven_crops(path, np.array(places), np.array(sizes)))


def test_finished_shards_are_used_again_only_when_they_are_there_in_their_length(tmp_path: Path) -> None:
    layout = write_clean_run(tmp_path / "run")
    assert export_clean(layout.raw, layout.manifest, layout.clean, config()).reused
    tar = layout.clean / "clean-000001.tar"
    whole = tar.read_bytes()
    tar.write_bytes(whole[:-512])
    with pytest.raises(
        BadShard, match=rf"clean-000001.tar has {len(whole) - 512} bytes, its sidecar says {len(whole)}. Remove .*/clean and run"
    ):
        export_clean(layout.raw, layout.manifest, layout.clean, config())
    tar.unlink()
    with pytest.raises(BadShard, match=r"clean-000001.tar is gone, though its twin is there. Remove .*/clean and run again"):
        export_clean(layout.raw, layout.manifest, layout.clean, config())
    tar.with_suffix(".parquet").unlink()
    with pytest.raises(BadShard, match=r"/clean has 6 shards with a twin, and had 7. Remove .*/clean and run again"):
        export_clean(layout.raw, layout.manifest, layout.clean, config())
    shutil.rmtree(layout.clean)  # as it says
    assert not export_clean(layout.raw, layout.manifest, layout.clean, config()).reused and tar.read_bytes() == whole


def test_a_flipped_bit_anywhere_in_a_raw_shard_stops_the_export(tmp_path: Path) -> None:
    layout = write_clean_run(tmp_path / "run")
    tars = [layout.raw / f"{stem}.tar" for stem in shard_stems(layout.raw)]
    assert len(tars) == 3
    for tar in tars:
        whole = tar.read_bytes()
        for place in (700, len(whole) - 1):
            damaged = bytearray(whole)
            damaged[place] ^= 1
            tar.write_bytes(damaged)
            shutil.rmtree(layout.clean, ignore_errors=True)
            with pytest.raises(BadShard, match=rf"{tar.name} differs from the SHA-256 .* run again"):
                export_clean(layout.raw, layout.manifest, layout.clean, config())
            assert not layout.clean.exists()
            taken = {
                name for path in tmp_path.glob("run/.clean.partial-*/clean-*.parquet") for name in raw_shards_of(path, layout.manifest)
            }
            assert tar.stem not in taken, "a shard that was made of damage has a name, and would be kept"
        tar.write_bytes(whole)
    receipt = export_clean(layout.raw, layout.manifest, layout.clean, config())
    assert receipt.counts["samples"] == 34


def raw_shards_of(twin: Path, manifest: Path) -> set[str]:
    keys = set(pq.read_table(twin)["sample_id"].to_pylist())
    return {row["shard"] for row in pq.read_table(manifest).to_pylist() if row["sample_id"] in keys}


def test_the_twin_of_a_clean_shard_finds_its_crops(tmp_path: Path) -> None:
    layout = write_clean_run(tmp_path / "run")
    raw = {row["sample_id"]: row for path in layout.raw.glob("raw-*.parquet") for row in pq.read_table(path).to_pylist()}
    seen = 0
    for stem in shard_stems(layout.clean, "clean"):
        check_shard(layout.clean / f"{stem}.tar", deep=True)
        for row in pq.read_table(layout.clean / f"{stem}.parquet").to_pylist():
            origin = raw[row["sample_id"]]
            with CropReader(layout.clean / f"{stem}.tar") as here, CropReader(layout.raw / f"{origin['shard']}.tar") as there:
                assert here.read(row["crop_offset"], row["crop_size"]) == there.read(origin["crop_offset"], origin["crop_size"])
            assert row["source_uri"] == origin["source_uri"]
            seen += 1
    assert seen == 34
