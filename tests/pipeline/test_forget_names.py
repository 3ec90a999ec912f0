"""Names as people have them: odd ones, in the texts of others, short ones; where a name stands and where it does not."""

import os
import shutil
import unicodedata
from pathlib import Path

import pytest

from flows import cli
from pipeline import forgotten as log
from pipeline.forget import forget
from pipeline.forgotten import Forgotten, added, phrases_of
from pipeline.ingest import ingest
from pipeline.layout import RunLayout
from pipeline.run_folder import claimed
from tests.pipeline.forgetting import CONFIG, Needles, of, rows_of
from tests.pipeline.test_ingest import picture, write

ODD = [
    "O'Brien",
    'Q"uote; DROP TABLE items; --',
    "Ann\nLee",
    "-rf",
    "..",
    "a b",
    "%s{x}$1",
    "🙂 Smile",
    "علي",
    "name.with.dots",
    "王菲",
    "x" * 200,
]


@pytest.mark.parametrize("name", [*ODD, "Zoë Ångström", "Bad\udcff"])
def test_odd_names(name: str, tmp_path: Path) -> None:
    crawl = tmp_path / "crawl"
    folder = {"..": "...", "Bad\udcff": "Bad\udcff"}.get(name, name)
    for person, seed in ((folder, 1), ("Other", 50), ("Third", 90)):
        where = Path(os.fsdecode(os.fsencode(crawl) + b"/" + os.fsencode(person)))
        where.mkdir(parents=True)
        for number in range(3):
            (where / f"{number}.jpg").write_bytes(picture(seed + number))
    run = tmp_path / "run"
    with claimed(crawl, RunLayout(run)):
        ingest(crawl, run / "raw", CONFIG)
    given = unicodedata.normalize("NFD", folder)
    stored = log.plain(folder)
    ours = of(run, stored)
    assert len(ours) == 3
    needles = Needles(run, ours)
    with pytest.raises(SystemExit) as stop:
        cli.main(["forget", str(run), f"--identity={given}", "--yes"])
    assert stop.value.code in (0, None)
    assert needles.found(run) == set() and of(run, stored) == []
    assert {row["identity"] for row in rows_of(run, "raw", "identities.parquet")} == {"(forgotten)", "Other", "Third"}
    assert ingest(crawl, run / "raw", CONFIG).reused


def test_names_in_the_texts_of_others(tmp_path: Path) -> None:
    layout = RunLayout(tmp_path / "run")
    crawl = write(
        tmp_path / "crawl", {f"{who}/{n}.jpg": picture(n + 9 * len(who)) for who in ("Jane Doe", "John Roe 2", "Ada") for n in range(2)}
    )
    write(crawl, {"John Roe 2/with_JANE-DOE.jpg": picture(77)})
    with claimed(crawl, layout):
        ingest(crawl, layout.raw, CONFIG)
    assert forget(layout.root, identities=["Jane Doe"], yes=True).others == 1
    rows = rows_of(layout.root, "raw", "raw-*.parquet")
    assert sum(row["identity"] == "John Roe 2" and row["status"] == "ok" for row in rows) == 3, "the picture is not hers, only the text was"
    assert not any("JANE" in path.read_bytes().decode("latin-1").upper() for path in layout.root.rglob("*") if path.is_file())
    hidden = next(row for row in rows if row["source_uri"].startswith("forgotten/") and row["status"] == "ok")
    with claimed(crawl, layout):
        shutil.rmtree(layout.raw)
        ingest(crawl, layout.raw, CONFIG)
    assert hidden["source_uri"] in {row["source_uri"] for row in rows_of(layout.root, "raw", "raw-*.parquet")}, (
        "hidden in the same way when read again"
    )


@pytest.mark.parametrize(
    ("text", "own", "is_found"),
    [
        ("a photo of Jane Doe in 2019", "", True),
        ("JANE_DOE_0003.jpg", "", True),
        ("https://x.org/jane%20doe.jpg", "", True),
        ("https://x.org/janedoe/1.jpg", "", True),
        ("Jane\u00a0Doe, actress", "", True),
        ("Jane met Doe", "", False),
        ("Mary Jane Doesky", "", False),
        ("Jane Doe Junior at home", "Jane Doe Junior", False),
        ("Jane Doe Junior and Jane Doe", "Jane Doe Junior", True),
        ("zoe\u0308 at sea", "", True),
        ("昨日の王菲演唱会", "", True),
        ("bo knows", "", False),
        ("", "", False),
    ],
)
def test_where_a_name_stands(text: str, own: str, is_found: bool) -> None:
    known = Forgotten(b"key")
    wish = log.Wish({"Jane Doe": 1, "Zoë": 1, "王菲": 1, "Bo": 1})
    assert added(known, log.rows_of(wish, known)).mentions(text, own) is is_found


def test_short_names_are_looked_for_in_columns_of_names_only() -> None:
    assert [phrases_of(name) for name in ("7", "42", "Bo", "--", "A.B.", "王")] == [[]] * 6
    assert phrases_of("J. Smith") == [("j smith", 2), ("jsmith", 1)]
