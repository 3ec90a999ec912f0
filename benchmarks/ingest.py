"""How fast ingest is, beside the limit and two peers, on the same pictures in the same run; and whether its memory stays flat.

Pictures: random colors on a coarse grid, enlarged and made grainy, so that they compress about like photographs (size is printed).
  crops    112 x 112 JPEG, kept byte for byte
  photos   640 x 480 JPEG with five landmarks, aligned to 112 x 112 and encoded
The limit is decoding, for photos the warp, and encoding, by the fastest calls that we know (simplejpeg, OpenCV), in a loop: no files, no hash, no
measures, no row. Peers run in an environment of their own (--peers PYTHON, a Python with img2dataset and cleanvision), since their pins are not ours:
img2dataset's Resizer (to 112, JPEG 95; no alignment, no check that a picture is whole, no row) and cleanvision's find_issues (exact and near
duplicates, blur, brightness; writes no crop). CPU seconds of the process and its children, so that other work on the machine weighs less.
Run: python benchmarks/ingest.py [--crops 4000] [--photos 1000] [--repeats 5] [--peers PYTHON] [--memory 10000 100000 1000000]
"""

import argparse
import io
import json
import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from arcface_core.alignment import TEMPLATE_112, similarity_transform
from pipeline.config import Config, IngestConfig
from pipeline.ingest import ingest

LANDMARKS = (TEMPLATE_112 * 2.6 + [170, 90]).tolist()
PEERS = {"img2dataset": "img2dataset's Resizer", "cleanvision": "cleanvision's find_issues"}
_PEERS = """
import glob, io, json, sys, time
folder, which = sys.argv[1:3]
files = sorted(glob.glob(folder + "/*/*.jpg"))
started = time.process_time()
if which == "img2dataset":
    from img2dataset.resizer import Resizer
    resize = Resizer(image_size=112, resize_mode="border", resize_only_if_bigger=False, encode_quality=95)
    held = [open(name, "rb").read() for name in files]
    started = time.process_time()
    for content in held:
        resize(io.BytesIO(content))
else:
    from cleanvision import Imagelab
    lab = Imagelab(data_path=folder, verbose=False)
    started = time.process_time()
    lab.find_issues(n_jobs=1, verbose=False)
print(json.dumps(len(files) / (time.process_time() - started)))
"""


def picture(seed: int, width: int, height: int) -> bytes:
    draw = np.random.default_rng(seed)
    coarse = draw.integers(0, 255, (height // 16 + 1, width // 16 + 1, 3), np.uint8)
    pixels = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC).astype(np.int16) + draw.integers(-6, 7, (height, width, 3))
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(pixels.clip(0, 255), np.uint8), 90, colorsubsampling="420"))


def crawl(folder: Path, count: int, width: int, height: int) -> list[bytes]:
    held = []
    for number in range(count):
        held.append(picture(number, width, height))
        path = folder / f"P{number % 20}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(held[-1])
    return held


