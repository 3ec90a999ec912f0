"""The synthetic crawl: the same bytes for any worker, a truth that agrees with the files, and each planted kind as promised."""

import hashlib
import io
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.errors import BadConfig
from pipeline.synthetic import SyntheticCrawl, name_of, write_folder, write_shards, write_verification_pairs
from pipeline.verification_bin import read_bin

SMALL = SyntheticCrawl(identities=12, images=6, noise=0.5, seed=3)


def digest(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_any_number_of_workers_writes_the_same_bytes(tmp_path: Path) -> None:
    for workers in (1, 2):
        write_folder(SMALL, tmp_path / str(workers), tmp_path / f"{workers}.parquet", workers=workers)
    assert digest(tmp_path / "1") == digest(tmp_path / "2")
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()
    write_folder(SyntheticCrawl(identities=12, images=6, noise=0.5, seed=4), tmp_path / "other", tmp_path / "other.parquet")
    assert digest(tmp_path / "other") != digest(tmp_path / "1")


def test_truth_names_every_file_and_folders_and_shards_hold_the_same(tmp_path: Path) -> None:
    write_folder(SMALL, tmp_path / "folder", tmp_path / "folder.parquet")
    write_shards(SMALL, tmp_path / "shards", tmp_path / "shards.parquet")
    rows = pq.read_table(tmp_path / "folder.parquet").to_pylist()
    assert {row["item"] for row in rows} == set(digest(tmp_path / "folder"))
    in_tars = []
    for tar in sorted((tmp_path / "shards").glob("*.tar")):
        with tarfile.open(tar) as file:
            in_tars += [f"{tar.name}/{member.name}" for member in file if not member.name.endswith(".json")]
    packed = pq.read_table(tmp_path / "shards.parquet").to_pylist()
    assert {row["item"] for row in packed} == set(in_tars)
    key = ("identity", "true_identity", "is_noise", "kind")
    assert [[row[name] for name in key] for row in rows] == [[row[name] for name in key] for row in packed]


def test_noise_is_planted_in_the_share_asked_for(tmp_path: Path) -> None:
    write_folder(SyntheticCrawl(identities=9, images=40, noise=0.5), tmp_path / "crawl", tmp_path / "truth.parquet")
    rows = pq.read_table(tmp_path / "truth.parquet").to_pylist()
    assert sum(row["is_noise"] for row in rows) / len(rows) == pytest.approx(0.5, abs=0.02)
    flips = sum(row["kind"] == "flip" for row in rows) / sum(row["is_noise"] for row in rows)
    assert flips == pytest.approx(0.6, abs=0.12)
    assert all(row["is_noise"] == (row["identity"] != row["true_identity"]) for row in rows)


def test_every_kind_is_what_its_name_says(tiny_crawl: tuple[Path, Path]) -> None:
    crawl, truth = tiny_crawl
    rows = pq.read_table(truth).to_pylist()
    of = {kind: [row for row in rows if row["kind"] == kind] for kind in {row["kind"] for row in rows}}
    planted = {
        "clean",
        "flip",
        "stranger",
        "duplicate",
        "near_duplicate",
        "truncated",
        "mislabelled",
        "too_small",
        "empty",
        "shared",
        "nonface",
        "bomb",
    }
    assert planted <= set(of)
    with Image.open(crawl / of["truncated"][0]["item"]) as half, pytest.raises(OSError, match="truncated"):
        half.load()
    assert b"<!doctype html>" in (crawl / of["mislabelled"][0]["item"]).read_bytes()
    bomb = (crawl / of["bomb"][0]["item"]).read_bytes()
    assert len(bomb) < 100_000 and int.from_bytes(bomb[16:20], "big") * int.from_bytes(bomb[20:24], "big") > 100_000_000
    for kind in ("duplicate", "shared"):
        row = of[kind][0]
        content = (crawl / row["item"]).read_bytes()
        same = [other for other in rows if other["item"] != row["item"] and (crawl / other["item"]).read_bytes() == content]
        assert [other["true_identity"] for other in same] == [row["true_identity"]]
    two_names = {row["identity"] for row in rows if row["true_identity"] == name_of(7) and row["kind"] == "clean"}
    assert two_names == {name_of(7)}
    assert sum(row["identity"] == name_of(12) for row in rows) == 2, "the tiny identity"


def test_no_one_is_a_stranger_and_an_identity_at_once() -> None:
    names = [name_of(number) for number in range(3000)]
    assert len(set(names)) == len(names) and not any("/" in name or name.startswith(".") for name in names)


def test_pairs_take_turns_and_show_faces(tmp_path: Path) -> None:
    write_verification_pairs(SMALL, tmp_path / "pairs.bin", pairs=10, workers=1)
    pictures, same = read_bin(tmp_path / "pairs.bin")
    assert same == [True, False] * 5 and len(pictures) == 20
    assert all(Image.open(io.BytesIO(content)).size == (112, 112) for content in pictures)


def test_senseless_settings_are_refused() -> None:
    with pytest.raises(BadConfig, match="3 identities or more"):
        SyntheticCrawl(identities=2)
    with pytest.raises(BadConfig, match=r"noise from 0 to 0\.9"):
        SyntheticCrawl(noise=1.0)
