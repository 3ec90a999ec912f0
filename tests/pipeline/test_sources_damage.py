"""Damage and hostile names, source by source: what is whole is read, what is not is a row, nothing is run, followed or written."""

import json
import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import IngestConfig
from pipeline.errors import BadCrawl
from pipeline.sources import recognise
from pipeline.sources.base import MAX_IDENTITY_BYTES, bad_key, named, uri_text
from tests.pipeline.crawl_forms import (
    FORMS,
    folder,
    img2dataset,
    items_of,
    people,
    picture,
    status_of,
    tar_bytes,
    write,
)

# --- tables, img2dataset, Hugging Face


def test_cells_of_a_table(tmp_path: Path) -> None:
    write(tmp_path, {"outside.jpg": picture(0), "crawl/in/a.jpg": picture(1), "crawl/in/big.jpg": b"x" * 5000})
    (tmp_path / "crawl" / "link.jpg").symlink_to(tmp_path / "outside.jpg")
    (tmp_path / "crawl" / "door").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "crawl" / "pipe.jpg")
    cells = {
        "in/a.jpg": "ok",
        "./in//a.jpg": "ok",
        "../outside.jpg": "bad_key",
        str(tmp_path / "outside.jpg"): "bad_key",
        "in/../in/a.jpg": "bad_key",
        "a\0b.jpg": "bad_key",
        "file:///etc/passwd": "bad_key",
        "pipe:cat /etc/passwd": "bad_key",
        "ftp://example.org/a.jpg": "unreadable",
        "s3://key:secret@bucket/a.jpg": "unreadable",
        " s3://key:secret@bucket/a.jpg": "unreadable",
        "http://127.0.0.1:9/a.jpg": "unreadable",
        "link.jpg": "unreadable",
        "door/outside.jpg": "unreadable",
        "pipe.jpg": "unreadable",
        "in": "unreadable",
        "gone.jpg": "unreadable",
        "in/big.jpg": "too_large",
        "": "unreadable",
    }
    rows = [{"identity": "A", "path": cell} for cell in cells]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "crawl" / "t.parquet")
    items = items_of(tmp_path / "crawl" / "t.parquet", tmp_path / "plan", IngestConfig(max_item_bytes=4000))
    assert dict(zip(cells, status_of(items).values(), strict=True)) == cells
    assert [item.content for item in items if item.problem is None] == [picture(1)] * 2


def test_identities_of_a_table(tmp_path: Path) -> None:
    decomposed, composed = "Zoe\u0308", "Zo\u00eb"
    rows = [decomposed, composed, "", "  ", None, "x" * 1025, "é" * 513, "x" * 1024, "zoë", "O'Brien; drop table"]
    pq.write_table(pa.Table.from_pylist([{"identity": name, "image": picture(n)} for n, name in enumerate(rows)]), tmp_path / "t.parquet")
    items = items_of(tmp_path / "t.parquet", tmp_path / "plan")
    assert [(item.identity, item.problem is None) for item in items] == [
        *[(composed, True), (composed, True), ("", False), ("", False), ("", False), ("x" * 64 + "…", False), ("é" * 64 + "…", False)],
        *[("x" * 1024, True), ("zoë", True), ("O'Brien; drop table", True)],
    ]
    assert {item.problem[0] for item in items if item.problem} == {"bad_identity"}


def test_numbers_for_names_survive_pandas(tmp_path: Path) -> None:
    for number, values in enumerate(([7, 8], [7.0, None], [7.5, 8.0])):
        table = pa.table({"identity": values, "image": [picture(0), picture(1)]})
        pq.write_table(table, tmp_path / f"{number}.parquet")
    found = [[item.identity for item in items_of(tmp_path / f"{n}.parquet", tmp_path / f"plan{n}")] for n in range(3)]
    assert found == [["7", "8"], ["7", ""], ["", "8"]]


