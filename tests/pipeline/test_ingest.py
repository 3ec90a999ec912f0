"""Ingest: a row for every item, hostile ones by status; folder and tars alike; keys that no name can break; kill and resume."""

import io
import json
import os
import tarfile
from collections import Counter
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset as wds
from PIL import Image

from pipeline import ingest as ingest_module
from pipeline.config import Config, IngestConfig
from pipeline.errors import BadCrawl, BadShard
from pipeline.ingest import ingest
from pipeline.shards import ShardWriter, check_shard, sample_id, shard_stems
from pipeline.synthetic import SyntheticCrawl, write_folder, write_shards

CONFIG = Config(workers=1, ingest=IngestConfig(samples_per_shard=20))


def picture(seed: int, *, size: tuple[int, int] = (112, 112), form: str = "JPEG", mode: str = "RGB") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1] // 8 + 1, size[0] // 8 + 1, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize(size).convert(mode).save(buffer, form)
    return buffer.getvalue()


def rows_of(raw: Path) -> list[dict[str, Any]]:
    return pa.concat_tables([pq.read_table(raw / f"{stem}.parquet") for stem in shard_stems(raw)]).to_pylist()


def write(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def test_every_item_has_one_row_and_hostile_ones_say_why(tiny_crawl: tuple[Path, Path], tmp_path: Path) -> None:
    crawl, truth = tiny_crawl
    receipt = ingest(crawl, tmp_path / "raw", CONFIG)
    rows = rows_of(tmp_path / "raw")
    planted = {row["item"]: row["kind"] for row in pq.read_table(truth).to_pylist()}
    assert sorted(row["source_uri"] for row in rows) == sorted(planted)
    wanted = {"truncated": "truncated", "mislabelled": "unsupported_format", "too_small": "too_small", "empty": "empty", "bomb": "bomb"}
    for row in rows:
        kind = planted[row["source_uri"]]
        if kind == "duplicate":
            continue
        assert row["status"] == wanted.get(kind, row["status"] if row["status"] == "duplicate" else "ok"), row
        assert (row["status_detail"] is None) == (row["status"] == "ok")
    assert Counter(row["status"] for row in rows)["duplicate"] == 1
    copies = [row for row in rows if row["duplicate_set"] is not None]
    assert sorted(Counter(row["duplicate_set"] for row in copies).values()) == [2, 2], "one copy within an identity, one across"
    assert receipt.counts["items"] == len(planted)


def test_crops_are_where_the_twin_says_and_the_crawls_own_jpeg_is_kept(tiny_crawl: tuple[Path, Path], tmp_path: Path) -> None:
    crawl, _ = tiny_crawl
    ingest(crawl, tmp_path / "raw", CONFIG)
    for row in rows_of(tmp_path / "raw"):
        if row["status"] == "ok":
            with (tmp_path / "raw" / f"{row['shard']}.tar").open("rb") as tar:
                tar.seek(row["crop_offset"])
                assert tar.read(row["crop_size"]) == (crawl / row["source_uri"]).read_bytes()


def test_bare_webdataset_reads_the_shards(tiny_crawl: tuple[Path, Path], tmp_path: Path) -> None:
    ingest(tiny_crawl[0], tmp_path / "raw", CONFIG)
    seen = []
    for stem in shard_stems(tmp_path / "raw"):
        for sample in wds.WebDataset(str(tmp_path / "raw" / f"{stem}.tar"), shardshuffle=False):
            assert set(sample) >= {"__key__", "jpg", "json"}
            seen.append(json.loads(sample["json"])["source_uri"])
    assert len(seen) == len(set(seen)) == sum(row["crop_offset"] is not None for row in rows_of(tmp_path / "raw"))


def test_workers_and_repetition_change_no_byte(tiny_crawl: tuple[Path, Path], tmp_path: Path) -> None:
    for workers in (1, 2):
        ingest(tiny_crawl[0], tmp_path / str(workers), Config(workers=workers, ingest=CONFIG.ingest))
    names = sorted(path.name for path in (tmp_path / "1").iterdir() if path.name != "_receipt.json")
    assert len(names) > 6
    assert all((tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes() for name in names)
    assert ingest(tiny_crawl[0], tmp_path / "1", CONFIG).reused
    tar = tmp_path / "1" / "raw-000000.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    with pytest.raises(BadShard, match=r"raw-000000.tar has \d+ bytes, its sidecar says"):
        ingest(tiny_crawl[0], tmp_path / "1", CONFIG)


def test_tars_give_the_same_samples_as_folders(tmp_path: Path) -> None:
    settings = SyntheticCrawl(identities=10, images=5, noise=0.2, seed=1)
    found = []
    for form, writer in (("folder", write_folder), ("tars", write_shards)):
        writer(settings, tmp_path / form, tmp_path / f"{form}.parquet")
        ingest(tmp_path / form, tmp_path / f"raw-{form}", CONFIG)
        found.append(
            sorted((row["identity"], row["sample_id"], row["status"]) for row in rows_of(tmp_path / f"raw-{form}") if row["sample_id"])
        )
    assert found[0] == found[1]


def test_names_that_break_others_do_not_break_us(tmp_path: Path) -> None:
    """Dots merge people in WebDataset; quotes break SQL; a newline breaks lists; bytes that are no text break Parquet."""
    names = ["J.Smith", "J.Brown", "O'Brien", "Ann\nLee", 'Q"uote', "Zoë", "-rf", "a b"]
    crawl = write(tmp_path / "crawl", {f"{name}/{name}.{n}.jpg": picture(hash_of(name) + n) for name in names for n in range(2)})
    os.makedirs(os.fsencode(crawl) + b"/Bad\xff")  # noqa: PTH103 - a name that Path would not print
    Path(os.fsdecode(os.fsencode(crawl) + b"/Bad\xff/1.jpg")).write_bytes(picture(99))
    ingest(crawl, tmp_path / "run [1]*'" / "raw", CONFIG)
    rows = rows_of(tmp_path / "run [1]*'" / "raw")
    assert Counter(row["identity"] for row in rows) == Counter({**dict.fromkeys(names, 2), "Bad\\xff": 1})
    assert {row["identity"]: row["status"] for row in rows if row["status"] != "ok"} == {"Ann\nLee": "bad_key"}
    assert len({row["sample_id"] for row in rows if row["status"] == "ok"}) == len(rows) - 2


def hash_of(name: str) -> int:
    return sum(name.encode("utf-8"))


def test_pipes_links_and_loose_files_are_rows(tmp_path: Path) -> None:
    crawl = write(tmp_path / "crawl", {f"{who}/{n}.jpg": picture(n + 10 * len(who)) for who in ("A", "BB") for n in range(3)})
    write(crawl, {"readme.txt": b"hello", "A/deep/er/1.jpg": picture(77)})
    os.mkfifo(crawl / "A" / "pipe.jpg")
    (crawl / "A" / "link.jpg").symlink_to("/etc/hostname")
    ingest(crawl, tmp_path / "raw", CONFIG)
    status = {row["source_uri"]: row["status"] for row in rows_of(tmp_path / "raw")}
    assert status["A/pipe.jpg"] == status["A/link.jpg"] == "unreadable" and status["readme.txt"] == "bad_identity"
    assert status["A/deep/er/1.jpg"] == "ok"


def test_damaged_tars_are_rows_and_nothing_is_run(tmp_path: Path) -> None:
    whole = tmp_path / "whole.tar"
    with ShardWriter(whole) as shard:
        for n in range(6):
            content = picture(n)
            shard.add(sample_id("x", sha256(content).hexdigest()), {"jpg": content, "json": json.dumps({"identity": f"P{n % 2}"}).encode()})
    crawl = tmp_path / "crawl"
    crawl.mkdir()
    (crawl / "a.tar").write_bytes(whole.read_bytes())
    (crawl / "cut.tar").write_bytes(whole.read_bytes()[: whole.stat().st_size // 2 + 300])
    (crawl / "html.tar").write_bytes(b"<html>" * 200)
    with tarfile.open(crawl / "evil.tar", "w") as evil:
        for name, content in (("../../evil.jpg", picture(50)), ("p.pickle", b"cos\nsystem\n(S'touch pwned'\ntR."), ("q.cls", b"7")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            evil.addfile(info, io.BytesIO(content))
    ingest(crawl, tmp_path / "raw", CONFIG)
    rows = rows_of(tmp_path / "raw")
    damage = {row["source_uri"] for row in rows if row["status"] == "unreadable"}
    assert damage == {"cut.tar#damage", "html.tar#damage"}
    evil = {row["source_uri"]: row["status"] for row in rows if row["source_uri"].startswith("evil.tar")}
    assert evil == {"evil.tar/../../evil.jpg": "bad_key", "evil.tar/p.pickle": "unsupported_format", "evil.tar/q.cls": "unsupported_format"}
    assert not list(tmp_path.rglob("pwned")) and not (tmp_path.parent / "evil.jpg").exists()


def test_a_killed_ingest_goes_on_and_ends_the_same(tiny_crawl: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ingest(tiny_crawl[0], tmp_path / "whole", CONFIG)
    done = ingest_module.ingest_slice
    calls: list[int] = []

    def dies_at_the_third(part: Any) -> int:
        calls.append(part.number)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return done(part)

    monkeypatch.setattr(ingest_module, "ingest_slice", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        ingest(tiny_crawl[0], tmp_path / "killed", CONFIG)
    assert not (tmp_path / "killed").exists(), "nothing half-made is ever seen"
    ingest(tiny_crawl[0], tmp_path / "killed", CONFIG)
    assert calls.count(0) == 1 and calls.count(2) == 2, "finished shards are not made again"
    names = [path.name for path in (tmp_path / "whole").iterdir() if path.name != "_receipt.json"]
    assert all((tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes() for name in names)


def test_a_shard_that_lost_bytes_is_refused(tiny_crawl: tuple[Path, Path], tmp_path: Path) -> None:
    ingest(tiny_crawl[0], tmp_path / "raw", CONFIG)
    tar = tmp_path / "raw" / "raw-000000.tar"
    check_shard(tar, deep=True)
    content = bytearray(tar.read_bytes())
    content[2000] ^= 1
    tar.write_bytes(content)
    with pytest.raises(BadShard, match="differs from the SHA-256"):
        check_shard(tar, deep=True)
    tar.write_bytes(content[:-1024])
    with pytest.raises(BadShard, match="its sidecar says"):
        check_shard(tar)


def test_crawls_that_cannot_teach_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadCrawl, match="There is no crawl at"):
        ingest(tmp_path / "nowhere", tmp_path / "raw", CONFIG)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BadCrawl, match="is empty"):
        ingest(tmp_path / "empty", tmp_path / "raw", CONFIG)
    alone = write(tmp_path / "alone", {f"A/{n}.jpg": picture(n) for n in range(3)})
    with pytest.raises(BadCrawl, match="has 1 identities with a usable sample"):
        ingest(alone, tmp_path / "raw", CONFIG)
    mixed = write(tmp_path / "mixed", {"A/1.jpg": picture(1), "b.tar": b""})
    with pytest.raises(BadCrawl, match="holds tars and 1 pictures outside of them"):
        ingest(mixed, tmp_path / "raw", CONFIG)
