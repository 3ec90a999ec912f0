"""The manifest, a row for every crawl item, and `clean/`: the kept samples as shards that bare WebDataset reads.

A sample's place in `clean/` is its rank among the exported ones in manifest order, so shards are even and every part can be written alone.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline import shards, tables
from pipeline.answers import keep_answers
from pipeline.config import Config, as_dict
from pipeline.decisions import digest, read_standing
from pipeline.duck import every, fetch, literal
from pipeline.errors import PurifyError
from pipeline.fanout import fan_out
from pipeline.layout import RunLayout
from pipeline.proven import proven_crops
from pipeline.receipts import Counts, Progress, Receipt, atomic, fingerprint, mark_of, read, run_stage, write_json
from pipeline.sums import prove_twin

VERSION = 2
CLEAN_VERSION = 5


def write_manifest(
    raw: Path,
    noise: Path,
    number: int,
    out: Path,
    config: Config,
    *,
    decisions: pa.Table | None = None,
    protected: Path | None = None,
    progress: Progress | None = None,
) -> Receipt:
    """Receipt of `out`, the manifest judged by round `number`; `decisions` (those that stand) win over it.

    `protected`: the folder of the protect stage, whose matches are not exported.

    Raises PurifyError if a single crawl item has no row, or two.
    """
    decided = tables.DECISIONS.empty_table() if decisions is None else decisions
    mark = _manifest_mark(raw, noise, number, config, decided, protected)

    def work(folder: Path) -> Counts:
        matches = pq.read_table(protected / "contamination.parquet") if protected else tables.CONTAMINATION.empty_table()
        rank = 0
        stems = shards.shard_stems(raw)
        verdicts: dict[str, int] = dict.fromkeys(tables.VERDICTS, 0)
        left_out: Counter[str] = Counter()
        for position, stem in enumerate(stems):
            prove_twin(raw / f"{stem}.parquet")
            part = _manifest_part(raw / f"{stem}.parquet", noise / f"{stem}.parquet", number, rank, config, decided, matches)
            rank += part.num_rows - part["clean_shard"].null_count
            for name in part["verdict"].to_pylist():
                verdicts[name] += 1
            left_out.update(reason for reason in part["reason"].to_pylist() if reason in {"protected", "gone"})
            with atomic(folder / f"part-{stem.removeprefix('raw-')}.parquet") as temporary:
                pq.write_table(part, temporary, compression="zstd")
            if progress:
                progress(position + 1, len(stems))
        items = _count_items(raw)
        if sum(verdicts.values()) != items:
            raise PurifyError(
                f"{items} items were ingested and {sum(verdicts.values())} are in the manifest. This is our defect: please report it."
            )
        keep_answers(folder)
        told: Counts = {"protected": left_out["protected"]} if protected else {}
        told |= {} if config.export.keep_gone else {"gone": left_out["gone"]}
        return {"items": items, **verdicts, "exported": rank, **told}

    return run_stage(out, stage="manifest", mark=mark, work=work)


def _manifest_mark(raw: Path, noise: Path, number: int, config: Config, decided: pa.Table, protected: Path | None) -> str:
    return fingerprint(
        "manifest",
        VERSION,
        as_dict(config.export) | {"rule": config.isolate.rule, "round": number},
        raw=mark_of(raw),
        noise=mark_of(noise),
        decisions=digest(decided),
        protected=mark_of(protected) if protected else "none",
    )


def is_current(run: RunLayout, config: Config) -> bool:
    """True when manifest and clean shards are those of the rounds, settings and decisions that stand."""
    protected = run.protected if config.protect.sets and config.protect.exclude else None
    last = run.round(config.rounds)
    mark = _manifest_mark(run.raw, last.noise, last.number, config, read_standing(run.root), protected)
    manifest, clean = read(run.manifest), read(run.clean)
    return (
        manifest is not None
        and manifest.fingerprint == mark
        and clean is not None
        and clean.fingerprint == _clean_mark(run.raw, run.manifest)
    )


def _clean_mark(raw: Path, manifest: Path) -> str:
    return fingerprint("clean", CLEAN_VERSION, {}, manifest=mark_of(manifest), raw=mark_of(raw))


def _count_items(raw: Path) -> int:
    return sum(int(pq.read_metadata(raw / f"{stem}.parquet").num_rows) for stem in shards.shard_stems(raw))


_EXPORTED = "(verdict = 'keep' OR (verdict = 'relabel' AND ($apply_relabels OR person IS NOT NULL)))"


def _manifest_part(twin: Path, noise: Path, number: int, first_rank: int, config: Config, decided: pa.Table, matches: pa.Table) -> pa.Table:
    columns = ", ".join(_SPECIAL.get(name, name) for name in tables.MANIFEST.names)
    given = {
        "twin": literal(twin),
        "noise": literal(noise),
        "round": number,
        "decided_by": f"rule:{config.isolate.rule}",
        "first": first_rank,
        "per_shard": config.export.samples_per_shard,
        "apply_relabels": config.export.apply_relabels,
        "keep_gone": config.export.keep_gone,
    }
    with duckdb.connect() as db:
        db.register("decided", decided)
        db.register("matches", matches)
        table = fetch(
            db,
            f"""
            WITH marked AS (
                SELECT *, status = 'ok' AND (identity IN (SELECT identity FROM matches WHERE kind = 'identity')
                                             OR source_uri IN (SELECT source_uri FROM matches WHERE kind = 'image')) AS is_protected,
                       status = 'ok' AND is_gone AND NOT $keep_gone AS is_left_out
                FROM read_parquet($twin, file_row_number = true)),
            judged AS (
                SELECT i.*, n.* EXCLUDE (sample_id, identity, source_uri, verdict, reason),
                       coalesce(d.verdict, CASE WHEN i.is_protected OR i.is_left_out THEN 'drop' END, n.verdict, 'drop') AS verdict,
                       CASE WHEN d.verdict IS NOT NULL THEN 'decision' WHEN i.is_protected THEN 'protected' WHEN i.is_left_out THEN 'gone'
                            ELSE coalesce(n.reason, i.status) END AS reason,
                       n.verdict AS rule_verdict, n.reason AS rule_reason, d.decided_by AS person, d.clean_identity AS person_identity,
                       n.verdict IS NOT NULL AS is_judged, i.file_row_number AS place
                FROM marked i LEFT JOIN read_parquet($noise) n ON n.source_uri = i.source_uri
                LEFT JOIN decided d ON d.sample_id = i.sample_id AND i.status = 'ok'),
            ranked AS (
                SELECT *, {_EXPORTED} AS is_exported,
                       $first + count(*) FILTER (WHERE {_EXPORTED}) OVER (ORDER BY place ROWS UNBOUNDED PRECEDING) - 1 AS rank
                FROM judged)
            SELECT {columns} FROM ranked ORDER BY place
            """,
            given,
        )
    return table.cast(tables.MANIFEST)


_SPECIAL = {
    "round": "CASE WHEN is_judged THEN $round END AS round",
    "decided_by": "CASE WHEN person IS NOT NULL THEN 'person:' || person WHEN is_judged THEN $decided_by ELSE 'ingest' END AS decided_by",
    "clean_identity": """CASE WHEN is_exported THEN
        CASE verdict WHEN 'relabel' THEN coalesce(person_identity, other_identity) ELSE identity END END AS clean_identity""",
    "clean_shard": "CASE WHEN is_exported THEN printf('clean-%06d', rank // $per_shard) END AS clean_shard",
}


@dataclass(frozen=True)
class _CleanPart:
    stem: str
    parts: tuple[str, ...]
    """Manifest parts that hold the shard's samples."""
    raw: Path
    manifest: Path
    folder: Path


