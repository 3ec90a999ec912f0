"""A raw shard that is not what was written is noticed, wherever it was cut or changed; and no name gets into a tar that is no key."""

import io
import itertools
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pipeline import audit, embed, receipts, tables
from pipeline.config import Config, IngestConfig
from pipeline.embedders import Embedder
from pipeline.errors import BadShard
from pipeline.export import _CleanPart, export_shard, write_manifest
from pipeline.ingest import ingest
from pipeline.isolate import isolate
from pipeline.layout import RunLayout
from pipeline.loading import CropStream
from pipeline.order import SampleOrder
from pipeline.review import draw
from pipeline.reviewing.desk import Desk
from pipeline.shards import CropReader, ShardWriter, check_shard, read_facts, sample_id, shard_stems, table_of, write_twin
from pipeline.train import _select
from tests.pipeline.fake_run import Planted, crop, write_run

CONFIG = Config(workers=1, ingest=IngestConfig(samples_per_shard=20))
BLOCK = 512


def write_shard(tar: Path, contents: list[bytes]) -> list[tuple[str, int, int]]:
    """(key, offset, size) of each sample of a whole shard with its twin."""
    places = []
    with ShardWriter(tar) as shard:
        for number, content in enumerate(contents):
            key = sample_id(f"P{number % 2}", sha256(content).hexdigest())
            places.append((key, shard.add(key, {"jpg": content, "json": b'{"identity":"P"}'})["jpg"], len(content)))
    rows = [
        {"sample_id": key, "identity": f"P{number % 2}", "source_uri": f"{number}", "shard": tar.stem, "status": "ok"}
        | {"crop_offset": offset, "crop_size": size}
        for number, (key, offset, size) in enumerate(places)
    ]
    write_twin(tar.with_suffix(".parquet"), table_of(rows, tables.ITEMS), shard.sidecar)
    return places


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, int, int]]]:
    tar = tmp_path_factory.mktemp("shard") / "raw-000000.tar"
    return tar, write_shard(tar, [crop(seed) for seed in range(5)])


