"""The `purify` command. What needs torch or Prefect is imported inside the commands, so that `--help` answers at once."""

import json
import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

from cyclopts import App, CycloptsError, Group, Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.table import Table

from flows import crawls, evaluation, exports, flags, inversion, mirrors, models, operations, questions, reviews, upkeep
from flows.mirrors import Mirror, taken_from_mirror
from flows.outputs import NamedPlace, NewFile, NewFolder, require_named
from flows.screen import plain, plain_lines
from pipeline.config import MOST_WORKERS, Config, Mode, load
from pipeline.errors import BadConfig, BadInput, PurifyError
from pipeline.places import Location, recorded

app = App(
    name="purify",
    help="Clean a raw web face crawl with sub-center ArcFace: find the wrong faces, keep a row for every decision, export clean shards.",
    version=lambda: version("arcface-purify"),
    group_parameters=Group("Parameters", validator=require_named),
    help_epilogue="Try it:  purify demo        Your crawl:  purify run CRAWL RUN --preset cpu        Ask:  purify report RUN",
)
crawls.add_to(app)
exports.add_to(app)
mirrors.add_to(app)
models.add_to(app)
operations.add_to(app)
questions.add_to(app)
reviews.add_to(app)
evaluation.add_to(app)
upkeep.add_to(app)
inversion.add_to(app)
_out = Console()
_READERS = {"duckdb", "_duckdb", "pyarrow"}
_DAMAGED = "`purify verify RUN` tells which are damaged; remove their folder (manifest/, rounds/1/noise/ ...), and the same `purify run` makes it anew."
Preset = Annotated[str | None, Parameter(group=flags.SETTINGS, help="Settings that come with the program: demo, cpu, gpu, paper.")]
ConfigFile = Annotated[
    Path | None, Parameter(name="--config", group=flags.SETTINGS, help="A TOML file of settings, like data/presets/demo.toml.")
]
Overrides = Annotated[
    list[str] | None,
    Parameter(name="--set", group=flags.SETTINGS, negative="", help="One setting, as isolate.max_angle_deg=70. May be repeated."),
]


@app.command
def run(
    crawl: NamedPlace,
    run: Path,
    *,
    preset: Preset = None,
    config: ConfigFile = None,
    set_: Overrides = None,
    mode: Annotated[
        Mode | None,
        Parameter(
            group=flags.SETTINGS, help="A crawl that grew: full trains anew, judge keeps the training, auto keeps it as long as it serves."
        ),
    ] = None,
    init: Annotated[
        Path | None, Parameter(group=flags.SETTINGS, help="Backbone weights to start from: .safetensors, or insightface's .pt.")
    ] = None,
    embedder: Annotated[
        Path | None,
        Parameter(group=flags.SETTINGS, help="A model to purify with, in place of training: .onnx, weights, or a run (docs/models.md)."),
    ] = None,
    holdout: Annotated[
        float | None, Parameter(group=flags.SETTINGS, help="Share of the identities held out of training, to evaluate on.")
    ] = None,
    max_noise: Annotated[
        float | None, Parameter(group=flags.SETTINGS, help="Share of noise wanted among what is kept, at most, as 0.01.")
    ] = None,
    min_retention: Annotated[
        float | None, Parameter(group=flags.SETTINGS, help="Share of the clean samples to keep, at least, as 0.99.")
    ] = None,
    protect: Annotated[
        list[Path] | None,
        Parameter(
            group=flags.SETTINGS,
            negative="",
            help="An evaluation set (.bin, or a folder of aligned faces) to look for in the crawl. May be repeated.",
        ),
    ] = None,
    exclude_protected: Annotated[
        bool, Parameter(group=flags.SETTINGS, negative="", help="Leave what matches a protected set out of the clean shards.")
    ] = False,
    source: flags.Source = None,
    detector: flags.Detector = None,
    detector_model: flags.DetectorModel = None,
    landmarks: flags.Landmarks = None,
    faces: flags.Faces = None,
    max_bad_items: Annotated[
        float | None,
        Parameter(group=flags.SETTINGS, help="Stop before training when more than this share of the items is broken or faceless, as 0.2."),
    ] = None,
    task_runner: Annotated[
        Literal["processes", "threads", "dask", "ray"],
        Parameter(help="Who does the parts of ingest, embed, isolate, export and audit; dask and ray are extras. Changes no result."),
    ] = "processes",
    address: Annotated[str | None, Parameter(help="Of a Dask or Ray cluster that exists; without, one is started on this machine.")] = None,
    mirror: Mirror = None,
    dry_run: Annotated[bool, Parameter(negative="", help="Say what would be done, and do nothing.")] = False,
    log: Annotated[Literal["text", "json"], Parameter(help="What goes to standard error: words and bars, or an object a line.")] = "text",
) -> int:
    """Purify a crawl into a run folder. Killed or repeated, it does only what is not done yet. Exit code 3: done, and beyond a limit (--set limits.*).

    What is finished is trusted: of raw and clean shards the lengths are looked at, of the rest nothing. `purify verify RUN` reads it all.

    Parameters
    ----------
    crawl:
        A path or a URL (s3://, gs://, https://): a folder per identity, WebDataset tars, img2dataset's output, a table, a train.rec, ...
    run:
        Where everything goes: raw/, rounds/, manifest/, clean/, evaluation/, audit/.
    """
    overrides = list(set_ or [])
    overrides += [f"mode={mode}"] if mode else []
    overrides += [f"train.init={init}"] if init else []
    overrides += [f"embedder.model={json.dumps(str(embedder))}"] if embedder else []
    overrides += [f"evaluate.holdout={holdout}"] if holdout is not None else []
    overrides += [f"protect.sets={json.dumps([str(path) for path in protect])}"] if protect else []
    overrides += ["protect.exclude=true"] if exclude_protected else []
    overrides += [f"isolate.max_noise={max_noise}"] if max_noise is not None else []
    overrides += [f"isolate.min_retention={min_retention}"] if min_retention is not None else []
    overrides += flags.ingest_overrides(
        source=source, detector=detector, detector_model=detector_model, landmarks=landmarks, faces=faces, max_bad_items=max_bad_items
    )
    settings = load(preset=preset, file=config, overrides=overrides)
    os.environ["PURIFY_LOG"] = log
    if dry_run:
        _plan(crawl, run, settings, mirror)
        return 0
    return _summarise(_purify(crawl, run, settings, task_runner=task_runner, address=address, mirror=mirror), run)


