"""Isolation by several workers: the same bytes as by one, whatever they are, and whatever an attempt before has left."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from arcface_core import neighbors
from arcface_core.noise.calibration import AngleHistogram, Calibration, fit_calibration
from arcface_core.noise.centers import cluster_centers
from arcface_core.noise.rivals import RivalSearch
from flows.workers import RunnerName, fanned
from pipeline import buckets, gather, tables
from pipeline import isolate as isolate_module
from pipeline.config import load
from pipeline.isolate import isolate
from pipeline.models import save_tensors
from pipeline.rivals import open_rivals, write_rivals
from pipeline.threads import all_threads, one_thread
from tests.pipeline.planted_embeddings import Sample, crawl, directions, names_of, planted, sealed


def samples() -> list[Sample]:
    """With near duplicates, one photograph under two names, and a second name for one person."""
    found = crawl(people=24)
    generator = torch.Generator().manual_seed(5)
    for at, name in {10: "P05", 30: "P09", 3: "P00"}.items():
        found.append(
            (name, found[at][0], torch.nn.functional.normalize(found[at][2] + 0.004 * torch.randn(64, generator=generator), dim=0))
        )
    apart = torch.randn(8, 64, generator=generator) * 0.08
    found += [("P01 again", "P01", torch.nn.functional.normalize(directions(0, 24)[1] + apart[row], dim=0)) for row in range(8)]
    return found


@pytest.fixture(scope="module")
def round_(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """(raw, train, embeddings); nobody trained the last four identities."""
    root = tmp_path_factory.mktemp("round")
    planted_samples = samples()
    names = names_of(planted_samples)[:-4]

    def train(folder: Path) -> None:
        centers = [cluster_centers(torch.stack([v for identity, _, v in planted_samples if identity == name]), 3) for name in names]
        rows = [{"class_index": at, "identity": name, "samples": 1} for at, name in enumerate(names)]
        pq.write_table(pa.Table.from_pylist(rows, schema=tables.CLASSES), folder / "classes.parquet")
        save_tensors(folder / "head.safetensors", {"centers": torch.stack(centers)})

    raw, embeddings = planted(root, planted_samples, per_shard=90)
    return raw, sealed(root / "train", train), embeddings


@pytest.fixture(scope="module", autouse=True)
def small_buckets() -> Iterator[None]:
    """And fits of the judge, most of the time here, once for the same numbers."""
    fits: dict[bytes, Calibration] = {}

    def fit(own: AngleHistogram, null: AngleHistogram) -> Calibration:
        numbers = torch.cat([own.counts, null.counts]).numpy().tobytes()
        return fits.get(numbers) or fits.setdefault(numbers, fit_calibration(own, null))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(buckets, "BYTES_PER_BUCKET", 1 << 15)
        for module in (gather, isolate_module):
            patch.setattr(module, "fit_calibration", fit)
        yield


def bytes_of(round_: tuple[Path, Path, Path], out: Path, workers: int) -> dict[str, bytes]:
    raw, train, embeddings = round_
    config = load(overrides=["device=cpu", "evaluate.holdout=0.3", f"workers={workers}"])
    seen: list[tuple[int, int]] = []
    receipt = isolate(raw, train, embeddings, out, config, progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == list(range(1, len(seen) + 1)) and seen[-1] == (len(seen), len(seen)), seen[-1]
    assert receipt.counts["head_learned"] and receipt.counts["merge_proposals"] == 1
    return {path.name: path.read_bytes() for path in out.iterdir() if path.name != "_receipt.json"}


@pytest.fixture(scope="module")
def alone(round_: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return bytes_of(round_, tmp_path_factory.mktemp("alone") / "noise", 1)


@pytest.mark.parametrize("runner", ["processes", "threads"])
def test_the_same_bytes_by_two(round_: tuple[Path, Path, Path], alone: dict[str, bytes], tmp_path: Path, runner: RunnerName) -> None:
    with fanned(runner, None, 2):
        assert bytes_of(round_, tmp_path / "noise", 2) == alone


def test_the_same_bytes_where_torch_has_two_threads(round_: tuple[Path, Path, Path], alone: dict[str, bytes], tmp_path: Path) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3 - before if before < 3 else 1)
    try:
        assert bytes_of(round_, tmp_path / "noise", 1) == alone
    finally:
        torch.set_num_threads(before)


def test_what_an_attempt_before_has_left_is_used_or_removed(
    round_: tuple[Path, Path, Path], alone: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):  # noqa: N818
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    for moment in ("find_copies", "save_tensors"):
        with monkeypatch.context() as patch:
            patch.setattr(isolate_module, moment, killed)
            with pytest.raises(Killed):
                bytes_of(round_, tmp_path / "noise", 1)
    partial = next(tmp_path.glob(".noise.partial-*"))
    assert {".evidence", ".gathered", ".judged", "raw-000000.parquet"} <= {path.name for path in partial.iterdir()}
    (partial / ".evidence" / "raw-000001.parquet").unlink()
    assert bytes_of(round_, tmp_path / "noise", 1) == alone and not partial.exists()


def test_every_sample_is_in_one_bucket_with_all_of_its_identity(round_: tuple[Path, Path, Path], tmp_path: Path) -> None:
    raw, _, embeddings = round_
    names = pq.read_table(raw / "identities.parquet")["identity"]
    found = buckets.split(raw, embeddings, names, tmp_path / "buckets")
    assert found.count > 2
    read = [found.read(number) for number in range(found.count)]
    shards = pa.concat_tables([pq.read_table(path) for path in sorted(embeddings.glob("raw-*"))])
    row_N = np.concatenate([bucket.row_N for bucket in read])
    assert sorted(row_N) == list(range(shards.num_rows)) and all((np.diff(bucket.row_N) > 0).all() for bucket in read)
    assert [names[c].as_py() for bucket in read for c in bucket.class_N] == shards["identity"].take(pa.array(row_N)).to_pylist()
    vectors = np.array(shards["embedding"].to_pylist(), np.float32)
    assert np.array_equal(np.concatenate([bucket.unit_ND for bucket in read]), vectors[row_N])
    homes = [{*bucket.class_N.tolist()} for bucket in read]
    assert sum(map(len, homes)) == len(set().union(*homes)) == len(names)


def test_the_search_for_rivals_is_mapped_and_finds_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss")
    monkeypatch.setattr(neighbors, "_MANY_KEYS", 4500)
    centers = torch.nn.functional.normalize(torch.randn(5000, 16, generator=torch.Generator().manual_seed(0)), dim=1)
    present = torch.arange(5000) % 50 != 7
    asked, own = centers[:900] + 0.1, torch.arange(900)
    for name, kept, has_lists in (("many", present, True), ("few", present & (own.new_tensor(range(5000)) < 3000), False)):
        search = RivalSearch.over(centers, kept)
        write_rivals(tmp_path / name, search)
        assert (tmp_path / name / "lists.faiss").exists() is has_lists
        opened = open_rivals(tmp_path / name, "cpu")
        assert (
            open_rivals(tmp_path / name, "cpu") is opened and opened.recall == search.recall and torch.equal(opened.rows_P, search.rows_P)
        )
        for found, wanted in zip(opened.nearest(asked, own, 2), search.nearest(asked, own, 2), strict=True):
            assert torch.equal(found, wanted)
    open_rivals.cache_clear()


def test_one_thread_ends_when_the_last_part_does() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            with one_thread():
                assert torch.get_num_threads() == 1
            assert torch.get_num_threads() == 1
            with all_threads():
                assert torch.get_num_threads() == 2
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
