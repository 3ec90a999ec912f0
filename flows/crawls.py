"""The command that looks at a crawl: `inspect`. It needs neither Prefect nor torch, and leaves nothing behind."""

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.table import Table

from flows import flags
from flows.outputs import NamedPlace, NewFile
from flows.screen import plain
from pipeline.config import load
from pipeline.visible import counted, json_text

if TYPE_CHECKING:
    from pipeline.inspection import Inspection

_out = Console()


def add_to(app: App) -> None:
    """Put this command into the program."""
    app.command(inspect)


def inspect(
    crawl: NamedPlace,
    *,
    sheet: Annotated[NewFile | None, Parameter(help="A .jpg file to write, with some of the crops as ingest would make them.")] = None,
    sample: Annotated[int, Parameter(validator=Number(gte=1, lte=10**7), help="Items to look into.")] = 300,
    source: flags.Source = None,
    detector: flags.Detector = None,
    detector_model: flags.DetectorModel = None,
    landmarks: flags.Landmarks = None,
    faces: flags.Faces = None,
    preset: Annotated[
        str | None, Parameter(group=flags.SETTINGS, help="Settings that come with the program: demo, cpu, gpu, paper.")
    ] = None,
    config: Annotated[Path | None, Parameter(group=flags.SETTINGS, help="A TOML file of settings.")] = None,
    set_: Annotated[
        list[str] | None, Parameter(group=flags.SETTINGS, name="--set", negative="", help="One setting, as ingest.identity_key=person.")
    ] = None,
    format: Annotated[Literal["table", "json"], Parameter(help="How to print.")] = "table",
) -> None:
    """What a crawl is, and what a run would make of it. Nothing is written, but the sheet when one is asked for.

    Parameters
    ----------
    crawl:
        A path or a URL, as for `purify run`.
    """
    from pipeline.inspection import inspect as look

    chosen = flags.ingest_overrides(source=source, detector=detector, detector_model=detector_model, landmarks=landmarks, faces=faces)
    found = look(crawl, load(preset=preset, file=config, overrides=[*(set_ or []), *chosen]), sample=sample, sheet=sheet)
    if format == "json":
        sys.stdout.write(json_text(dataclasses.asdict(found), indent=1) + "\n")
        return
    _show(found)


def _show(found: "Inspection") -> None:
    about = "" if found.identities_are_exact else " in the sample"
    table = Table("", "", show_header=False, box=None)
    rows = {
        "read as": f"{found.source}: {found.reads}",
        "items": f"{'' if found.items_are_exact else 'about '}{found.items:,}",
        "bytes": _size(found.total_bytes),
        "identities": f"{found.identities:,}{about}",
        "largest": ", ".join(f"{who} ({count:,})" for who, count in found.largest),
        "smallest": ", ".join(f"{who} ({count:,})" for who, count in found.smallest),
        "formats": _counted(found.formats),
        "shorter side": "{} px, half of them {} or more, up to {}".format(*found.side_px) if found.side_px else "no picture could be read",
        "item": "{} to {}, half of them {} or more".format(*(_size(found.item_bytes[n]) for n in (0, 2, 1))) if found.item_bytes else "",
        f"of {found.sampled:,} looked into": _counted(found.statuses),
        "a run": f"{counted(found.shards, 'raw shard')}, about {_size(found.disk_bytes)} of disk",
    }
    for name, value in rows.items():
        if value or name != "smallest":
            table.add_row(name, plain(value))
    _out.print(f"[bold]{plain(found.crawl)}[/bold]", highlight=False, soft_wrap=True)
    _out.print(table, highlight=False)
    for uri, detail in found.problems:
        _out.print(f"  {plain(uri)}: {plain(detail)}", highlight=False, soft_wrap=True)
    for warning in found.warnings:
        _out.print(f"[yellow]Mind:[/yellow] {plain(warning)}", highlight=False, soft_wrap=True)
    for step in found.would_do:
        _out.print(f"Would do: {plain(step)}", highlight=False, soft_wrap=True)


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in counts.items())


def _size(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
