"""The backbones of all rounds side by side: on identities held out of training, and on insightface `.bin` files.

Held-out pairs carry the crawl's labels. `held-out` takes them as crawled, noise included, so every backbone is far from 1;
`held-out-kept` takes only samples that the last round kept, which flatters the last backbone. A `.bin` file has labels of its own.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import duckdb
import numpy as np
import torch
from numpy.typing import NDArray

from arcface_core.angles import rowwise_cosine
from arcface_core.protocols.verification import genuine_impostor_pairs
from pipeline.centers import is_given
from pipeline.config import Config, as_dict
from pipeline.duck import every
from pipeline.embedders import load_embedder
from pipeline.errors import BadInput
from pipeline.evaluation import Choices, draw, measure_set, open_sets, write
from pipeline.layout import RoundLayout
from pipeline.metrics import Measured, differences, measure_pairs
from pipeline.models import pick_device
from pipeline.protocols.pairs import VERSION as PROTOCOL
from pipeline.protocols.pairs import PairSet
from pipeline.receipts import Counts, Progress, Receipt, fingerprint, mark_of, run_stage
from pipeline.sums import file_sha256
from pipeline.train import held_out

VERSION = 2


def evaluate(raw: Path, rounds: list[RoundLayout], out: Path, config: Config, *, progress: Progress | None = None) -> Receipt:
    """Receipt of `out`: metrics, differences, roc and scores as Parquet, and their pictures.

    Raises BadInput for a `.bin` that cannot be used, before anything is computed.
    """
    bins = [Path(name) for name in config.evaluate.bins]
    for path in bins:
        if not path.is_file():
            raise BadInput(f"There is no verification file {path}. Check evaluate.bins.")
    inputs = {f"round{layout.number}": mark_of(layout.noise) + mark_of(layout.train) for layout in rounds}
    inputs |= {f"bin{number}": file_sha256(path) for number, path in enumerate(bins)}
    mark = fingerprint("evaluate", VERSION, as_dict(config.evaluate) | {"seed": config.seed}, raw=mark_of(raw), **inputs)

    def work(folder: Path) -> Counts:
        found: dict[str, list[Measured]] = {_name(layout): [] for layout in rounds}
        total = len(rounds) * (2 + len(bins))
        for number, (backbone, measured) in enumerate(_comparisons(raw, rounds, bins, config)):
            found[backbone].append(measured)
            if progress:
                progress(number + 1, total)
        first, last = _name(rounds[0]), _name(rounds[-1])
        pairs = zip(found[first], found[last], strict=True) if first != last else ()
        compared = [{"first": first, "second": last, **row} for one, other in pairs for row in differences(one, other)]
        rows = write(found, compared, folder)
        draw(found, folder)
        return {f"{row['backbone']} {row['dataset']} accuracy": round(row["value"], 4) for row in rows if row["metric"] == "accuracy"}

    return run_stage(out, stage="evaluate", mark=mark, work=work)


def _name(layout: RoundLayout) -> str:
    return "embedder" if is_given(layout.train) else f"round-{layout.number}"


def _comparisons(raw: Path, rounds: list[RoundLayout], bins: list[Path], config: Config) -> Iterator[tuple[str, Measured]]:
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
            scores = rowwise_cosine(vectors[left], vectors[right])
            yield _name(layout), measure_pairs(dataset, scores, genuine, folds=config.evaluate.folds, protocol=PROTOCOL)
    device = pick_device(config.device)
    for path in bins:
        [(name, found)] = open_sets({path.stem: path}, Choices()).items()
        if isinstance(found, PairSet):
            found = replace(found, folds=config.evaluate.folds)
        for layout in rounds:
            [measured] = measure_set(name, found, load_embedder(layout.train, device), Choices(), None)
            yield _name(layout), measured


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
