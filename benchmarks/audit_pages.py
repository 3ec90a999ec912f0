"""The audit pages of a large run: how long they take to make, how large they are, and how soon a real browser shows them.

    python benchmarks/audit_pages.py                                   # 10,000 identities of 8 samples, 2,000 pages drawn
    python benchmarks/audit_pages.py --identities 100000 --samples 4   # a list of 100,000

The run is invented (tests/pipeline/fake_run.py). Needs Chromium and its driver; the pages are opened from disk, each time by a fresh profile.
"""

import argparse
import random
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the browser and the invented run are the tests'

from pipeline.audit import write_audit
from tests.browser import browser_in
from tests.pipeline.fake_run import Planted, write_run

TARGET_MS = 1000
_PAINT = "return performance.getEntriesByName('first-contentful-paint')[0]?.startTime"


def planted(identities: int, samples: int, seed: int) -> list[Planted]:
    """Identities of `samples` each, a third of them wrong on average, spread unevenly."""
    rng = random.Random(seed)
    found = []
    for number in range(identities):
        name, share = f"Person {rng.randrange(10**6):06d} {number}", rng.random() * 0.66
        for _ in range(samples):
            wrong = rng.random() < share
            angle = rng.gauss(88, 7) if wrong else rng.gauss(45, 9)
            verdict = ("relabel" if rng.random() < 0.15 else "drop") if wrong else "keep"
            other = f"Person {number}" if verdict == "relabel" else None
            found.append(
                Planted(
                    identity=name,
                    angle_deg=angle,
                    verdict=verdict,
                    reason="angle" if wrong else "accepted",
                    other_identity=other,
                    is_dominant=not wrong,
                )
            )
    return found


def opened(pages: Path, address: str, ready: str, repeats: int) -> dict[str, float]:
    """Median milliseconds to the first paint with content, and until `ready` is true, and MB of script memory, over fresh browsers."""
    paints, whole, heaps = [], [], []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as folder, browser_in(Path(folder)) as browser:
            browser.open("about:blank")
            browser.open((pages / address.split("#")[0]).as_uri() + ("#" + address.split("#")[1] if "#" in address else ""))
            whole.append(browser.until(f"return ({ready}) && performance.now()", seconds=60))
            paints.append(browser.until(_PAINT))
            heaps.append(browser.run("return performance.memory.usedJSHeapSize") / 1e6)
    return {"first paint": statistics.median(paints), "ready": statistics.median(whole), "heap": statistics.median(heaps)}


def searched(pages: Path) -> dict[str, float]:
    """Milliseconds of a search, a sort by name and a jump to the end, with the list in the page."""
    with tempfile.TemporaryDirectory() as folder, browser_in(Path(folder)) as browser:
        browser.open(pages / "index.html")
        browser.until("return document.body.dataset.ready", seconds=60)
        timed = """const [id, value, event] = arguments, e = document.getElementById(id), t = performance.now();
            e.value = value; e.dispatchEvent(new Event(event)); return performance.now() - t"""
        return {
            "search for '12'": browser.run(timed, "needle", "12", "input"),
            "search cleared": browser.run(timed, "needle", "", "input"),
            "sort by name": browser.run(timed, "order", "name", "change"),
            "sort by share": browser.run(timed, "order", "share", "change"),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--identities", type=int, default=10_000)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--drawn", type=int, default=2_000)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--repeats", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run, pages = Path(folder) / "run", Path(folder) / "audit"
        write_run(run, planted(chosen.identities, chosen.samples, 0), per_shard=5_000, crops=64)
        started = time.perf_counter()
        counts = write_audit(run, pages, title="A large run", identities=chosen.drawn, faces=16, inversions={}, workers=chosen.workers)
        seconds = time.perf_counter() - started
        files = [path for path in pages.rglob("*") if path.is_file()]
        rows: list[tuple[str, Any, str]] = [
            ("identities in the list / with a page", f"{counts.identities:,} / {counts.drawn:,}", ""),
            ("made in", f"{seconds:.1f} s", f"{counts.drawn / seconds:.0f} pages/s"),
            (
                "largest process",
                f"{max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) / 1024:.0f} MB",
                "",
            ),
            ("on disk", f"{sum(path.stat().st_size for path in files) / 1e6:.0f} MB", f"{len(files):,} files"),
        ]
        for what, address, ready in (
            ("overview", "index.html", "document.body.dataset.ready"),
            (
                "identity",
                f"identity.html#n{counts.drawn // 2}",
                "document.body.dataset.ready && Array.from(document.images).slice(0, 8).every(i => i.complete)",
            ),
        ):
            seen = opened(pages, address, ready, chosen.repeats)
            rows.append((f"{what}: first paint", f"{seen['first paint']:.0f} ms", f"{seen['first paint'] / TARGET_MS:.2f} of the target"))
            rows.append((f"{what}: all loaded", f"{seen['ready']:.0f} ms", f"{seen['heap']:.0f} MB of script memory"))
        rows += [(f"list: {what}", f"{ms:.0f} ms", "") for what, ms in searched(pages).items()]
    for what, value, note in rows:
        print(f"{what:<40} {value:>20}  {note}")


if __name__ == "__main__":
    main()
