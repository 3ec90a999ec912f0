"""A training over several processes: launched by torchrun, watched, and ended with whoever asked for it.

    python -m torch.distributed.run ... -m pipeline.ranks JOB.json        what runs in each process

Progress comes back as lines on the standard output of process 0, an error as a file beside the job. The standard input of every process is a pipe that nobody
writes to: it ends when the stage does, however it dies, and then so do they. Several machines: torchrun's own variables (`PET_NNODES`, `PET_NODE_RANK`,
`PET_MASTER_ADDR`, `PET_MASTER_PORT`) are left to it; docs/training.md shows how.
"""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
from torch import distributed as dist

from pipeline import errors
from pipeline.config import Config, as_dict, validate
from pipeline.errors import BadConfig, PurifyError, TrainingFailed
from pipeline.fanout import worker_count
from pipeline.fit import WORK, Job, fit
from pipeline.models import pick_device
from pipeline.receipts import Progress, write_json

_PROGRESS = "purify-progress"
_TOLD_EVERY_S = 0.2
_ENDS_WITHIN_S = 30.0


def machines() -> int:
    """How many machines train together, by torchrun's variable `PET_NNODES`; 1 where it is not set."""
    return int(os.environ.get("PET_NNODES", "1").rpartition(":")[2])


def process_count(config: Config) -> int:
    """Processes of a training on this machine. Raises BadConfig when there are fewer GPUs than asked for."""
    asked = config.train.processes
    device = pick_device(config.device)
    gpus = torch.cuda.device_count() if device.type == "cuda" and device.index is None else 1
    if device.type == "cuda" and asked > gpus:
        raise BadConfig(
            f"train.processes is {asked}, and device {config.device!r} stands for {gpus} GPUs. Use device=auto, or train.processes=0."
        )
    if asked:
        return asked
    return max((count for count in range(1, gpus + 1) if config.train.batch_size % (count * machines()) == 0), default=1)


def launch(job: Job, processes: int, progress: Progress | None = None) -> None:
    """Does a training by so many processes of this machine, and by those of others that follow (pipeline/follow.py).

    Raises what a process raised; TrainingFailed, with the end of the log, when one was killed or broke.
    """
    raw, folder = str(job.raw.absolute()), str(job.folder.absolute())
    _error_file(job).unlink(missing_ok=True)
    write_json(job_file(job.folder), {"raw": raw, "folder": folder, "config": as_dict(job.config), "subcenters": job.subcenters})
    take_part(job, processes, job.folder / WORK / "ranks.log", progress)


def job_file(folder: Path) -> Path:
    """Where the processes of a training in `folder` read what to do."""
    return folder / WORK / "job.json"


def read_job(path: Path) -> Job:
    """The job that a process of a training is given."""
    told = json.loads(path.read_text("utf-8"))
    return Job(Path(told["raw"]), Path(told["folder"]), validate(told["config"]), told["subcenters"])


def take_part(job: Job, processes: int, log_file: Path, progress: Progress | None = None) -> None:
    """Runs so many processes of a launched training, until all of them have ended. Raises as `launch`."""
    where = ["--standalone"] if machines() == 1 else []
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        *where,
        f"--nproc-per-node={processes}",
        "-m",
        __name__,
        str(job_file(job.folder)),
    ]
    environment = {"OMP_NUM_THREADS": str(max(1, worker_count(0) // processes))} | os.environ
    with log_file.open("w") as log:
        running = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=environment, text=True)  # noqa: S603 - this program
        try:
            for line in running.stdout or ():
                found = re.fullmatch(rf"{_PROGRESS} (\d+) (\d+)\n", line)
                if found and progress:
                    progress(int(found[1]), int(found[2]))
            running.wait()
        finally:
            _end(running)
    if running.returncode:
        raise _what_went_wrong(job, log_file)


def _end(running: "subprocess.Popen[str]") -> None:
    for pipe in (running.stdin, running.stdout):
        if pipe:
            pipe.close()
    with contextlib.suppress(subprocess.TimeoutExpired):
        running.wait(_ENDS_WITHIN_S)
    if running.poll() is None:
        running.kill()
        running.wait()


def _what_went_wrong(job: Job, log_file: Path) -> PurifyError:
    with contextlib.suppress(FileNotFoundError):
        told = json.loads(_error_file(job).read_text("utf-8"))
        kind: type[PurifyError] = getattr(errors, told["kind"])
        return kind(told["message"])
    text = log_file.read_text("utf-8", "replace")
    cause = re.findall(r"rank +: (\d+) .*\n *exitcode +: (-?\d+)", text)
    who = (
        f"Process {cause[-1][0]} of the training ended with code {cause[-1][1]}"
        if cause
        else "The processes of the training did not start or end well"
    )
    raised = re.findall(r"^(?:\[rank\d+\]: *)?([\w.]*(?:Error|Exception|Interrupt)\b.*)$", text, re.MULTILINE)
    return TrainingFailed(
        f"{who}{': ' + raised[0][:300] if raised else ''}. The same command goes on from the last checkpoint. Log: {log_file}."
    )


def _error_file(job: Job) -> Path:
    return job.folder / WORK / "error.json"


def main(path: Path) -> None:
    """One process of a training, started by torchrun."""
    threading.Thread(target=_end_with_the_stage, daemon=True).start()
    job = read_job(path)
    device = pick_device(job.config.device)
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        fit(job, device, rank=dist.get_rank(), ranks=dist.get_world_size(), progress=_told if dist.get_rank() == 0 else None)
        dist.barrier()
    except PurifyError as error:
        write_json(_error_file(job), {"kind": type(error).__name__, "message": str(error)})
        raise SystemExit(3) from error
    dist.destroy_process_group()


def _end_with_the_stage() -> None:
    while os.read(0, 1):
        pass
    os._exit(4)


_last_told = 0.0


def _told(done: int, total: int) -> None:
    global _last_told
    if time.monotonic() - _last_told > _TOLD_EVERY_S or done == total:
        _last_told = time.monotonic()
        sys.stdout.write(f"{_PROGRESS} {done} {total}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
