"""What a run could have reached: a backbone trained on the true labels of its crawl, where a truth table tells them.

No stage of a run reads a truth. This is called after the run, by people and benchmarks, and writes beside it.
"""

from pathlib import Path

import pyarrow.parquet as pq

from pipeline import shards, tables
from pipeline.config import Config
from pipeline.errors import BadInput
from pipeline.layout import RunLayout
from pipeline.receipts import Counts, Progress, fingerprint, mark_of, run_stage
from pipeline.sums import file_sha256
from pipeline.train import train

VERSION = 1


def train_on_truth(run: RunLayout, truth: Path, out: Path, config: Config, *, progress: Progress | None = None) -> Path:
    """The folder of a training like the run's last round (K = 1), on exactly the samples whose claimed identity is true: what perfect purification keeps.

    `out` gets `truth/`, the verdicts of the truth table (`item`, `is_noise`), and `train/`. Held-out identities are the run's own.
    Raises BadInput: a table that is no truth, or does not know a sample of the run.
    """
    verdicts = out / "truth"
    _keep_true(run.raw, truth, verdicts)
    train(run.raw, out / "train", config, noise=verdicts, progress=progress)
    return out / "train"


def _keep_true(raw: Path, truth: Path, out: Path) -> None:
    try:
        is_noise = {row["item"]: row["is_noise"] for row in pq.read_table(truth, columns=["item", "is_noise"]).to_pylist()}
    except (OSError, KeyError, ValueError) as error:
        raise BadInput(
            f"{truth} is no truth table ({' '.join(str(error).split())[:200]}). `purify synthesize CRAWL TRUTH` writes one."
        ) from error

    def work(folder: Path) -> Counts:
        kept = 0
        for stem in shards.shard_stems(raw):
            rows = pq.read_table(raw / f"{stem}.parquet", filters=[("status", "=", "ok")]).to_pylist()
            unknown = [row["source_uri"] for row in rows if row["source_uri"] not in is_noise]
            if unknown:
                raise BadInput(
                    f"{truth} does not know {unknown[0]} of {raw.parent}. Give the truth table that was written with this crawl."
                )
            judged = [row | {"verdict": "drop" if is_noise[row["source_uri"]] else "keep", "reason": "truth"} for row in rows]
            kept += sum(row["verdict"] == "keep" for row in judged)
            table = shards.table_of([{name: row.get(name) for name in tables.NOISE.names} for row in judged], tables.NOISE)
            pq.write_table(table, folder / f"{stem}.parquet")
        return {"kept": kept}

    run_stage(out, stage="truth", mark=fingerprint("truth", VERSION, {}, raw=mark_of(raw), truth=file_sha256(truth)), work=work)
