"""Time and peak memory of large evaluations, beside the way of the published scripts, on features drawn from a seed.

    IJB-C 1:1      469,375 images, 23,124 templates, 15.7 M pairs: reading the lists, pooling, scores, TAR at six rates
    MegaFace       3,530 probes, 10^6 distractors, 512 dimensions: rank-1, rank-10, TPR at 1e-6
    all pairs      pairs a second by streaming histograms, and from their slope the hours of 10^12

Each way runs in a process of its own. The published way is written anew after insightface's `eval_ijbc.py` (a loop over templates with `where`, batches of
100,000 pairs of gathered rows in float64, scikit-learn's curve) and, for MegaFace, as whole matrices: probes x distractors, and its sorted order. That matrix is
14 GB and its order 28 GB at full size, so it runs on a tenth of the distractors, and its time and memory are scaled, which the table says.
Run: python benchmarks/evaluation.py [--scale 0.05] [--part ijb megaface pairs]
About 6 minutes on 2 cores, 3 GB of disk and 7 GB of memory for the published way.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import torch
from sklearn.metrics import roc_curve

from arcface_core.angles import normalize
from arcface_core.protocols.identification import rank_rates
from arcface_core.protocols.published import tar_at_nearest_far
from arcface_core.protocols.streaming import all_pairs_histogram, histogram_tar_at_far, pair_ranks, search_distractors, suggested_floor
from arcface_core.protocols.templates import Templates, image_weights, pair_cosines, pooled_templates
from arcface_core.protocols.verification import tar_at_far
from pipeline.protocols.ijb import read_arrays, read_columns

FARS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
DIM = 512
BLOCK = 16_384
MATRIX_SHARE = 10
WANTED_SPEED, WANTED_MEMORY = 5.0, 0.25


def people(rng: np.random.Generator, centers: np.ndarray, who: np.ndarray, out: Path, spread: float) -> None:
    """Write features of `who`, block by block, with norms of their own."""
    held = np.lib.format.open_memmap(out, "w+", np.float32, (len(who), DIM))
    for start in range(0, len(who), BLOCK):
        part = who[start : start + BLOCK]
        rows = centers[part] + spread * rng.standard_normal((len(part), DIM), np.float32)
        held[start : start + BLOCK] = rows * rng.uniform(0.5, 1.5, (len(part), 1)).astype(np.float32)
    held.flush()


def make_ijb(root: Path, scale: float) -> None:
    rng = np.random.default_rng(0)
    gallery, probes = max(20, int(3531 * scale**0.5)), max(40, int(19_593 * scale**0.5))
    images, wanted = max(gallery + probes, int(469_375 * scale)), int(15_658_489 * scale)
    whose = np.concatenate([np.arange(gallery), rng.integers(0, gallery, probes)])
    template = np.concatenate([np.arange(gallery + probes), rng.integers(0, gallery + probes, images - gallery - probes)])
    media = template * 100 + rng.integers(0, 8, images)
    centers = rng.standard_normal((gallery, DIM), np.float32)
    people(rng, centers, whose[template], root / "features.npy", 9.0)
    mates = np.column_stack([whose[gallery:], gallery + np.arange(probes)])
    number = rng.choice(gallery * probes, min(wanted, gallery * probes), replace=False)
    pairs = np.vstack([mates, np.column_stack([number // probes, gallery + number % probes])])
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    label = (whose[pairs[:, 0]] == whose[pairs[:, 1]]).astype(np.int64)
    options = pa.csv.WriteOptions(include_header=False, delimiter=" ")
    pa.csv.write_csv(pa.table({"a": pairs[:, 0] + 1, "b": pairs[:, 1] + 1, "c": label}), root / "pairs.txt", options)
    names = pa.array([f"{number}.jpg" for number in range(images)])
    pa.csv.write_csv(
        pa.table({"a": names, "b": template + 1, "c": media}),
        root / "media.txt",
        pa.csv.WriteOptions(include_header=False, delimiter=" ", quoting_style="none"),
    )
    np.save(root / "detector.npy", rng.uniform(0.1, 1, images).astype(np.float32))


def ijb_ours(root: Path, clock: Callable[[str], None]) -> dict[str, Any]:
    media = read_columns(root / "media.txt", [pa.string(), pa.int64(), pa.int64()])
    template, medium = (torch.from_numpy(media.column(number).to_numpy().copy()) for number in (1, 2))
    del media
    left, right, label = (torch.from_numpy(array) for array in read_arrays(root / "pairs.txt", [pa.int32(), pa.int32(), pa.int8()]))
    clock("lists")
    features = torch.from_numpy(np.lib.format.open_memmap(root / "features.npy", "c"))
    weights = image_weights(features, detector_N=torch.from_numpy(np.load(root / "detector.npy")))
    templates: Templates = pooled_templates(features, template, medium, weights)
    clock("templates")
    cosines, same = pair_cosines(templates, left, right), label == 1
    clock("scores")
    tars, nearest = tar_at_far(cosines, same, FARS), tar_at_nearest_far(cosines, same, FARS)
    clock("rates")
    return {"tar": [point.tar for point in tars], "nearest": [point.tar for point in nearest]}


def ijb_published(root: Path, clock: Callable[[str], None]) -> dict[str, Any]:
    media = pd.read_csv(root / "media.txt", sep=" ", header=None).values
    template, medium = media[:, 1].astype(int), media[:, 2].astype(int)
    pairs = pd.read_csv(root / "pairs.txt", sep=" ", header=None).values
    first, second, label = (pairs[:, number].astype(int) for number in range(3))
    clock("lists")
    features = np.load(root / "features.npy") * np.load(root / "detector.npy")[:, np.newaxis]
    unique = np.unique(template)
    sums = np.zeros((len(unique), DIM))
    for row, one in enumerate(unique):
        (inside,) = np.where(template == one)
        frames, media_of = features[inside], medium[inside]
        means = [frames[media_of == kind].mean(0) for kind in np.unique(media_of)]
        sums[row] = np.sum(means, axis=0)
    unit = sums / np.linalg.norm(sums, axis=1, keepdims=True)
    clock("templates")
    place = np.zeros(unique.max() + 1, int)
    place[unique] = np.arange(len(unique))
    scores = np.zeros(len(first))
    for start in range(0, len(first), 100_000):
        part = slice(start, start + 100_000)
        scores[part] = np.sum(unit[place[first[part]]] * unit[place[second[part]]], -1)
    clock("scores")
    far, tar, _ = roc_curve(label, scores)
    far, tar = np.flipud(far), np.flipud(tar)
    nearest = [float(tar[np.argmin(abs(far - wanted))]) for wanted in FARS]
    clock("rates")
    return {"nearest": nearest}


def make_megaface(root: Path, scale: float) -> None:
    rng = np.random.default_rng(1)
    each = max(4, int(44 * scale**0.5))
    who = np.repeat(np.arange(80), each)
    np.save(root / "who.npy", who)
    people(rng, rng.standard_normal((80, DIM), np.float32), who, root / "probes.npy", 1.5)
    distractors = int(1_000_000 * scale)
    people(rng, rng.standard_normal((5000, DIM), np.float32), rng.integers(0, 5000, distractors), root / "distractors.npy", 1.0)


def megaface_ours(root: Path, clock: Callable[[str], None]) -> dict[str, Any]:
    probes, who = torch.from_numpy(np.load(root / "probes.npy")), torch.from_numpy(np.load(root / "who.npy"))
    distractors = np.lib.format.open_memmap(root / "distractors.npy", "c")
    some = normalize(torch.from_numpy(np.array(distractors[:: max(1, len(distractors) // 4096)])))
    cos = (normalize(probes) @ some.mT).reshape(-1)
    floor = float(cos.topk(max(1, len(cos) // 100)).values[-1])
    blocks = (torch.from_numpy(distractors[start : start + BLOCK]) for start in range(0, len(distractors), BLOCK))
    found = search_distractors(probes, who, blocks, ranks=10, floor=floor)
    rates = rank_rates(pair_ranks(probes, who, found.nearest_PK), (1, 10))
    [point] = histogram_tar_at_far(found.histogram, (1e-6,))
    clock("search")
    return {"rank-1": rates[0].rate, "rank-10": rates[1].rate, "tpr": point.tar}


def megaface_matrix(root: Path, clock: Callable[[str], None]) -> dict[str, Any]:
    probes, who = np.load(root / "probes.npy"), np.load(root / "who.npy")
    distractors = np.load(root / "distractors.npy")
    distractors = distractors[: max(1, len(distractors) // MATRIX_SHARE)]
    probes, distractors = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (probes, distractors))
    scores = probes @ distractors.T
    order = np.argsort(-scores, axis=1)
    best = np.take_along_axis(scores, order[:, :10], 1)
    own = probes @ probes.T
    first = tenth = pairs = 0
    genuine = []
    for row in range(len(probes)):
        mates = np.flatnonzero((who == who[row]) & (np.arange(len(who)) != row))
        first += int((own[row, mates] > best[row, 0]).sum())
        tenth += int((own[row, mates] > best[row, 9]).sum())
        pairs += len(mates)
        genuine += own[row, mates].tolist()
    far, tar, _ = roc_curve(np.repeat([1, 0], [len(genuine), scores.size]), np.concatenate([genuine, scores.ravel()]))
    tpr = float(tar[np.searchsorted(far, 1e-6, side="right") - 1])
    clock("search")
    return {"rank-1": first / pairs, "rank-10": tenth / pairs, "tpr": tpr}


def all_pairs_slope(scale: float) -> dict[str, float]:
    """Seconds of two sizes, and the slope between them in pairs a second, with the floor for 1e-8."""
    rng = torch.Generator().manual_seed(0)
    found = {}
    for count in (int(20_000 * max(scale, 0.1)), int(40_000 * max(scale, 0.1))):
        identity = torch.arange(count) // 20
        unit = normalize(torch.randn(count // 20 + 1, DIM, generator=rng)[identity] + 1.5 * torch.randn(count, DIM, generator=rng))
        floor = suggested_floor(unit, identity, far=1e-4)
        started = time.perf_counter()
        all_pairs_histogram(unit, identity, floor=floor)
        found[count * (count - 1) / 2] = time.perf_counter() - started
    (few, short), (many, long) = found.items()
    return {
        "pairs": many,
        "seconds": long,
        "pairs a second": (many - few) / (long - short),
        "hours for 10^12": 1e12 / ((many - few) / (long - short)) / 3600,
    }


WAYS = {"ijb_ours": ijb_ours, "ijb_published": ijb_published, "megaface_ours": megaface_ours, "megaface_matrix": megaface_matrix}


def child(way: str, root: Path) -> None:
    at = time.perf_counter()
    before, started = _gb("VmHWM"), time.process_time()
    phases: dict[str, float] = {}
    own_gb: dict[str, float] = {}
    base = most = _gb("RssAnon")
    ended = threading.Event()

    def clock(name: str) -> None:
        nonlocal at, most
        phases[name], at = time.perf_counter() - at, time.perf_counter()
        own_gb[name], most = most - base, 0.0

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.005):
            most = max(most, _gb("RssAnon"))

    threading.Thread(target=watch, daemon=True).start()
    figures = WAYS[way](root, clock)
    ended.set()
    found = {"seconds": sum(phases.values()), "cpu": time.process_time() - started, "gb": _gb("VmHWM") - before}
    found["own_gb"] = max(own_gb.values())
    print(json.dumps({"phases": phases, "own_gb_of": own_gb, **found, "figures": figures}))


def _gb(name: str) -> float:
    """VmHWM, the most that this process held, or RssAnon, what it holds now and is no page of a file: such a page the system takes back when it wants memory.

    getrusage's ru_maxrss would start from what the parent held.
    """
    with Path("/proc/self/status").open(encoding="ascii") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(name)) * 1024 / 1e9


def measured(way: str, root: Path) -> dict[str, Any]:
    for path in root.iterdir():  # each way finds its files in the page cache, whoever comes first
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass
    command = [sys.executable, __file__, "--child", way, str(root)]
    found: dict[str, Any] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return found


def verdict(name: str, ratio: float, wanted: float, *, at_least: bool) -> str:
    met = ratio >= wanted if at_least else ratio <= wanted
    return f"| {name} | {ratio:.2f} | {'>=' if at_least else '<='} {wanted:g} | {'met' if met else 'MISSED'} |"


def ijb(root: Path, scale: float) -> None:
    make_ijb(root, scale)
    ours, theirs = measured("ijb_ours", root), measured("ijb_published", root)
    print(f"\n## IJB-C 1:1, scale {scale:g}\n\n| | ours | published way |\n|---|---|---|")
    for phase in ours["phases"]:
        print(f"| seconds, {phase} | {ours['phases'][phase]:.1f} | {theirs['phases'][phase]:.1f} |")
    for phase in ours["phases"]:
        print(f"| peak GB that are no pages of files, {phase} | {ours['own_gb_of'][phase]:.2f} | {theirs['own_gb_of'][phase]:.2f} |")
    for name, unit in (
        ("seconds", "seconds"),
        ("cpu", "CPU seconds"),
        ("gb", "peak GB above imports"),
        ("own_gb", "of it, peak GB that are no pages of files"),
    ):
        print(f"| {unit} | {ours[name]:.2f} | {theirs[name]:.2f} |")
    print(
        f"| TAR at nearest FAR, {', '.join(f'{far:g}' for far in FARS)} | {shown(ours['figures']['nearest'])} | {shown(theirs['figures']['nearest'])} |"
    )
    print(f"| TAR, FAR not exceeded | {shown(ours['figures']['tar'])} | |\n\n| ratio | | wanted | |\n|---|---|---|---|")
    print(verdict("times as fast", theirs["seconds"] / ours["seconds"], WANTED_SPEED, at_least=True))
    print(verdict("times less CPU", theirs["cpu"] / ours["cpu"], WANTED_SPEED, at_least=True))
    print(verdict("share of memory, pages of files and all", ours["gb"] / theirs["gb"], WANTED_MEMORY, at_least=False))
    print(verdict("share of memory that is no page of a file", ours["own_gb"] / theirs["own_gb"], WANTED_MEMORY, at_least=False))


def megaface(root: Path, scale: float) -> None:
    make_megaface(root, scale)
    ours, theirs = measured("megaface_ours", root), measured("megaface_matrix", root)
    time_all, gb_all = theirs["seconds"] * MATRIX_SHARE, theirs["gb"] * MATRIX_SHARE
    print(
        f"\n## MegaFace, scale {scale:g}\n\n| | ours | matrices, a {MATRIX_SHARE}th of the distractors | the same, scaled to all |\n|---|---|---|---|"
    )
    for name, unit in (("seconds", "seconds"), ("cpu", "CPU seconds"), ("gb", "peak GB above imports")):
        print(f"| {unit} | {ours[name]:.2f} | {theirs[name]:.2f} | {theirs[name] * MATRIX_SHARE:.1f} |")
    for name, value in ours["figures"].items():
        print(f"| {name} | {value:.4f} | {theirs['figures'][name]:.4f} | |")
    print("\n| ratio | | wanted | |\n|---|---|---|---|")
    print(verdict("times as fast (scaled)", time_all / ours["seconds"], WANTED_SPEED, at_least=True))
    print(verdict("share of memory (scaled)", ours["gb"] / gb_all, WANTED_MEMORY, at_least=False))


def pairs(root: Path, scale: float) -> None:
    print("\n## All pairs, 512 dimensions\n\n| | |\n|---|---|")
    for name, value in all_pairs_slope(scale).items():
        print(f"| {name} | {value:,.1f} |")


def shown(values: list[float]) -> str:
    return ", ".join(f"{value:.4f}" for value in values)


PARTS = {"ijb": ijb, "megaface": megaface, "pairs": pairs}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1.0, help="share of pairs, images and distractors")
    parser.add_argument("--part", nargs="*", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child[0], Path(given.child[1]))
        return
    print(
        f"{os.cpu_count()} cores, {platform.machine()}; torch {torch.__version__}, {torch.get_num_threads()} threads; load {os.getloadavg()[0]:.1f}"
    )
    for part in given.part:
        with tempfile.TemporaryDirectory() as root:
            PARTS[part](Path(root), given.scale)


if __name__ == "__main__":
    main()
