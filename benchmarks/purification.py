"""What purification finds and what it is worth, on synthetic crawls with planted noise.

Per seed: round 1 with K = 3 and with K = 1 on the same crawl (AUROC of the angle), round 2 (K = 1 on what round 1 kept), and a backbone trained
on the true labels as the ceiling. Verification accuracy on pairs of people whom no crawl knows. Seconds per stage.
Run: python benchmarks/purification.py [--seeds 3] [--identities 150] [--images 40] [--noise 0.5]        (about 7 minutes a seed on 2 cores)
"""

import argparse
import os
import platform
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path

import duckdb
import torch

from arcface_core.angles import rowwise_cosine
from arcface_core.protocols.verification import auroc, kfold_accuracy
from pipeline.ceiling import train_on_truth
from pipeline.config import Config, load
from pipeline.duck import every, fetch, literal
from pipeline.embed import embed, features_of
from pipeline.embedders import load_embedder
from pipeline.export import write_manifest
from pipeline.ingest import ingest
from pipeline.isolate import isolate
from pipeline.layout import RunLayout
from pipeline.metrics import gap_recovered
from pipeline.models import pick_device
from pipeline.receipts import Receipt
from pipeline.score import score
from pipeline.synthetic import SyntheticCrawl, write_folder, write_verification_pairs
from pipeline.train import train
from pipeline.verification_bin import read_bin


def angle_auroc(noise: Path, truth: Path) -> float:
    with duckdb.connect() as db:
        joined = "FROM read_parquet($found) f JOIN read_parquet($truth) t ON t.item = f.source_uri WHERE NOT isnan(f.angle_deg)"
        rows = fetch(db, f"SELECT f.angle_deg, t.is_noise {joined}", {"found": every(noise, "raw-*.parquet"), "truth": literal(truth)})
    return float(auroc(torch.from_numpy(rows["angle_deg"].to_numpy().copy()), torch.tensor(rows["is_noise"].to_pylist())))


def unseen_accuracy(trained: Path, pairs: Path, device: torch.device) -> float:
    pictures, same = read_bin(pairs)
    embedder = load_embedder(trained, device)
    parts = [torch.from_numpy(features_of(pictures[at : at + 256], embedder)) for at in range(0, len(pictures), 256)]
    vectors = torch.cat(parts)
    return float(kfold_accuracy(rowwise_cosine(vectors[0::2], vectors[1::2]), torch.tensor(same)).mean)


def one_seed(root: Path, settings: SyntheticCrawl, config: Config) -> dict[str, float]:
    write_folder(settings, root / "crawl", root / "truth.parquet", workers=0)
    write_verification_pairs(settings, root / "unseen.bin", pairs=2000)
    run, truth, device = RunLayout(root / "run"), root / "truth.parquet", pick_device(config.device)
    receipts: dict[str, Receipt] = {"ingest": ingest(root / "crawl", run.raw, config)}
    kept_by = None
    for number in (1, 2):
        one = run.round(number)
        receipts[f"train, round {number}"] = train(run.raw, one.train, config, noise=kept_by)
        receipts[f"embed, round {number}"] = embed(run.raw, one.train, one.embeddings, config)
        receipts[f"isolate, round {number}"] = isolate(run.raw, one.train, one.embeddings, one.noise, config, previous=kept_by)
        kept_by = one.noise
    write_manifest(run.raw, run.round(2).noise, 2, run.manifest, config)
    single = RunLayout(root / "single").round(1)
    plain = replace(config, train=replace(config.train, subcenters=1))
    train(run.raw, single.train, plain)
    embed(run.raw, single.train, single.embeddings, plain)
    isolate(run.raw, single.train, single.embeddings, single.noise, plain)
    ceiling = train_on_truth(run, truth, root / "ceiling", config)
    found = score(run.root, truth)
    rows = {
        "AUROC of the angle, round 1, K = 3": angle_auroc(run.round(1).noise, truth),
        "AUROC of the angle, round 1, K = 1": angle_auroc(single.noise, truth),
        "AUROC of the angle, round 2": angle_auroc(run.round(2).noise, truth),
        "precision of what is removed": found.precision,
        "recall of the noise": found.recall,
        "clean samples kept": found.clean_kept,
        "noise among the samples, before": found.noise_before,
        "noise among the kept, after": found.noise_after,
        "unseen people, K = 1 on the noisy crawl": unseen_accuracy(single.train, root / "unseen.bin", device),
        "unseen people, K = 3 on the noisy crawl": unseen_accuracy(run.round(1).train, root / "unseen.bin", device),
        "unseen people, K = 1 on what was kept": unseen_accuracy(run.round(2).train, root / "unseen.bin", device),
        "unseen people, K = 1 on the true labels": unseen_accuracy(ceiling, root / "unseen.bin", device),
    }
    noisy, purified, true = (rows[f"unseen people, K = 1 on {what}"] for what in ("the noisy crawl", "what was kept", "the true labels"))
    rows["share of the gap recovered"] = gap_recovered(noisy, purified, true) or 0.0
    return rows | {f"seconds, {name}": receipt.seconds for name, receipt in receipts.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--identities", type=int, default=150)
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--noise", type=float, default=0.5)
    given = parser.parse_args()
    found = []
    for seed in range(given.seeds):
        settings = SyntheticCrawl(identities=given.identities, images=given.images, noise=given.noise, seed=seed)
        with tempfile.TemporaryDirectory() as root:
            found.append(one_seed(Path(root), settings, load(preset="demo", overrides=[f"seed={seed}"])))
        print(f"seed {seed} done", flush=True)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{os.cpu_count()} cores, {platform.machine()}, no GPU"
    print(
        f"\n{given.identities} identities x {given.images}, {given.noise:.0%} noise, {given.seeds} seeds; {device}; torch {torch.__version__}\n"
    )
    print("| | mean | seeds |\n|---|---|---|")
    for name in found[0]:
        values = [one[name] for one in found]
        digits = 1 if name.startswith("seconds") else 3
        print(f"| {name} | {statistics.mean(values):.{digits}f} | {', '.join(f'{value:.{digits}f}' for value in values)} |")


if __name__ == "__main__":
    main()
