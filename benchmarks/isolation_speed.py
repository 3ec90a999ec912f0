"""How fast the judge goes, and how much memory it takes, on random embeddings with planted centers.

1. The paper's rule (vote the dominant sub-center, angle to it), a part of the identities on each core as the stage does it, beside the loop of
   insightface's drop.py re-implemented (per identity: a matrix product, an argmax, a bincount, in NumPy) and beside reading the embeddings once (a sum
   over the array).
2. The whole isolate stage, from Parquet to verdicts, at growing numbers of samples, by one worker and by two: seconds, samples per second, and the most
   memory that its processes had together: of their own (anonymous), and with what they map of files, which the system may take back.
3. The saved queries that need the manifest alone, over ten million rows in as many parts as the stage writes: asked, and as answers that the stage keeps.
Run: python benchmarks/isolation_speed.py [--samples 400000] [--dim 512] [--stage 100000 300000 1000000] [--stage-dim 128]
     [--stage-workers 1 2] [--manifest-rows 10000000] [--repeats 5]
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from arcface_core.angles import angle_deg, normalize
from arcface_core.noise.centers import angle_of, dominant, nearest_of, subcenter_angles, vote
from pipeline import tables
from pipeline.answers import FOLDER, keep_answers
from pipeline.config import load
from pipeline.fanout import fan_out, prepare
from pipeline.isolate import isolate
from pipeline.models import save_tensors
from pipeline.receipts import run_stage
from pipeline.report import report
from pipeline.shards import write_twin
from pipeline.threads import one_thread

PER_IDENTITY = 20
ROWS_PER_PART = 10_000
"""As in the stage: a part for each raw shard."""


def timed(work: Callable[[], object], repeats: int) -> tuple[float, float, float]:
    """Median, least and most seconds."""
    seconds = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), min(seconds), max(seconds)


def paper_rule(samples: int, dim: int, repeats: int) -> None:
    generator = torch.Generator().manual_seed(0)
    identities = samples // PER_IDENTITY
    centers = normalize(torch.randn(identities, 3, dim, generator=generator))
    class_N = torch.arange(samples) // PER_IDENTITY  # as in a crawl of a folder per person
    vectors = normalize(centers[class_N, 0] + 0.05 * torch.randn(samples, dim, generator=generator))

    cores = os.cpu_count() or 1
    parts = torch.arange(samples).split(-(-identities // cores) * PER_IDENTITY)  # identities stay whole, as in the buckets of the stage

    def judged(part: torch.Tensor) -> torch.Tensor:
        rows = slice(int(part[0]), int(part[-1]) + 1)
        first, last = int(class_N[rows.start]), int(class_N[rows.stop - 1])
        its_class_N = class_N[rows] - first
        angle_NK = subcenter_angles(vectors[rows], its_class_N, centers[first : last + 1])
        chosen = dominant(vote(nearest_of(angle_NK)[0], its_class_N, last + 1 - first, 3))
        return angle_of(angle_NK, chosen[its_class_N])

    def ours() -> torch.Tensor:
        with one_thread(), ThreadPoolExecutor(cores) as pool:
            return torch.cat(list(pool.map(judged, parts)))

    numpy_vectors, numpy_class, numpy_centers = vectors.numpy(), class_N.numpy(), centers.numpy()

    def loop() -> np.ndarray:
        found = np.empty(samples, np.float32)
        for identity in range(identities):
            rows = np.where(numpy_class == identity)[0]
            cosines = numpy_vectors[rows] @ numpy_centers[identity].T
            found[rows] = cosines[:, np.bincount(cosines.argmax(axis=1), minlength=3).argmax()]
        return found

    print(
        f"\nPaper's rule, {samples:,} x {dim}, {identities:,} identities, K = 3\n\n| | median s | least, most | ratio to reading |\n|---|---|---|---|"
    )
    read = timed(lambda: float(vectors.sum()), repeats)
    fast, slow = timed(ours, repeats), timed(loop, 1)
    assert np.allclose(angle_deg(torch.from_numpy(loop())), ours(), atol=0.1)
    for name, (median, least, most) in (("reading once", read), ("ours", fast), ("drop.py's loop", slow)):
        print(f"| {name} | {median:.3f} | {least:.3f}, {most:.3f} | {median / read[0]:.1f} |", flush=True)
    print(f"\nours against the loop: {slow[0] / fast[0]:.1f}x")


def make(root: Path, samples: int, dim: int) -> None:
    """Raw, train and embeddings folders of random people: 70 % clean, the rest strangers."""
    rng = np.random.default_rng(0)
    identities, per_shard = samples // PER_IDENTITY, ROWS_PER_PART
    names = np.array([f"{number:07d}" for number in range(identities)])
    faces = rng.standard_normal((identities, dim), np.float32)
    faces /= np.linalg.norm(faces, axis=1, keepdims=True)

    def raw(folder: Path) -> None:
        counted = pa.table({"identity": names, "items": np.full(identities, PER_IDENTITY), "samples": np.full(identities, PER_IDENTITY)})
        pq.write_table(counted.cast(tables.IDENTITIES), folder / "identities.parquet")
        for number, first in enumerate(range(0, samples, per_shard)):
            rows = np.arange(first, min(first + per_shard, samples))
            known = {"identity": names[rows // PER_IDENTITY], "source_uri": [f"{row:09d}" for row in rows], "status": ["ok"] * len(rows)}
            columns = [pa.array(known[f.name]) if f.name in known else pa.array(["x"] * len(rows)) if not f.nullable else pa.nulls(len(rows), f.type)
                       for f in tables.ITEMS]  # fmt: skip
            write_twin(folder / f"raw-{number:06d}.parquet", pa.Table.from_arrays(columns, schema=tables.ITEMS), {"tar_sha256": "no tar"})

    def train(folder: Path) -> None:
        classes = pa.table(
            {"class_index": np.arange(identities, dtype=np.int32), "identity": names, "samples": np.full(identities, PER_IDENTITY)}
        )
        pq.write_table(classes.cast(tables.CLASSES), folder / "classes.parquet")
        others = rng.standard_normal((identities, 2, dim), np.float32)
        save_tensors(
            folder / "head.safetensors", {"centers": normalize(torch.from_numpy(np.concatenate([faces[:, None], others], axis=1)))}
        )

    def embeddings(folder: Path) -> None:
        for number, first in enumerate(range(0, samples, per_shard)):
            rows = np.arange(first, min(first + per_shard, samples))
            vectors = rng.standard_normal((len(rows), dim), np.float32)
            is_clean = rng.random(len(rows)) < 0.7
            vectors[is_clean] = vectors[is_clean] * (0.9 / np.sqrt(dim)) + faces[rows[is_clean] // PER_IDENTITY]
            vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
            keys = [f"{row * 0x9E3779B97F4A7C15 % 2**64:032x}"[::-1] for row in rows.tolist()]
            flat = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), dim)
            columns = [pa.array(keys), pa.array(names[rows // PER_IDENTITY]), pa.array([f"{row:09d}" for row in rows]),
                       pa.array(np.ones(len(rows), np.float32)), flat]  # fmt: skip
            pq.write_table(pa.Table.from_arrays(columns, schema=tables.embeddings(dim)), folder / f"raw-{number:06d}.parquet")

    for name, work in (("raw", raw), ("train", train), ("embeddings", embeddings)):
        run_stage(root / name, stage=name, mark="0" * 64, work=lambda folder, work=work: work(folder) or {})


def memory(pid: int | str) -> tuple[int, int]:
    """Bytes that a process and its children hold now: of their own, and in all."""
    try:
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        children = [child for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]
    except OSError:  # it has ended
        return 0, 0
    own, all_ = (int(status.get(name, "0 kB").split()[0]) * 1024 for name in ("RssAnon", "VmRSS"))
    parts = [memory(child) for child in children]
    return own + sum(part[0] for part in parts), all_ + sum(part[1] for part in parts)


def stage(root: Path, workers: int) -> None:
    """Run in a process of its own: prints seconds, kept share, and peaks of memory."""
    config = load(overrides=["evaluate.holdout=0.02", f"workers={workers}"])
    peaks, over = [0, 0], threading.Event()
    prepare(["pipeline.isolate"], workers=workers)
    fan_out(len, ["", ""], workers=workers)  # in a run the stages before have started what workers are forked from

    def watch() -> None:
        while not over.wait(0.2):
            peaks[:] = map(max, zip(peaks, memory(os.getpid()), strict=True))

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    started = time.perf_counter()
    receipt = isolate(root / "raw", root / "train", root / "embeddings", root / "noise", config)
    seconds = time.perf_counter() - started
    over.set()
    watcher.join()
    total = sum(int(receipt.counts[name] or 0) for name in tables.VERDICTS)
    print(f"{seconds:.1f} {int(receipt.counts['keep'] or 0) / total:.3f} {peaks[0] / 2**30:.2f} {peaks[1] / 2**30:.2f}")


def whole_stage(sizes: list[int], dim: int, workers: list[int]) -> None:
    print(f"\nIsolate stage, {dim} dimensions, {PER_IDENTITY} samples an identity, 30 % noise\n")
    print(
        "| samples | identities | workers | s | times one | samples/s | own memory, GiB | with mapped files, GiB | kept |\n|" + "---|" * 9
    )
    for samples in sizes:
        with tempfile.TemporaryDirectory() as name:
            make(Path(name), samples, dim)
            first = 0.0
            for count in workers:
                done = subprocess.run(
                    [sys.executable, __file__, "--one-stage", name, str(count)], check=True, stdout=subprocess.PIPE, text=True
                )
                shutil.rmtree(Path(name) / "noise")
                seconds, kept, own, mapped = done.stdout.split()
                first = first or float(seconds)
                print(
                    f"| {samples:,} | {samples // PER_IDENTITY:,} | {count} | {seconds} | {first / float(seconds):.2f} "
                    f"| {samples / float(seconds):,.0f} | {own} | {mapped} | {kept} |",
                    flush=True,
                )


def write_manifest(folder: Path, rows: int) -> None:
    """Samples of 50 an identity, in no order, of ten thousand sites."""
    rng = np.random.default_rng(0)
    for part, first in enumerate(range(0, rows, ROWS_PER_PART)):
        count = min(ROWS_PER_PART, rows - first)
        angle = rng.normal(60, 20, count).clip(0, 180).astype(np.float32)
        measured = rng.random((5, count), np.float32)
        known = {
                "identity": np.char.add("P", (rng.integers(0, rows // 50, count)).astype(str)),
                "source_uri": [f"https://site{site}.org/{row}.jpg" for row, site in enumerate(rng.integers(0, 10_000, count).tolist(), first)],
                "angle_deg": angle, "consensus_angle_deg": angle, "noise_probability": (angle / 180).astype(np.float32),
                "quality": measured[0], "sharpness": measured[1], "brightness": measured[2], "yaw_deg": measured[3] * 90,
                "width_px": (measured[4] * 500).astype(np.int32), "height_px": (measured[4] * 500).astype(np.int32),
                "status": np.full(count, "ok"), "verdict": np.where(angle < 75, "keep", "drop"), "reason": np.full(count, "accepted"),
                "shard": np.full(count, "raw-000000"), "decided_by": np.full(count, "rule:calibrated"), "round": np.full(count, 2, np.int16),
            }  # fmt: skip
        columns = [pa.array(known[f.name]).cast(f.type) if f.name in known else pa.nulls(count, f.type) for f in tables.MANIFEST]
        pq.write_table(pa.Table.from_arrays(columns, schema=tables.MANIFEST), folder / f"part-{part:06d}.parquet", compression="zstd")


def reports(rows: int, repeats: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "manifest"
        folder.mkdir()
        write_manifest(folder, rows)
        started = time.perf_counter()
        keep_answers(folder)
        print(
            f"\nSaved queries over a manifest of {rows:,} rows; answering them all at the end of the stage: {time.perf_counter() - started:.1f} s"
        )
        print("\n| query | asked, median s | least, most | kept, median s | least, most |\n|---|---|---|---|---|")
        for path in sorted((folder / FOLDER).iterdir()):
            kept = timed(lambda name=path.stem: report(folder.parent, name), repeats)
            path.unlink()
            asked = timed(lambda name=path.stem: report(folder.parent, name), repeats)
            print("| {} | {:.2f} | {:.2f}, {:.2f} | {:.3f} | {:.3f}, {:.3f} |".format(path.stem, *asked, *kept), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=400_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--stage", type=int, nargs="*", default=[100_000, 300_000, 1_000_000])
    parser.add_argument("--stage-dim", type=int, default=128)
    parser.add_argument("--manifest-rows", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--stage-workers", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--one-stage", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one_stage:
        stage(Path(given.one_stage[0]), int(given.one_stage[1]))
        return
    print(f"{os.cpu_count()} cores, {platform.machine()}; torch {torch.__version__}")
    if given.samples:
        paper_rule(given.samples, given.dim, given.repeats)
    whole_stage(given.stage, given.stage_dim, given.stage_workers)
    if given.manifest_rows:
        reports(given.manifest_rows, given.repeats)


if __name__ == "__main__":
    main()
