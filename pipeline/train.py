"""Sub-center ArcFace on the identities as crawled (round 1, K sub-centers), or on what the round before kept (K = 1)."""

import hashlib
import shutil
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from torch import Tensor

from pipeline import shards, tables
from pipeline.config import Config
from pipeline.decisions import digest
from pipeline.duck import fetch, literal
from pipeline.errors import BadConfig, BadCrawl
from pipeline.fit import WORK, Job, fit
from pipeline.learned import LEAST_CLASSES, advice_on_too_few
from pipeline.models import load_tensors, pick_device
from pipeline.ranks import launch, machines, process_count
from pipeline.receipts import Counts, Progress, Receipt, atomic, fingerprint, mark_of, run_stage
from pipeline.trained import VERSION, kept, settings_of, tell


def train(
    raw: Path,
    out: Path,
    config: Config,
    *,
    noise: Path | None = None,
    decisions: pa.Table | None = None,
    before: Path | None = None,
    keep: bool = False,
    progress: Progress | None = None,
) -> Receipt:
    """Receipt of `out`: backbone, head centers, classes and metrics. With `noise`, only samples of verdict `keep` are trained on, with K = 1;
    `decisions` (those that stand) win over its verdicts, and a relabelled sample is trained under its new identity. `before` is the training by which
    `noise` was judged, noted in model.json. With `keep` a training that stands is used as it is, though the crawl has grown since, where `kept` allows it.

    Raises BadCrawl when fewer than two identities have `train.min_samples` samples; BadCheckpoint when `train.init` does not fit; TrainingFailed when
    the loss is not finite, or a process of several ends. What was trained up to the last checkpoint is gone on with by the next attempt.
    """
    if keep and (standing := kept(out, raw, config, before=before)):
        return standing
    if config.train.compile and config.train.recompute:
        raise BadConfig(
            "train.compile and train.recompute exclude each other: torch cannot trace what is computed twice. Set one of them to false."
        )
    inputs = {"raw": mark_of(raw), "noise": mark_of(noise) if noise else "none", "decisions": digest(decisions)}
    mark = fingerprint("train", VERSION, settings_of(config), **inputs)
    subcenters = config.train.subcenters if noise is None else 1

    def work(folder: Path) -> Counts:
        counts = _train(raw, noise, decisions, folder, config, subcenters, progress)
        tell(folder, raw, config, before)
        return counts

    return run_stage(out, stage="train", mark=mark, work=work)


def is_held_out(identity: str, *, share: float, seed: int) -> bool:
    """True for about `share` of all identities, the same ones in every round and every crawl, whatever else the crawl holds."""
    digest = hashlib.blake2b(identity.encode("utf-8"), digest_size=8, key=seed.to_bytes(8, "big")).digest()
    return int.from_bytes(digest, "big") < share * 2**64


def held_out(raw: Path, config: Config) -> pa.Table:
    """The identities that no round trains on, as a table of one column, `identity`."""
    file = pq.ParquetFile(raw / "identities.parquet")
    names = (name for batch in file.iter_batches(columns=["identity"]) for name in batch["identity"].to_pylist())
    chosen = [name for name in names if is_held_out(name, share=config.evaluate.holdout, seed=config.seed)]
    return pa.table({"identity": pa.array(chosen, pa.string())})


def _train(
    raw: Path, noise: Path | None, decisions: pa.Table | None, folder: Path, config: Config, subcenters: int, progress: Progress | None
) -> Counts:
    job = Job(raw, folder, config, subcenters)
    if not (folder / "model.json").exists():
        if not (folder / "classes.parquet").exists():
            _select(raw, noise, decisions, folder, job.selection, config)
        classes = pq.read_metadata(folder / "classes.parquet").num_rows
        if classes < LEAST_CLASSES:
            raise BadCrawl(
                f"{classes} identities have {config.train.min_samples} or more samples {'that the round before kept' if noise else 'to train on'}, "
                f"and a head needs two to tell apart. {advice_on_too_few(noise)}"
            )
        processes = process_count(config)
        if processes == machines() == 1:
            fit(job, pick_device(config.device), progress=progress)
        else:
            launch(job, processes, progress)
    shutil.rmtree(folder / WORK, ignore_errors=True)
    return _counts(folder, subcenters) | {"device": pick_device(config.device).type}