def export_clean(raw: Path, manifest: Path, out: Path, config: Config, *, progress: Progress | None = None) -> Receipt:
    """Receipt of `out`: clean shards, their twins, identities.parquet (class indices) and dataset.json (counts, SHA-256 per shard).

    Raises BadShard: when a raw shard is damaged; when clean shards that stand are used again, and one is gone or has another length.
    """
    mark = _clean_mark(raw, manifest)

    def work(folder: Path) -> Counts:
        with duckdb.connect() as db:
            source = every(manifest, "part-*.parquet")
            with atomic(folder / "identities.parquet") as temporary:
                classes = fetch(
                    db,
                    """SELECT (row_number() OVER (ORDER BY clean_identity) - 1)::INT AS class_index, clean_identity AS identity, samples FROM (
                       SELECT clean_identity, count(*) AS samples FROM read_parquet($source) WHERE clean_identity IS NOT NULL GROUP BY ALL)
                       ORDER BY class_index""",
                    {"source": source},
                )
                pq.write_table(classes.cast(tables.CLASSES), temporary)
            plan = db.execute(
                """SELECT clean_shard, list(DISTINCT filename ORDER BY filename) FROM read_parquet($source, filename = true)
                   WHERE clean_shard IS NOT NULL GROUP BY clean_shard ORDER BY clean_shard""",
                {"source": source},
            ).fetchall()
        todo = [_CleanPart(stem, tuple(parts), raw, manifest, folder) for stem, parts in plan if not (folder / f"{stem}.parquet").exists()]
        fan_out(export_shard, todo, workers=config.workers, progress=progress)
        facts = {stem: shards.read_facts(folder / f"{stem}.parquet") for stem, _ in plan}
        samples = sum(int(fact["num_samples"]) for fact in facts.values())
        write_json(folder / "dataset.json", _dataset(facts, classes.num_rows, samples))
        return {"samples": samples, "identities": classes.num_rows, "shards": len(plan)}

    receipt = run_stage(out, stage="clean", mark=mark, work=work)
    if receipt.reused:
        shards.require_shards(out, "clean", receipt.counts["shards"])
    return receipt


