"""`forget`: a person, or a picture, out of a whole run: pixels, embeddings, names, captions, URLs and what was derived from them.

A person is all items under the name, all that the run takes for the same person under other names (relabelled to it, by rule or by a person),
and the same bytes wherever they stand. What is asked for goes into the log first, as keyed hashes; the sweep then follows the log, so that a
sweep that was killed is finished by the next call, and ingest leaves the same items out of the next crawl. While a sweep is not finished,
`RUN/forgotten/pending.json` stands, and nothing else works on the run. See docs/privacy.md for what cannot be removed.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from pipeline import answers, receipts, shards, tables
from pipeline import forgotten as log
from pipeline.edits import edits
from pipeline.errors import BadInput, StaleInput
from pipeline.forgotten import Forgotten
from pipeline.growth import LISTING
from pipeline.layout import RunLayout
from pipeline.mirroring.memo import require_pulled
from pipeline.receipts import Progress, write_json
from pipeline.replace import Replacement, roll_forward
from pipeline.run_folder import claimed, read_record
from pipeline.wanted import Found, find, require_found, rows_of, wanted_of

_OURS = re.compile(
    r"\.lock|\.mirror\.(json|lock)|\.status\.json|run\.json|history/[^/]+\.json|forgotten/(key|[^/]+\.(parquet|json))|decisions/[^/]+\.parquet|audit/.*|(.*/)?_receipt\.json"
    r"|raw/(raw-\d+\.(tar|parquet|sha256)|(identities|listing)\.parquet)|clean/(clean-\d+\.(tar|parquet|sha256)|identities\.parquet|dataset\.json)"
    r"|manifest/(part-\d+|_answers/[a-z_]+)\.parquet|protected/contamination\.parquet|evaluation/((metrics|differences|roc|scores)\.parquet|[^/]+\.svg)"
    r"|rounds/\d+/(embeddings/raw-\d+\.parquet|noise/(raw-\d+\.parquet|proposals\.parquet|judge\.json|centers\.safetensors)"
    r"|train/((backbone|head)\.safetensors|classes\.parquet|metrics\.parquet|model\.(json|onnx|safetensors|pt|pth)))"
    r"|embedder/model\.(json|onnx|safetensors|pt|pth)",
)
"""Every file of a run that this program knows what to do with."""


@dataclass(frozen=True, kw_only=True)
class Forgetting:
    """What was forgotten, or would be, in numbers."""

    done: bool
    finished_earlier: bool = False
    """A call that had been stopped half way was finished first."""
    items: int = 0
    """Items of the crawl."""
    samples: int = 0
    """Of these, with status `ok`."""
    elsewhere: int = 0
    """Of these, under names that were not asked for: relabelled to the person, or the same bytes."""
    files: dict[str, int] = field(default_factory=dict)
    """Files to rewrite, by what they are."""
    crops: int = 0
    """Crops removed from tars, raw and clean."""
    others: int = 0
    """Rows of others that named the forgotten, all tables together."""
    folders: int = 0
    """Half-made folders and left-over files removed, and the audit page."""
    decisions: int = 0
    alike: int = 0
    """Other names of the run that differ from a forgotten one only in case, accents' form or what parts the words. They stay."""
    near_duplicates: int = 0
    """Samples that stay and look the same as a forgotten one, by perceptual hash or embedding."""
    trained: int = 0
    """Rounds whose backbone was trained on some of the samples, which no edit takes out of its weights."""
    unknown: tuple[str, ...] = ()
    """Files in the run folder that no stage writes, as paths in it: nothing was looked for in them."""


