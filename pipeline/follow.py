"""A machine that takes part in the trainings of a run that another machine does.

    PET_NNODES=2 PET_NODE_RANK=1 PET_MASTER_ADDR=node0 PET_MASTER_PORT=29500 python -m pipeline.follow RUN

It sees the run folder, and everything that it names, under the same paths.
"""

import sys
import time
from pathlib import Path

from pipeline.errors import BadConfig, PurifyError
from pipeline.fit import WORK
from pipeline.ranks import job_file, machines, process_count, read_job, take_part

_LOOKS_EVERY_S = 1.0


def follow(run: Path) -> None:
    """Takes part in each training of a run as it begins, until that of the last round is done.

    Raises BadConfig when torchrun's variables tell of no other machine; what a training raises, when one fails: then start both sides again.
    """
    if machines() < 2:
        raise BadConfig(
            "PET_NNODES says how many machines train together, 2 or more. Set it, PET_NODE_RANK, PET_MASTER_ADDR and PET_MASTER_PORT."
        )
    done: set[Path] = set()
    while True:
        for path in sorted(run.glob(f"rounds/*/.train.partial-*/{WORK}/{job_file(run).name}")):
            if path in done or (path.parents[1] / "model.json").exists():
                continue
            job = read_job(path)
            take_part(job, process_count(job.config), run / f".follow-{path.parents[2].name}.log")
            done.add(path)
            if int(path.parents[2].name) == job.config.rounds:
                return
        time.sleep(_LOOKS_EVERY_S)


if __name__ == "__main__":
    try:
        follow(Path(sys.argv[1]).absolute())
    except PurifyError as error:
        raise SystemExit(str(error)) from None
