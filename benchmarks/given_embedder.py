"""What `--embedder` costs: clustering the identities of a crawl into sub-centers, and the memory of the stage that does it.

Embeddings are random (64 directions' worth of people plus noise), since neither time nor memory asks what they mean. Two ways to cluster: identities of one size at
once, as the stage does, and one by one. The stage runs in a process of its own, and its peak memory is printed beside the size of the embeddings.
Run: python benchmarks/given_embedder.py [--identities 20000] [--dim 512]
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from arcface_core.noise.centers import cluster_centers, cluster_groups, groups_of_one_size
from pipeline import tables
from pipeline.centers import find_centers
from pipeline.config import load
from pipeline.receipts import run_stage

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


def write_round(root: Path, sizes: np.ndarray, dim: int) -> tuple[Path, Path, Path]:
    names = [f"{number:07d}" for number in range(len(sizes))]
    owner = np.random.default_rng(1).permutation(np.repeat(np.arange(len(sizes)), sizes))

    def raw(out: Path) -> None:
        rows = {"identity": names, "items": sizes, "samples": sizes}
        pq.write_table(pa.table(rows).cast(tables.IDENTITIES), out / "identities.parquet")

    def embeddings(out: Path) -> None:
        for number, start in enumerate(range(0, len(owner), PER_SHARD)):
            chosen = owner[start : start + PER_SHARD]
            flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors_of(np.ones(len(chosen), int), dim, number).ravel()), dim)
            keys = [f"{start + at:032x}" for at in range(len(chosen))]
            columns = [
                pa.array(keys),
                pa.array([names[one] for one in chosen]),
                pa.array(keys),
                pa.array(np.ones(len(chosen), np.float32)),
                flat,
            ]
            pq.write_table(pa.Table.from_arrays(columns, schema=tables.embeddings(dim)), out / f"raw-{number:06d}.parquet")

    def embedder(out: Path) -> None:
        (out / "model.onnx").write_bytes(b"")
        (out / "model.json").write_text(json.dumps({"file": "model.onnx"}))

    folders = []
    for name, write in (("raw", raw), ("embedder", embedder), ("embeddings", embeddings)):
        run_stage(root / name, stage=name, mark="0" * 64, work=lambda out, write=write: write(out) or {})
        folders.append(root / name)
    return folders[0], folders[1], folders[2]


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
        folders = write_round(root, sizes, given.dim)
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


if __name__ == "__main__":
    main()
