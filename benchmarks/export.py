"""How fast exports are, beside `cp` of the very files that they write: clean shards from raw ones, and every form from clean shards.

    python benchmarks/export.py --samples 200000 --workers 2

Crops are bytes of random lengths about those of real 112 x 112 crops; nothing in an export looks into them. For each row the export runs, then
`cp -r --reflink=never` copies its output, by turns on the same disk, each followed by `sync -f`; the medians are compared. `recordio` is sorted
by identity, and what is sorted outside of memory is written twice: its output is copied, and then the copy. What is read is in the page cache for
both where memory allows. The wanted ratio is 0.8. CPU seconds are those of all processes, their start included, and what to trust when others use
the machine: `cp` of the same bytes takes four times as long where the memory that it fills was given back to the host of a virtual machine.
"""

import argparse
import itertools
import os
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from pipeline import tables
from pipeline.config import load
from pipeline.export import export_clean, write_manifest
from pipeline.exporters import EXPORTERS
from pipeline.exporters.base import Wanted
from pipeline.exporters.stage import export_to
from pipeline.receipts import write_json
from pipeline.shards import ShardWriter, json_bytes, table_of, write_twin
from pipeline.verify import verify

WANTED = 0.8
PER_SHARD = 10_000


def write_raw(raw: Path, noise: Path, samples: int, identities: int) -> None:
    """Raw shards and noise tables of kept samples, `identities` in mixed order."""
    random = np.random.default_rng(0)
    content = memoryview(random.bytes(2**22))
    for folder in (raw, noise):
        folder.mkdir(parents=True)
        write_json(folder / "_receipt.json", {"stage": "made", "fingerprint": "0" * 64, "counts": {}, "seconds": 1.0})
    for first in range(0, samples, PER_SHARD):
        stem = f"raw-{first // PER_SHARD:06d}"
        rows = []
        count = min(PER_SHARD, samples - first)
        sizes = np.clip(random.normal(4500, 1200, count), 1500, 12_000).astype(int)
        starts, whose = random.integers(0, 2**22 - 12_000, count), random.integers(0, identities, count)
        with ShardWriter(raw / f"{stem}.tar") as shard:
            for place, (size, start, who) in enumerate(zip(sizes.tolist(), starts.tolist(), whose.tolist(), strict=True), first):
                key, name, uri = f"{place:032x}", f"Person {who:06d}", f"Person {who:06d}/{place}.jpg"
                offset = shard.add(key, {"jpg": content[start : start + size], "json": json_bytes({"identity": name, "source_uri": uri})})[
                    "jpg"
                ]
                rows.append(
                    {
                        "sample_id": key,
                        "identity": name,
                        "source_uri": uri,
                        "shard": stem,
                        "status": "ok",
                        "crop_offset": offset,
                        "crop_size": size,
                    }
                    | {"verdict": "keep", "reason": "accepted", "angle_deg": 30.0, "noise_probability": 0.01, "quality": 20.0}
                )
        write_twin(raw / f"{stem}.parquet", table_of(rows, tables.ITEMS), shard.sidecar)
        pq.write_table(table_of(rows, tables.NOISE), noise / f"{stem}.parquet")


def seconds(act: Callable[[], object], where: Path) -> float:
    """Wall time until what was written is on the disk."""
    started = time.perf_counter()
    act()
    subprocess.run(["sync", "-f", str(where)], check=True)
    return time.perf_counter() - started


def processor_seconds() -> float:
    """Of this process, of those that it waited for, and of its fork server, which waits for the workers (as /proc tells, where there is one)."""
    ticks = 0
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text("utf-8").split():
            ticks += sum(int(field) for field in Path(f"/proc/{child}/stat").read_text("utf-8").rpartition(")")[2].split()[11:15])
    return sum(os.times()[:4]) + ticks / os.sysconf("SC_CLK_TCK")


def compared(name: str, export: Callable[[Path], object], root: Path, rounds: int, copies: int = 1) -> None:
    """Print a row: an export and the copy of what it wrote, by turns; with two `copies` the second is of the first."""
    folders = [root / "out", *(root / f"copy{number}" for number in range(copies))]
    out = folders[0]
    times: list[tuple[float, float]] = []
    cpu = []

    def copy() -> None:
        for source, target in itertools.pairwise(folders):
            subprocess.run(["cp", "-r", "--reflink=never", str(source), str(target)], check=True)

    for _ in range(rounds):
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(["sync", "-f", str(root)], check=True)
        before = processor_seconds()
        exported = seconds(lambda: export(out), root)
        cpu.append(processor_seconds() - before)
        times.append((exported, seconds(copy, root)))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file()) / 1e6
    took, copied = (statistics.median(column) for column in zip(*times, strict=True))
    said = "" if copied / took >= WANTED else f"  < {WANTED}"
    speeds = f"{size:>10.1f}{took:>10.2f}{size / took:>10.1f}{copied:>10.2f}{size / copied:>10.1f}{copied / took:>8.2f}"
    print(f"{name:<16}{speeds}{statistics.median(cpu):>9.2f}{said}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--identities", type=int, default=5_000)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="Where to work, as it decides on the disk; a temporary folder when left out.")
    parser.add_argument("--only", nargs="*", help="Rows: clean, webdataset, imagefolder, recordio, parquet, hf, verify.")
    args = parser.parse_args()
    config = load(overrides=[f"workers={args.workers}", "isolate.rule=angle"])
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        root = Path(folder)
        write_raw(root / "raw", root / "noise", args.samples, args.identities)
        write_manifest(root / "raw", root / "noise", 1, root / "manifest", config)
        export_clean(root / "raw", root / "manifest", root / "clean", config)
        print(
            f"{args.samples:,} samples, {args.identities:,} identities, {args.workers or os.cpu_count()} workers, load {os.getloadavg()[0]:.1f}"
        )
        print(f"{'':<16}{'MB':>10}{'s':>10}{'MB/s':>10}{'cp s':>10}{'cp MB/s':>10}{'ratio':>8}{'CPU s':>9}")
        asked = set(args.only or ["clean", *EXPORTERS, "verify"])
        if "clean" in asked:
            compared("clean", lambda out: export_clean(root / "raw", root / "manifest", out, config), root, args.rounds)
        for form, exporter in EXPORTERS.items():
            if form in asked:
                compared(
                    form,
                    lambda out, form=form: export_to(root / "clean", out, Wanted(form=form), workers=args.workers),
                    root,
                    args.rounds,
                    copies=2 if exporter.by_identity else 1,
                )
        if "verify" in asked:
            started = time.perf_counter()
            found = verify(root / "clean", workers=args.workers)
            took = time.perf_counter() - started
            print(
                f"verify clean: {found.bytes / 1e6:.1f} MB in {took:.2f} s, {found.bytes / 1e6 / took:.1f} MB/s, {len(found.findings)} findings"
            )


if __name__ == "__main__":
    main()
