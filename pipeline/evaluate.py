"""The backbones of all rounds side by side: on identities held out of training, and on insightface `.bin` files.

Held-out pairs carry the crawl's labels. `held-out` takes them as crawled, noise included, so every backbone is far from 1;
`held-out-kept` takes only samples that the last round kept, which flatters the last backbone. A `.bin` file has labels of its own.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from arcface_core.angles import rowwise_cosine
from arcface_core.protocols.verification import auroc, genuine_impostor_pairs, kfold_accuracy, roc_points, tar_at_far
from pipeline import shards, tables
from pipeline.centers import is_given
from pipeline.config import Config, IngestConfig, as_dict
from pipeline.duck import every
from pipeline.embed import features_of
from pipeline.embedders import load_embedder
from pipeline.errors import BadInput
from pipeline.examine import examine
from pipeline.layout import RoundLayout
from pipeline.models import pick_device
from pipeline.receipts import Counts, Progress, Receipt, atomic, fingerprint, mark_of, run_stage
from pipeline.sources import Item
from pipeline.train import held_out
from pipeline.verification_bin import read_bin

VERSION = 1
FARS = (1e-1, 1e-2, 1e-3, 1e-4)
_BATCH = 256


def evaluate(raw: Path, rounds: list[RoundLayout], out: Path, config: Config, *, progress: Progress | None = None) -> Receipt:
    """Receipt of `out`: metrics.parquet and roc.parquet. Raises BadInput for a `.bin` that cannot be used, before anything is computed."""
    bins = [Path(name) for name in config.evaluate.bins]
    for path in bins:
        if not path.is_file():
            raise BadInput(f"There is no verification file {path}. Check evaluate.bins.")
    inputs = {f"round{layout.number}": mark_of(layout.noise) + mark_of(layout.train) for layout in rounds}
    inputs |= {f"bin{number}": shards.file_sha256(path) for number, path in enumerate(bins)}
    mark = fingerprint("evaluate", VERSION, as_dict(config.evaluate) | {"seed": config.seed}, raw=mark_of(raw), **inputs)

    def work(folder: Path) -> Counts:
        metrics: list[dict[str, Any]] = []
        curves: list[dict[str, Any]] = []
        total = len(rounds) * (2 + len(bins))
        for number, (backbone, dataset, scores, genuine) in enumerate(_comparisons(raw, rounds, bins, config)):
            metrics += measure(backbone, dataset, scores, genuine, folds=config.evaluate.folds)
            false_rate, true_rate = roc_points(scores, genuine)
            step = max(1, len(false_rate) // 500)
            points = zip(false_rate[::step].tolist(), true_rate[::step].tolist(), strict=True)
            curves += [{"backbone": backbone, "dataset": dataset, "far": far, "tar": tar} for far, tar in points]
            if progress:
                progress(number + 1, total)
        for name, rows, schema in (("metrics", metrics, tables.METRICS), ("roc", curves, tables.ROC)):
            with atomic(folder / f"{name}.parquet") as temporary:
                pq.write_table(shards.table_of(rows, schema), temporary)
        return {f"{row['backbone']} {row['dataset']} accuracy": round(row["value"], 4) for row in metrics if row["metric"] == "accuracy"}

    return run_stage(out, stage="evaluate", mark=mark, work=work)


def measure(backbone: str, dataset: str, scores: torch.Tensor, genuine: torch.Tensor, *, folds: int) -> list[dict[str, Any]]:
    """Rows of the metrics table for scored pairs."""
    common = {"backbone": backbone, "dataset": dataset, "pairs": len(scores)}
    fold = kfold_accuracy(scores, genuine, folds=folds)
    rows = [
        {"metric": "accuracy", "value": fold.mean, "low": fold.mean - fold.std, "high": fold.mean + fold.std},
        {"metric": "auroc", "value": float(auroc(scores, genuine))},
    ]
    for point in tar_at_far(scores, genuine, FARS):
        said = {"value": point.tar, "low": point.tar_low, "high": point.tar_high} if point.resolvable else {"value": None}
        rows.append({"metric": f"tar@far={point.far:g}", **said})
    return [common | row for row in rows]


def _comparisons(
    raw: Path, rounds: list[RoundLayout], bins: list[Path], config: Config
) -> Iterator[tuple[str, str, torch.Tensor, torch.Tensor]]:
    for dataset, kept in (("held-out", False), ("held-out-kept", True)):
        uris, index = _held_out(raw, rounds[-1], config, kept)
        try:
            left, right, genuine = genuine_impostor_pairs(torch.from_numpy(index), pairs=config.evaluate.pairs, seed=config.seed)
        except ValueError:
            continue  # too few held-out samples for a pair: the table has no such dataset, which the page says
        if len(genuine) < 2 * config.evaluate.folds:
            continue
        for layout in rounds:
            vectors = torch.from_numpy(_embeddings_of(uris, layout.embeddings))
            yield _name(layout), dataset, rowwise_cosine(vectors[left], vectors[right]), genuine
    device = pick_device(config.device)
    for path in bins:
        jpegs, same = read_bin(path)
        crops = [_bin_crop(content, f"{path} image {number}") for number, content in enumerate(jpegs)]
        for layout in rounds:
            embedder = load_embedder(layout.train, device)
            starts = range(0, len(crops), _BATCH)
            parts = [features_of(crops[start : start + _BATCH], embedder) for start in starts]
            vectors = torch.from_numpy(np.concatenate(parts))
            yield _name(layout), path.stem, rowwise_cosine(vectors[0::2], vectors[1::2]), torch.tensor(same)


def _name(layout: RoundLayout) -> str:
    return "embedder" if is_given(layout.train) else f"round-{layout.number}"


def _bin_crop(content: bytes, name: str) -> bytes:
    [(row, crop)] = examine(Item(name, "pair", bytes(content)), IngestConfig())
    if crop is None:
        raise BadInput(f"{name}: {row['status']}, {row['status_detail']}. Take the file from its source again.")
    return crop


def _held_out(raw: Path, last: RoundLayout, config: Config, kept: bool) -> tuple[list[str], NDArray[np.int64]]:
    """source_uri and identity number of the held-out samples; with `kept`, only those with verdict `keep` in the last round."""
    with duckdb.connect() as db:
        db.register("held_out", held_out(raw, config))
        rows = db.execute(
            """SELECT source_uri, dense_rank() OVER (ORDER BY identity) FROM read_parquet($noise) SEMI JOIN held_out USING (identity)
               WHERE NOT $kept OR verdict = 'keep' ORDER BY identity, source_uri""",
            {"noise": every(last.noise, "raw-*.parquet"), "kept": kept},
        ).fetchall()
    return [row[0] for row in rows], np.array([row[1] for row in rows], np.int64)


def _embeddings_of(uris: list[str], embeddings: Path) -> NDArray[np.float32]:
    with duckdb.connect() as db:
        db.execute("CREATE TABLE wanted (place BIGINT, source_uri VARCHAR)")
        db.execute("INSERT INTO wanted SELECT unnest(range(len($uris))), unnest($uris)", {"uris": uris})
        rows = db.execute(
            "SELECT embedding::FLOAT[] FROM read_parquet($files) JOIN wanted USING (source_uri) ORDER BY place",
            {"files": every(embeddings, "raw-*.parquet")},
        ).fetchall()
    return np.array([row[0] for row in rows], np.float32)
