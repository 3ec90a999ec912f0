"""The settings of a run that takes seconds, and what is asked of it in many tests."""

from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.config import Config, load

OPTIONS = [
    "train.epochs=10",
    "train.input_px=32",
    "train.embedding_dim=32",
    "train.batch_size=32",
    "train.learning_rate=0.05",
    "isolate.judge_anyway=true",
    "isolate.rule=angle",
    "evaluate.holdout=0.2",
    "evaluate.pairs=60",
    "evaluate.folds=5",
    "audit.identities=3",
    "audit.inversions=3",
    "audit.inversion_steps=3",
    "ingest.samples_per_shard=40",
    "export.samples_per_shard=25",
    "workers=1",
]


def config(*changed: str) -> Config:
    return load(preset="demo", overrides=[*OPTIONS, *changed])


def stages(record: dict[str, Any]) -> dict[str, bool]:
    return {stage["stage"]: stage["reused"] for stage in record["stages"]}


def manifest(run: Path) -> pd.DataFrame:
    return pd.read_parquet(run / "manifest")
