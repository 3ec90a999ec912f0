"""`python -m tests.faults`: a hundred kills at random points, and every other trouble; a table, and exit code 1 when a single byte differs."""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.kills import grown_crawl, new_crawl, rehearse
from tests.faults.troubles import TROUBLES


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--kills", type=int, default=100)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--identities", type=int, default=8)
    options.add_argument("--new-only", action="store_true", help="leave out the crawl that has grown")
    options.add_argument("--troubles", nargs="*", choices=list(TROUBLES), default=list(TROUBLES))
    given = options.parse_args()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="purify-faults-") as name:
        folder = Path(name)
        new = new_crawl(folder, identities=given.identities, rounds=given.rounds)
        print(
            "| trouble                         | seconds | outcome |\n|---------------------------------|---------|---------|", flush=True
        )
        for number, trouble in enumerate(given.troubles):
            started = time.perf_counter()
            own = folder / f"trouble-{number}"
            own.mkdir()
            found = TROUBLES[trouble](new, own)
            skipped = found and found[0].startswith("skipped")
            outcome = found[0] if skipped else f"{len(found)} things wrong" if found else "as undisturbed"
            print(f"| {trouble:<31} | {time.perf_counter() - started:7.1f} | {outcome} |", flush=True)
            wrong += [] if skipped else [f"{trouble}: {one}" for one in found]
        if given.kills:
            plays = [new] if given.new_only else [new, grown_crawl(folder, new)]
            wrong += rehearse(plays, folder, kills=given.kills, seed=given.seed)
    print("\n".join(wrong))
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
