"""`purify export --to` from the command line, where nothing has to be made anew and so Prefect is not started."""

import errno
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from flows import cli
from flows.exports import parsed_bytes
from pipeline.decisions import decide
from pipeline.errors import BadConfig
from pipeline.exporters import stream
from pipeline.layout import RunLayout
from tests.pipeline.clean_run import planted, write_clean_run
from tests.pipeline.fake_run import key_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunLayout:
    return write_clean_run(tmp_path_factory.mktemp("cli") / "run")


def code_of(words: tuple[str, ...]) -> int:
    try:
        cli.main(words)
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """What the command prints on both streams, with its lines joined."""
    assert code_of(words) == code
    found = capsys.readouterr()
    return " ".join((found.out + found.err).split())


def test_an_export_is_counted_and_then_written(run: RunLayout, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(run.root.rglob("*"))
    text = said(capsys, "export", str(run.root), "--to", "parquet", "--min-images", "6", "--dry-run")
    assert "train" in text and "24" in text and "2 identities, 10 samples" in text and before == sorted(run.root.rglob("*"))
    out = tmp_path / "out"
    words = (
        "export",
        str(run.root),
        "--to",
        "parquet",
        "--out",
        str(out),
        "--min-images",
        "6",
        "--bytes-per-shard",
        "20kB",
        "--workers",
        "1",
    )
    assert "train samples 24" in (text := said(capsys, *words)) and "left out samples 10" in text and f"purify verify {out}" in text
    assert pq.read_table(out / "data", columns=["sample_id"]).num_rows == 24 and len(list(out.glob("data/train-*.parquet"))) == 5
    assert "already done" in said(capsys, *words)
    assert "prefect" not in vars(sys.modules["flows.exports"])


def test_an_export_that_stops_says_where_it_stands_and_how_it_goes_on(
    run: RunLayout, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "an export"
    words = ("export", str(run.root), "--to", "parquet", "--out", str(out), "--samples-per-shard", "5", "--workers", "1")
    with monkeypatch.context() as patch:
        write, written = stream.write_json, []

        def fails(path: Path, value: object) -> None:
            if written:
                raise OSError(errno.ENOSPC, "No space left on device")
            written.append(path)
            write(path, value)

        patch.setattr(stream, "write_json", fails)
        text = said(capsys, *words, code=1)
    [partial] = tmp_path.glob(".an export.partial-*")
    assert f"stands in {partial} The same command goes on from there. To give it up: rm -r '{partial}'" in text and "is full" in text
    assert f"begun and not finished ({partial}): give its command again" in said(capsys, "verify", str(out), code=1)
    assert "is not finished. Give the command that began it again" in said(capsys, "verify", str(partial), code=1)
    said(capsys, *words)
    assert not partial.exists() and "all as they should be" in said(capsys, "verify", str(out))
    [first, *_] = out.glob("data/*.parquet")
    first.write_bytes(first.read_bytes()[:-1])
    assert f"{first} has {first.stat().st_size:,} bytes, and {first.stat().st_size + 1:,} were written" in said(capsys, *words, code=1)
    first.unlink()
    assert f"{first} is gone since this export was finished. Remove {out}" in said(capsys, *words, code=1)


def test_an_export_of_nothing_leaves_nothing(run: RunLayout, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("export", str(run.root), "--to", "webdataset", "--out", str(tmp_path / "out"), "--workers", "1")
    told = said(capsys, *words, "--min-images", "1000", code=1)
    assert "--min-images is 1000" in told and "goes on from there" not in told and not list(tmp_path.iterdir())


def test_a_run_with_an_unfinished_export_in_it_is_as_it_was(run: RunLayout, capsys: pytest.CaptureFixture[str]) -> None:
    partial = run.root / ".mine.partial-0123456789abcdef" / "data"
    partial.mkdir(parents=True)
    (partial / "train-000000.parquet").write_bytes(b"PAR1 half")
    try:
        assert "Finished." in said(capsys, "status", str(run.root))
        assert "all as they should be" in said(capsys, "verify", str(run.root))
    finally:
        shutil.rmtree(partial.parent)


def test_what_is_missing_or_stale_is_said(tmp_path: Path, run: RunLayout, capsys: pytest.CaptureFixture[str]) -> None:
    at = str(run.root)
    assert "no finished run" in said(capsys, "export", str(tmp_path), "--to", "hf", "--out", str(tmp_path / "x"), code=1)
    assert "Say where to" in said(capsys, "export", at, "--to", "hf", code=2)
    for given in (
        ("--out", str(tmp_path / "x")),
        ("--min-images", "9"),
        ("--samples-per-shard", "9"),
        ("--bytes-per-shard", "1GB"),
        ("--val", "0.1"),
    ):
        told = said(capsys, "export", at, *given, code=2)
        assert "Say which form" in told and f"{given[0]} would change nothing" in told
    words = ("export", at, "--to", "hf", "--out", str(tmp_path / "x"), "--samples-per-shard", "3", "--bytes-per-shard", "3MB")
    assert "not both" in said(capsys, *words, code=2)
    assert "no number of bytes" in said(capsys, "export", at, "--to", "hf", "--dry-run", "--bytes-per-shard", "much", code=2)
    stale = write_clean_run(tmp_path / "stale")
    decide(stale.root, [{"sample_id": key_of(planted(), 0), "verdict": "drop"}], by="Eve")
    assert "something was decided or changed" in said(capsys, "export", str(stale.root), "--to", "hf", "--dry-run", code=1)


@pytest.mark.parametrize(
    ("text", "count"), [("5", 5), ("20kB", 20_000), ("1.5 GB", 1_500_000_000), ("500mb", 500_000_000), ("2T", 2 * 10**12)]
)
def test_bytes_are_read(text: str, count: int) -> None:
    assert parsed_bytes(text) == count
    for wrong in (f"-{text}", f"{text}x", "GB", ""):
        with pytest.raises(BadConfig):
            parsed_bytes(wrong)


def test_files_that_an_export_would_lose_are_named_by_a_dry_run_too(
    run: RunLayout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("export", str(run.root), "--to", "recordio", "--out", str(tmp_path / "out"), "--workers", "1")
    said(capsys, *words)
    for name in ("a.txt", "b.txt", "c.txt", "d.txt"):
        (tmp_path / "out" / name).write_text("x")
    for more in ((), ("--dry-run",)):
        text = said(capsys, *words, "--val", "0.2", *more, code=1)
        assert "files that this export did not write:" in text and ".txt and more. They would be lost" in text
    assert len(list((tmp_path / "out").glob("?.txt"))) == 4 and not list(tmp_path.glob(".out.partial-*"))
