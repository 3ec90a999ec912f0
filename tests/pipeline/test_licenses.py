"""The terms of a picture, where a crawl gives them, stay with it: in every form of crawl that has a place for them, and in every form of export."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import IngestConfig
from pipeline.examine import examine
from pipeline.exporters.base import Wanted
from pipeline.exporters.stage import export_to
from tests.pipeline.clean_run import config, write_clean_run
from tests.pipeline.crawl_forms import items_of, picture, tar_bytes, write
from tests.pipeline.fake_run import Planted

ROWS: list[dict[str, Any]] = [
    {"identity": "Ada", "license": "CC BY 4.0, © Somebody"},
    {"identity": "Bob", "license": "https://creativecommons.org/publicdomain/zero/1.0/"},
    {"identity": "Cleo", "license": None},
]


def webdataset(root: Path, key: str) -> None:
    members = []
    for number, row in enumerate(ROWS):
        facts = {"identity": row["identity"], key: row["license"]}
        members += [(f"{number:04d}.jpg", picture(number)), (f"{number:04d}.json", json.dumps(facts).encode())]
    write(root, {"00000.tar": tar_bytes(members)})


def img2dataset(root: Path, key: str) -> None:
    lines = [
        {"key": f"00000{number:04d}", "status": "success", "identity": row["identity"], key: row["license"]}
        for number, row in enumerate(ROWS)
    ]
    lines.append({"key": "000009999", "status": "failed_to_download", "identity": "Dan", key: "lost"})
    write(
        root,
        {
            "00000.tar": tar_bytes([(f"{line['key']}.jpg", picture(number)) for number, line in enumerate(lines[:3])]),
            "00000_stats.json": b"{}",
        },
    )
    pq.write_table(pa.Table.from_pylist(lines), root / "00000.parquet")


def table(root: Path, key: str) -> None:
    write(root, {f"{number}.jpg": picture(number) for number in range(3)})
    with (root / "faces.csv").open("w", newline="") as file:
        written = csv.writer(file)
        written.writerow(["identity", "path", key])
        written.writerows([row["identity"], f"{number}.jpg", row["license"]] for number, row in enumerate(ROWS))


def huggingface(root: Path, key: str) -> None:
    lines = [{"file_name": f"{number}.jpg", "identity": row["identity"], key: row["license"]} for number, row in enumerate(ROWS)]
    write(root / "train", {f"{number}.jpg": picture(number) for number in range(3)})
    write(root / "train", {"metadata.jsonl": "".join(json.dumps(line) + "\n" for line in lines).encode()})


@pytest.mark.parametrize("key", ["license", "licence"])
@pytest.mark.parametrize("form", [webdataset, img2dataset, table, huggingface])
def test_a_crawl_says_what_may_be_done_with_a_picture(form: Callable[[Path, str], None], key: str, tmp_path: Path) -> None:
    form(tmp_path / "crawl", key)
    items = items_of(tmp_path / "crawl", tmp_path / "plan")
    found = {item.identity: item.license or None for item in items}
    assert {name: found[name] for name in ("Ada", "Bob", "Cleo")} == {row["identity"]: row["license"] for row in ROWS}
    assert found.get("Dan", "lost") == "lost", "what could not be downloaded has its terms too"
    for item in items:
        [(row, _)] = examine(item, IngestConfig())
        assert row["license"] == item.license


def test_what_is_handed_on_keeps_its_terms(tmp_path: Path) -> None:
    items = [Planted(identity=str(row["identity"]), license=row["license"]) for row in ROWS]
    run = write_clean_run(tmp_path / "run", items, config())
    wanted = {row["identity"]: row["license"] for row in ROWS}
    twin = pq.read_table(run.clean / "clean-000000.parquet").to_pylist()
    assert {row["identity"]: row["license"] for row in twin} == wanted
    for form, pattern in (("webdataset", "*.parquet"), ("imagefolder", "metadata/*.parquet"), ("parquet", "data/*"), ("hf", "data/*")):
        export_to(run.clean, tmp_path / form, Wanted(form=form), workers=1)
        [path] = (tmp_path / form).glob(pattern)
        assert {row["identity"]: row["license"] for row in pq.read_table(path).to_pylist()} == wanted
    assert b'"license":"CC BY 4.0, \xc2\xa9 Somebody"' in (tmp_path / "webdataset" / "train-000000.tar").read_bytes()
