"""A model that stands in for training: proven to embed, and copied into the run, which thus needs nothing from outside of it."""

import shutil
from pathlib import Path

from pipeline.config import Config, EmbedderConfig, as_dict
from pipeline.embedders import load_embedder, locate
from pipeline.errors import BadConfig
from pipeline.models import pick_device
from pipeline.receipts import Counts, Progress, Receipt, atomic, fingerprint, run_stage, write_json
from pipeline.sums import file_sha256

VERSION = 1


def adopt(out: Path, config: Config, *, progress: Progress | None = None) -> Receipt:
    """Receipt of `out`: a copy of `embedder.model`, and model.json, which says what `load_embedder` cannot see in it.

    Raises BadConfig when weights to start a training from are given too; BadInput for a model that cannot serve.
    """
    if config.train.init is not None:
        raise BadConfig("embedder.model stands in for training, and train.init begins one. Give either --embedder or --init.")
    path, settings = locate(Path(config.embedder.model or ""), config.embedder)
    mark = fingerprint("adopt", VERSION, _told(settings), model=file_sha256(path))

    def work(folder: Path) -> Counts:
        embedder = load_embedder(path, pick_device(config.device), settings)
        file = f"model{path.suffix.lower()}"
        with atomic(folder / file) as temporary:
            shutil.copyfile(path, temporary)
        facts = {"file": file, "name": embedder.name, "sha256": embedder.sha256, "embedding_dim": embedder.dim}
        write_json(folder / "model.json", facts | _told(settings) | {"input_px": embedder.input_px})
        if progress:
            progress(1, 1)
        return {"name": embedder.name, "kind": embedder.kind, "sha256": embedder.sha256, "dim": embedder.dim, "input_px": embedder.input_px}

    return run_stage(out, stage="adopt", mark=mark, work=work)


def _told(settings: EmbedderConfig) -> dict[str, object]:
    return {name: value for name, value in as_dict(settings).items() if name != "model" and value is not None}
