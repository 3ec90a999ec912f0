"""What has to change in a run folder for the forgotten to be gone: an edit per file, or per group of files that agree with one another.

Pixels go first (raw shards with their twins, then clean shards), then what was computed from them, then what only tells of them. Every edit
can be repeated and is made from the log alone, so a sweep that was killed is finished by sweeping again.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file, save_file

from pipeline import scrub, shards, tables
from pipeline.centers import is_given
from pipeline.export import shards_told
from pipeline.forgotten import Forgotten, plain
from pipeline.layout import RoundLayout, RunLayout
from pipeline.receipts import write_json
from pipeline.replace import Replacement
from pipeline.sums import sums_of


@dataclass(frozen=True)
class Edit:
    """One change. `write` stages the new files; nothing is read or written before it is called, but what the counts needed."""

    what: str
    write: Callable[[Replacement], None]
    rows: int = 0
    """Rows of the forgotten."""
    crops: int = 0
    """Crops removed from a tar."""
    others: int = 0
    """Rows of others that named the forgotten."""


def edits(run: RunLayout, forgotten: Forgotten, touched: frozenset[str]) -> Iterator[Edit]:
    """The edits that are still to do, in order, each found when it is asked for. Files that hold nothing of the forgotten have none.

    `touched`: keyed hashes of the identities that lost a sample without being forgotten themselves.
    """
    rounds = run.rounds
    for stem in shards.shard_stems(run.raw):
        yield from _raw_shard(run.raw / f"{stem}.parquet", forgotten)
    for stem in shards.shard_stems(run.clean, "clean"):
        yield from _clean_shard(run.clean / f"{stem}.parquet", forgotten)
    yield from _dataset(run.clean, forgotten)
    for one in rounds:
        yield from _tables("embeddings", one.embeddings.glob("raw-*.parquet"), forgotten)
    yield from _identities(run, rounds, forgotten, touched)
    for one in rounds:
        yield from _head(one.train, forgotten, touched)
        yield from _tables("noise tables", one.noise.glob("raw-*.parquet"), forgotten)
        yield from _tables("proposals", one.noise.glob("proposals.parquet"), forgotten)
    yield from _tables("manifest parts", run.manifest.glob("part-*.parquet"), forgotten)
    yield from _tables("contamination", run.protected.glob("contamination.parquet"), forgotten)
    yield from _tables("decisions", run.decisions.glob("*.parquet"), forgotten)


def _tables(what: str, paths: Iterator[Path], forgotten: Forgotten) -> Iterator[Edit]:
    for path in sorted(paths):
        if (found := scrub.scrub_table(path, forgotten)) is not None:
            new = found.table

            def write(into: Replacement, path: Path = path, new: pa.Table = new) -> None:
                pq.write_table(new, into.to(path), compression="zstd")

            yield Edit(what, write, found.gone, 0, found.others)


def _raw_shard(twin: Path, forgotten: Forgotten) -> Iterator[Edit]:
    if (found := scrub.scrub_table(twin, forgotten)) is None:
        return

    def write(into: Replacement) -> None:
        tar, facts, table = twin.with_suffix(".tar"), shards.check_shard(twin.with_suffix(".tar")), found.table
        if found.crops or found.hid_uris:
            facts, offsets = scrub.rewrite_tar(tar, into.to(tar), forgotten)
            table = scrub.moved_crops(table, offsets)
        _write_twin(into, twin, table, facts)

    yield Edit("raw shards", write, found.gone, found.crops, found.others)


def _clean_shard(twin: Path, forgotten: Forgotten) -> Iterator[Edit]:
    if (found := scrub.scrub_table(twin, forgotten)) is None:
        return

    def write(into: Replacement) -> None:
        tar = twin.with_suffix(".tar")
        if found.table.num_rows == 0:
            for path in (tar, twin, sums_of(twin)):
                into.remove(path)
            return
        facts, offsets = scrub.rewrite_tar(tar, into.to(tar), forgotten)
        _write_twin(into, twin, scrub.moved_crops(found.table, offsets), facts)

    yield Edit("clean shards", write, found.gone, found.gone, found.others)


def _write_twin(into: Replacement, twin: Path, table: pa.Table, facts: dict[str, str]) -> None:
    text = shards.write_rows(into.to(twin), table, facts, twin.stem)
    into.to(sums_of(twin)).write_text(text)


def _dataset(clean: Path, forgotten: Forgotten) -> Iterator[Edit]:
    """dataset.json and identities.parquet of the clean shards that are left. A class that is gone keeps its number, and no name."""
    page, listed = clean / "dataset.json", clean / "identities.parquet"
    if not page.exists() or not listed.exists():
        return
    samples: Counter[str] = Counter()
    facts: dict[str, dict[str, str]] = {}
    for stem in shards.shard_stems(clean, "clean"):
        twin = pq.read_table(clean / f"{stem}.parquet", columns=["identity"])
        samples.update(twin["identity"].to_pylist())
        facts[stem] = shards.read_facts(clean / f"{stem}.parquet")
    rows = [_class(row, samples[row["identity"]], forgotten) for row in pq.read_table(listed).to_pylist()]
    new = pa.Table.from_pylist(rows, schema=tables.CLASSES)
    old = json.loads(page.read_text("utf-8"))
    is_said = [one["sha256"] for one in old["shards"]] == [fact["tar_sha256"] for fact in facts.values()]
    if is_said and new.equals(pq.read_table(listed)):
        return

    def write(into: Replacement) -> None:
        pq.write_table(new, into.to(listed))
        write_json(into.to(page), old | {"samples": sum(samples.values()), "shards": shards_told(facts)})

    yield Edit("lists of identities", write)


def _class(row: dict[str, Any], samples: int, forgotten: Forgotten) -> dict[str, Any]:
    is_gone = samples == 0 or forgotten.has("identity", row["identity"])
    return row | ({"identity": f"(forgotten {row['class_index']})", "samples": 0} if is_gone else {"samples": samples})


def _identities(run: RunLayout, rounds: list[RoundLayout], forgotten: Forgotten, touched: frozenset[str]) -> Iterator[Edit]:
    """raw/identities.parquet, counted anew, and the centers of every round, which have a row for each of its identities with a sample."""
    if not run.identities.exists():
        return
    items: Counter[str] = Counter()
    samples: Counter[str] = Counter()
    for stem in shards.shard_stems(run.raw):
        names, statuses = scrub.names_left(run.raw / f"{stem}.parquet", forgotten)
        items.update(names)
        samples.update(name for name, status in zip(names, statuses, strict=True) if status == "ok")
    old = pq.read_table(run.identities)
    rows = [{"identity": name, "items": items[name], "samples": samples[name]} for name in sorted(items)]
    new = pa.Table.from_pylist(rows, schema=tables.IDENTITIES)
    before = [row["identity"] for row in old.to_pylist() if row["samples"] > 0]
    lost = [name for name in before if not samples[name]]
    # Rewritten centers have no row of who is gone; of who is touched they are the same when made again.
    if new.equals(old.cast(tables.IDENTITIES)):
        return

    def write(into: Replacement) -> None:
        for one in rounds:
            path = one.noise / "centers.safetensors"
            if path.exists():
                _write_centers(one, path, into.to(path), before, samples, forgotten, touched)
        pq.write_table(new, into.to(run.identities))

    yield Edit("centers", write, len(lost))


def _write_centers(
    one: RoundLayout, path: Path, out: Path, names: list[str], samples: Counter[str], forgotten: Forgotten, touched: frozenset[str]
) -> None:
    centers = load_file(path)
    kept = [row for row, name in enumerate(names) if samples[name]]
    for name, rows in centers.items():
        if len(rows) != len(names):  # of a raw folder that is no more: nobody can say whose they are
            centers[name] = np.zeros((len(kept), rows.shape[1]), rows.dtype)
            continue
        centers[name] = rows[kept]
    place = {names[row]: number for number, row in enumerate(kept)}
    for name, row in place.items():
        if _is_touched(name, forgotten, touched):
            for rows in centers.values():
                rows[row] = 0.0
    dim = next(iter(centers.values())).shape[1]
    for name, mean in scrub.means(one.embeddings, one.noise, lambda name: _is_touched(name, forgotten, touched), forgotten, dim).items():
        for rows in centers.values():
            if name in place:
                rows[place[name]] = mean
    save_file(centers, out)


def _is_touched(name: str, forgotten: Forgotten, touched: frozenset[str]) -> bool:
    return bool(touched) and forgotten.mark("identity", plain(name)) in touched


def _head(train: Path, forgotten: Forgotten, touched: frozenset[str]) -> Iterator[Edit]:
    """The head without the rows of the forgotten, and of those who lost a sample: isolate finds centers of its own for who is not in the head."""
    listed, head = train / "classes.parquet", train / "head.safetensors"
    if not listed.exists() or not head.exists():
        return
    classes = pq.read_table(listed).to_pylist()
    kept = [
        row
        for row, one in enumerate(classes)
        if not forgotten.has("identity", one["identity"]) and not _is_touched(one["identity"], forgotten, touched)
    ]
    if len(kept) == len(classes):
        return

    def write(into: Replacement) -> None:
        save_file({name: np.ascontiguousarray(rows[kept]) for name, rows in load_file(head).items()}, into.to(head))
        left = [classes[row] | {"class_index": number} for number, row in enumerate(kept)]
        pq.write_table(pa.Table.from_pylist(left, schema=tables.CLASSES), into.to(listed))

    yield Edit("centers" if is_given(train) else "heads", write, len(classes) - len(kept))