def forget(
    run: Path,
    *,
    identities: Sequence[str] = (),
    contents: Sequence[str] = (),
    samples: Sequence[str] = (),
    by: str | None = None,
    in_advance: bool = False,
    retrain: bool = False,
    yes: bool = False,
    progress: Progress | None = None,
) -> Forgetting:
    """Forget names, bytes (SHA-256 in hex, as crawled) and sample_ids; without `yes` nothing is changed and the counts say what would be.

    `in_advance`: what the run does not have goes into the log too, so that no later `purify run` brings it in.
    `retrain`: the rounds and all that follows from them are removed too, so that the next `purify run` trains without the forgotten; what a
    backbone has learned of them goes no other way.
    With `yes` and nothing asked for, a call that was stopped half way is finished. What is forgotten already is no error.

    Raises BadInput: for a folder that is no run, for a name, SHA-256 or sample_id that the run does not have, for hex that is none, and when
    nothing is asked for and nothing is unfinished. StaleInput: while another process works in the run. BadShard: for a shard to rewrite that
    is damaged already.
    """
    layout = RunLayout(run)
    require_pulled(run)
    if not layout.run_json.exists():
        raise BadInput(f"{run} is no run folder: it has no run.json. Give the folder that `purify run CRAWL RUN` made.")
    with claimed(read_record(layout)["crawl"], layout, to_forget=True):
        is_pending = layout.pending.exists()
        if is_pending and not yes:
            raise StaleInput(f"A `purify forget` in {run} was stopped half way. Finish it first: purify forget {run} --yes")
        if is_pending:
            _sweep(layout, progress)
        if not (identities or contents or samples):
            if not is_pending:
                raise BadInput("There is nothing to forget: give --identity NAME, --sha256 HEX or --sample SAMPLE_ID.")
            return Forgetting(done=True, finished_earlier=True)
        known = log.read(run)
        known = known if known.key else Forgotten(log.new_key())
        found = find(layout, wanted_of(identities, contents, samples))
        if not in_advance:
            require_found(found, known, identities, contents, samples)
        rows = log.rows_of(found.wish, known)
        view = log.added(known, rows)
        touched = frozenset(known.mark("identity", name) for name in found.touched)
        counted = _count(layout, view, touched, found, yes=yes, finished_earlier=is_pending)
        if yes and (rows or counted.files or retrain):
            layout.forgotten.mkdir(exist_ok=True)
            log.keep_key(run, known)
            write_json(layout.pending, {"rows": rows, "touched": sorted(touched), "by": by, "retrain": retrain})
            _sweep(layout, progress)
        return counted


def _count(run: RunLayout, view: Forgotten, touched: frozenset[str], found: Found, *, yes: bool, finished_earlier: bool) -> Forgetting:
    files: Counter[str] = Counter()
    crops = others = decisions = 0
    for edit in edits(run, view, touched):
        files[edit.what] += 1
        crops, others = crops + edit.crops, others + edit.others
        decisions += edit.rows if edit.what == "decisions" else 0
    return Forgetting(
        done=yes,
        finished_earlier=finished_earlier,
        items=found.items,
        samples=found.samples,
        elsewhere=found.elsewhere,
        files=dict(files),
        crops=crops,
        others=others,
        folders=len(_left_over(run)) + run.audit.exists(),
        decisions=decisions,
        alike=found.alike,
        near_duplicates=found.near_duplicates,
        trained=files["heads"],
        unknown=tuple(_unknown(run)),
    )


def _sweep(run: RunLayout, progress: Progress | None) -> None:
    """Follow the log to its end. `run.pending` stands from before the first change until after the last."""
    wanted = json.loads(run.pending.read_text("utf-8"))
    known = log.read(run.root)
    new = [row for row in wanted["rows"] if row["hash"] not in known.marks]
    if new:
        log.append(run.root, new, by=wanted["by"])
    known = log.added(known, wanted["rows"])
    roll_forward(run)
    (run.raw / LISTING).unlink(missing_ok=True)  # hashes of names can be guessed; without it a crawl that changed is read anew
    for path in _left_over(run):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    learned = [run.root / "rounds", run.manifest, run.clean, run.protected, run.evaluation] if wanted["retrain"] else []
    for folder in [run.audit, run.manifest / answers.FOLDER, *learned]:
        if folder.exists():
            old = folder.with_name(f".{folder.name}.old")
            folder.rename(old)
            shutil.rmtree(old)
    for number, edit in enumerate(edits(run, known, frozenset(wanted["touched"])), 1):
        files = Replacement(run)
        edit.write(files)
        files.commit()
        if progress:
            progress(number, number)
    if run.manifest.exists():
        answers.keep_answers(run.manifest)
    _recount(run, is_finished=not wanted["retrain"])
    run.pending.unlink()