def test_tables_that_lack_a_column_say_what_they_have(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("who,path\nA,a.jpg\n")
    with pytest.raises(BadCrawl, match=r"no column 'identity'; it has 'who', 'path'. Name it by --set ingest.identity_key=NAME"):
        items_of(tmp_path / "a.csv", tmp_path / "plan")
    assert len(items_of(tmp_path / "a.csv", tmp_path / "plan", IngestConfig(identity_key="who"))) == 1
    (tmp_path / "b.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(BadCrawl, match="cannot be read as a table"):
        items_of(tmp_path / "b.parquet", tmp_path / "plan")
    (tmp_path / "c.csv").write_text("")
    with pytest.raises(BadCrawl, match="is an empty table"):
        items_of(tmp_path / "c.csv", tmp_path / "plan")


@pytest.mark.parametrize("beside", [(), ("images",)])
@pytest.mark.parametrize(("header", "sign"), [("identity;path", "';'"), ("who|file", r"'\|'"), ("identity\tpath", r"'\\t'")])
def test_another_delimiter_is_told_of(tmp_path: Path, header: str, sign: str, beside: tuple[str, ...]) -> None:
    crawl = write(tmp_path / "crawl", {"list.csv": f"{header}\n".encode() + header.replace("identity", "A").encode()})
    write(crawl, {f"{folder}/a.jpg": picture(1) for folder in beside})
    for place in (crawl, crawl / "list.csv"):
        with pytest.raises(BadCrawl, match=rf"Its columns seem to be parted by {sign}, those of a \.csv are by commas"):
            items_of(place, tmp_path / "plan")


def test_a_list_with_another_delimiter_among_folders_is_told_of_and_other_tables_are_not_in_the_way(tmp_path: Path) -> None:
    crawl = write(folder(tmp_path / "crawl", people()), {"statistics.csv": b"width,height\n1,2\n"})
    assert recognise(str(crawl), IngestConfig()) == "folder"
    write(crawl, {"list.csv": b"identity;path\nA;a.jpg\n"})
    with pytest.raises(BadCrawl, match="seem to be parted by"):
        items_of(crawl, tmp_path / "plan")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_a_text_table_that_is_no_utf8_is_refused(tmp_path: Path, suffix: str) -> None:
    text = {
        "csv": "identity,path\nJosé,a.jpg\n",
        "tsv": "identity\tpath\nJosé\ta.jpg\n",
        "jsonl": '{"identity": "José", "path": "a.jpg"}\n',
    }
    for encoding in ("latin-1", "utf-16"):
        crawl = write(tmp_path / encoding, {f"t.{suffix}": text[suffix].encode(encoding)})
        for place in (crawl, crawl / f"t.{suffix}"):
            with pytest.raises(BadCrawl, match=r"is no UTF-8: it has b'.+' where that cannot stand. Convert it, as by: iconv -f LATIN1"):
                items_of(place, tmp_path / "plan")
    crawl = write(
        tmp_path / "well", {f"t.{suffix}": b"\xef\xbb\xbf" + text[suffix].encode() if suffix != "jsonl" else text[suffix].encode()}
    )
    assert [item.identity for item in items_of(crawl, tmp_path / "plan")] == ["José"]


def test_metadata_that_is_no_utf8_is_refused(tmp_path: Path) -> None:
    crawl = write(tmp_path / "crawl", {"train/1.jpg": picture(1), "train/metadata.csv": "file_name,label\n1.jpg,José\n".encode("latin-1")})
    with pytest.raises(BadCrawl, match="is no UTF-8"):
        items_of(crawl, tmp_path / "plan")


def test_shards_without_hugging_faces_marks_are_asked_for_their_column(tmp_path: Path) -> None:
    (tmp_path / "crawl" / "data").mkdir(parents=True)
    rows = pa.Table.from_pylist([{"image": {"bytes": picture(1), "path": None}, "name": "Ann"}])
    pq.write_table(rows, tmp_path / "crawl" / "data" / "train-00000-of-00001.parquet")
    with pytest.raises(BadCrawl, match=r"no column 'identity'; it has 'image', 'name'. Name it by --set ingest.identity_key=NAME"):
        items_of(tmp_path / "crawl", tmp_path / "plan")
    assert [item.identity for item in items_of(tmp_path / "crawl", tmp_path / "plan", IngestConfig(identity_key="name"))] == ["Ann"]


@pytest.mark.parametrize(("content", "told"), [(b"", "has no bytes"), (bytes(range(250)) * 20, "has no record among 5,000 bytes")])
def test_a_record_file_without_records_is_told_from_an_empty_one(tmp_path: Path, content: bytes, told: str) -> None:
    crawl = write(tmp_path / "crawl", {"train.rec": content})
    with pytest.raises(BadCrawl, match=f"{told}.*Fetch it anew"):
        items_of(crawl, tmp_path / "plan")


def test_an_index_without_lines_hides_no_record(tmp_path: Path) -> None:
    crawl = FORMS["recordio"][1](tmp_path / "crawl", people())
    whole = status_of(items_of(crawl, tmp_path / "plan"))
    (crawl / "train.idx").write_bytes(b"")
    assert status_of(items_of(crawl, tmp_path / "plan")) == whole


def test_a_damaged_row_group_is_a_row(tmp_path: Path) -> None:
    rows = [{"identity": "A", "image": os.urandom(300)} for _ in range(40)]
    path = tmp_path / "t.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=10, compression="zstd", use_dictionary=False)
    at = pq.ParquetFile(path).metadata.row_group(2).column(1).data_page_offset
    content = bytearray(path.read_bytes())
    content[at : at + 40] = b"\xff" * 40
    path.write_bytes(content)
    found = status_of(items_of(path, tmp_path / "plan", IngestConfig(samples_per_shard=10)))
    assert {uri for uri, status in found.items() if status != "ok"} == {"t.parquet#damage=20"} and len(found) == 31


def test_jsonl_lines_that_are_none_are_rows(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "a.jpg": picture(1),
            "t.jsonl": b'{"identity": "A", "path": "a.jpg", "landmarks": [[1, 2]]}\n{broken\n[1]\n\n{"identity": 5, "path": "a.jpg"}\n',
        },
    )
    items = items_of(tmp_path / "t.jsonl", tmp_path / "plan")
    assert [item.identity for item in items] == ["A", "", "", "5"] and items[0].landmarks == [[1, 2]]
    assert [item.problem[0] if item.problem else "ok" for item in items] == ["ok", "unreadable", "unreadable", "ok"]


def test_img2datasets_failures_and_losses_are_rows(tmp_path: Path) -> None:
    crawl = img2dataset(tmp_path / "crawl", people())
    items = {item.source_uri: item for item in items_of(crawl, tmp_path / "plan")}
    failed = items["00000.parquet#key=000009999"]
    assert failed.problem == ("unreadable", "failed_to_download: HTTP Error 404: Not Found")
    assert (failed.identity, failed.source_url, failed.caption) == ("0", "https://example.org/gone.jpg", "gone")
    assert (
        items["00000.tar/000000003.jpg"].caption == "a face, 3"
        and items["00000.tar/000000003.jpg"].source_url == "https://example.org/3.jpg"
    )
    tar = crawl / "00000.tar"
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    found = status_of(items_of(crawl, tmp_path / "plan"))
    pictures = sum(uri.startswith("00000.tar/") for uri in found)
    lost = sum(uri.startswith("00000.parquet#key") for uri in found)
    assert found["00000.tar#damage"] == "unreadable" and 0 < pictures < 14 and pictures + lost == 15
    tar.unlink()
    (crawl / "00001.tar").write_bytes(tar_bytes([("1.jpg", picture(1))]))
    (crawl / "00001.parquet").write_bytes(b"PAR1")
    found = status_of(items_of(crawl, tmp_path / "plan"))
    assert found["00001.parquet#damage"] == "unreadable" and found["00001.tar/1.jpg"] == "bad_identity"
    assert sum(uri.startswith("00000.parquet#key") for uri in found) == 15


def test_metadata_and_files_of_an_imagefolder_are_both_accounted_for(tmp_path: Path) -> None:
    lines = ["file_name,label", "1.jpg,A", "gone.jpg,A", "../../etc/passwd.jpg,A", "2.jpg,", "1.jpg,A"]
    files = {
        "train/1.jpg": picture(1),
        "train/2.jpg": picture(2),
        "train/3.jpg": picture(3),
        "train/metadata.csv": "\n".join(lines).encode(),
    }
    found = status_of(items_of(write(tmp_path / "crawl", files), tmp_path / "plan"))
    assert found == {
        "train/1.jpg": "ok",
        "train/2.jpg": "bad_identity",
        "train/3.jpg": "bad_identity",
        "train/gone.jpg": "unreadable",
        "train/../../etc/passwd.jpg": "bad_key",
    }


def test_class_names_may_stand_in_the_readme(tmp_path: Path) -> None:
    crawl = FORMS["hugging face, parquet"][1](tmp_path / "crawl", people())
    for path in (crawl / "data").iterdir():
        pq.write_table(pq.read_table(path).replace_schema_metadata(None), path)
    head = "---\ndataset_info:\n  features:\n  - name: image\n    dtype: image\n  - name: label\n    dtype:\n      class_label:\n        names:\n"
    (crawl / "README.md").write_text(head + "".join(f"          '{n}': Person {n}\n" for n in range(4)) + "---\n# Faces\n")
    assert {item.identity for item in items_of(crawl, tmp_path / "plan")} == {f"Person {n}" for n in range(4)}


# --- names


def test_folders_keep_names_apart_and_links_shut(tmp_path: Path) -> None:
    crawl = folder(tmp_path / "crawl", {"Ann": [picture(1)], "ann": [picture(2)], "Zoe\u0308": [picture(3)], "Zo\u00eb": [picture(4)]})
    write(crawl, {"a\\x0a/1.jpg": picture(5), "a\n/1.jpg": picture(6), "loose.jpg": picture(7)})
    write(crawl, {"Ann/tab\there.jpg": picture(8), "\x1b[31mRed/1.jpg": picture(9), "a\u202eb/1.jpg": picture(10)})
    (crawl / "linked").symlink_to(crawl / "Ann")
    items = items_of(crawl, tmp_path / "plan")
    found = status_of(items)
    assert all(uri.replace("\u202e", "").isprintable() for uri in found) and len(found) == 11
    assert {item.identity for item in items if item.problem is None} == {"Ann", "ann", "Zo\u00eb", "a\\x0a", "a\u202eb"}
    assert {uri: status for uri, status in found.items() if status != "ok"} == {
        "loose.jpg": "bad_identity",
        "linked": "unreadable",
        "a\\x0a/1.jpg": "bad_key",
        "Ann/tab\\x09here.jpg": "bad_key",
        "\\x1b[31mRed/1.jpg": "bad_key",
    }
    assert all(not item.content for item in items if item.problem and item.problem[0] == "bad_key")


def test_an_imagefolder_refuses_paths_with_control_characters(tmp_path: Path) -> None:
    crawl = write(tmp_path / "crawl", {"train/Ann/1.jpg": picture(1), "train/A\nnn/1.jpg": picture(2), "test/Bob/\t.jpg": picture(3)})
    assert status_of(items_of(crawl, tmp_path / "plan")) == {
        "train/Ann/1.jpg": "ok",
        "train/A\\x0ann/1.jpg": "bad_key",
        "test/Bob/\\x09.jpg": "bad_key",
    }


LINK = ("unreadable", "a link, which is not followed")


@pytest.mark.parametrize(
    ("form", "name"),
    [
        *[("webdataset", "00000.tar"), ("img2dataset", "00000.tar"), ("recordio", "train.rec"), ("table of bytes", "crawl.parquet")],
        ("hugging face, parquet", "data/test-00000-of-00001.parquet"),
    ],
)
def test_a_linked_file_of_a_crawl_is_a_row_and_a_crawl_of_links_is_refused(form: str, name: str, tmp_path: Path) -> None:
    FORMS[form][1](tmp_path / "crawl", people())
    before = status_of(items_of(tmp_path / "crawl", tmp_path / "plan"))
    real = tmp_path / "crawl" / name
    link, pipe = (real.with_name(f"zz-{what}{real.suffix}") for what in ("link", "pipe"))
    link.symlink_to(real)
    os.mkfifo(pipe)
    found = {item.source_uri: item for item in items_of(tmp_path / "crawl", tmp_path / "plan")}
    problems = {uri.partition("#")[0]: item.problem for uri, item in found.items() if uri not in before and "twin" not in str(item.problem)}
    assert problems == {f"{Path(name).parent / link.name}": LINK, f"{Path(name).parent / pipe.name}": ("unreadable", "no regular file")}
    assert before.keys() <= found.keys()
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / real.name).symlink_to(real)
    with pytest.raises(BadCrawl, match=r"nothing but links, which are not followed: 1, as .*cp -rL"):
        items_of(tmp_path / "linked", tmp_path / "plan")