def boundaries(tar: Path) -> list[int]:
    """Every offset at which a member's header begins, its data begins, and its data and padding end; and the ends of the tar's own zeros."""
    with tarfile.open(tar) as opened:
        members = opened.getmembers()
    cuts = {0, tar.stat().st_size - BLOCK, tar.stat().st_size - 1}
    for member in members:
        cuts |= {member.offset, member.offset_data, member.offset_data + member.size}
        cuts |= {member.offset_data + -(-member.size // BLOCK) * BLOCK}
        cuts |= {member.offset + inside for inside in (1, 100, 257, 511)}
        cuts |= {member.offset_data + member.size * part // 7 for part in range(1, 7)}
    return sorted(cuts)


def is_refused(tar: Path, *, deep: bool = False) -> None:
    with pytest.raises(BadShard, match=r"Remove .* run again"):
        check_shard(tar, deep=deep)
    if not deep:
        with pytest.raises(BadShard, match=r"Remove .* run again"), CropReader(tar):
            pass


def test_every_cut_is_noticed_by_length_alone(whole: tuple[Path, list[tuple[str, int, int]]], tmp_path: Path) -> None:
    tar, places = whole
    content = tar.read_bytes()
    cuts = boundaries(tar)
    assert len(cuts) > 10 * len(places)
    copied = tmp_path / tar.name
    copy_proof(tar, tmp_path / tar.name)
    for cut in cuts:
        copied.write_bytes(content[:cut])
        is_refused(copied)
        is_refused(copied, deep=True)
    copied.write_bytes(content)
    check_shard(copied, deep=True)
    with CropReader(copied) as crops:
        assert [crops.read(offset, size) for _, offset, size in places] == [crop(seed) for seed in range(5)]


def test_cuts_at_which_tarfile_itself_sees_nothing_are_among_them(whole: tuple[Path, list[tuple[str, int, int]]], tmp_path: Path) -> None:
    """Why there is a sidecar: cut between two samples, a tar is a shorter tar."""
    tar, places = whole
    for number, (_, offset, _) in enumerate(places[1:], 1):
        assert offset - BLOCK in boundaries(tar)
        (tmp_path / "cut.tar").write_bytes(tar.read_bytes()[: offset - BLOCK])
        with tarfile.open(tmp_path / "cut.tar") as cut:
            assert len(cut.getnames()) == 2 * number


@pytest.mark.parametrize("more", [b"\0", b"x", b"\0" * BLOCK, b"\0" * 10240])
def test_bytes_too_many_are_noticed(whole: tuple[Path, list[tuple[str, int, int]]], tmp_path: Path, more: bytes) -> None:
    tar, _ = whole
    copy_proof(tar, tmp_path / tar.name)
    (tmp_path / tar.name).write_bytes(tar.read_bytes() + more)
    is_refused(tmp_path / tar.name)


def test_a_flipped_bit_anywhere_is_noticed_by_the_deep_check(whole: tuple[Path, list[tuple[str, int, int]]], tmp_path: Path) -> None:
    tar, _ = whole
    copy_proof(tar, tmp_path / tar.name)
    copied = tmp_path / tar.name
    for place in boundaries(tar):
        content = bytearray(tar.read_bytes())
        content[min(place, len(content) - 1)] ^= 1
        copied.write_bytes(content)
        check_shard(copied)
        is_refused(copied, deep=True)


def test_a_missing_or_foreign_half_is_noticed(whole: tuple[Path, list[tuple[str, int, int]]], tmp_path: Path) -> None:
    tar, _ = whole
    one, other = tmp_path / "raw-000000.tar", tmp_path / "raw-000001.tar"
    shutil.copy(tar, one)
    with pytest.raises(BadShard, match=r"cannot be read .* run again"):
        check_shard(one)
    copy_proof(tar, one)
    one.unlink()
    with pytest.raises(BadShard, match="is gone, though its twin is there"):
        check_shard(one)
    shutil.copy(tar, one)
    write_shard(other, [crop(seed) for seed in range(20, 26)])
    check_shard(other, deep=True)
    for first, second in ((one, other), (one.with_suffix(".parquet"), other.with_suffix(".parquet"))):
        swap(first, second)
        for path in (one, other):
            is_refused(path, deep=True)
        swap(first, second)
    swap(one.with_suffix(".sha256"), other.with_suffix(".sha256"))
    for path in (one, other):
        is_refused(path)
    swap(one.with_suffix(".sha256"), other.with_suffix(".sha256"))
    one.with_suffix(".parquet").write_bytes(one.with_suffix(".parquet").read_bytes()[:-100])
    is_refused(one)
    write_twin(one.with_suffix(".parquet"), pa.table({"sample_id": ["00"]}), {"tar_sha256": "0"})
    with pytest.raises(BadShard, match="cannot be read"):
        check_shard(one)


def copy_proof(tar: Path, to: Path) -> None:
    """The twin and the sums of a tar, beside another place."""
    for suffix in (".parquet", ".sha256"):
        shutil.copy(tar.with_suffix(suffix), to.with_suffix(suffix))


def test_a_flipped_bit_anywhere_in_a_twin_or_in_what_is_told_of_it_is_noticed(
    whole: tuple[Path, list[tuple[str, int, int]]], tmp_path: Path
) -> None:
    """Also in the statistics and in the file metadata, which a reader of Parquet believes."""
    tar, _ = whole
    copied = tmp_path / tar.name
    shutil.copy(tar, copied)
    copy_proof(tar, copied)
    check_shard(copied)
    twin, sums = copied.with_suffix(".parquet"), copied.with_suffix(".sha256")
    of_twin = sums.read_bytes().index(b"\n") + 1
    for path, places in ((twin, range(0, twin.stat().st_size, 61)), (sums, range(of_twin, sums.stat().st_size))):
        whole_bytes = path.read_bytes()
        for place in places:
            path.write_bytes(whole_bytes[:place] + bytes([whole_bytes[place] ^ 4]) + whole_bytes[place + 1 :])
            with pytest.raises(BadShard, match=r"differs from the SHA-256 in raw-000000.sha256. Remove .* run again"):
                check_shard(copied)
        path.write_bytes(whole_bytes)
    assert subprocess.run(["sha256sum", "--check", "--strict", sums.name], cwd=tmp_path, check=False, capture_output=True).returncode == 0


def swap(one: Path, other: Path) -> None:
    held = one.with_name("held")
    one.rename(held)
    other.rename(one)
    held.rename(other)


def test_swapped_tars_of_one_length_need_the_deep_check(tmp_path: Path) -> None:
    """A tar is padded to 10,240 bytes, so two shards often have one length."""
    for number in range(2):
        write_shard(tmp_path / f"raw-00000{number}.tar", [crop(number)])
    one, other = tmp_path / "raw-000000.tar", tmp_path / "raw-000001.tar"
    assert one.stat().st_size == other.stat().st_size
    swap(one, other)
    for tar in (one, other):
        check_shard(tar)
        is_refused(tar, deep=True)


def _cut(raw: Path) -> None:
    tar = raw / "raw-000000.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2 // BLOCK * BLOCK])


def _changed(raw: Path) -> None:
    tar = raw / "raw-000000.tar"
    content = bytearray(tar.read_bytes())
    content[3000] ^= 1
    tar.write_bytes(content)


@pytest.mark.parametrize(("damage", "message"), [(_cut, "its sidecar says"), (_changed, "differs from the SHA-256")])
def test_no_stage_learns_from_a_damaged_shard(
    tiny_crawl: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[Path], None], message: str
) -> None:
    """Training and embedding read every shard, so they prove each whole once, by its SHA-256."""
    raw = tmp_path / "raw"
    ingest(tiny_crawl[0], raw, CONFIG)
    damage(raw)
    with pytest.raises(BadShard, match=message):
        _select(raw, None, None, tmp_path, tmp_path / "selection", CONFIG)
    never = Embedder(
        name="none", kind="torch", sha256="", input_px=112, dim=8, embed=lambda images: torch.zeros(len(images), 8), module=None
    )
    monkeypatch.setattr(embed, "_loaded", lambda *_: never)
    with pytest.raises(BadShard, match=message):
        embed.embed_shard(embed._Shard(raw / "raw-000000", tmp_path / "out.parquet", tmp_path, "model", "cpu", 8))
    assert not (tmp_path / "out.parquet").exists()


def test_every_reader_of_crops_refuses_a_cut_shard(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [Planted(identity=name) for name in ("Ada", "Bob") for _ in range(4)])
    raw = run / "raw"
    selection = tmp_path / "selection"
    selection.mkdir()
    chosen = pq.read_table(raw / "raw-000000.parquet", columns=["crop_offset", "crop_size"])
    pq.write_table(chosen.append_column("class_index", pa.array([0, 1] * 4, pa.int32())), selection / "raw-000000.parquet")
    stream = CropStream(SampleOrder(selection, batch_size=4, seed=0, shuffle_buffer=100), raw, input_px=112, cache_bytes=0)
    assert len(list(stream.batches(1))) == 2
    clean = tmp_path / "clean"
    clean.mkdir()
    rows = [{"class_index": 0, "identity": "Ada", "samples": 4}, {"class_index": 1, "identity": "Bob", "samples": 4}]
    pq.write_table(table_of(rows, tables.CLASSES), clean / "identities.parquet")
    manifest = run / "manifest" / "part-000000.parquet"
    table = pq.read_table(manifest)
    named = table.set_column(
        table.schema.get_field_index("clean_shard"), tables.MANIFEST.field("clean_shard"), pa.array(["clean-000000"] * 8)
    )
    pq.write_table(named, manifest)
    part = _CleanPart("clean-000000", (str(manifest),), raw, run / "manifest", clean)
    assert export_shard(part) == 8
    (clean / "clean-000000.tar").unlink()
    _cut(raw)
    with pytest.raises(BadShard, match="its sidecar says"):
        list(stream.batches(1))
    with pytest.raises(BadShard, match="its sidecar says"):
        export_shard(part)
    assert not (clean / "clean-000000.tar").exists()
    with pytest.raises(BadShard, match="its sidecar says"):
        audit.write_audit(run, tmp_path / "audit", title="t", identities=2, faces=4, inversions={})
    with pytest.raises(BadShard, match="its sidecar says"):
        draw(run, tmp_path / "review", count=4, seed=0)


def test_no_stage_believes_rows_that_were_not_written(tmp_path: Path) -> None:
    """A twin that still reads well: DuckDB asked over all twins would see nothing."""
    run = write_run(tmp_path / "run", [Planted(identity=name) for name in ("Ada", "Bob") for _ in range(4)])
    layout = RunLayout(run)
    twin = layout.raw / "raw-000000.parquet"
    table, facts, sums = pq.read_table(twin), read_facts(twin), twin.with_suffix(".sha256").read_bytes()
    place = table.schema.get_field_index("sharpness")
    write_twin(
        twin, table.set_column(place, table.schema.field(place), pa.array([1e9] * len(table), table.schema.field(place).type)), facts
    )
    check_shard(twin.with_suffix(".tar"), deep=True)
    twin.with_suffix(".sha256").write_bytes(sums)
    noise = layout.round(1).noise
    layout.round(1).embeddings.mkdir(exist_ok=True)
    for folder in (layout.raw, noise, layout.round(1).train, layout.round(1).embeddings):
        receipts.write_json(folder / receipts.NAME, {"stage": "x", "fingerprint": folder.name, "counts": {}, "seconds": 0.0})
    stages: dict[str, Callable[[], object]] = {
        "isolate": lambda: isolate(layout.raw, layout.round(1).train, layout.round(1).embeddings, tmp_path / "noise", CONFIG),
        "manifest": lambda: write_manifest(layout.raw, noise, 1, tmp_path / "manifest", CONFIG),
        "audit": lambda: audit.write_audit(run, tmp_path / "audit", title="t", identities=2, faces=4, inversions={}),
        "sample-review": lambda: draw(run, tmp_path / "review", count=4, seed=0),
        "review": lambda: Desk(run),
    }
    for stage in stages.values():
        with pytest.raises(BadShard, match=r"raw-000000\.parquet differs from the SHA-256"):
            stage()


HOSTILE = ["", "a", "0" * 7, "0" * 65, "f" * 4096, "../../etc/passwd", "/etc/passwd", "0123456789abcdef.jpg", "0123456789ABCDEF", "j.smith"]
HOSTILE += [
    "0123 4567 89ab",
    "0123456789abcdef\n",
    "\u0660123456789",
    "ａbcdef0123",
    "0123456789abcdef\0",
    "-rf",
    ".",
    "..",
    "C:\\x",
    "zzzzzzzz",
]


@pytest.mark.parametrize("key", HOSTILE)
def test_a_key_is_hex_or_nothing(key: str, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "x.tar") as shard:
        with pytest.raises(ValueError, match="8 to 64 hex digits"):
            shard.add(key, {"jpg": b"x"})
        assert shard.samples == 0
        shard.add("0123456789abcdef", {"jpg": b"x"})
    with tarfile.open(tmp_path / "x.tar") as tar:
        assert tar.getnames() == ["0123456789abcdef.jpg"]


@given(st.text(max_size=80))
def test_whatever_the_name_its_key_is_hex(name: str) -> None:
    key = sample_id(name, sha256(b"content").hexdigest())
    assert len(key) == 32 and set(key) <= set("0123456789abcdef")


def test_a_key_tells_names_and_bytes_apart() -> None:
    names, contents = ("J", "J.", "J.S", "j", "", "J\0", "Zoë", "Zoe\u0308", "Bad\udcff"), (b"", b"S", b".S", b"\0S")
    keys = [sample_id(name, sha256(content).hexdigest()) for name, content in itertools.product(names, contents)]
    assert len(set(keys)) == len(keys)


def test_shards_in_order_and_nothing_half_made_among_them(tmp_path: Path) -> None:
    for name in (
        "raw-000010.parquet",
        "raw-000002.parquet",
        ".raw-000003.parquet.1.tmp",
        ".raw-000004.parquet.forget",
        "raw-000005.tar",
        "identities.parquet",
    ):
        (tmp_path / name).touch()
    assert shard_stems(tmp_path) == ["raw-000002", "raw-000010"]


@given(st.lists(st.tuples(st.binary(max_size=1500), st.binary(max_size=3)), max_size=25))
def test_a_shard_is_byte_for_byte_what_tarfile_writes(
    tmp_path_factory: pytest.TempPathFactory, contents: list[tuple[bytes, bytes]]
) -> None:
    folder = tmp_path_factory.mktemp("same")
    with tarfile.open(folder / "theirs.tar", "w", format=tarfile.USTAR_FORMAT) as theirs, ShardWriter(folder / "ours.tar") as ours:
        for number, (picture, text) in enumerate(contents):
            key = f"{number:032x}"
            offsets = ours.add(key, {"jpg": picture, "json": text})
            for kind, content in (("jpg", picture), ("json", text)):
                info = tarfile.TarInfo(f"{key}.{kind}")
                info.size = len(content)
                theirs.addfile(info, io.BytesIO(content))
                assert theirs.offset - _padded(len(content)) == offsets[kind]
    assert (folder / "ours.tar").read_bytes() == (folder / "theirs.tar").read_bytes()


def _padded(size: int) -> int:
    return -(-size // 512) * 512
