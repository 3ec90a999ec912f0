"""What `--embedder` costs and finds: clustering the identities of a crawl into sub-centers, the memory of the stage that does it, planted noise.

Embeddings are random (64 directions' worth of people plus noise), since neither time nor memory asks what they mean. Two ways to cluster: identities of one size at
once, as the stage does, and one by one. The stage runs in a process of its own, and its peak memory is printed beside the size of the embeddings.
With --embeddings FACES.npz (as benchmarks/isolation_quality.py takes it) noise is planted among real faces, and both rounds are judged: centers clustered
of all, and of what was kept.
Run: python benchmarks/given_embedder.py [--identities 20000] [--dim 512] [--embeddings FACES.npz]
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from isolation_quality import f1, plant
from sklearn.metrics import roc_auc_score

from arcface_core.noise.centers import cluster_centers, cluster_groups, groups_of_one_size
from pipeline import tables
from pipeline.centers import find_centers
from pipeline.config import load
from pipeline.isolate import isolate
from pipeline.receipts import run_stage
from pipeline.shards import write_twin

PER_SHARD = 10_000
ONE_BY_ONE = 2_000
"""Identities that are clustered one by one; the rest is extrapolated."""


def sizes_of(identities: int) -> np.ndarray:
    """Pictures of each identity: from 2 to 200, half of them below 20."""
    return np.round(np.exp(np.random.default_rng(0).uniform(np.log(2), np.log(200), identities))).astype(int)


def vectors_of(sizes: np.ndarray, dim: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    vectors = np.repeat(rng.normal(size=(len(sizes), dim)), sizes, axis=0) + rng.normal(size=(sizes.sum(), dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def write_round(root: Path, identities: list[str], shards: Iterator[np.ndarray], dim: int) -> tuple[Path, Path, Path]:
    """(raw, embedder, embeddings) of samples, of which `identities` says whose they claim to be, and `shards` their vectors."""
    names, counts = np.unique(identities, return_counts=True)
    keys = [f"{number * 0x9E3779B97F4A7C15 % 2**128:032x}" for number in range(len(identities))]
    uris = [f"{number:09d}" for number in range(len(identities))]

    def raw(out: Path) -> None:
        pq.write_table(
            pa.table({"identity": names, "items": counts, "samples": counts}).cast(tables.IDENTITIES), out / "identities.parquet"
        )

    def embeddings(out: Path) -> None:
        start = 0
        for number, vectors in enumerate(shards):
            rows = slice(start, start + len(vectors))
            start = rows.stop
            flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), dim)
            columns = [pa.array(one[rows]) for one in (keys, identities, uris)] + [pa.array(np.ones(len(vectors), np.float32)), flat]
            pq.write_table(pa.Table.from_arrays(columns, schema=tables.embeddings(dim)), out / f"raw-{number:06d}.parquet")
            items = {name: pa.nulls(len(vectors), tables.ITEMS.field(name).type) for name in tables.ITEMS.names}
            items |= {"sample_id": keys[rows], "identity": identities[rows], "source_uri": uris[rows], "status": ["ok"] * len(vectors)}
            items |= {"shard": [f"raw-{number:06d}"] * len(vectors)}
            write_twin(root / "raw" / f"raw-{number:06d}.parquet", pa.table(items, schema=tables.ITEMS), {"tar_sha256": "no tar"})

    def embedder(out: Path) -> None:
        (out / "model.onnx").write_bytes(b"")
        (out / "model.json").write_text(json.dumps({"file": "model.onnx"}))

    folders = []
    for name, write in (("raw", raw), ("embedder", embedder), ("embeddings", embeddings)):
        run_stage(root / name, stage=name, mark="0" * 64, work=lambda out, write=write: write(out) or {})
        folders.append(root / name)
    return folders[0], folders[1], folders[2]


def real_faces(path: Path) -> None:
    """The table of planted noise: both rounds, by our judge and by the paper's 75 degrees, seed 0."""
    found = np.load(path)
    vectors, names = torch.from_numpy(found["embeddings"].astype(np.float32)), list(found["names"])
    print(
        "\n| noise planted | round | F1 of our judge | clean lost | F1 at 75 degrees | AUROC of the angle | noise rate estimated |\n|---|---|---|---|---|---|---|"
    )
    for kind, rate in (("half and half", 0.5), ("confusable flips", 0.3), ("strangers", 0.0)):
        case = plant(vectors, names, kind, rate, 0)
        unit, wrong = torch.nn.functional.normalize(case["vectors"], dim=1).numpy(), case["wrong"]
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            raw, embedder, embeddings = write_round(root, [f"{one:05d}" for one in case["class"].tolist()], iter([unit]), unit.shape[1])
            config, kept_by = load(overrides=["device=cpu"]), None
            for number in (1, 2):
                find_centers(raw, embedder, embeddings, root / f"train{number}", config, noise=kept_by)
                isolate(raw, root / f"train{number}", embeddings, root / f"noise{number}", config, previous=kept_by)
                kept_by = root / f"noise{number}"
                judged = pq.read_table(kept_by / "raw-000000.parquet").sort_by("source_uri")
                said = zip(judged["verdict"].to_pylist(), judged["reason"].to_pylist(), strict=True)
                removed = torch.tensor([verdict != "keep" and reason != "near_duplicate" for verdict, reason in said])
                angle = torch.from_numpy(judged["angle_deg"].to_numpy().copy()).nan_to_num(180.0)
                area = f"{roc_auc_score(wrong.numpy(), angle.numpy()):.4f}" if bool(wrong.any()) else "-"
                rates = json.loads((kept_by / "judge.json").read_text())["noise_rate"]
                scores = (f1(removed, wrong), f1(angle > 75, wrong)) if bool(wrong.any()) else ()
                ours, paper = [f"{score:.4f}" for score in scores] or ["-", "-"]
                lost = float((removed & ~wrong).sum() / (~wrong).sum())
                print(
                    f"| {float(wrong.float().mean()):.2f} {kind} | {number} | {ours} | {lost:.4f} | {paper} | {area} | {rates:.3f} |",
                    flush=True,
                )