def cpu_seconds() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def rate(work: Callable[[], object], count: int) -> tuple[float, float]:
    """Pictures per CPU second, and per second of the clock."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    work()
    return count / (cpu_seconds() - cpu), count / (time.perf_counter() - wall)


def decode_encode(held: list[bytes]) -> None:
    for content in held:
        simplejpeg.encode_jpeg(simplejpeg.decode_jpeg(content), 95, colorsubsampling="444")


def decode_warp_encode(held: list[bytes]) -> None:
    for content in held:
        pixels = simplejpeg.decode_jpeg(content)
        crop = cv2.warpAffine(pixels, similarity_transform(np.array(LANDMARKS)), (112, 112))
        simplejpeg.encode_jpeg(crop, 95, colorsubsampling="444")


def speed(counts: dict[str, int], repeats: int, peers: str | None) -> None:
    for name, (width, height) in (("crops", (112, 112)), ("photos", (640, 480))):
        with tempfile.TemporaryDirectory() as made:
            root = Path(made)
            held = crawl(root / "crawl", counts[name], width, height)
            settings: dict[str, object] = {"samples_per_shard": -(-len(held) // 4)}
            if name == "photos":
                (root / "points.json").write_text(json.dumps({f"P{n % 20}/{n}.jpg": LANDMARKS for n in range(len(held))}))
                settings |= {"detector": "landmarks", "landmarks": str(root / "points.json")}
            found: dict[str, list[tuple[float, float]]] = {}
            limit = decode_encode if name == "crops" else decode_warp_encode
            for turn in range(repeats):
                for workers in (1, 2):
                    work = partial(
                        ingest, root / "crawl", root / f"raw-{turn}-{workers}", Config(workers=workers, ingest=IngestConfig(**settings))
                    )  # type: ignore[arg-type]
                    found.setdefault(f"ingest, {workers} worker{'s' * (workers > 1)}", []).append(rate(work, len(held)))
                found.setdefault("the limit", []).append(rate(partial(limit, held), len(held)))
                for peer, what in PEERS.items() if peers else ():
                    said = subprocess.run([peers, "-c", _PEERS, str(root / "crawl"), peer], capture_output=True, text=True, check=True)
                    found.setdefault(what, []).append((float(json.loads(said.stdout.splitlines()[-1])), 0.0))
            size = statistics.mean(map(len, held)) / 1000
            print(f"\n{name}: {len(held)} of {width} x {height}, {size:.1f} kB on average, {repeats} repeats\n")
            print("| | pictures per CPU second | least, most | ratio to the limit | per second of the clock |\n|---|---|---|---|---|")
            best = statistics.median(cpu for cpu, _ in found["the limit"])
            for what, values in found.items():
                cpus = [cpu for cpu, _ in values]
                middle = statistics.median(cpus)
                wall = statistics.median(clock for _, clock in values)
                clock = f"{wall:,.0f}" if wall else ""
                if what.endswith("workers"):  # CPU seconds of a pool's processes are not ours to read
                    print(f"| {what} | | | | {clock} |", flush=True)
                    continue
                print(f"| {what} | {middle:,.0f} | {min(cpus):,.0f}, {max(cpus):,.0f} | {middle / best:.2f} | {clock} |", flush=True)


def memory(counts: list[int]) -> None:
    """Peak memory of ingest over tars of tiny pictures; a process each, the larger of parent and worker."""
    print("\n| items | s | peak memory of a process, MiB |\n|---|---|---|")
    for count in counts:
        with tempfile.TemporaryDirectory() as made:
            root = Path(made)
            write_tars(root / "crawl", count)
            started = time.perf_counter()
            said = subprocess.run([sys.executable, __file__, "--ingest", str(root)], capture_output=True, text=True, check=True)
            print(f"| {count:,} | {time.perf_counter() - started:.0f} | {int(said.stdout.splitlines()[-1]) / 1024:.0f} |", flush=True)


def write_tars(folder: Path, count: int, per_tar: int = 10_000) -> None:
    folder.mkdir()
    small = [picture(seed, 48, 48) for seed in range(300)]
    for first in range(0, count, per_tar):
        with tarfile.open(folder / f"{first // per_tar:05d}.tar", "w") as tar:
            for number in range(first, min(first + per_tar, count)):
                # A comment segment makes the bytes of every picture its own.
                content = small[number % 300]
                content = content[:2] + b"\xff\xfe\x00\x0a" + f"{number:08d}".encode() + content[2:]
                for kind, member in (("jpg", content), ("cls", str(number % max(20, count // 100)).encode())):
                    info = tarfile.TarInfo(f"{number:09d}.{kind}")
                    info.size = len(member)
                    tar.addfile(info, io.BytesIO(member))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=int, default=4000)
    parser.add_argument("--photos", type=int, default=1000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", help="a Python that has img2dataset and cleanvision")
    parser.add_argument("--memory", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--ingest", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ingest:
        ingest(given.ingest / "crawl", given.ingest / "raw", Config(workers=2))
        print(max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))
        return
    print(
        f"{os.cpu_count()} cores, OpenCV {cv2.__version__}, simplejpeg {simplejpeg.__version__}; load {os.getloadavg()[0]:.1f} at the start"
    )
    cv2.setNumThreads(1)
    speed({"crops": given.crops, "photos": given.photos}, given.repeats, given.peers)
    memory(given.memory)


if __name__ == "__main__":
    main()