@app.command
def demo(
    folder: NewFolder = Path("demo"),
    *,
    identities: Annotated[int, Parameter(validator=Number(gte=3, lte=10**7))] = 150,
    images: Annotated[int, Parameter(validator=Number(gte=4, lte=10**5))] = 40,
    noise: Annotated[float, Parameter(validator=Number(gte=0, lte=0.9))] = 0.5,
    seed: int = 0,
    set_: Overrides = None,
) -> int:
    """Render a crawl of invented faces with planted noise, purify it, and score the verdicts against what was planted.

    Parameters
    ----------
    folder:
        Where it goes: synthetic/ (crawl/, truth.parquet, unseen.bin) and run/.
    identities:
        People in the crawl. Of 40 the network learns too little to judge by.
    images:
        Images of each.
    noise:
        Share of the images that are wrong.
    seed:
        Of the crawl and of the training.
    """
    from pipeline.score import score

    made, where = folder / "synthetic", folder / "run"
    if folder.is_dir() and {path.name for path in folder.iterdir() if path.name[0] != "."} - {made.name, where.name}:
        raise BadInput(f"{folder} holds other things than a demo. Give a folder that is empty, or not there.")
    settings = load(preset="demo", overrides=[f"seed={seed}", f"evaluate.bins={json.dumps([str(made / 'unseen.bin')])}", *(set_ or [])])
    _render_once({"identities": identities, "images": images, "noise": noise, "seed": seed}, made)
    code = _summarise(_purify(made / "crawl", where, settings), where)
    result = score(where, made / "truth.parquet")
    areas = ", ".join(f"round {number} {area:.3f}" for number, area in result.auroc_by_round.items())
    _out.print(f"\nAgainst the planted truth: precision [bold]{result.precision:.3f}[/bold], recall [bold]{result.recall:.3f}[/bold]")
    _out.print(
        f"Wrong identities: {result.noise_before:.1%} of the crawl, {result.noise_after:.1%} of what was kept; {result.clean_kept:.1%} of the clean samples kept"
    )
    _out.print(f"AUROC of the angle: {areas}")
    return code


