"""How fast ingest is, beside the least that it could cost and beside two peers, on the same pictures in the same run; and whether its memory is flat.

Pictures are drawn by pipeline/render.py: `crops` are faces of 112 px (stored byte for byte), `photos` are 640 px, a face of 300 px on a ground with
1/f grain, with five landmarks (aligned and encoded). 4:2:0, quality 90; bits a pixel are printed. Some hundred drawings repeat with another comment
in the JPEG, so that all bytes differ; pictures of one identity are other drawings. The crawl is a folder per identity, in the page cache.

limit         decode of the whole picture by simplejpeg's strict mode, and encode of the crop (quality 95, 4:4:4), from memory in a loop. No file is
              read, nothing is hashed, measured, warped or written. For crops ingest need not encode: the row `decode alone` is its limit there.
img2dataset   `Resizer`: OpenCV's decode, resize by areas to 112, encode (95, 4:2:0), from memory. No landmarks, no alignment,
              no hash, no row, no tar. `keeps bytes`: with skip_reencode and resize_only_if_bigger. `whole`: its downloader with file:// URLs, one
              thread, in this process: reads, resizes, SHA-256, writes tar and Parquet. A subset of the pictures.
cleanvision   `find_issues`, one job: light, blur, entropy, sizes, exact and near duplicates. Reads the files twice; writes no crops. A subset.
ingest        everything: listing, SHA-256, whole decode, face, alignment, encode, sharpness, brightness, perceptual hash, tar with sidecar, rows, duplicates.

Each measurement is a process of its own, those of one core are pinned to it, and they take turns. Imports are not counted, starting workers is. CPU
seconds are those of all processes and threads, and what to trust when others use the machine.
Peers want other versions than we do, so they have an environment of their own, Python 3.11 or 3.12:
    python -m venv PEERS && PEERS/bin/pip install img2dataset==1.47.0 cleanvision==0.3.7
Run: python benchmarks/ingest.py [--peers PEERS/bin/python] [--crops 16000] [--photos 3200] [--repeats 5] [--memory 10000 100000 1000000]
"""

import argparse
import contextlib
import io
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
from ingest_peers import PEERS, command
from PIL import Image

from arcface_core.alignment import TEMPLATE_112
from pipeline import examine, places, render, shards
from pipeline import ingest as stage
from pipeline.config import Config, IngestConfig
from pipeline.sources import file_plan
from pipeline.warp import aligned

PER_IDENTITY = 20
FACE_PX = 300
KINDS = {"crops": (112, 400), "photos": (640, 80)}
"""Side in pixels, and how many are drawn."""
Target = tuple[str, float, float, float | None]
"""What, the ratio wanted, the ratio found, and that without the start."""
SUBSET = 8
"""The slow peers get every eighth picture."""
PER_TAR = 5_000
LANDMARKS = "landmarks.json"

# --- pictures ------------------------------------------------------------------------------------------------------------------------


def draw(kind: str, number: int) -> tuple[bytes, list[list[float]]]:
    """JPEG bytes, and the five landmarks."""
    rng = np.random.default_rng([7, number])
    who = render.person(0, number)
    if kind == "crops":
        return coded(render.render(who, rng)), TEMPLATE_112.tolist()
    ground = render.render_no_face(rng, 640).astype(np.float64)
    left, top = rng.integers(40, 640 - FACE_PX - 40, 2)
    ground[top : top + FACE_PX, left : left + FACE_PX] = render.render(who, rng, FACE_PX)
    steps = np.hypot(np.fft.fftfreq(640)[:, None], np.fft.rfftfreq(640)[None])
    steps[0, 0] = np.inf
    grain = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((640, 640))) / steps, (640, 640))
    pixels = np.clip(ground + 8 * (grain / grain.std())[..., None], 0, 255).astype(np.uint8)
    return coded(pixels), (TEMPLATE_112 * (FACE_PX / 112) + [left, top]).tolist()


def coded(pixels: Any, quality: int = 90) -> bytes:
    content: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, colorsubsampling="420")
    return content


def numbered(content: bytes, number: int) -> bytes:
    """The same picture with a comment of its own behind the JFIF segment, which ends at byte 20."""
    comment = f"{number:012d}".encode()
    return content[:20] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + content[20:]


