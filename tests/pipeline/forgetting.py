"""A finished run to forget people of, and ways to see what is left of them."""

import hashlib
import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load_file

from pipeline import tables
from pipeline.audit import audit
from pipeline.config import Config, load
from pipeline.decisions import decide, read_standing, undo
from pipeline.embed import embed
from pipeline.evaluate import evaluate
from pipeline.export import export_clean, write_manifest
from pipeline.ingest import ingest
from pipeline.isolate import isolate
from pipeline.layout import RunLayout
from pipeline.receipts import Receipt
from pipeline.run_folder import claimed, write_record
from pipeline.train import train

OPTIONS = [
    *("train.epochs=3", "train.input_px=32", "train.embedding_dim=32", "train.batch_size=32", "train.learning_rate=0.05"),
    *("isolate.judge_anyway=true", "isolate.rule=angle", "isolate.max_angle_deg=85", "evaluate.holdout=0.2", "evaluate.pairs=60"),
    *("evaluate.folds=5", "audit.identities=14", "audit.inversion_steps=1", "ingest.samples_per_shard=40", "export.samples_per_shard=25"),
    *("workers=1", "ingest.near_duplicate_bits=0"),
]
CONFIG = load(preset="demo", overrides=OPTIONS)
NOT_COMPARED = {".lock"}


def purified(crawl: Path, run: Path, config: Config = CONFIG) -> dict[str, Receipt]:
    """The stages as `flows.purify` runs them, without Prefect."""
    layout = RunLayout(run)
    with claimed(crawl, layout):
        done = {"ingest": ingest(crawl, layout.raw, config)}
        kept_by: Path | None = None
        for one in (rounds := [layout.round(1), layout.round(2)]):
            decided = read_standing(run) if kept_by else None
            done[f"round {one.number} train"] = train(layout.raw, one.train, config, noise=kept_by, decisions=decided)
            done[f"round {one.number} embed"] = embed(layout.raw, one.train, one.embeddings, config)
            done[f"round {one.number} isolate"] = isolate(layout.raw, one.train, one.embeddings, one.noise, config, previous=kept_by)
            kept_by = one.noise
        decided = read_standing(run)
        done["manifest"] = write_manifest(layout.raw, rounds[-1].noise, 2, layout.manifest, config, decisions=decided)
        done["export"] = export_clean(layout.raw, layout.manifest, layout.clean, config)
        done["evaluate"] = evaluate(layout.raw, rounds, layout.evaluation, config)
        done["audit"] = audit(layout, layout.audit, config, title="Test")
        write_record(crawl, layout, config, list(done.items()), 1.0)
    assert done["ingest"].counts["items"] == done["manifest"].counts["items"]
    assert done["manifest"].counts["exported"] == done["export"].counts["samples"]
    return done


def rows_of(run: Path, folder: str, pattern: str = "*.parquet") -> list[dict[str, Any]]:
    return [row for path in sorted((run / folder).glob(pattern)) for row in pq.read_table(path).to_pylist()]


def of(run: Path, name: str) -> list[dict[str, Any]]:
    """Raw rows of the samples under a name."""
    return [row for row in rows_of(run, "raw", "raw-*.parquet") if row["identity"] == name]


