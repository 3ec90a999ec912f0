"""Who does the parts of a stage: processes of this machine (pipeline/fanout.py), threads, or a Dask or Ray cluster.

A stage becomes a handful of cluster tasks, each a range of its shards. They are the cluster's own and no Prefect task runs: within those every worker
process wants Prefect's server, and without one that stays starts a server and a database of its own, which took a minute. All workers read the
crawl and write the run folder by the same paths.
"""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

from pipeline.errors import BadConfig
from pipeline.fanout import Mapper, mapped_by, prepare, worker_count

RunnerName = Literal["processes", "threads", "dask", "ray"]
TASKS_PER_WORKER = 4
"""Of a stage: few, and still even when some ranges take longer than others."""
PROGRAM = "flows.cli"
"""What the program's script imports; every worker imports the script again, half a second of a core, unless it is imported already."""
_STAGES = (PROGRAM, "pipeline.ingest", "pipeline.embed", "pipeline.isolate", "pipeline.export", "pipeline.audit")
"""Those that fan out, and the program."""
_Each = Callable[[list[Sequence[Any]]], Iterator[list[Any]]]


@contextlib.contextmanager
def fanned(runner: RunnerName, address: str | None, workers: int) -> Iterator[None]:
    """While it lasts, the parts of stages are done by `runner`.

    address   of a cluster that exists (`tcp://scheduler:8786`, `ray://head:10001`); None starts one on this machine
    workers   processes or threads, or those of a cluster that is started; 0 is one per core

    Raises BadConfig when the extra is not installed, or an address has no sense.
    """
    if address is not None and runner not in ("dask", "ray"):
        raise BadConfig(f"An address is of a cluster, and the task runner {runner!r} is of this machine. Give --task-runner dask or ray.")
    if runner == "processes":
        prepare(_STAGES, workers=workers)
        yield
        return
    with RUNNERS[runner](address, worker_count(workers)) as mapper, mapped_by(mapper):
        yield


@contextlib.contextmanager
def _threads(_: str | None, count: int) -> Iterator[Mapper]:
    with ThreadPoolExecutor(count) as pool:
        yield lambda part, parts: _in_ranges(lambda ranges: pool.map(partial(_each, part), ranges), parts, count)


@contextlib.contextmanager
def _dask(address: str | None, count: int) -> Iterator[Mapper]:
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise BadConfig("--task-runner dask needs the extra `dask`: pip install 'arcface-purify[dask]'") from error
    with contextlib.ExitStack() as stack:
        if address is None:
            address = stack.enter_context(LocalCluster(n_workers=count, threads_per_worker=1, dashboard_address=None)).scheduler_address
        client = stack.enter_context(Client(address))

        def mapper(part: Callable[[Any], Any], parts: Sequence[Any]) -> Iterator[Any]:
            def each(ranges: list[Sequence[Any]]) -> Iterator[list[Any]]:
                futures = client.map(partial(_each, part), ranges, pure=False)
                try:
                    for future in futures:
                        yield future.result()
                finally:
                    client.cancel(futures)

            return _in_ranges(each, parts, sum(client.nthreads().values()) or count)

        yield mapper


@contextlib.contextmanager
def _ray(address: str | None, count: int) -> Iterator[Mapper]:
    try:
        import ray
    except ImportError as error:
        raise BadConfig("--task-runner ray needs the extra `ray`: pip install 'arcface-purify[ray]'") from error
    own = {"address": "local", "num_cpus": count, "include_dashboard": False}
    ray.init(**({"address": address} if address else own), log_to_driver=False, logging_level=logging.ERROR)
    do = ray.remote(_each)

    def mapper(part: Callable[[Any], Any], parts: Sequence[Any]) -> Iterator[Any]:
        def each(ranges: list[Sequence[Any]]) -> Iterator[list[Any]]:
            # None is cancelled: a task that ends at that moment ends this process, too (Ray 2.60). They end with the connection.
            for one in [do.remote(part, some) for some in ranges]:
                yield ray.get(one)

        return _in_ranges(each, parts, int(ray.cluster_resources().get("CPU", count)))

    try:
        yield mapper
    finally:
        ray.shutdown()


RUNNERS: dict[str, Callable[[str | None, int], contextlib.AbstractContextManager[Mapper]]] = {
    "threads": _threads,
    "dask": _dask,
    "ray": _ray,
}


def _each(part: Callable[[Any], Any], some: Sequence[Any]) -> list[Any]:
    return [part(one) for one in some]


def _in_ranges(each: _Each, parts: Sequence[Any], count: int) -> Iterator[Any]:
    """The results of all parts in their order, of which `each` does ranges."""
    size = max(1, -(-len(parts) // (count * TASKS_PER_WORKER)))
    for some in each([parts[start : start + size] for start in range(0, len(parts), size)]):
        yield from some