def peak_gb() -> float:
    """Of this process since it began. Linux's ru_maxrss would hold the parent's too."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1e6


def stage(raw: Path, embedder: Path, embeddings: Path, out: Path, results: "multiprocessing.Queue[tuple[float, float, float]]") -> None:
    before = peak_gb()
    receipt = find_centers(raw, embedder, embeddings, out, load(overrides=["device=cpu"]))
    results.put((receipt.seconds, before, peak_gb()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--identities", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--embeddings", type=Path)
    given = parser.parse_args()
    sizes = sizes_of(given.identities)
    part = sizes[: min(ONE_BY_ONE, len(sizes))]
    unit = torch.from_numpy(vectors_of(part, given.dim, 0))
    class_N = torch.from_numpy(np.repeat(np.arange(len(part)), part))
    print(
        f"{given.identities:,} identities, {sizes.sum():,} samples, {given.dim} dimensions, K = 3; {torch.get_num_threads()} threads of torch\n"
    )

    started = time.perf_counter()
    batched = torch.zeros(len(part), 3, given.dim)
    for identity_G, place_Gn in groups_of_one_size(class_N, given.dim):
        batched[identity_G] = cluster_groups(unit[place_Gn], 3)
    at_once = time.perf_counter() - started
    started = time.perf_counter()
    alone = torch.stack([cluster_centers(unit[class_N == number], 3) for number in range(len(part))])
    one_by_one = time.perf_counter() - started
    same = float((torch.minimum(batched, alone) - torch.maximum(batched, alone)).abs().amax(dim=(1, 2)).lt(1e-4).float().mean())
    print("| K-means of", f"{len(part):,} identities, {len(unit):,} samples | seconds | samples / s |\n|---|---|---|")
    print(f"| one by one | {one_by_one:.2f} | {len(unit) / one_by_one:,.0f} |")
    print(f"| identities of one size at once | {at_once:.2f} | {len(unit) / at_once:,.0f} |")
    print(f"\n{one_by_one / at_once:.1f} times as fast; {same:.1%} of the identities have the same centers to 1e-4\n")

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        owner = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))
        starts = range(0, len(owner), PER_SHARD)
        shards = (vectors_of(np.ones(len(owner[start : start + PER_SHARD]), int), given.dim, start) for start in starts)
        folders = write_round(root, [f"{one:07d}" for one in owner], shards, given.dim)
        context = multiprocessing.get_context("spawn")
        results: multiprocessing.Queue[tuple[float, float, float]] = context.Queue()
        process = context.Process(target=stage, args=(*folders, root / "train", results))
        process.start()
        seconds, before, after = results.get()
        process.join()
    size = sizes.sum() * given.dim * 4 / 1e9
    centers = given.identities * 3 * given.dim * 4 / 1e9
    print("| stage `centers` | |\n|---|---|")
    print(f"| seconds | {seconds:.1f} |\n| samples / s | {sizes.sum() / seconds:,.0f} |")
    print(
        f"| peak memory, above that after imports ({before:.2f} GB) | {after - before:.2f} GB |\n| embeddings / centers | {size:.2f} / {centers:.2f} GB |"
    )
    if given.embeddings:
        real_faces(given.embeddings)


if __name__ == "__main__":
    main()