@app.command
def synthesize(
    crawl: NewFolder,
    truth: NewFile,
    *,
    identities: Annotated[int, Parameter(validator=Number(gte=3, lte=10**7))] = 150,
    images: Annotated[int, Parameter(validator=Number(gte=4, lte=10**5))] = 40,
    noise: Annotated[float, Parameter(validator=Number(gte=0, lte=0.9))] = 0.5,
    seed: int = 0,
    form: Literal["folder", "shards"] = "folder",
    workers: Annotated[int, Parameter(validator=Number(gte=0, lte=MOST_WORKERS))] = 0,
) -> None:
    """Render a crawl of invented faces with planted noise, and its truth table.

    Parameters
    ----------
    crawl:
        Folder to make.
    truth:
        Parquet file to write: item, identity, true_identity, is_noise, kind.
    identities:
        People in the crawl.
    images:
        Images of each.
    noise:
        Share of the images that are wrong.
    seed:
        The same seed gives the same bytes, whatever the workers.
    form:
        A folder per identity, or WebDataset tars.
    workers:
        Processes; 0 is one per core.
    """
    from flows.progress import shown
    from pipeline.synthetic import SyntheticCrawl, write_folder, write_shards

    if crawl.exists() and (not crawl.is_dir() or any(crawl.iterdir())):
        raise BadInput(f"{crawl} is there already. Give a folder that is empty, or not there.")
    settings = SyntheticCrawl(identities=identities, images=images, noise=noise, seed=seed)
    write = write_folder if form == "folder" else write_shards
    with shown("render") as progress:
        write(settings, crawl, truth, workers=workers, on_progress=progress)
    _out.print(f"{crawl} and {truth} are written. Now: purify run {crawl} RUN --preset demo")


def _purify(crawl: Location, run: Path, config: Config, *, mirror: str | None = None, **workers: Any) -> dict[str, Any]:
    started = time.perf_counter()
    from pipeline.inputs import check_inputs
    from pipeline.layout import RunLayout
    from pipeline.run_folder import claimed

    # What can be refused is refused before Prefect's server takes its half a minute to start.
    layout = RunLayout(run)
    if mirror is not None:
        taken_from_mirror(run, mirror)
    check_inputs(crawl, layout, config)
    with claimed(crawl, layout):
        pass
    from flows import server

    server.start()
    from flows.purify import purify  # with all stages, and torch

    record: dict[str, Any] = server.told_to_prefect(purify, layout, crawl, run, config, mirror=mirror, **workers)
    return record | {"wall_seconds": time.perf_counter() - started}


def _render_once(wanted: dict[str, Any], made: Path) -> None:
    """Render the demo's crawl, its truth, and pairs of unseen people, unless exactly these stand there already."""
    from flows.progress import shown
    from pipeline.receipts import fingerprint, run_stage
    from pipeline.synthetic import VERSION, SyntheticCrawl, write_folder, write_verification_pairs

    settings = SyntheticCrawl(**wanted)

    def render(folder: Path) -> dict[str, Any]:
        with shown("render the crawl") as progress:
            write_folder(settings, folder / "crawl", folder / "truth.parquet", workers=0, on_progress=progress)
        write_verification_pairs(settings, folder / "unseen.bin", pairs=2000)
        return {}

    run_stage(made, stage="synthetic", mark=fingerprint("synthetic", VERSION, wanted), work=render)


def _plan(crawl: str, run: Path, config: Config, mirror: str | None) -> None:
    from pipeline.config import as_dict
    from pipeline.embedders import load_embedder
    from pipeline.inputs import check_inputs
    from pipeline.layout import RunLayout
    from pipeline.mirroring.pull import would_take
    from pipeline.models import pick_device
    from pipeline.plan import plan
    from pipeline.run_folder import require_claimable

    layout = RunLayout(run)
    if mirror is not None:
        taken = would_take(run, mirror)
        first = f"{taken:,} files would be taken from it first; what follows is without them" if taken else "nothing to take from it"
        _out.print(f"copy at {plain(mirror)}: {first}", highlight=False, soft_wrap=True)
    form = check_inputs(crawl, layout, config)
    require_claimable(crawl, layout)
    _out.print(f"{plain(recorded(crawl))}: a crawl in the form '{form}'", highlight=False, soft_wrap=True)
    if config.embedder.model is not None:
        embedder = load_embedder(Path(config.embedder.model), pick_device(config.device), config.embedder)
        _out.print(
            f"{config.embedder.model}: {embedder.name}, {embedder.input_px} px, {embedder.dim} dimensions, SHA-256 {embedder.sha256}"
        )
    planned = plan(crawl, layout, config)
    for name, _, why in planned.steps:
        _out.print(f"  {name}: {why}", highlight=False, soft_wrap=True)
    for name in planned.removed:
        _out.print(f"  {name}: would be removed, as these settings have none", highlight=False, soft_wrap=True)
    if planned.training:
        _out.print(f"Training: {plain(planned.training)}", highlight=False, soft_wrap=True)
    if planned.changed_settings:
        _out.print(f"Since the last finished run: {plain('; '.join(planned.changed_settings))}", highlight=False, soft_wrap=True)
    _out.print_json(data=as_dict(config))


