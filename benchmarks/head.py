"""What the head costs: forward and backward of one batch, beside the matrix products that nobody can leave out.

1. CPU, float32. `products`: cosines = X W', dX = G W, dW = G' X, nothing else (the limit). `ours`: SubCenterHead. `plain`: its definition, B x C x K at once.
   `drawn`: ours, with a tenth of the identities. `pml`: pytorch-metric-learning's SubCenterArcFaceLoss on the same numbers (pip install pytorch-metric-learning).
   Each in processes of its own, which take turns; a first, untimed pass; the peak is the process's VmHWM, interpreter and torch included.
2. GPU, where there is one, bfloat16: `ours` for K = 1 and 3, beside the arithmetic of insightface's partial_fc_v2 (normalised copies of the weights, all
   logits at once, then float32) re-implemented for any K; peak memory; share of the rate of a large matrix product; and how large C x K may be.
Run: python benchmarks/head.py [--classes 50000 200000] [--batch 128] [--dim 512] [--subcenters 3] [--rounds 3] [--repeats 3] [--busy] [--gpu-classes 100000 1000000]
"""

import argparse
import importlib.util
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from arcface_core.heads import SubCenterHead

SCALE, MARGIN_RAD = 64.0, 0.5
METHODS = ("products", "ours", "drawn", "plain", "pml")
Pass = Callable[[], Tensor | None]


def problem(classes: int, batch: int, dim: int, subcenters: int, device: torch.device) -> tuple[SubCenterHead, Tensor, Tensor]:
    """A head with centers of N(0, 0.01), features and class indices: the same numbers in every process."""
    generator = torch.Generator().manual_seed(0)
    head = SubCenterHead(classes, dim, num_subcenters=subcenters, scale=SCALE).to(device)
    features = torch.randn(batch, dim, generator=generator).to(device).requires_grad_()
    return head, features, torch.randint(classes, (batch,), generator=generator).to(device)


def loss_and_gradients(work: Callable[[], Tensor], *leaves: Tensor) -> Pass:
    """One forward and backward pass, gradients made anew, as after zero_grad."""

    def once() -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        loss = work()
        loss.backward()
        return loss.detach()

    return once


def method(name: str, classes: int, batch: int, dim: int, subcenters: int) -> Pass:
    head, features, index = problem(classes, batch, dim, subcenters, torch.device("cpu"))
    weight = head.weight
    if name == "products":
        x, w = features.detach(), weight.detach()

        def products() -> None:
            cos = x @ w.T
            cos @ w, cos.T @ x

        return products
    if name == "pml":
        from pytorch_metric_learning.losses import SubCenterArcFaceLoss

        theirs = SubCenterArcFaceLoss(
            num_classes=classes, embedding_size=dim, margin=math.degrees(MARGIN_RAD), scale=SCALE, sub_centers=subcenters
        )
        theirs.W.data = weight.data.T.contiguous()
        head.weight = torch.nn.Parameter(torch.empty(0))
        return loss_and_gradients(lambda: theirs(features, index), features, theirs.W)
    if name == "plain":
        return loss_and_gradients(lambda: functional.cross_entropy(head.logits(features, index), index), features, weight)
    if name == "drawn":
        head.sample_rate = 0.1
    return loss_and_gradients(lambda: head(features, index), features, weight)


def one(name: str, classes: int, batch: int, dim: int, subcenters: int, repeats: int, clock: Callable[[], float]) -> None:
    """In a process of its own: prints seconds, peak memory and loss."""
    work = method(name, classes, batch, dim, subcenters)
    loss, seconds = work(), []
    for _ in range(repeats):
        started = clock()
        work()
        seconds.append(clock() - started)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(
        json.dumps({"seconds": seconds, "peak_gb": int(status["VmHWM"].split()[0]) / 2**20, "loss": None if loss is None else float(loss)})
    )


def on_cpu(classes: int, batch: int, dim: int, subcenters: int, rounds: int, repeats: int, *, is_busy: bool) -> None:
    print(f"\nForward + backward, B = {batch}, D = {dim}, K = {subcenters}, C = {classes:,}, float32, {torch.get_num_threads()} threads")
    print(
        f"\n| | median {'processor ' if is_busy else ''}s | least, most | x products | peak GB | x pml's peak |\n|---|---|---|---|---|---|"
    )
    told: dict[str, list[dict[str, object]]] = {name: [] for name in METHODS}
    if importlib.util.find_spec("pytorch_metric_learning") is None:
        del told["pml"]
    for _ in range(rounds):
        for name in told:
            sizes = ["--classes", str(classes), "--batch", str(batch), "--dim", str(dim), "--subcenters", str(subcenters)]
            command = [sys.executable, __file__, "--one", name, *sizes, "--repeats", str(repeats), *(["--busy"] if is_busy else [])]
            told[name].append(json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout))
    seconds = {name: [value for run in runs for value in run["seconds"]] for name, runs in told.items()}  # type: ignore[attr-defined]
    peak = {name: max(float(str(run["peak_gb"])) for run in runs) for name, runs in told.items()}
    limit = statistics.median(seconds["products"])
    for name, values in seconds.items():
        middle, beside = statistics.median(values), f"{peak[name] / peak['pml']:.2f}" if "pml" in peak else "-"
        print(f"| {name} | {middle:.3f} | {min(values):.3f}, {max(values):.3f} | {middle / limit:.2f} | {peak[name]:.2f} | {beside} |")
    losses = {name: float(str(runs[0]["loss"])) for name, runs in told.items() if name not in ("products", "drawn")}
    assert max(losses.values()) - min(losses.values()) < 1e-3 * max(losses.values()), f"not the same loss: {losses}"
    if "pml" not in told:
        print("\npytorch-metric-learning is not installed, so it is not compared.")