def _left_over(run: RunLayout) -> list[Path]:
    """Half-made folders, and temporary files of killed processes: they hold pixels and names, and their stages can be done again."""
    places = [run.root, run.root / "rounds", *run.root.glob("*"), *run.root.glob("rounds/*"), *run.root.glob("rounds/*/*")]
    folders = {path for place in places if place.is_dir() for path in place.glob(".*") if path.is_dir()}
    found = folders | {path for path in run.root.rglob(".*.tmp") if path.is_file()}
    return sorted(path for path in found if not any(parent in folders for parent in path.parents))


def _unknown(run: RunLayout) -> list[str]:
    gone = _left_over(run)
    found = []
    for path in sorted(run.root.rglob("*")):
        name = path.relative_to(run.root).as_posix()
        if path.is_file() and not _OURS.fullmatch(name) and not any(path == one or one in path.parents for one in gone):
            found.append(name)
    return found


def _recount(run: RunLayout, *, is_finished: bool) -> None:
    """The counts in the receipts and in run.json, from what stands there now. Fingerprints stay: nothing has to be done again.

    `is_finished`: False when rounds, manifest and clean shards are gone, so that the run is none until it is run again.
    """
    new: dict[str, dict[str, Any]] = {}
    if (raw := receipts.read(run.raw)) is not None:
        statuses = Counter(row["status"] for rows in rows_of(run.raw, "raw-*", ("status",)) for row in rows)
        people = {row["identity"] for row in pq.read_table(run.identities).to_pylist() if row["samples"]}
        rest = {name: value for name, value in raw.counts.items() if name not in tables.STATUSES}
        new["ingest"] = _counts(run.raw, rest | {"identities": len(people)} | dict(statuses.most_common()))
    for one in sorted((run.root / "rounds").glob("*")):
        if (embedded := receipts.read(one / "embeddings")) is not None:
            count = sum(pq.read_metadata(path).num_rows for path in (one / "embeddings").glob("raw-*.parquet"))
            new[f"round {one.name} embed"] = _counts(one / "embeddings", embedded.counts | {"samples": count})
        if (judged := receipts.read(one / "noise")) is not None:
            verdicts = Counter(row["verdict"] for rows in rows_of(one / "noise", "raw-*", ("verdict",)) for row in rows)
            new[f"round {one.name} isolate"] = _counts(one / "noise", judged.counts | {name: verdicts[name] for name in tables.VERDICTS})
    if (listed := receipts.read(run.manifest)) is not None:
        verdicts, exported = Counter[str](), 0
        for part in rows_of(run.manifest, "part-*", ("verdict", "clean_shard")):
            verdicts.update(row["verdict"] for row in part)
            exported += sum(row["clean_shard"] is not None for row in part)
        new["manifest"] = _counts(run.manifest, listed.counts | {name: verdicts[name] for name in tables.VERDICTS} | {"exported": exported})
    if (clean := receipts.read(run.clean)) is not None:
        stems = shards.shard_stems(run.clean, "clean")
        samples = sum(pq.read_metadata(run.clean / f"{stem}.parquet").num_rows for stem in stems)
        new["export"] = _counts(run.clean, clean.counts | {"samples": samples, "shards": len(stems)})
    record = read_record(run)
    for stage in record.get("stages", []):
        stage["counts"] = new.get(stage["stage"], stage["counts"])
    write_json(run.run_json, record | {"finished": is_finished and record["finished"]})


def _counts(folder: Path, counts: dict[str, Any]) -> dict[str, Any]:
    path = folder / receipts.NAME
    write_json(path, json.loads(path.read_text("utf-8")) | {"counts": counts})
    return counts
