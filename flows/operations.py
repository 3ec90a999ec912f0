"""The commands of who runs this unattended: `status`, `history`, `serve`."""

import asyncio
import hashlib
import logging
import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from flows.mirrors import Mirror, taken_from_mirror
from flows.outputs import NamedPlace
from flows.screen import plain, plain_lines
from pipeline.config import load
from pipeline.errors import BadConfig, BadInput
from pipeline.layout import RunLayout
from pipeline.visible import json_text

if TYPE_CHECKING:
    from prefect.runner import Runner

    from pipeline.status import Status

Format = Annotated[Literal["table", "json"], Parameter(help="How to print.")]
_out = Console()


def add_to(app: App) -> None:
    """Put these commands into the program."""
    for command in (status, history, serve):
        app.command(command)


def status(run: Path, *, format: Format = "table") -> None:
    """How far a run is: what is done, its rate, and when the stage that goes on is done. Reads files only; hinders nothing.

    Parameters
    ----------
    run:
        A run folder, while `purify run` works in it or not.
    """
    import dataclasses

    from pipeline.status import read_status

    found = read_status(run)
    if format == "json":
        sys.stdout.write(json_text(dataclasses.asdict(found)) + "\n")
        return
    table = Table("stage", "done", "rate", "left")
    for stage in found.finished:
        table.add_row(plain(stage["stage"]), "earlier" if stage["reused"] else _time(stage["seconds"]), _rate(stage["per_second"]), "")
    if found.stage is not None:
        share = f"{found.done} of {found.total}" if found.total else "begun"
        table.add_row(f"[bold]{plain(found.stage)}[/bold]", share, _rate(found.per_second), _time(found.left_s))
    _out.print(table)
    _out.print(plain_lines(_sentence(found, run)), highlight=False, soft_wrap=True)
    for told in found.todo:
        _out.print(plain(told), highlight=False, soft_wrap=True)
    for warning in found.warnings:
        _out.print(f"[yellow]Mind:[/yellow] {plain(warning)}", highlight=False, soft_wrap=True)


def _sentence(found: "Status", run: Path) -> str:
    if found.half_forgotten:
        return found.half_forgotten
    if found.state == "finished":
        page = RunLayout(run).audit_page
        return f"Finished. Look at {page}" if page.exists() else "Finished."
    if found.state == "running":
        return f"Running; it last told of itself {_time(found.silent_s) or '0 s'} ago."
    return f"Nobody works on it. The same `{found.command}` {'would stop here again.' if found.todo else 'goes on where it stopped.'}"


def history(
    runs: Annotated[list[Path], Parameter(negative="", help="Run folders; one has an entry for each time its crawl had changed.")],
    *,
    format: Format = "table",
) -> None:
    """The trend over finished runs: items, what was kept, the noise rate, how far the angles moved; and the sources that are noisiest now."""
    from pipeline.history import read_history
    from pipeline.status import record_of

    if missing := [str(run) for run in runs if not run.is_dir()]:
        raise BadInput(f"There is no run folder at {', '.join(missing)}.")
    for run in runs:
        record_of(run)
    entries = sorted(
        ({"run": str(run), **entry} for run in runs for entry in read_history(run)), key=lambda entry: (entry["finished_at"], entry["run"])
    )
    if not entries:
        raise BadInput(f"No run has finished in {', '.join(map(str, runs))} yet. `purify status RUN` says how far one is.")
    if format == "json":
        for entry in entries:
            sys.stdout.write(json_text(entry) + "\n")
        return
    table = Table("finished (UTC)", "run", "run id", "items", "gone", "samples", "exported", "share", "noise rate", "between", "drift")
    for entry in entries:
        table.add_row(
            entry["finished_at"][:19].replace("T", " "),
            plain(Path(entry["run"]).name),
            plain(entry["run_id"]),
            f"{entry['items']:,}",
            f"{entry['gone']:,}" if "gone" in entry else "",
            f"{entry['samples']:,}",
            f"{entry['exported']:,}" if "exported" in entry else "",
            f"{entry['kept_share']:.1%}",
            f"{entry['noise_rate']:.3f}",
            f"{entry['noise_rate_low']:.3f} and {entry['noise_rate_high']:.3f}",
            "" if entry["drift"] is None else f"{entry['drift']:.3f}",
        )
    (_out if _out.is_terminal else Console(width=200)).print(table)
    sources = _sources(entries)
    if sources.row_count:
        (_out if _out.is_terminal else Console(width=200)).print(sources)


def _sources(entries: list[dict[str, Any]]) -> Table:
    """Noise by source in the last entries, oldest first."""
    shown = entries[-5:]
    table = Table("noise by source", *(entry["finished_at"][:10] for entry in shown), "samples")
    by_source = [{one["source"]: one for one in entry["sources"]} for entry in shown]
    for source, last in sorted(by_source[-1].items(), key=lambda pair: -pair[1]["noise"]):
        known = [f"{one[source]['noise']:.3f}" if source in one else "" for one in by_source]
        table.add_row(plain(source), *known, f"{last['samples']:,}")
    return table


