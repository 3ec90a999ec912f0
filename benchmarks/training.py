"""How fast training goes: the backbones, the loader beside the model, and one process beside two.

1. Images per second of every backbone of the registry: whole training steps (forward, backward, SGD, a head of 10,000 identities with three sub-centers), and
   embedding (forward only). On a GPU also the peak memory.
2. The loader alone (crops read and decoded out of raw shards: by threads, by worker processes, kept in memory), the model alone (the same batch again and again),
   and both. Overlap is both / model alone. On a GPU 0.95 is wanted. Where the processor also decodes, at most 1 / (1 + loader's time / model's time) can be had
   of streaming, and the table shows that bound.
3. The train stage by one process and by two (gloo on a processor, NCCL on GPUs) on the same global batches, a thread each: how far the losses are apart (rounding
   grows from step to step, as it does between thread counts), images per second, and what talking costs: a step of two processes beside a step of one on
   half the batch, which is what each of the two computes.
Run: python benchmarks/training.py [--device auto] [--backbones tiny iresnet50 ...] [--batch 128] [--seconds 20] [--crops 4000] [--only backbones loader processes]
"""

import argparse
import contextlib
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import Tensor

from arcface_core.backbones import BACKBONES, build_backbone
from arcface_core.heads import SubCenterHead
from arcface_core.training import LoopOptions, TrainState, new_state, training_steps
from pipeline.config import load
from pipeline.fit import precision_of
from pipeline.ingest import ingest
from pipeline.loading import Batch, CropStream
from pipeline.models import pick_device, place
from pipeline.order import SampleOrder
from pipeline.synthetic import SyntheticCrawl, write_folder
from pipeline.train import train

IDENTITIES = 10_000
PER_IDENTITY = 20
WARM_UP = 2
LEAST_STEPS = 3
PARTS = ("backbones", "loader", "processes")


def state_of(name: str, input_px: int, device: torch.device) -> TrainState:
    torch.manual_seed(0)
    backbone = place(build_backbone(name, embedding_dim=512, input_px=input_px), device)
    return new_state(backbone, SubCenterHead(IDENTITIES, 512).to(device), momentum=0.9, weight_decay=5e-4)


def steps_of(state: TrainState, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> Iterator[int]:
    """Samples of each step, as training goes on."""
    options = LoopOptions(seed=0, grad_clip_norm=5.0, precision=precision_of("auto", device))
    for metrics in training_steps(state, batches, learning_rate=lambda _: 0.01, device=device, options=options):
        yield metrics.samples


def rate(counts: Iterator[int], seconds: float) -> float:
    """Things per second, after the first few, for about so many seconds."""
    for _ in range(WARM_UP):
        next(counts)
    started, done = time.perf_counter(), 0
    for steps, count in enumerate(counts, 1):
        done += count
        if time.perf_counter() - started > seconds and steps >= LEAST_STEPS:
            break
    return done / (time.perf_counter() - started)


def forever(batch: Batch) -> Iterator[Batch]:
    while True:
        yield batch


def random_batch(size: int, input_px: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (size, input_px, input_px, 3), dtype=torch.uint8, generator=generator)
    return pixels.permute(0, 3, 1, 2), torch.randint(IDENTITIES, (size,), generator=generator)


def embedding(state: TrainState, batch: Batch, device: torch.device) -> Iterator[int]:
    images = ((batch[0].to(device).float() - 127.5) / 127.5).contiguous(memory_format=torch.channels_last)
    state.backbone.eval()
    precision = precision_of("auto", device)
    with torch.no_grad(), torch.autocast(device.type, dtype=precision, enabled=precision is not None):
        while True:
            float(state.backbone(images)[0, 0])
            yield len(images)


def backbones(names: list[str], batch_size: int, seconds: float, device: torch.device) -> None:
    print(f"\n## Backbones, 112 x 112, batches of {batch_size}, {device.type}\n")
    print("| backbone | million parameters | training, images/s | embedding, images/s | peak memory, GiB |\n|---|---|---|---|---|")
    for name in names:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        state, batch = state_of(name, 112, device), random_batch(batch_size, 112)
        learned = rate(steps_of(state, forever(batch), device), seconds)
        memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f}" if device.type == "cuda" else "not measured"
        embedded = rate(embedding(state, batch, device), seconds / 2)
        size = sum(parameter.numel() for parameter in state.backbone.parameters()) / 1e6
        print(f"| {name} | {size:.1f} | {learned:,.1f} | {embedded:,.1f} | {memory} |", flush=True)