def insightface(head: SubCenterHead, features: Tensor, index: Tensor) -> Tensor:
    """partial_fc_v2 on one device, every identity: normalised copies, all logits in the autocast type, then float32, margin straight through, cross-entropy."""
    unit, centers = functional.normalize(features), functional.normalize(head.weight)
    cos = functional.linear(unit, centers).view(len(features), head.num_classes, head.num_subcenters).amax(dim=2)
    cos = cos.float().clamp(-1, 1)
    own = cos[torch.arange(len(index), device=index.device), index]
    with torch.no_grad():
        change = torch.cos(own.arccos() + MARGIN_RAD) - own
    logits = cos.index_put((torch.arange(len(index), device=index.device), index), own + change)
    return functional.cross_entropy(SCALE * logits, index)


def card_pass(name: str, classes: int, batch: int, dim: int, subcenters: int, device: torch.device) -> Pass:
    head, features, index = problem(classes, batch, dim, subcenters, device)

    def work() -> Tensor:
        with torch.autocast(device.type, dtype=torch.bfloat16):
            return head(features, index) if name == "ours" else insightface(head, features, index)

    return loss_and_gradients(work, features, head.weight)


def timed(work: Pass, repeats: int) -> list[float]:
    work()
    seconds = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        started = time.perf_counter()
        work()
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return seconds


def matrix_rate(device: torch.device) -> float:
    """Floating point operations a second of a bfloat16 product of 8192 x 8192 matrices."""
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    return 2 * 8192**3 / min(timed(lambda: a @ b, 20))


def on_gpu(sizes: list[int], batch: int, dim: int, repeats: int) -> None:
    if not torch.cuda.is_available():
        print("\nNo GPU is there: the GPU part is left out.")
        return
    device = torch.device("cuda")
    rate = matrix_rate(device)
    print(f"\n{torch.cuda.get_device_name()}, bfloat16, B = {batch}, D = {dim}; a large matrix product: {rate / 1e12:.0f} TFLOP/s")
    print(
        "\n| C | K | | median ms | least, most | x insightface K = 1 | peak GB | share of the matrix rate |\n|---|---|---|---|---|---|---|---|"
    )
    for classes in sizes:
        first = math.nan
        for subcenters, name in ((1, "insightface"), (1, "ours"), (3, "insightface"), (3, "ours")):
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            try:
                seconds = timed(card_pass(name, classes, batch, dim, subcenters, device), repeats)
            except torch.cuda.OutOfMemoryError:
                print(f"| {classes:,} | {subcenters} | {name} | out of memory | | | | |")
                continue
            middle = statistics.median(seconds)
            first = middle if math.isnan(first) else first
            share = 6 * batch * dim * classes * subcenters / middle / rate
            print(
                f"| {classes:,} | {subcenters} | {name} | {middle * 1e3:.2f} | {min(seconds) * 1e3:.2f}, {max(seconds) * 1e3:.2f} "
                f"| {middle / first:.2f} | {torch.cuda.max_memory_allocated() / 2**30:.2f} | {share:.2f} |",
                flush=True,
            )
    for name in ("insightface", "ours"):
        print(f"\nLargest C with K = 3, weights and their gradient included, {name}: {largest(name, batch, dim, device):,}")


def largest(name: str, batch: int, dim: int, device: torch.device) -> int:
    """To a twentieth: the most identities, K = 3, of which a forward and backward pass fits."""
    low, high = 1000, 1000
    while high == low or high - low > low // 20:
        middle = high * 2 if high == low else (low + high) // 2
        torch.cuda.empty_cache()
        try:
            card_pass(name, middle, batch, dim, 3, device)()
            low, high = middle, middle if high == low else high
        except torch.cuda.OutOfMemoryError:
            high = middle
    return low


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="*", default=[50_000, 200_000])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--subcenters", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3, help="turns of each process")
    parser.add_argument("--repeats", type=int, default=3, help="timed passes of each process")
    parser.add_argument("--gpu-classes", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument(
        "--busy",
        action="store_true",
        help="count processor seconds, for a machine that does other work: use one thread (OMP_NUM_THREADS=1)",
    )
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        one(
            args.one,
            args.classes[0],
            args.batch,
            args.dim,
            args.subcenters,
            args.repeats,
            time.process_time if args.busy else time.perf_counter,
        )
        return
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, torch {torch.__version__}")
    for classes in args.classes:
        on_cpu(classes, args.batch, args.dim, args.subcenters, args.rounds, args.repeats, is_busy=args.busy)
    on_gpu(args.gpu_classes, args.batch, args.dim, max(10, args.repeats))


if __name__ == "__main__":
    main()