def serve(
    crawl: NamedPlace,
    run: Path,
    *,
    cron: Annotated[
        str | None, Parameter(help='When, as "0 3 * * *": minute, hour, day, month, weekday. Without, only when asked for.')
    ] = None,
    timezone: Annotated[str, Parameter(help="Of the cron.")] = "UTC",
    name: Annotated[str | None, Parameter(help="Of the deployment, in Prefect: one for each run folder. [default: that of RUN]")] = None,
    preset: Annotated[str | None, Parameter(help="Settings that come with the program: demo, cpu, gpu, paper.")] = None,
    config: Annotated[Path | None, Parameter(help="A TOML file of settings.")] = None,
    set_: Annotated[list[str] | None, Parameter(name="--set", negative="", help="One setting, as limits.noise_rate=0.5.")] = None,
    mirror: Mirror = None,
) -> None:
    """Stay, and purify the crawl by the clock; one run at a time. Needs a Prefect server: `prefect server start`, and its PREFECT_API_URL.

    Parameters
    ----------
    crawl:
        A path or a URL, as for `purify run`.
    run:
        The run folder, the same each time: a crawl that grew is gone on with.
    """
    settings = load(preset=preset, file=config, overrides=set_ or [])

    import httpx
    from prefect.runner import Runner
    from prefect.schedules import Cron
    from prefect.settings import PREFECT_API_URL

    from flows.purify import purify
    from pipeline.config import as_dict
    from pipeline.inputs import check_inputs

    if not PREFECT_API_URL.value():
        raise BadInput(
            "There is no Prefect server. Start one with `prefect server start`, then `export PREFECT_API_URL=http://127.0.0.1:4200/api`."
        )
    try:
        ZoneInfo(timezone)
        schedule = Cron(cron, timezone=timezone) if cron else None
    except (ValueError, ZoneInfoNotFoundError) as error:
        raise BadConfig(f"--cron or --timezone: {error}. As --cron '0 3 * * *' --timezone Europe/Berlin.") from error
    try:
        httpx.get(f"{PREFECT_API_URL.value()}/health", timeout=10)
    except httpx.HTTPError as error:
        raise BadInput(f"No Prefect server answers at {PREFECT_API_URL.value()}. Start it with `prefect server start`.") from error
    if mirror is not None:
        taken_from_mirror(run, mirror)
    check_inputs(crawl, RunLayout(run), settings)
    name = name or deployment_of(run)
    runner = Runner(name=name, limit=1, pause_on_shutdown=False)
    parameters = {"crawl": crawl, "run": str(run.resolve()), "config": as_dict(settings), "mirror": mirror}
    runner.add_flow(purify, name=name, schedule=schedule, parameters=parameters)
    when = f"by the clock ({cron}, {timezone}) and when asked" if cron else "when asked"
    _out.print(
        f"Purifies {when}: prefect deployment run 'purify/{name}'\nCtrl-C ends it, and a run that goes on.", highlight=False, soft_wrap=True
    )
    asyncio.run(_stay(runner))


def deployment_of(run: Path) -> str:
    """Of a run folder alone: of two that have one name, the later would take the schedule of the other."""
    where = run.resolve()
    kept = re.sub(r"[^\w.-]+", "-", where.name).strip("-") or "run"
    return f"{kept}-{hashlib.sha256(os.fsencode(where)).hexdigest()[:6]}"


async def _stay(runner: "Runner") -> None:
    """Until a signal. Prefect takes SIGTERM for itself and trips over it; the command's own way ends the run that goes on and tells the exit code."""
    ours = signal.getsignal(signal.SIGTERM)
    asyncio.get_running_loop().call_soon(signal.signal, signal.SIGTERM, ours)
    logging.getLogger("asyncio").addFilter(lambda record: not isinstance(_raised(record), asyncio.CancelledError))
    await runner.start()


def _raised(record: logging.LogRecord) -> BaseException | None:
    """That Python 3.11 tells of connections that are open when it ends."""
    return record.exc_info[1] if record.exc_info else None


def _rate(per_second: float | None) -> str:
    return f"{per_second:,.1f}/s" if per_second else ""


def _time(seconds: float | None) -> str:
    if seconds is None:
        return ""
    whole = round(seconds)
    hours, minutes = divmod(whole // 60, 60)
    return (
        f"{seconds:.1f} s"
        if seconds < 10
        else f"{whole} s"
        if whole < 120
        else f"{minutes} min"
        if not hours
        else f"{hours} h {minutes} min"
    )