def raw_shards(root: Path, crops: int) -> Path:
    if not (root / "raw").exists():
        write_folder(
            SyntheticCrawl(identities=crops // PER_IDENTITY, images=PER_IDENTITY, noise=0.0), root / "crawl", root / "truth.parquet"
        )
        ingest(root / "crawl", root / "raw", load(preset="cpu"))
    return root / "raw"


def order_of(root: Path, raw: Path, batch_size: int) -> SampleOrder:
    """Every usable crop, its shard's number being its class."""
    (root / "selection").mkdir(exist_ok=True)
    for number, path in enumerate(sorted(raw.glob("raw-*.parquet"))):
        rows = pq.read_table(path, columns=["crop_offset", "crop_size"], filters=[("status", "=", "ok")])
        pq.write_table(rows.append_column("class_index", [np.full(rows.num_rows, number, np.int32)]), root / "selection" / path.name)
    return SampleOrder(root / "selection", batch_size=batch_size, seed=0, shuffle_buffer=20_000)


def loader(root: Path, name: str, input_px: int, batch_size: int, crops: int, seconds: float, device: torch.device) -> None:
    raw = raw_shards(root, crops)
    order = order_of(root, raw, batch_size)
    workers = max(1, min(8, os.cpu_count() or 1))
    ways: dict[str, tuple[int, int]] = {"4 threads": (0, 0), f"{workers} processes": (0, workers), "kept in memory": (2**40, 0)}
    print(f"\n## Loader, {name} at {input_px} x {input_px}, batches of {batch_size}, {device.type}\n")
    print("| loader | loader, images/s | model, images/s | both, images/s | overlap: both / model | bound where the processor does both |")
    print("|---|---|---|---|---|---|")
    for way, (cache_bytes, count) in ways.items():
        model = rate(steps_of(state_of(name, input_px, device), forever(random_batch(batch_size, input_px)), device), seconds)
        rates = []
        for consume in (counted, lambda batches: steps_of(state_of(name, input_px, device), batches, device)):
            stream = CropStream(order, raw, input_px=input_px, cache_bytes=cache_bytes)
            if cache_bytes:
                for _ in stream.batches(1):
                    pass
            batches = stream.batches(10**6, workers=count, pin=device.type == "cuda")
            with contextlib.closing(batches):
                rates.append(rate(consume(batches), seconds))
        alone, both = rates
        bound = f"{1 / (1 + model / alone):.2f}" if device.type == "cpu" else ""
        print(f"| {way} | {alone:,.0f} | {model:,.0f} | {both:,.0f} | {both / model:.2f} | {bound} |", flush=True)


def counted(batches: Iterable[Batch]) -> Iterator[int]:
    for images, _ in batches:
        yield len(images)


def processes(root: Path, name: str, input_px: int, batch_size: int, crops: int, device: torch.device) -> None:
    raw = raw_shards(root, crops)
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    common = [f"train.backbone={name}", f"train.input_px={input_px}", "train.epochs=2", "evaluate.holdout=0", f"device={device.type}"]
    runs: dict[str, tuple[int, int, bool]] = {
        "one": (1, batch_size, True),
        "two": (2, batch_size, True),
        "two, BatchNorm per process": (2, batch_size, False),
        "one on half the batch": (1, batch_size // 2, True),
    }
    losses, seconds = {}, {}
    for number, (run, (count, size, sync)) in enumerate(runs.items()):
        changed = [f"train.processes={count}", f"train.batch_size={size}", f"train.sync_batchnorm={str(sync).lower()}"]
        train(raw, root / f"train-{number}", load(preset="cpu", overrides=[*common, *changed]))
        metrics = pq.read_table(root / f"train-{number}" / "metrics.parquet").to_pydict()
        steps = max(1, len(metrics["loss"]) // 2)  # the second epoch: its crops are decoded
        losses[run] = metrics["loss"]
        seconds[run] = statistics.median(size / speed for speed in metrics["images_per_s"][steps:])
    print(f"\n## Processes, {name} at {input_px} x {input_px}, global batches of {batch_size}, {len(losses['one'])} steps, {device.type}\n")
    print(
        "| processes | seconds a step | images/s | beside one | largest relative difference of a loss, first 10 steps | mean loss, last epoch | talking |"
    )
    print("|---|---|---|---|---|---|---|")
    for run in ("one", "two", "two, BatchNorm per process"):
        worst = max(abs(a - b) / b for a, b in zip(losses[run][:10], losses["one"][:10], strict=True))
        last = statistics.mean(losses[run][len(losses[run]) // 2 :])
        talking = "" if run == "one" else f"{max(0.0, 1 - seconds['one on half the batch'] / seconds[run]):.0%} of a step"
        speed = f"{seconds[run]:.3f} | {batch_size / seconds[run]:,.0f} | {seconds['one'] / seconds[run]:.2f}"
        print(f"| {run} | {speed} | {worst:.1e} | {last:.3f} | {talking} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--backbones", nargs="*", default=list(BACKBONES), choices=list(BACKBONES))
    parser.add_argument("--model", default=None, choices=list(BACKBONES), help="of the second and third part")
    parser.add_argument("--input-px", type=int, default=None, help="of the second and third part")
    parser.add_argument("--batch", type=int, default=None)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--crops", type=int, default=4000)
    parser.add_argument("--only", nargs="*", default=PARTS, choices=PARTS)
    given = parser.parse_args()
    device = pick_device(given.device)
    on_gpu = device.type == "cuda"
    model, side = given.model or ("iresnet50" if on_gpu else "tiny"), given.input_px or (112 if on_gpu else 64)
    batch = given.batch or 128
    where = torch.cuda.get_device_name() if on_gpu else platform.machine()
    print(f"{os.cpu_count()} cores, {where}, torch {torch.__version__}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        parts: dict[str, Callable[[], None]] = {
            "backbones": lambda: backbones(given.backbones, given.batch or (128 if on_gpu else 8), given.seconds, device),
            "loader": lambda: loader(Path(folder), model, side, batch, given.crops, given.seconds, device),
            "processes": lambda: processes(Path(folder), model, side, batch, given.crops, device),
        }
        for part in given.only:
            parts[part]()


if __name__ == "__main__":
    main()
