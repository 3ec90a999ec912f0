"""What inverted faces are worth, as the paper measures it: by another model than the one that imagined them.

A synthetic crawl without noise; one backbone trained with ArcFace, one with softmax, and a judge with ArcFace from another seed. The centers of
some identities are inverted, and the judge says: the cosine to the identity that was meant, whether that identity is the nearest of all (rank-1),
and how far the images as a set are from the crawl's (Frechet distance of the judge's embeddings, which stands for FID). Beside it what the
inverted model says of itself, its BatchNorm gap, and seconds.
Run: python benchmarks/inversion.py [--identities 100] [--images 30] [--faces 64] [--steps 150 400] [--picture OUT.png]
"""

import argparse
import os
import platform
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image
from torch import Tensor

from arcface_core.angles import cosine, normalize, rowwise_cosine
from arcface_core.inversion import RECIPES, InversionResult, closed_set, invert
from arcface_core.margins import MARGINS
from pipeline import shards
from pipeline.config import Config, load
from pipeline.embed import embed, read_embeddings
from pipeline.embedders import Embedder, load_embedder
from pipeline.ingest import ingest
from pipeline.models import pick_device
from pipeline.synthetic import SyntheticCrawl, write_folder
from pipeline.train import read_classes, train


@dataclass(frozen=True)
class Judge:
    embedder: Embedder
    centers_CD: Tensor
    """Mean direction of each identity's own crops."""
    crops_ND: Tensor
    class_N: Tensor

    def see(self, images: Tensor) -> Tensor:
        return normalize((self.embedder.embed(images) + self.embedder.embed(images.flip(-1))) / 2)


def frechet(a_ND: Tensor, b_MD: Tensor) -> float:
    """Squared Frechet distance of two normal distributions with the means and covariances of two sets. Source: Heusel et al. 2017."""
    a, b = a_ND.double(), b_MD.double()
    covariance_a, covariance_b = torch.cov(a.T), torch.cov(b.T)
    root = torch.linalg.eigvals(covariance_a @ covariance_b).real.clamp_min(0).sqrt().sum()
    return float((a.mean(0) - b.mean(0)).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * root)


def trained(raw: Path, out: Path, config: Config) -> Path:
    train(raw, out, config)
    return out


def judge_of(raw: Path, training: Path, out: Path, config: Config, device: torch.device) -> Judge:
    embed(raw, training, out, config)
    names, _ = read_classes(training)
    index = {name: row for row, name in enumerate(names)}
    parts = [read_embeddings(out / f"{stem}.parquet") for stem in shards.shard_stems(raw)]
    identities = [name for _, found, _, _ in parts for name in found]
    vectors = torch.from_numpy(np.concatenate([one for _, _, _, one in parts]))
    known = torch.tensor([name in index for name in identities])
    class_N = torch.tensor([index[name] for name in identities if name in index])
    sums = torch.zeros(len(names), vectors.shape[1]).index_add_(0, class_N, vectors[known])
    return Judge(load_embedder(training, device), normalize(sums), vectors[known], class_N)


def shown(images: list[Tensor], crops: Tensor, out: Path) -> None:
    """A row for each set, a column an identity."""
    rows = [crops, *images]
    sheet = torch.cat([torch.cat(list(row[:12]), dim=2) for row in rows], dim=1)
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).resize((sheet.shape[2] * 2, sheet.shape[1] * 2), Image.Resampling.BICUBIC).save(out)