def _dataset(facts: dict[str, dict[str, str]], identities: int, samples: int) -> dict[str, Any]:
    return {
        "format": "webdataset",
        "version": tables.VERSION,
        "image": "112 x 112 JPEG",
        "samples": samples,
        "identities": identities,
        "members": {"jpg": "the crop", "cls": "class_index of identities.parquet", "json": "identity, crawled_identity, sample_id"},
        "shards": shards_told(facts),
    }


def shards_told(facts: dict[str, dict[str, str]]) -> list[dict[str, Any]]:
    """The shards as dataset.json tells of them, from the sidecar facts of each stem."""
    return [
        {"name": f"{stem}.tar", "samples": int(fact["num_samples"]), "bytes": int(fact["tar_bytes"]), "sha256": fact["tar_sha256"]}
        for stem, fact in facts.items()
    ]


def export_shard(part: _CleanPart) -> int:
    """Write one clean shard and its twin; returns its number of samples. Nothing gets its name before the raw shards read for it are proven."""
    with duckdb.connect() as db:
        rows = fetch(
            db,
            """SELECT m.sample_id, m.clean_identity AS identity, m.identity AS crawled_identity, m.angle_deg, m.noise_probability, m.quality,
                      m.source_uri, m.source_url, m.license, m.shard, i.crop_offset, i.crop_size, c.class_index
               FROM read_parquet($parts, filename = true, file_row_number = true) m
               JOIN read_parquet($twins) i ON i.source_uri = m.source_uri
               JOIN read_parquet($classes) c ON c.identity = m.clean_identity
               WHERE m.clean_shard = $stem ORDER BY m.filename, m.file_row_number""",
            {
                "parts": [literal(Path(name)) for name in part.parts],
                "twins": [literal(part.raw / f"raw-{Path(name).stem.removeprefix('part-')}.parquet") for name in part.parts],
                "classes": literal(part.folder / "identities.parquet"),
                "stem": part.stem,
            },
        )
    tar = part.folder / f"{part.stem}.tar"
    offsets: list[int] = []
    with atomic(tar) as temporary, shards.ShardWriter(temporary) as writer:
        facts = {name: rows[name].to_pylist() for name in ("identity", "crawled_identity", "sample_id")}
        samples = zip(facts["sample_id"], rows["class_index"].to_pylist(), shards.json_rows(facts), strict=True)
        for crops in _proven(rows, part.raw):
            for crop, (key, class_index, told) in zip(crops, samples, strict=False):  # the block has the next ones
                offsets.append(writer.add(key, {"jpg": crop, "cls": b"%d" % class_index, "json": told})["jpg"])
            writer.flush()
    twin = rows.set_column(rows.schema.get_field_index("crop_offset"), "crop_offset", pa.array(offsets, pa.int64()))
    shards.write_twin(tar.with_suffix(".parquet"), twin.select(tables.CLEAN.names).cast(tables.CLEAN), writer.sidecar)
    return len(offsets)


def _proven(rows: pa.Table, raw: Path) -> Iterator[list[memoryview]]:
    """The crops of all rows, some at a time, from raw shards that are read to their end."""
    stems = rows["shard"].to_pylist()
    first = 0
    for stem, run in itertools.groupby(stems):
        count = len(list(run))
        places = rows.slice(first, count)
        yield from proven_crops(raw / f"{stem}.tar", places["crop_offset"].to_numpy(), places["crop_size"].to_numpy())
        first += count
