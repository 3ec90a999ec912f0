"""What a margin is worth to the first round: the same synthetic crawl, trained with K = 3 by each margin, and judged.

AUROC of the angle, what the judge makes of it, verification of people whom no crawl knows, and the AUROC of a sample's norm as a sign of noise
(low norm: noise), which is 0.5 where the norm knows nothing of it. `margin_rad` and all else are the preset's.
Run: python benchmarks/margins.py [--margins arcface adaface magface] [--seeds 1] [--identities 150] [--images 40] [--noise 0.5]
(some minutes a margin and seed on 2 cores)
"""

import argparse
import os
import platform
import statistics
import tempfile
from pathlib import Path

import duckdb
import torch
from purification import angle_auroc, unseen_accuracy

from arcface_core.protocols.verification import auroc
from pipeline.config import load
from pipeline.duck import every, fetch, literal
from pipeline.embed import embed
from pipeline.export import write_manifest
from pipeline.ingest import ingest
from pipeline.isolate import isolate
from pipeline.layout import RunLayout
from pipeline.models import pick_device
from pipeline.score import score
from pipeline.synthetic import SyntheticCrawl, write_folder, write_verification_pairs
from pipeline.train import train


def norm_auroc(noise: Path, truth: Path) -> float:
    """That a sample of noise has a lower norm than a clean one."""
    with duckdb.connect() as db:
        joined = "FROM read_parquet($found) f JOIN read_parquet($truth) t ON t.item = f.source_uri WHERE f.quality IS NOT NULL"
        rows = fetch(db, f"SELECT f.quality, t.is_noise {joined}", {"found": every(noise, "raw-*.parquet"), "truth": literal(truth)})
    return float(auroc(-torch.from_numpy(rows["quality"].to_numpy().copy()), torch.tensor(rows["is_noise"].to_pylist())))


def first_round(run: RunLayout, raw: Path, truth: Path, pairs: Path, overrides: list[str]) -> dict[str, float]:
    config, one = load(preset="demo", overrides=overrides), run.round(1)
    trained = train(raw, one.train, config)
    embed(raw, one.train, one.embeddings, config)
    isolate(raw, one.train, one.embeddings, one.noise, config)
    write_manifest(raw, one.noise, 1, run.manifest, config)
    found = score(run.root, truth)
    return {
        "AUROC of the angle": angle_auroc(one.noise, truth),
        "AUROC of the norm": norm_auroc(one.noise, truth),
        "precision of what is removed": found.precision,
        "recall of the noise": found.recall,
        "clean samples kept": found.clean_kept,
        "noise among the samples, before": found.noise_before,
        "noise among the kept, after": found.noise_after,
        "unseen people": unseen_accuracy(one.train, pairs, pick_device(config.device)),
        "steps": float(str(trained.counts["steps"])),
        "seconds, train": trained.seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--margins", nargs="+", default=["arcface", "adaface", "magface"])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--identities", type=int, default=150)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--noise", type=float, default=0.5)
    given = parser.parse_args()
    found: dict[str, list[dict[str, float]]] = {margin: [] for margin in given.margins}
    for seed in range(given.seeds):
        settings = SyntheticCrawl(identities=given.identities, images=given.images, noise=given.noise, seed=seed)
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            write_folder(settings, root / "crawl", root / "truth.parquet", workers=0)
            write_verification_pairs(settings, root / "unseen.bin", pairs=2000)
            ingest(root / "crawl", root / "raw", load(preset="demo", overrides=[f"seed={seed}"]))
            for margin, rows in found.items():
                overrides = [f"seed={seed}", f"train.margin={margin}"]
                rows.append(first_round(RunLayout(root / margin), root / "raw", root / "truth.parquet", root / "unseen.bin", overrides))
                print(f"seed {seed}, {margin}: {rows[-1]}", flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores, {platform.machine()}, no GPU"
    print(
        f"\n{given.identities} identities x {given.images}, {given.noise:.0%} noise, {given.seeds} seeds; {device}; torch {torch.__version__}\n"
    )
    print(f"| | {' | '.join(found)} |\n|---|{'---|' * len(found)}")
    for name in found[given.margins[0]][0]:
        digits = 0 if name == "steps" else 1 if name.startswith("seconds") else 3
        means = [statistics.mean(one[name] for one in rows) for rows in found.values()]
        print(f"| {name} | {' | '.join(f'{mean:.{digits}f}' for mean in means)} |")


if __name__ == "__main__":
    main()
