"""The commands that hand on what was kept: `export`, anew from the decisions or in another form, and `verify`."""

import contextlib
import re
import shlex
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Group, Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.table import Table

from flows.bars import bar
from flows.outputs import NamedPlace
from flows.screen import plain, plain_lines
from flows.workers import PROGRAM
from pipeline.config import MOST_WORKERS
from pipeline.errors import BadConfig, BadInput, BadShard
from pipeline.outside import require_outside
from pipeline.places import is_remote, located
from pipeline.visible import counted

if TYPE_CHECKING:
    from pipeline.exporters.plan import Plan
    from pipeline.verify import Verified

_out = Console()
_Form = Group("Export", help="With --to and --out: write what was kept in another form. docs/exports.md shows each.")
_MOST = 100
"""Findings that are printed."""
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}


def add_to(app: App) -> None:
    """Put these commands into the program."""
    app.command(export)
    app.command(verify)


def export(
    run: Path,
    *,
    to: Annotated[
        Literal["webdataset", "imagefolder", "recordio", "parquet", "hf"] | None,
        Parameter(group=_Form, help="The form: recordio is insightface's train.rec, hf what Hugging Face's load_dataset reads."),
    ] = None,
    out: Annotated[
        NamedPlace | None,
        Parameter(
            group=_Form,
            help="The folder to write: not there, empty, or an export of the same form and nothing else; or a URL, as s3://bucket/prefix.",
        ),
    ] = None,
    samples_per_shard: Annotated[int | None, Parameter(group=_Form, help="Samples in a tar or Parquet file.", show_default=False)] = None,
    bytes_per_shard: Annotated[
        str | None, Parameter(group=_Form, help="Instead: bytes in it, about, as 500MB or 1GB; 10,240 or more.")
    ] = None,
    val: Annotated[float, Parameter(group=_Form, help="Share of the identities that go into a split `val`, by a hash of the name.")] = 0.0,
    min_images: Annotated[int, Parameter(group=_Form, help="Leave identities with fewer samples out.")] = 1,
    workers: Annotated[int, Parameter(group=_Form, validator=Number(gte=0, lte=MOST_WORKERS), help="Processes; 0 is one per core.")] = 0,
    dry_run: Annotated[bool, Parameter(group=_Form, negative="", help="Say how much it would be, and write nothing.")] = False,
) -> int:
    """Write manifest, clean shards and audit page anew, with the decisions that stand; or, with --to, what was kept in another form.

    run.json and history tell of the new ones; exit code 3: they are beyond a limit of the run's settings. Nothing is trained again, and no picture
    is encoded again. Killed or repeated, an export goes on with what is not written yet, which stands in a hidden folder beside --out,
    `.NAME.partial-...`, until it is finished.

    Parameters
    ----------
    run:
        The folder of a finished run.
    """
    from pipeline.layout import RunLayout
    from pipeline.run_folder import claimed, read_finished

    layout = RunLayout(run)
    record = read_finished(layout)
    if to is None:
        _refuse_without_a_form(
            {
                "--out": out is not None,
                "--samples-per-shard": samples_per_shard is not None,
                "--bytes-per-shard": bytes_per_shard is not None,
                "--val": val != 0.0,
                "--min-images": min_images != 1,
                "--workers": workers != 0,
                "--dry-run": dry_run,
            }
        )
        warnings = _again(run)
        _out.print(f"Clean shards: {layout.clean}    Manifest: {layout.manifest}", highlight=False, soft_wrap=True)
        return 3 if warnings else 0
    if out is None and not dry_run:
        raise BadConfig(f"Say where to: purify export {run} --to {to} --out DIR. With --dry-run nothing is written.")
    from pipeline.config import validate
    from pipeline.export import is_current
    from pipeline.exporters.base import Wanted
    from pipeline.exporters.stage import export_to, plan_only, require_place
    from pipeline.fanout import prepare
    from pipeline.stores import require_store

    if out is not None and is_remote(out):
        require_store(out)
    elif out is not None:
        require_outside(Path(located(out)), run)
    if samples_per_shard is not None and bytes_per_shard is not None:
        raise BadConfig("Give --samples-per-shard or --bytes-per-shard, not both.")
    wanted = Wanted(
        form=to,
        samples_per_shard=10_000 if samples_per_shard is None else samples_per_shard,
        bytes_per_shard=None if bytes_per_shard is None else parsed_bytes(bytes_per_shard),
        val=val,
        min_images=min_images,
    )
    is_written = is_current(layout, validate(record["config"]))
    if out is not None:
        require_place(out, wanted, layout.clean if is_written else None)
    if not is_written:
        if dry_run:
            raise BadInput(f"Since {layout.clean} was written something was decided or changed. Run `purify export {run}` first.")
        _again(run)
    if dry_run:
        _print_plan(plan_only(layout.clean, wanted), to)
        return 0
    assert out is not None  # noqa: S101 - looked at above
    prepare([PROGRAM, "pipeline.exporters.stream"], workers=workers)
    with claimed(record["crawl"], layout), _told_when_stopped(out, run), bar(f"export {to}") as progress:
        receipt = export_to(layout.clean, out, wanted, workers=workers, work=run, progress=progress)
    counts = ", ".join(f"{name.replace('_', ' ')} {count:,}" for name, count in receipt.counts.items())
    said = "already done" if receipt.reused else f"{receipt.seconds:.1f} s"
    _out.print(f"{out}: {said} · {counts}\nCheck it: purify verify {out}", highlight=False, soft_wrap=True)
    return 0