def make_crawl(root: Path, kind: str, count: int) -> float:
    """Write `root/crawl` and `root/landmarks.json`; bits a pixel."""
    side, drawings = KINDS[kind]
    drawn = [draw(kind, number) for number in range(drawings)]
    points = {}
    for number in range(count):
        content, landmarks = drawn[number % drawings]
        uri = f"P{number // PER_IDENTITY:05d}/{number:07d}.jpg"
        path = root / "crawl" / uri
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(numbered(content, number))
        points[uri] = landmarks
    (root / LANDMARKS).write_text(json.dumps(points))
    return statistics.mean(8 * len(content) / side**2 for content, _ in drawn)


def files_of(root: Path) -> list[Path]:
    return sorted((root / "crawl").glob("*/*.jpg"))


def settings(root: Path, kind: str, workers: int) -> Config:
    more: dict[str, Any] = {"detector": "landmarks", "landmarks": str(root / LANDMARKS)} if kind == "photos" else {}
    return Config(workers=workers, ingest=IngestConfig(samples_per_shard=max(1, len(files_of(root)) // 8), **more))


# --- what one process measures -------------------------------------------------------------------------------------------------------


def descendants() -> dict[int, list[str]]:
    """Fields of /proc/PID/stat from the state on, of this process and all below it."""
    found = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            found[int(path.parent.name)] = path.read_text().rpartition(")")[2].split()
    kept = {os.getpid(): found[os.getpid()]}
    while below := {pid: fields for pid, fields in found.items() if pid not in kept and int(fields[1]) in kept}:
        kept |= below
    return kept


def cpu_seconds() -> float:
    """Of this process, those below it, and those below that have ended."""
    return sum(int(ticks) for fields in descendants().values() for ticks in fields[11:15]) / os.sysconf("SC_CLK_TCK")


def run_ingest(root: Path, kind: str, workers: int) -> dict[str, float]:
    config, count = settings(root, kind, workers), len(files_of(root))
    with tempfile.TemporaryDirectory(dir=root) as out:
        before, started = cpu_seconds(), time.perf_counter()
        receipt = stage.ingest(root / "crawl", Path(out) / "raw", config)
        wall = time.perf_counter() - started
        while any(int(fields[1]) != os.getpid() for pid, fields in descendants().items() if pid != os.getpid()):
            time.sleep(0.01)  # the fork server has not yet counted the CPU of a worker that ended
        assert receipt.counts["ok"] == count, receipt.counts
        return {"images": count, "wall": wall, "cpu": cpu_seconds() - before}


def timed(work: Callable[[Any], Any], items: list[Any]) -> dict[str, float]:
    cpu, started = time.process_time(), time.perf_counter()
    for item in items:
        work(item)
    return {"images": len(items), "wall": time.perf_counter() - started, "cpu": time.process_time() - cpu}


def limits(root: Path, kind: str) -> dict[str, dict[str, float]]:
    """Decoders and encoder in a loop."""
    given = [path.read_bytes() for path in files_of(root)[: 2000 if kind == "crops" else 400]]
    points = [np.array(one) for one in list(json.loads((root / LANDMARKS).read_text()).values())[: len(given)]]
    crops = [one if kind == "crops" else aligned(one, where, 112) for one, where in zip(map(strict, given), points, strict=True)]

    def both(number: int) -> None:
        strict(given[number])
        encode(crops[number])

    return {
        "limit: decode + encode": timed(both, list(range(len(given)))),
        "decode alone": timed(strict, given),
        "Pillow's load alone": timed(by_pillow, given),
    }


def strict(content: bytes) -> Any:
    return simplejpeg.decode_jpeg(content, colorspace="RGB", strict=True)


def encode(crop: Any) -> bytes:
    content: bytes = simplejpeg.encode_jpeg(crop, 95, colorspace="RGB", colorsubsampling="444")
    return content


def by_pillow(content: bytes) -> None:
    with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
        image.load()


class Stages:
    """CPU seconds by stage; a stage within another is taken from it."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self._within: list[float] = []

    def clocked(self, name: str, work: Callable[..., Any]) -> Callable[..., Any]:
        def clocked(*given: Any, **named: Any) -> Any:
            self._within.append(0.0)
            started = time.process_time()
            try:
                return work(*given, **named)
            finally:
                spent = time.process_time() - started
                self.seconds[name] += spent - self._within.pop()
                if self._within:
                    self._within[-1] += spent

        return clocked


def profile(root: Path, kind: str) -> dict[str, float]:
    """CPU ms an image by stage, of a real ingest with clocks around its functions."""
    stages = Stages()
    real = examine.detector  # type: ignore[attr-defined]
    examine.detector = lambda config: stages.clocked("find the face", real(config))  # type: ignore[attr-defined]
    examine.hashlib = types.SimpleNamespace(sha256=stages.clocked("hash the bytes", examine.hashlib.sha256))  # type: ignore[attr-defined]
    for owner, function, name in (
        (file_plan, "write", "list the crawl"), (stage, "write_listing", "list the crawl"), (places, "read_file", "open and read the file"),
        (shards, "sample_id", "hash the bytes"), (examine, "decode", "decode"), (examine, "ranked", "find the face"),
        (examine, "_described", "find the face"), (examine, "aligned", "align"), (examine, "_encoded", "encode"), (examine, "measure", "measures"),
        (shards.ShardWriter, "add", "write the tar"), (shards, "json_bytes", "write the tar"), (shards.ShardWriter, "flush", "hash the tar, hand it to the system"),
        (shards, "table_of", "write the rows"), (shards, "write_twin", "write the rows"), (stage, "_seal", "duplicates and counts"),
    ):  # fmt: skip
        setattr(owner, function, stages.clocked(name, getattr(owner, function)))
    whole = run_ingest(root, kind, 1)
    stages.seconds["between them"] = whole["cpu"] - sum(stages.seconds.values())
    return {name: 1e3 * seconds / whole["images"] for name, seconds in stages.seconds.items()}


def peak_mib(root: Path) -> dict[str, float]:
    """Peak resident memory of an ingest with two workers. Not getrusage: a fork server's children are none of ours."""
    peaks: dict[int, int] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.2):
            for pid in descendants():
                with contextlib.suppress(OSError, KeyError):
                    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
                    peaks[pid] = int(status["VmHWM"].split()[0])

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    receipt = stage.ingest(root / "crawl", root / "raw", Config(workers=2))
    wall = time.perf_counter() - started
    time.sleep(0.3)
    ended.set()
    watcher.join()
    own = peaks.pop(os.getpid())
    return {
        "items": float(receipt.counts["items"] or 0),
        "wall": wall,
        "parent": own / 1024,
        "worker": max(peaks.values(), default=0) / 1024,
    }


def make_tars(folder: Path, count: int) -> None:
    folder.mkdir()
    soft = [cv2.GaussianBlur(render.render(render.person(0, one), np.random.default_rng(one)), (0, 0), 2) for one in range(300)]
    drawn = [coded(pixels, 20) for pixels in soft]
    for first in range(0, count, PER_TAR):
        with shards.ShardWriter(folder / f"{first // PER_TAR:05d}.tar") as tar:
            for number in range(first, min(first + PER_TAR, count)):
                facts = {"jpg": numbered(drawn[number % 300], number), "cls": f"P{number // PER_IDENTITY:06d}".encode()}
                tar.add(f"{number:08x}", facts)


# --- turns and tables ----------------------------------------------------------------------------------------------------------------


def said(command: list[str], *, one_core: bool, environment: dict[str, str] | None = None) -> Any:
    """What a process of its own prints last, as JSON."""
    pinned = {max(os.sched_getaffinity(0))}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, preexec_fn=lambda: one_core and os.sched_setaffinity(0, pinned)
    )
    if done.returncode:
        raise SystemExit(f"{command[0]} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def ours(*order: str, one_core: bool = True) -> Any:
    return said([sys.executable, __file__, "--one", *order], one_core=one_core)


def peer(python: str, root: Path, program: str, *, keeps: bool) -> dict[str, float]:
    order, environment = command(python, root, program, keeps=keeps, subset=SUBSET)
    found: dict[str, float] = said(order, one_core=True, environment=environment)
    return found


def middle(values: list[float], form: str = ",.0f") -> str:
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def speed(kind: str, count: int, repeats: int, peers: str | None) -> Iterator[Target]:
    """Print the tables of one kind; what was wanted of it."""
    found: defaultdict[str, list[dict[str, float]]] = defaultdict(list)
    spent: defaultdict[str, list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as tiny:
        bits = make_crawl(Path(made), kind, count)
        make_crawl(Path(tiny), kind, 40)
        loads = []
        for _ in range(repeats):
            loads.append(os.getloadavg()[0])
            for name, measured in ours("limits", made, kind).items():
                found[name].append(measured)
            for workers in (1, 2):
                found[f"ingest, {workers} worker{'s' * (workers > 1)}"].append(
                    ours("ingest", made, kind, str(workers), one_core=workers == 1)
                )
                found[f"start of ingest, {workers} worker{'s' * (workers > 1)}"].append(
                    ours("ingest", tiny, kind, str(workers), one_core=workers == 1)
                )
            for name, program in PEERS.items() if peers else ():
                found[name].append(peer(str(peers), Path(made), program, keeps=False))
                if kind == "crops" and "img2dataset" in name:
                    found[f"{name}, keeps bytes"].append(peer(str(peers), Path(made), program, keeps=True))
            for name, milliseconds in ours("profile", made, kind).items():
                spent[name].append(milliseconds)
    starts = {name: found.pop(f"start of {name}") for name in ("ingest, 1 worker", "ingest, 2 workers")}
    cpu = {name: [1e3 * one["cpu"] / one["images"] for one in rows] for name, rows in found.items()}
    for name, rows in starts.items():  # what each picture more costs
        grown = zip(found[name], rows, strict=True)
        cpu[f"{name}, without the start"] = [1e3 * (one["cpu"] - few["cpu"]) / (one["images"] - few["images"]) for one, few in grown]
    side = KINDS[kind][0]
    said_loads = ", ".join(f"{one:.1f}" for one in loads)
    print(f"\n{count:,} {kind} of {side} x {side}, {bits:.1f} bits a pixel; {repeats} turns; load at their starts {said_loads}\n")
    print("| | images/s of the clock | CPU ms an image | CPU of the limit / CPU |\n|---|---|---|---|")
    limit = cpu["limit: decode + encode"]
    for name, values in cpu.items():
        clock = middle([one["images"] / one["wall"] for one in found[name]]) if name in found else ""
        share = middle([least / one for least, one in zip(limit, values, strict=True)], ".2f")
        print(f"| {name} | {clock} | {middle(values, '.3f')} | {share} |")
    for name, rows in starts.items():
        print(
            f"\nStart and end of {name} (40 {kind}): {middle([one['wall'] for one in rows], '.1f')} s, CPU {middle([one['cpu'] for one in rows], '.1f')} s."
        )
    print("\n| one worker, by stage | CPU ms an image |\n|---|---|")
    for name, spans in sorted(spent.items(), key=lambda pair: -statistics.median(pair[1])):
        print(f"| {name} | {middle(spans, '.3f')} |", flush=True)
    for against in ["limit: decode + encode", *(name for name in cpu if "img2dataset" in name)]:
        for workers in starts:
            whole, steady = (
                statistics.median(other / own for other, own in zip(cpu[against], cpu[name], strict=True))
                for name in (workers, f"{workers}, without the start")
            )
            yield f"{kind}, {workers}, over {against}", 0.8 if "limit" in against else 1.5, whole, steady


def memory(counts: list[int]) -> Iterator[Target]:
    print(
        f"\nTars of {PER_TAR:,} small pictures, two workers\n\n| items | s | peak of the parent, MiB | peak of a worker, MiB |\n|---|---|---|---|"
    )
    peaks = []
    for count in counts:
        with tempfile.TemporaryDirectory() as made:
            make_tars(Path(made) / "crawl", count)
            seen = ours("memory", made, one_core=False)
            peaks.append(max(seen["parent"], seen["worker"]))
            print(f"| {seen['items']:,.0f} | {seen['wall']:.0f} | {seen['parent']:.0f} | {seen['worker']:.0f} |", flush=True)
    if len(peaks) > 1:
        yield f"peak memory at {counts[0]:,} items over that at {counts[-1]:,}", 0.9, peaks[0] / peaks[-1], None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=int, default=16_000)
    parser.add_argument("--photos", type=int, default=3_200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", help="a Python that has img2dataset and cleanvision")
    parser.add_argument("--memory", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--one", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        what, root, *more = given.one
        if what == "ingest":
            print(json.dumps(run_ingest(Path(root), more[0], int(more[1]))))
        else:
            print(json.dumps({"limits": limits, "profile": profile, "memory": peak_mib}[what](Path(root), *more)))
        return
    print(
        f"{os.cpu_count()} cores, {platform.machine()}; simplejpeg {simplejpeg.__version__}, OpenCV {cv2.__version__}; spread: least to most"
    )
    targets: list[Target] = []
    for kind, count in (("crops", given.crops), ("photos", given.photos)):
        targets += speed(kind, count, given.repeats, given.peers) if count else []
    targets += memory(given.memory) if given.memory else []
    print("\n| images per CPU second, ratio | wanted | found | | without the start |\n|---|---|---|---|---|")
    for name, wanted, whole, steady in targets:
        print(
            f"| {name} | {wanted:.1f} | {whole:.2f} | {'reached' if whole >= wanted else 'missed'} | {'' if steady is None else f'{steady:.2f}'} |"
        )


if __name__ == "__main__":
    main()
