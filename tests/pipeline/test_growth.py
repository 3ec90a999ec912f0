"""A crawl that grew: what was read stays byte for byte, only new files are read, what vanished is marked and what comes back is not."""

import io
import json
import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline import ingest as ingest_module
from pipeline.config import Config, IngestConfig
from pipeline.forget import forget
from pipeline.growth import LISTING
from pipeline.ingest import ingest
from pipeline.receipts import write_json
from pipeline.shards import ShardWriter, check_shard, json_bytes, sample_id, shard_stems
from tests.pipeline.clean_run import planted, write_clean_run
from tests.pipeline.fake_run import Planted

CONFIG = Config(workers=1, ingest=IngestConfig(samples_per_shard=4, near_duplicate_bits=0))


def picture(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (14, 14, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((112, 112)).save(buffer, "JPEG")
    return buffer.getvalue()


def put(crawl: Path, name: str, seed: int, *, at_ns: int = 10**18) -> None:
    (crawl / name).parent.mkdir(parents=True, exist_ok=True)
    (crawl / name).write_bytes(picture(seed))
    os.utime(crawl / name, ns=(at_ns, at_ns))


def tar(path: Path, seeds: list[int]) -> None:
    path.parent.mkdir(exist_ok=True)
    with ShardWriter(path) as shard:
        for seed in seeds:
            shard.add(
                sample_id("x", sha256(picture(seed)).hexdigest()), {"jpg": picture(seed), "json": json_bytes({"identity": f"P{seed % 2}"})}
            )


def rows_of(raw: Path) -> list[dict[str, Any]]:
    return pa.concat_tables([pq.read_table(raw / f"{stem}.parquet") for stem in shard_stems(raw)]).to_pylist()


def told(raw: Path) -> dict[str, tuple[str, bool]]:
    rows = rows_of(raw)
    found = {row["source_uri"]: (row["status"], row["is_gone"]) for row in rows}
    assert len(found) == len(rows), "source_uri is unique"
    for stem in shard_stems(raw):
        check_shard(raw / f"{stem}.tar", deep=True)
    return found


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """source_uri of every item that is examined."""
    seen: list[str] = []
    examine = ingest_module.examine

    def noted(item: Any, config: IngestConfig) -> Any:
        seen.append(item.source_uri)
        return examine(item, config)

    monkeypatch.setattr(ingest_module, "examine", noted)
    return seen


def test_a_folder_that_grew_reads_only_what_is_new(tmp_path: Path, read: list[str]) -> None:
    crawl, raw = tmp_path / "crawl", tmp_path / "raw"
    for n in range(10):
        put(crawl, f"P{n % 2}/{n}.jpg", n)
    first = ingest(crawl, raw, CONFIG)
    before = {path.name: path.read_bytes() for path in raw.glob("raw-*")}
    assert ingest(crawl, raw, CONFIG).reused

    put(crawl, "P2/new.jpg", 50)
    put(crawl, "P0/again.jpg", 0)  # the bytes of an item that is there
    read.clear()
    second = ingest(crawl, raw, CONFIG)
    assert sorted(read) == ["P0/again.jpg", "P2/new.jpg"] and second.fingerprint != first.fingerprint
    after = {path.name: path.read_bytes() for path in raw.glob("raw-*")}
    assert all(after[name] == content for name, content in before.items() if name.endswith(".tar"))
    found = told(raw)
    assert found["P0/again.jpg"] == ("duplicate", False) and found["P0/0.jpg"] == ("ok", False) and found["P2/new.jpg"] == ("ok", False)
    assert second.counts["items"] == 12 and ingest(crawl, raw, CONFIG).reused


def test_what_vanished_is_marked_what_comes_back_is_not_what_changed_is_both(tmp_path: Path, read: list[str]) -> None:
    crawl, raw = tmp_path / "crawl", tmp_path / "raw"
    for n in range(8):
        put(crawl, f"P{n % 2}/{n}.jpg", n)
    ingest(crawl, raw, CONFIG)
    (crawl / "P0/0.jpg").unlink()
    put(crawl, "P1/1.jpg", 99, at_ns=2 * 10**18)
    read.clear()
    assert ingest(crawl, raw, CONFIG).counts["gone"] == 2
    found = told(raw)
    assert read == ["P1/1.jpg"] and found["P0/0.jpg"] == ("ok", True)
    assert found["P1/1.jpg"] == ("ok", False) and found["P1/1.jpg#before=2"] == ("ok", True) and len(found) == 9

    put(crawl, "P0/0.jpg", 0)
    put(crawl, "P1/1.jpg", 98, at_ns=3 * 10**18)
    read.clear()
    ingest(crawl, raw, CONFIG)
    found = told(raw)
    assert read == ["P1/1.jpg"] and found["P0/0.jpg"] == ("ok", False)
    assert {"P1/1.jpg", "P1/1.jpg#before=2", "P1/1.jpg#before=3"} <= set(found) and len(found) == 10


def test_of_equal_bytes_the_one_that_is_still_there_is_the_sample(tmp_path: Path) -> None:
    crawl, raw = tmp_path / "crawl", tmp_path / "raw"
    for n in range(6):
        put(crawl, f"P{n % 2}/{n}.jpg", n)
    ingest(crawl, raw, CONFIG)
    (crawl / "P0/0.jpg").rename(crawl / "P0/moved.jpg")
    ingest(crawl, raw, CONFIG)
    found = told(raw)
    assert found["P0/moved.jpg"] == ("ok", False) and found["P0/0.jpg"] == ("duplicate", True)


def test_tars_are_taken_over_one_by_one(tmp_path: Path, read: list[str]) -> None:
    crawl, raw = tmp_path / "crawl", tmp_path / "raw"
    for name, seeds in (("b", [0, 1]), ("c", [2, 3]), ("d", [4, 5])):
        tar(crawl / f"{name}.tar", seeds)
    ingest(crawl, raw, CONFIG)
    tar(crawl / "a.tar", [6, 7])  # before the others in order
    (crawl / "c.tar").unlink()
    tar(crawl / "d.tar", [4, 5, 8])
    read.clear()
    ingest(crawl, raw, CONFIG)
    found = told(raw)
    assert {uri.split("/")[0] for uri in read} == {"a.tar", "d.tar"} and len(read) == 5
    gone = {uri.split("/")[0]: status for uri, (status, is_gone) in found.items() if is_gone}
    assert gone == {"c.tar": "ok", "d.tar": "duplicate"} and len(found) == 11
    assert sum(status == "ok" for status, _ in found.values()) == 9, "what stands twice in old and new d.tar is one sample"


def test_a_growth_that_is_killed_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    crawl = tmp_path / "crawl"
    for n in range(10):
        put(crawl, f"P{n % 2}/{n}.jpg", n)
    for name in ("whole", "killed"):
        ingest(crawl, tmp_path / name, CONFIG)
    for n in range(10, 22):
        put(crawl, f"P{n % 2}/{n}.jpg", n)
    (crawl / "P0/0.jpg").unlink()
    ingest(crawl, tmp_path / "whole", CONFIG)
    done, calls = ingest_module.ingest_slice, []

    def dies(part: Any) -> int:
        calls.append(part.stem)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return done(part)

    monkeypatch.setattr(ingest_module, "ingest_slice", dies)
    with pytest.raises(KeyboardInterrupt):
        ingest(crawl, tmp_path / "killed", CONFIG)
    assert not any(row["is_gone"] for row in rows_of(tmp_path / "killed")), "the old shards stand as they were"
    ingest(crawl, tmp_path / "killed", CONFIG)
    assert calls == ["raw-000003", "raw-000004", "raw-000004", "raw-000005"]
    names = [path.name for path in (tmp_path / "whole").glob("*") if path.name not in ("_receipt.json", LISTING)]
    assert all((tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes() for name in names)


def test_other_settings_read_all_anew_and_so_does_growth_after_forgetting(tmp_path: Path, read: list[str]) -> None:
    crawl, raw = tmp_path / "crawl", tmp_path / "run" / "raw"
    for n in range(8):
        put(crawl, f"P{n % 3}/{n}.jpg", n)
    ingest(crawl, raw, CONFIG)
    write_json(tmp_path / "run" / "run.json", {"crawl": str(crawl), "finished": False})
    read.clear()
    ingest(crawl, raw, Config(workers=1, ingest=IngestConfig(samples_per_shard=3)))
    assert len(read) == 8
    forget(tmp_path / "run", identities=["P2"], yes=True)
    assert not (raw / LISTING).exists()
    read.clear()
    put(crawl, "P1/new.jpg", 70)
    put(crawl, "P2/new.jpg", 71)
    ingest(crawl, raw, Config(workers=1, ingest=IngestConfig(samples_per_shard=3)))
    assert "P1/new.jpg" in read and not any(uri.startswith("P2") for uri in read)
    assert {row["identity"] for row in rows_of(raw) if row["status"] == "ok"} == {"P0", "P1"}


def test_clean_shards_of_a_crawl_that_grew_keep_their_bytes_unless_a_name_moves_the_class_indices(tmp_path: Path) -> None:
    def full_shards(name: str, items: list[Planted]) -> list[str]:
        told = json.loads((write_clean_run(tmp_path / name, items).clean / "dataset.json").read_text("utf-8"))["shards"]
        return [shard["sha256"] for shard in told if shard["samples"] == 5]

    before = planted()
    earlier = full_shards("before", before)
    grown = full_shards("grown", [*before, *planted(3), Planted(identity="Zz, the last by name")])
    assert earlier and grown[: len(earlier)] == earlier and len(grown) > len(earlier)
    renumbered = full_shards("renumbered", [*before, Planted(identity="Aaron, before all others")])
    assert not set(renumbered) & set(earlier)
