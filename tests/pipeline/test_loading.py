"""What a training is fed: every sample once an epoch however many processes and loader workers there are, the same batches from any step on."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.errors import BadShard
from pipeline.loading import Batch, CropStream
from pipeline.order import Rows, SampleOrder
from pipeline.shards import CropReader, decode_crop
from tests.pipeline.fake_run import Planted, write_run

SAMPLES, BATCH, EPOCHS = 66, 8, 2
BIG = 1 << 30


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five shards of 16 samples or fewer, of three identities: of every two samples one is Ada's."""
    names = ["Ada" if number % 2 else ("Bob", "Cyd")[number % 4 // 2] for number in range(SAMPLES)]
    return write_run(tmp_path_factory.mktemp("loading") / "run", [Planted(identity=name) for name in names], rounds=1) / "raw"


@pytest.fixture(scope="module")
def selection(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("selection")
    seen: Counter[str] = Counter()
    for path in sorted(raw.glob("raw-*.parquet")):
        rows = pq.read_table(path, columns=["identity", "crop_offset", "crop_size"]).to_pylist()
        for row in rows:
            row["class_index"], row["class_place"] = "ABC".index(row["identity"][0]), seen[row["identity"]]
            seen[row["identity"]] += 1
        pq.write_table(pa.Table.from_pylist(rows).drop_columns("identity"), folder / path.name)
    return folder


def order(selection: Path, *, batch_size: int = BATCH, seed: int = 1, samples_C: list[int] | None = None) -> SampleOrder:
    counts = None if samples_C is None else np.array(samples_C)
    return SampleOrder(selection, batch_size=batch_size, seed=seed, shuffle_buffer=30, samples_C=counts)


def stream(raw: Path, selection: Path, *, cache_bytes: int = 0, rank: int = 0, ranks: int = 1) -> CropStream:
    return CropStream(order(selection), raw, input_px=112, cache_bytes=cache_bytes, rank=rank, ranks=ranks)


@pytest.fixture(scope="module")
def sample_ids(raw: Path) -> dict[bytes, str]:
    """The sample_id of every crop, by its decoded pixels."""
    ids = {}
    for path in sorted(raw.glob("raw-*.parquet")):
        with CropReader(path.with_suffix(".tar")) as reader:
            for row in pq.read_table(path).to_pylist():
                ids[decode_crop(reader.read(row["crop_offset"], row["crop_size"]), 112).tobytes()] = row["sample_id"]
    assert len(ids) == SAMPLES
    return ids


def ids_of(batches: Iterator[Batch], known: dict[bytes, str]) -> list[list[str]]:
    return [[known[image.permute(1, 2, 0).contiguous().numpy().tobytes()] for image in images] for images, _ in batches]


def test_two_processes_of_two_workers_lose_and_repeat_no_sample(raw: Path, selection: Path, sample_ids: dict[bytes, str]) -> None:
    """Real worker processes; each global batch is what one process without workers has, dealt out in turn."""
    alone = ids_of(stream(raw, selection).batches(EPOCHS), sample_ids)
    parts = [ids_of(stream(raw, selection, rank=rank, ranks=2).batches(EPOCHS, workers=2), sample_ids) for rank in range(2)]
    together = [[key for pair in zip(one, other, strict=True) for key in pair] for one, other in zip(*parts, strict=True)]
    assert together == alone
    steps = SAMPLES // BATCH
    assert len(alone) == EPOCHS * steps
    left_out = []
    for epoch in range(EPOCHS):
        seen = Counter(key for batch in together[epoch * steps : (epoch + 1) * steps] for key in batch)
        assert set(seen.values()) == {1}
        assert len(seen) == steps * BATCH == SAMPLES - SAMPLES % BATCH
        left_out.append(set(sample_ids.values()) - set(seen))
    assert left_out[0] != left_out[1], "what does not fill a batch is not always the same"


def test_every_sample_where_the_batch_divides_the_epoch(selection: Path) -> None:
    places = np.concatenate([rows.place_N for rows in order(selection, batch_size=11).batches(0)])
    assert sorted(places) == list(range(SAMPLES))


@pytest.mark.parametrize(("cache_bytes", "workers"), [(0, 0), (BIG, 0), (0, 2)])
def test_batches_from_any_step_on_are_the_same(raw: Path, selection: Path, cache_bytes: int, workers: int) -> None:
    whole = list(stream(raw, selection).batches(EPOCHS))
    later = list(stream(raw, selection, cache_bytes=cache_bytes).batches(EPOCHS, done=11, workers=workers))
    assert len(later) == len(whole) - 11
    assert all(_same(a, b) for a, b in zip(whole[11:], later, strict=True))
    assert not _same(whole[0], whole[SAMPLES // BATCH]), "each epoch has an order of its own"


def _same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_kept_pixels_are_those_of_the_shards(raw: Path, selection: Path) -> None:
    kept = stream(raw, selection, cache_bytes=BIG)
    assert kept.is_cached and not stream(raw, selection, cache_bytes=SAMPLES * 112 * 112 * 3 - 1).is_cached
    first, second = list(kept.batches(1)), list(kept.batches(1))
    assert all(_same(a, b) for a, b in zip(first, second, strict=True))


def test_balanced_draws_every_identity_equally_often(selection: Path) -> None:
    counts = [33, 17, 16]
    balanced = order(selection, samples_C=counts, batch_size=6)
    assert balanced.steps_per_epoch == 11 == len(list(balanced.batches(0)))
    drawn: Counter[int] = Counter()
    for epoch in range(6):
        rows = _all(balanced.batches(epoch))
        assert Counter(rows.class_N.tolist()) == {0: 22, 1: 22, 2: 22}
        within = Counter(rows.place_N.tolist())
        classes = dict(zip(rows.place_N.tolist(), rows.class_N.tolist(), strict=True))
        assert all(within[place] <= (1 if label == 0 else 2) for place, label in classes.items())
        drawn += within
    assert len(drawn) == SAMPLES, "of a large identity other samples every epoch"


def _all(batches: Iterator[Rows]) -> Rows:
    parts = list(batches)
    return Rows(*(np.concatenate([getattr(part, name) for part in parts]) for name in Rows.__dataclass_fields__))


def test_no_more_shards_are_open_than_it_takes(raw: Path, selection: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_open: set[CropReader] = set()
    most = 0
    opened, closed = CropReader.__init__, CropReader.close

    def opening(self: CropReader, tar: Path) -> None:
        nonlocal most
        opened(self, tar)
        is_open.add(self)
        most = max(most, len(is_open))

    def closing(self: CropReader) -> None:
        is_open.discard(self)
        closed(self)

    monkeypatch.setattr(CropReader, "__init__", opening)
    monkeypatch.setattr(CropReader, "close", closing)
    monkeypatch.setattr("pipeline.loading._OPEN_SHARDS", 2)
    images = [images for images, _ in stream(raw, selection).batches(3)]
    assert len(images) == 3 * (SAMPLES // BATCH) and not is_open and most <= 4


def test_a_batch_that_cannot_be_divided_is_refused(raw: Path, selection: Path) -> None:
    with pytest.raises(ValueError, match="A batch of 8 samples cannot be divided among 3 processes"):
        stream(raw, selection, rank=0, ranks=3)


def test_a_cut_shard_is_named_by_a_worker_process_too(raw: Path, selection: Path, tmp_path: Path) -> None:
    for path in raw.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "raw-000001.tar").write_bytes((raw / "raw-000001.tar").read_bytes()[:2000])
    with pytest.raises(BadShard, match=r"raw-000001\.tar has 2000 bytes"):
        list(stream(tmp_path, selection).batches(1, workers=1))