def test_a_linked_tar_by_a_pattern_is_a_row(tmp_path: Path) -> None:
    crawl = FORMS["webdataset"][1](tmp_path / "crawl", people())
    (crawl / "00004.tar").symlink_to("00000.tar")
    for pattern in ("*.tar", "{00003..00004}.tar"):
        found = {item.source_uri: item.problem for item in items_of(crawl / pattern, tmp_path / "plan") if item.problem == LINK}
        assert found == {"00004.tar#damage": LINK}
    (crawl / "00005.tar").symlink_to("00000.tar")
    with pytest.raises(BadCrawl, match=r"nothing but links, which are not followed: 2, as 00004\.tar"):
        items_of(crawl / "{00004..00005}.tar", tmp_path / "plan")


def test_a_lone_surrogate_that_json_names_is_written_out_wherever_it_stands(tmp_path: Path) -> None:
    row = {"image": "1.jpg", "identity": "Ann\ud800", "caption": "\udfff", "url": "\ud800", "license": "\ud800", "other\ud800": ["\ud800"]}
    rows = [row, row | {"image": "\ud800.jpg"}]
    table = write(tmp_path / "crawl", {"1.jpg": picture(1), "faces.jsonl": "\n".join(map(json.dumps, rows)).encode()}) / "faces.jsonl"
    found, lost = items_of(table, tmp_path / "plan")
    assert (found.problem, found.identity, found.caption, found.license) == (None, "Ann\\ud800", "\\udfff", "\\ud800")
    assert lost.problem is not None and lost.identity == found.identity


def test_rules_of_names() -> None:
    assert named("Zoe\u0308") == ("Zo\u00eb", None) and named(7) == ("7", None) and named(" a ") == (" a ", None)
    assert all(named(value)[1] is not None for value in (None, True, 1.5, [], "", " ", "x" * (MAX_IDENTITY_BYTES + 1)))
    assert named("x" * MAX_IDENTITY_BYTES)[1] is None
    assert named("Bad\udcff\ud800") == ("Bad\\xff\\ud800", None)
    assert bad_key("a/b.jpg") is None and bad_key("a b/..c.jpg") == ("bad_key", "a name without a stem")
    texts = ["a\\n", "a\n", "a\\\\n", "a\udcff", "a\\xff", "a\u2028", "a\\u2028"]
    assert len({uri_text(text) for text in texts}) == len(texts) and all(uri_text(text).isprintable() for text in texts)