def _refuse_without_a_form(is_given: Mapping[str, bool]) -> None:
    """Raise BadConfig for options that belong to an export in another form, where none is named: they would change nothing."""
    if given := [name for name, yes in is_given.items() if yes]:
        raise BadConfig(
            f"Say which form to write: --to webdataset, imagefolder, recordio, parquet or hf. Without it {', '.join(given)} would change nothing."
        )


@contextlib.contextmanager
def _told_when_stopped(out: str, run: Path) -> Iterator[None]:
    """Says of an export that fails or is stopped where that stands which it has written."""
    from pipeline.receipts import partials

    try:
        yield
    except BaseException:
        for partial in partials(run / "export" if is_remote(out) else Path(located(out))):
            Console(stderr=True).print(
                f"What was written so far stands in {partial}\nThe same command goes on from there. To give it up: rm -r {shlex.quote(str(partial))}",
                highlight=False,
                soft_wrap=True,
                markup=False,
            )
        raise


def parsed_bytes(text: str) -> int:
    """Bytes of a text such as 500MB, 1.5 GB or 1000000. Raises BadConfig."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)b?\s*", text.lower())
    if not found:
        raise BadConfig(f"{text!r} is no number of bytes. Give it as 500MB or 1GB.")
    return int(float(found[1]) * _UNITS[found[2]])


def _again(run: Path) -> list[str]:
    """The limits that the new manifest is beyond, which are told."""
    from flows.purify import export as again
    from flows.server import told_to_prefect
    from pipeline.layout import RunLayout

    record: Any = told_to_prefect(again, RunLayout(run), run)
    for warning in record["warnings"]:
        _out.print(f"[yellow]Mind:[/yellow] {plain(warning)}", highlight=False, soft_wrap=True)
    return list(record["warnings"])


def _print_plan(plan: "Plan", form: str) -> None:
    table = Table("split", "identities", "samples", "files or parts", "pictures, MB", f"as {form}, about MB")
    for split in plan.splits:
        size = f"{split.picture_bytes / 1e6:,.1f}", f"{split.total_bytes / 1e6:,.1f}"
        table.add_row(split.name, f"{split.identities:,}", f"{split.samples:,}", f"{split.parts:,}", *size)
    _out.print(table)
    _out.print(f"Left out by --min-images: {plan.left_out_identities:,} identities, {plan.left_out_samples:,} samples", highlight=False)


def verify(
    place: NamedPlace,
    *,
    workers: Annotated[int, Parameter(validator=Number(gte=0, lte=MOST_WORKERS), help="Processes; 0 is one per core.")] = 0,
) -> None:
    """Check every file of a run, of its raw/ or clean/, of its copy in a store, or of an export, against what it says that it holds.

    Exit code 1 when something is wrong.

    Of a run that is not finished it checks what is there, and says what is not there yet.

    Parameters
    ----------
    place:
        A folder, or a URL such as s3://bucket/prefix.
    """
    from pipeline.fanout import prepare
    from pipeline.verify import advice
    from pipeline.verify import verify as look

    started = time.perf_counter()
    prepare([PROGRAM, "pipeline.verify"], workers=workers)
    with bar("verify") as progress:
        found = look(place, workers=workers, progress=progress)
    for one in found.findings[:_MOST]:
        _out.print(f"{plain(one.name)}: {plain(one.what)}", highlight=False, soft_wrap=True)
    if len(found.findings) > _MOST:
        _out.print(f"... and {len(found.findings) - _MOST:,} more", highlight=False)
    if found.is_unfinished:
        _out.print(plain_lines(_unfinished(found, place)), highlight=False, soft_wrap=True)
    if found.findings:
        raise BadShard(
            f"{counted(len(found.findings), 'finding')} in {counted(found.files, 'file')} of {place}. {advice(place, found.findings)}"
        )
    seconds = time.perf_counter() - started
    said = "what is there is as it should be" if found.is_unfinished else "all as they should be"
    _out.print(
        f"{plain(place)}: {found.files:,} files, {found.bytes / 1e6:,.1f} MB, {said} ({seconds:.1f} s)", highlight=False, soft_wrap=True
    )


def _unfinished(found: "Verified", place: str) -> str:
    there = (
        f"only what is finished was checked: {', '.join(found.there)}"
        if found.there
        else "no stage is finished, so there was nothing to check"
    )
    missing = (
        f" Not there yet: {', '.join(found.missing)}, and any further round." if found.missing else " Some of it may still be made anew."
    )
    return f"This run is not finished; {there}.{missing} How far it is: purify status {place}"