def first_crops(raw: Path, names: list[str], px: int) -> Tensor:
    found: dict[str, np.ndarray] = {}
    for stem in shards.shard_stems(raw):
        table = pq.read_table(raw / f"{stem}.parquet", columns=["identity", "status", "crop_offset", "crop_size"])
        with shards.CropReader(raw / f"{stem}.tar") as reader:
            for row in table.to_pylist():
                if row["status"] == "ok" and row["identity"] in names and row["identity"] not in found:
                    found[row["identity"]] = shards.decode_crop(reader.read(row["crop_offset"], row["crop_size"]), px)
    return torch.from_numpy(np.stack([found[name] for name in names])).permute(0, 3, 1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=100)
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--faces", type=int, default=64)
    parser.add_argument("--steps", type=int, nargs="*", default=[150, 400])
    parser.add_argument("--set", action="append", default=[], help="a setting of the training, as train.epochs=10")
    parser.add_argument("--picture", type=Path)
    given = parser.parse_args()
    base = load(preset="demo", overrides=["evaluate.holdout=0", "train.subcenters=1", *given.set])
    device = pick_device(base.device)
    print(
        f"{os.cpu_count()} cores, {platform.machine()}; {device}; torch {torch.__version__}; {base.train.backbone} on {base.train.input_px} px\n"
    )
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        write_folder(
            SyntheticCrawl(identities=given.identities, images=given.images, noise=0.0, seed=0), root / "crawl", root / "truth", workers=0
        )
        ingest(root / "crawl", root / "raw", base)
        softmax = replace(base, train=replace(base.train, margin="softmax"))
        models = {
            "ArcFace": trained(root / "raw", root / "arcface", base),
            "softmax": trained(root / "raw", root / "softmax", softmax),
        }
        judge = judge_of(root / "raw", trained(root / "raw", root / "judge", replace(base, seed=1)), root / "judged", base, device)
        own = rowwise_cosine(judge.crops_ND, judge.centers_CD[judge.class_N])
        named = cosine(judge.crops_ND, judge.centers_CD).argmax(dim=1) == judge.class_N
        print("| inverted | steps | judge: cosine | judge: rank-1 | judge: Frechet | own angle, degrees | BatchNorm gap | s a face |")
        print("|---|---|---|---|---|---|---|---|")
        print(f"| the crawl's own crops | | {own.mean():.3f} | {named.float().mean():.3f} | 0 | | | |")
        kept: list[Tensor] = []
        for title, model, recipe, is_closed in (
            ("ArcFace", "ArcFace", RECIPES["audit"], False),
            ("ArcFace, no BatchNorm term", "ArcFace", replace(RECIPES["audit"], bn_weight=0.0), False),
            ("ArcFace, from coarse to fine", "ArcFace", RECIPES["coarse"], False),
            ("ArcFace, neither moved nor annealed", "ArcFace", replace(RECIPES["audit"], is_moved=False, is_annealed=False), False),
            ("ArcFace, the paper's recipe and loss", "ArcFace", RECIPES["paper"], True),
            ("softmax", "softmax", RECIPES["audit"], False),
        ):
            names, centers_CKD = read_classes(models[model])
            chosen = torch.arange(min(given.faces, len(names)))
            embedder = load_embedder(models[model], device)
            assert embedder.module is not None
            for steps in given.steps:
                term = closed_set(centers_CKD[:, 0], chosen, margin=MARGINS["arcface"], scale=base.train.scale) if is_closed else None
                started = time.perf_counter()
                found: InversionResult = invert(embedder.module, centers_CKD[chosen, 0].to(device), input_px=embedder.input_px, steps=steps, seed=0,
                                                device=device, recipe=recipe, identity=term)  # fmt: skip
                seconds = time.perf_counter() - started
                seen = judge.see(found.images)
                cos = rowwise_cosine(seen, judge.centers_CD[chosen])
                right = cosine(seen, judge.centers_CD).argmax(dim=1) == chosen
                print(
                    f"| {title} | {steps} | {cos.mean():.3f} | {right.float().mean():.3f} | {frechet(seen, judge.crops_ND):.3f} | "
                    f"{found.angle_deg.mean():.1f} | {found.bn_gap:.1f} | {seconds / len(chosen):.2f} |",
                    flush=True,
                )
            kept.append(found.images)
        if given.picture:
            shown(kept, first_crops(root / "raw", names[:12], base.train.input_px), given.picture)


if __name__ == "__main__":
    main()