def _counts(folder: Path, subcenters: int) -> Counts:
    classes = pq.read_table(folder / "classes.parquet")
    metrics = pq.read_table(folder / "metrics.parquet", columns=["epoch", "loss"])
    last = metrics.filter(pc.equal(metrics["epoch"], metrics["epoch"][-1]))
    return {
        "identities": classes.num_rows,
        "samples": pc.sum(classes["samples"]).as_py(),
        "subcenters": subcenters,
        "steps": metrics.num_rows,
        "first_loss": round(metrics["loss"][0].as_py(), 4),
        "last_loss": round(pc.mean(last["loss"]).as_py(), 4),
    }


def _select(raw: Path, noise: Path | None, decisions: pa.Table | None, folder: Path, selection: Path, config: Config) -> None:
    """Write what is trained on: classes.parquet, and per raw shard the offsets and class indices of its samples. Every shard is proven whole."""
    selection.mkdir(parents=True, exist_ok=True)
    usable = """(SELECT sample_id, identity, crop_offset, crop_size FROM read_parquet($raw) WHERE status = 'ok')"""
    if noise:
        usable = """(SELECT i.sample_id, CASE d.verdict WHEN 'relabel' THEN d.clean_identity ELSE i.identity END AS identity, crop_offset, crop_size
                     FROM read_parquet($raw) i JOIN read_parquet($noise) n USING (source_uri) LEFT JOIN decided d ON d.sample_id = i.sample_id
                     WHERE status = 'ok' AND coalesce(d.verdict, n.verdict) IN ('keep', CASE WHEN d.verdict IS NOT NULL THEN 'relabel' END))"""
    with duckdb.connect() as db:
        db.register("held_out", held_out(raw, config))
        db.register("decided", tables.DECISIONS.empty_table() if decisions is None else decisions)
        db.execute("CREATE TABLE counted (identity VARCHAR, samples BIGINT)")
        db.execute("CREATE TABLE placed (class_index INT PRIMARY KEY, samples BIGINT)")
        stems = shards.shard_stems(raw)
        for stem in stems:
            given = {"raw": literal(raw / f"{stem}.parquet")} | ({"noise": literal(noise / f"{stem}.parquet")} if noise else {})
            db.execute(f"INSERT INTO counted SELECT identity, count(*) FROM {usable} GROUP BY ALL", given)
        db.execute(
            """CREATE TABLE classes AS SELECT (row_number() OVER (ORDER BY identity) - 1)::INT AS class_index, identity, samples
               FROM (SELECT identity, sum(samples)::BIGINT AS samples FROM counted GROUP BY identity)
               WHERE samples >= ? AND identity NOT IN (SELECT identity FROM held_out)""",
            [config.train.min_samples],
        )
        for stem in stems:
            shards.check_shard(raw / f"{stem}.tar", deep=True)
            given = {"raw": literal(raw / f"{stem}.parquet")} | ({"noise": literal(noise / f"{stem}.parquet")} if noise else {})
            chosen = fetch(
                db,
                f"""SELECT r.crop_offset, r.crop_size, c.class_index, (coalesce(p.samples, 0)
                           + row_number() OVER (PARTITION BY c.class_index ORDER BY r.crop_offset) - 1)::INT AS class_place
                    FROM {usable} r JOIN classes c ON c.identity = r.identity LEFT JOIN placed p USING (class_index) ORDER BY r.crop_offset""",
                given,
            )
            db.register("chosen", chosen)
            db.execute(
                """INSERT INTO placed SELECT class_index, count(*) AS samples FROM chosen GROUP BY ALL
                   ON CONFLICT DO UPDATE SET samples = placed.samples + excluded.samples"""
            )
            with atomic(selection / f"{stem}.parquet") as temporary:
                pq.write_table(chosen, temporary)
        classes = fetch(db, "FROM classes ORDER BY class_index").cast(tables.CLASSES)
    with atomic(folder / "classes.parquet") as temporary:
        pq.write_table(classes, temporary)


def read_classes(train_folder: Path) -> tuple[list[str], Tensor]:
    """Identities in head order, and the head's unit centers [C, K, D]."""
    classes = pq.read_table(train_folder / "classes.parquet")
    names: list[str] = classes["identity"].to_pylist()
    return names, load_tensors(train_folder / "head.safetensors")["centers"]
