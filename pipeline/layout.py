"""The one map from names to paths in a run folder."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class RoundLayout:
    """One round: train + embed + isolate."""

    root: Path
    number: int

    @property
    def train(self) -> Path:
        """backbone.safetensors, head.safetensors (`centers` [C, K, D]), classes.parquet, model.json, metrics.parquet. Where a model was given: its
        file in place of the first, and no metrics."""
        return self.root / "train"

    @property
    def embeddings(self) -> Path:
        """A Parquet file per raw shard, of the same stem (`tables.EMBEDDINGS`)."""
        return self.root / "embeddings"

    @property
    def noise(self) -> Path:
        """A Parquet file per raw shard, of the same stem (`tables.NOISE`), and `judge.json`: what the judge estimated."""
        return self.root / "noise"


@dataclass(frozen=True)
class RunLayout:
    """A run folder. Every folder in it is complete, proven by its `_receipt.json`, or not there."""

    root: Path

    @property
    def run_json(self) -> Path:
        return self.root / "run.json"

    @property
    def raw(self) -> Path:
        """raw-000000.tar + raw-000000.parquet (`tables.ITEMS`) ..., and identities.parquet (`tables.IDENTITIES`)."""
        return self.root / "raw"

    @property
    def identities(self) -> Path:
        return self.raw / "identities.parquet"

    @property
    def embedder(self) -> Path:
        """model.onnx (or .safetensors, .pt, .pth) and model.json, when a model was given in place of training."""
        return self.root / "embedder"

    @property
    def rounds(self) -> list[RoundLayout]:
        """The rounds that were begun, in order."""
        return [self.round(number) for number in self.round_numbers]

    @property
    def round_numbers(self) -> list[int]:
        return sorted(int(path.name) for path in (self.root / "rounds").glob("*") if path.name.isdecimal())

    def round(self, number: int) -> RoundLayout:
        return RoundLayout(self.root / "rounds" / str(number), number)

    @property
    def manifest(self) -> Path:
        """part-000000.parquet ... (`tables.MANIFEST`): one row per crawl item; and `_answers/` (`answers.py`)."""
        return self.root / "manifest"

    @property
    def protected(self) -> Path:
        """contamination.parquet (`tables.CONTAMINATION`), when the settings name sets to protect."""
        return self.root / "protected"

    @property
    def decisions(self) -> Path:
        """A Parquet file per act of a person (`tables.DECISIONS`), never rewritten but by `forget`."""
        return self.root / "decisions"

    @property
    def forgotten(self) -> Path:
        """A Parquet file of keyed hashes per act of forgetting (`tables.FORGOTTEN`), `key`, and `pending.json` while an act is not finished."""
        return self.root / "forgotten"

    @property
    def pending(self) -> Path:
        """There while a `forget` goes on, or was stopped half way."""
        return self.forgotten / "pending.json"

    @property
    def history(self) -> Path:
        """000001-<run id>.json ...: what each finished run, and each export of decisions, came to, never rewritten."""
        return self.root / "history"

    @property
    def clean(self) -> Path:
        """clean-000000.tar + .parquet ..., dataset.json."""
        return self.root / "clean"

    @property
    def evaluation(self) -> Path:
        """metrics.parquet (`tables.METRICS`) and roc.parquet."""
        return self.root / "evaluation"

    @property
    def audit(self) -> Path:
        return self.root / "audit"

    @property
    def audit_page(self) -> Path:
        return self.audit / "index.html"
