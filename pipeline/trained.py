"""What a training was made of, as its model.json tells: settings, the shards it saw, the training of the round before. By this it is known whether
it may be used as it is, though the crawl has grown."""

import json
from pathlib import Path
from typing import Any

from pipeline import shards
from pipeline.config import Config, as_dict
from pipeline.errors import BadConfig
from pipeline.models import load_tensors
from pipeline.receipts import Receipt, mark_of, read, write_json
from pipeline.sums import file_sha256

VERSION = 4
"""Of the stage `train`."""
_CHANGES_NO_RESULT = {"cache_bytes", "checkpoint_steps", "compile", "processes", "recompute", "tensorboard"}
"""Beyond rounding."""


def settings_of(config: Config) -> dict[str, Any]:
    """What a training depends on besides its data. Of the weights to start from the SHA-256. Raises BadCheckpoint when they cannot be read."""
    settings = {name: value for name, value in as_dict(config.train).items() if name not in _CHANGES_NO_RESULT}
    if config.train.init is not None:
        load_tensors(Path(config.train.init))
        settings["init"] = file_sha256(Path(config.train.init))
    return {f"train.{name}": value for name, value in settings.items()} | {"seed": config.seed, "evaluate.holdout": config.evaluate.holdout}


def tars(raw: Path) -> dict[str, str]:
    """SHA-256 of every raw shard's tar, by stem."""
    return {stem: shards.read_facts(raw / f"{stem}.parquet")["tar_sha256"] for stem in shards.shard_stems(raw)}


def tell(folder: Path, raw: Path, config: Config, before: Path | None) -> None:
    """Add what the training in `folder` was made of to its model.json; `before` is the training of the round before."""
    path = folder / "model.json"
    facts = json.loads(path.read_text("utf-8"))
    made_of = {"version": VERSION, "settings": settings_of(config), "before": mark_of(before) if before else None, "shards": tars(raw)}
    write_json(path, facts | {"trained": made_of})


def made_of(train: Path) -> dict[str, Any] | None:
    """What `tell` told of a finished training; None when there is none that this version made."""
    if read(train) is None:
        return None
    facts: dict[str, Any] | None = json.loads((train / "model.json").read_text("utf-8")).get("trained")
    return facts if facts and facts["version"] == VERSION else None


def changed_settings(train: Path, config: Config) -> list[str]:
    """In words, the settings that a finished training was made with and `config` has otherwise."""
    told = made_of(train)
    if told is None:
        return []
    then, now = told["settings"], settings_of(config)
    return [f"{name} was {then.get(name)!r} and is {value!r}" for name, value in now.items() if then.get(name) != value]


def kept(train: Path, raw: Path, config: Config, *, before: Path | None) -> Receipt | None:
    """The receipt of a finished training, to be used as it is, with the shards that it has not seen counted. None when there is none to keep: not
    finished, of an earlier version, or made from verdicts of another training than `before`, the one of the round before.

    Raises BadConfig when the settings are others than it was made with.
    """
    told, receipt = made_of(train), read(train)
    if told is None or receipt is None or told["before"] != (mark_of(before) if before else None):
        return None
    if changed := changed_settings(train, config):
        raise BadConfig(
            f"{train} was trained with other settings: {'; '.join(changed)}. --mode judge trains nothing. "
            "Give the settings as they were, or train anew with --mode full."
        )
    new = unseen(told["shards"], raw)
    counts = receipt.counts | {"kept_training": True, "shards": len(told["shards"]), "new_shards": len(new)}
    return Receipt(receipt.stage, receipt.fingerprint, counts, receipt.seconds, reused=True)


def unseen(seen: dict[str, str], raw: Path) -> set[str]:
    """Stems of the raw shards of which a training that saw `seen` has not seen these very bytes: new ones, and those that `forget` rewrote."""
    return {stem for stem, digest in tars(raw).items() if seen.get(stem) != digest}