class Needles:
    """All by which a person can be found again in a run, taken before forgetting."""

    def __init__(self, run: Path, rows: list[dict[str, Any]], name: str | None = None) -> None:
        keys = [row["sample_id"] for row in rows if row["sample_id"]]
        shas = [row["content_sha256"] for row in rows if row["content_sha256"]]
        self.texts = [*keys, *shas, *(sha[:16] for sha in shas), *(row["source_uri"] for row in rows)]
        self.texts += [name, unicodedata.normalize("NFD", name)] if name else []
        self.bytes = [text.encode() for text in self.texts]
        for row in rows:
            if row["crop_offset"] is not None:
                content = (run / "raw" / f"{row['shard']}.tar").read_bytes()
                # A strip from the middle: a JPEG's head is the same in many.
                self.bytes.append(content[row["crop_offset"] + row["crop_size"] // 2 :][:64])
        vectors = [
            row["embedding"]
            for number in (1, 2)
            for row in rows_of(run, f"rounds/{number}/embeddings", "raw-*.parquet")
            if row["sample_id"] in keys
        ]
        self.vectors = np.array(vectors, np.float32).reshape(len(vectors), -1 if vectors else 32)
        self.bytes += [vector.tobytes()[:32] for vector in self.vectors]

    def add_centers(self, run: Path, name: str) -> None:
        """The rows of a name in every round's head and centers."""
        names = [row["identity"] for row in rows_of(run, "raw", "identities.parquet") if row["samples"]]
        found = [self.vectors]
        for number in (1, 2):
            folder = run / "rounds" / str(number)
            found += [rows[names.index(name)][None] for rows in load_file(folder / "noise" / "centers.safetensors").values()]
            classes = pq.read_table(folder / "train" / "classes.parquet")["identity"].to_pylist()
            if name in classes:
                found.append(load_file(folder / "train" / "head.safetensors")["centers"][classes.index(name)])
        self.vectors = np.concatenate([rows for rows in found if len(rows)])

    def found(self, run: Path) -> set[str]:
        """Files that hold one of them: as bytes, in tars, in decompressed Parquet, as rows of floats, in HTML, in the file's own name."""
        return {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file() and self._stands_in(path)}

    def _stands_in(self, path: Path) -> bool:
        content = path.read_bytes()
        if any(needle in content for needle in self.bytes) or any(text in str(path) for text in self.texts):
            return True
        if path.suffix == ".parquet":
            table = pq.read_table(path)
            if "embedding" in table.column_names and self._is_near(np.array(table["embedding"].to_pylist(), np.float32)):
                return True
            told = json.dumps([table.to_pylist(), str(table.schema.metadata)], default=str, ensure_ascii=False)
            return any(json.dumps(text, ensure_ascii=False)[1:-1] in told for text in self.texts)
        if path.suffix == ".safetensors" and path.name != "backbone.safetensors":
            return any(self._is_near(rows.reshape(-1, rows.shape[-1])) for rows in load_file(path).values() if rows.ndim > 1)
        return False

    def _is_near(self, rows: Any) -> bool:
        if not len(self.vectors) or not len(rows) or rows.shape[-1] != self.vectors.shape[-1]:
            return False
        lengths = np.linalg.norm(rows, axis=1, keepdims=True) * np.linalg.norm(self.vectors, axis=1)
        return bool((np.divide(rows @ self.vectors.T, lengths, where=lengths > 0, out=np.zeros_like(lengths)) > 0.999999).any())


def tree(run: Path) -> dict[str, str]:
    """Digest of every file, the log's time and name apart."""
    found = {}
    for path in sorted(run.rglob("*")):
        name = str(path.relative_to(run))
        if path.is_file() and path.name not in NOT_COMPARED and not (path.parent.name == "forgotten" and path.suffix == ".parquet"):
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def people_told(run: Path, name: str) -> None:
    """What people and other stages left about a name: notes, relabels, a page of contamination, proposals, half-made folders."""
    ours = [row["sample_id"] for row in of(run, name) if row["status"] == "ok"]
    theirs = [row["sample_id"] for row in rows_of(run, "raw", "raw-*.parquet") if row["status"] == "ok" and row["identity"] != name]
    decide(
        run,
        [{"sample_id": ours[0], "verdict": "keep"}, {"sample_id": theirs[0], "verdict": "keep", "note": f"not {name.upper()}!"}],
        by="Eve",
    )
    decide(run, [{"sample_id": theirs[1], "verdict": "relabel", "clean_identity": name}], by="Eve")
    undo(run, [theirs[1]], by="Eve")
    layout = RunLayout(run)
    layout.protected.mkdir()
    match = {"identity": name, "protected_set": "lfw", "protected_image": f"{name.replace(' ', '_')}/1.jpg", "angle_deg": 2.0}
    matches = [{"kind": "identity", **match}, {"kind": "image", **match, "identity": "Somebody", "sample_id": theirs[0]}]
    pq.write_table(pa.Table.from_pylist(matches, schema=tables.CONTAMINATION), layout.protected / "contamination.parquet")
    pairs = [
        {"kind": kind, "identity": one, "other_identity": other, "samples": 3, "other_samples": 3}
        for kind, one, other in (
            ("merge", name, "B"),
            ("review", "A", name),
            ("split", "A", name),
            ("split", name, None),
            ("merge", "A", "B"),
        )
    ]
    for number in (1, 2):
        path = layout.round(number).noise / "proposals.parquet"
        pq.write_table(pa.Table.from_pylist(pairs, schema=tables.PROPOSALS), path)
    (run / ".clean.partial-0123456789abcdef" / ".spill").mkdir(parents=True)
    (run / ".clean.partial-0123456789abcdef" / ".x.1.tmp").touch()
    (run / "rounds" / "2" / ".train.partial-0123456789abcdef").mkdir()
    for half in (
        ".clean.partial-0123456789abcdef/clean-000000.tar",
        "rounds/2/.train.partial-0123456789abcdef/x",
        "raw/.raw-000000.tar.77.tmp",
    ):
        shutil.copy(run / "raw" / "raw-000000.tar", run / half)