def _summarise(record: dict[str, Any], run: Path) -> int:
    """Exit code of a finished run."""
    from flows.purify import summary
    from pipeline.layout import RunLayout
    from pipeline.learned import judged_anyway

    table = Table("", "", show_header=False, box=None)
    for row in summary(record):
        table.add_row(plain(row["what"]), plain(row["value"]))
    _out.print(table)
    stages = sum(stage["seconds"] for stage in record["stages"] if not stage["reused"])
    rest = record["wall_seconds"] - stages
    _out.print(
        f"\n{record['wall_seconds']:.0f} s: {stages:.0f} s in stages, {rest:.0f} s for Prefect, its server's start and imports",
        highlight=False,
    )
    _out.print(f"Look at [bold]{run / 'audit' / 'index.html'}[/bold]", highlight=False, soft_wrap=True)
    _out.print(f"Clean shards: {run / 'clean'}    Manifest: {run / 'manifest'}", highlight=False, soft_wrap=True)
    asked = ["noisiest", *(["contamination"] if record["config"]["protect"]["sets"] else [])]
    _out.print("Ask: " + "    ".join(f"purify report {run} {name}" for name in asked), highlight=False, soft_wrap=True)
    anyway = judged_anyway(RunLayout(run).round(record["config"]["rounds"]).noise)
    for warning in [*([anyway] if anyway else []), *record["warnings"]]:
        _out.print(f"[yellow]Mind:[/yellow] {plain(warning)}", highlight=False, soft_wrap=True)
    return 3 if record["warnings"] else 0


class _Stopped(BaseException):
    """By a signal. What is half done is discarded on its way, and Prefect's server ended."""


_stops: list[int] = []
"""Signals that were received. After one, whatever else is raised is of the stopping: all processes of a terminal or a job are signalled together."""


def _stop(number: int, _: object) -> NoReturn:
    _stops.append(number)
    raise _Stopped


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. Exit code 0: done; 1: failed, and the message says how to mend it; 2: wrong settings or usage; 3: done, beyond a limit."""
    os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")  # errors are told here, in words, without the trace of the engine
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
    logging.getLogger("EventsWorker").setLevel(logging.ERROR)  # Prefect's, which warns at the end of a failed flow that it is not done yet
    code, message = 0, ""
    _stops.clear()
    heeded = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _stop) for number in heeded}
    try:
        app(argv, exit_on_error=False)
    except CycloptsError:  # it has told what is wrong
        sys.exit(2)
    except PurifyError as error:
        code, message = 2 if isinstance(error, BadConfig) else 1, f"[bold red]purify:[/bold red] {plain_lines(str(error))}"
        traceback.clear_frames(
            error.__traceback__
        )  # Prefect keeps them to the end of the process, where DuckDB complains of what they hold
    except Exception as error:
        if not _stops and type(error).__module__.split(".")[0] not in _READERS:
            raise
        reason = str(error).strip().partition("\n")[0]
        code, message = 1, f"[bold red]purify:[/bold red] A file of the run cannot be read: {plain(reason)}. {_DAMAGED}"
        traceback.clear_frames(error.__traceback__)
    except (_Stopped, KeyboardInterrupt):
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if _stops:
        code, message = 128 + _stops[0], "Stopped. The same command goes on where it stopped."
    if code:
        Console(stderr=True).print(message, highlight=False, soft_wrap=True)
        sys.exit(code)


if __name__ == "__main__":
    main()
