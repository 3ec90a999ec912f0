"""The commands that measure models on evaluation sets, and that build such sets. None of them is a flow."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.table import Table

from flows.outputs import NewFile, NewFolder
from flows.screen import plain
from pipeline.errors import BadConfig
from pipeline.outside import require_outside

_out = Console()
_WIDE = 200
"""Columns of a file or a pipe, which has no edge."""


def add_to(app: App) -> None:
    """Put these commands into the program."""
    app.command(evaluate)
    app.command(make_pairs)
    app.command(gap)


def evaluate(
    model: Path,
    *,
    protocol: Annotated[list[str], Parameter(negative="", help="NAME=PATH, as lfw=lfw.bin. May be repeated.")],
    against: Annotated[Path | None, Parameter(help="Another model, compared with the first on the same pairs.")] = None,
    ceiling: Annotated[
        Path | None, Parameter(help="With --against: a third model, trained on true labels. Says what share of the gap the second closed.")
    ] = None,
    out: Annotated[NewFolder, Parameter(help="Where tables, curves and features go.")] = Path("evaluation"),
    keep_norm: Annotated[bool, Parameter(help="IJB: images count by the norm of their features (N1).")] = True,
    detector_scores: Annotated[bool, Parameter(help="IJB: images count by their detector's scores (D1).")] = True,
    any_alignment: Annotated[bool, Parameter(negative="", help="Measure crops that are not aligned to the ArcFace template.")] = False,
    device: Annotated[str, Parameter(help="auto, cpu, cuda, cuda:1.")] = "auto",
    set_: Annotated[
        list[str] | None,
        Parameter(name="--set", negative="", help="What a foreign model's file does not say: channels=bgr, mean=127.5, std=128, input_px."),
    ] = None,
) -> None:
    """Measure a model by the protocols of the field: LFW, CFP-FP, AgeDB-30, CALFW, CPLFW, YTF, IJB-B, IJB-C, MegaFace, all pairs of a folder.

    Parameters
    ----------
    model:
        A run (its last round), a training (RUN/rounds/1/train), weights (.safetensors, .pt, .pth) or an .onnx file.
    """
    from flows.progress import shown
    from pipeline.embedders import load_embedder
    from pipeline.evaluation import Choices, Model, evaluate_models, open_sets
    from pipeline.models import pick_device

    if ceiling is not None and against is None:
        raise BadConfig(
            "--ceiling wants --against: MODEL trained on the noise, --against the purified one, --ceiling the one trained on true labels."
        )
    wanted = _named(protocol)
    paths = [path for path in (model, against, ceiling) if path is not None]
    chosen = pick_device(device)
    models = [Model(name, load_embedder(path, chosen, _embedder_config(set_))) for name, path in zip(_names(paths), paths, strict=True)]
    choices = Choices(keep_norm=keep_norm, detector_scores=detector_scores, any_alignment=any_alignment)
    sets = open_sets(wanted, choices)
    with shown("evaluate") as progress:
        metrics, compared = evaluate_models(models, sets, out, choices, progress=progress)
    _show(metrics, compared, [one.name for one in models])
    if ceiling is not None:
        _show_gap(metrics, [one.name for one in models])
    _out.print(f"\nTables and curves: {out}", highlight=False, soft_wrap=True)


def gap(
    run: Path,
    truth: Path,
    out: NewFolder,
    *,
    protocol: Annotated[
        list[str] | None, Parameter(negative="", help="NAME=PATH, as for evaluate; the .bin files of the run's evaluate.bins without it.")
    ] = None,
) -> None:
    """What share of the gap between noisy and true labels did purification close? Trains a backbone on the truth of a synthetic run, and measures all three.

    Parameters
    ----------
    run:
        The folder of a finished run of two rounds or more.
    truth:
        The truth table of its crawl, as `purify synthesize` and `purify demo` write it.
    out:
        Where the training and the evaluation go.
    """
    from flows.progress import shown
    from pipeline.ceiling import train_on_truth
    from pipeline.config import validate
    from pipeline.embedders import load_embedder
    from pipeline.evaluation import Choices, Model, evaluate_models, open_sets
    from pipeline.layout import RunLayout
    from pipeline.models import pick_device
    from pipeline.run_folder import read_finished

    require_outside(out, run)
    layout = RunLayout(run)
    config = validate(read_finished(layout)["config"])
    wanted = _named(protocol) if protocol else {Path(name).stem: Path(name) for name in config.evaluate.bins}
    if config.rounds < 2 or not wanted:
        raise BadConfig(
            f"{run} has {config.rounds} rounds and {len(wanted)} evaluation sets: two rounds and a set (--protocol) are wanted."
        )
    sets = open_sets(wanted, Choices())
    with shown("train on the truth") as progress:
        ceiling = train_on_truth(layout, truth, out, config, progress=progress)
    device = pick_device(config.device)
    rounds = (1, config.rounds)
    models = [Model(f"round-{number}", load_embedder(layout.round(number).train, device)) for number in rounds]
    models.append(Model("truth", load_embedder(ceiling, device)))
    metrics, compared = evaluate_models(models, sets, out / "evaluation", Choices())
    _show(metrics, compared, [one.name for one in models])
    _show_gap(metrics, [one.name for one in models])


def make_pairs(
    crops: Path,
    out: NewFile,
    *,
    listed: Annotated[
        bool, Parameter(negative="", help="Take the pairs of the pairs.txt in or beside CROPS instead of drawing some.")
    ] = False,
    folds: Annotated[int, Parameter(validator=Number(gte=2, lte=1000))] = 10,
    pairs: Annotated[int, Parameter(validator=Number(gte=1, lte=10**7), help="Genuine pairs in a fold, and as many impostor pairs.")] = 300,
    masked: Annotated[
        bool, Parameter(negative="", help="Draw a mask on the first picture of each pair: masked probe, bare gallery.")
    ] = False,
    seed: int = 0,
) -> None:
    """Make a verification set: pairs of aligned crops as an insightface .bin, or as a list in LFW's format. No person is in two folds.

    Parameters
    ----------
    crops:
        A folder of aligned crops per person; with --listed, a folder or tar of crops Name/Name_0001.jpg with its pairs.txt.
    out:
        The file to write: .bin (the pictures and the pairs) or .txt (the list).
    """
    from pipeline.make_pairs import draw_pairs, listed_pairs, write_list, write_pairs_bin

    if out.suffix not in (".bin", ".txt") or (out.suffix == ".txt" and (masked or listed)):
        raise BadConfig(f"OUT is a .bin file, or for pairs that are drawn, without masks, a .txt; got {out}.")
    if out.exists():
        raise BadConfig(f"{out} is there already. Give another name, or remove it.")
    found = listed_pairs(crops) if listed else draw_pairs(crops, folds=folds, pairs=pairs, seed=seed)
    if out.suffix == ".txt":
        write_list(found, out)
    else:
        write_pairs_bin(found, out, masks=masked, seed=seed)
    _out.print(f"{out}: {len(found.genuine_M):,} pairs, {int(found.genuine_M.sum()):,} of them genuine", highlight=False, soft_wrap=True)


def _named(protocols: Sequence[str]) -> dict[str, Path]:
    wanted: dict[str, Path] = {}
    for text in protocols:
        name, equals, path = text.partition("=")
        if not equals or not name or not path or name in wanted:
            raise BadConfig(f"--protocol takes NAME=PATH, each name once, as --protocol lfw=lfw.bin; got {text!r}.")
        wanted[name] = Path(path)
    return wanted


def _names(paths: Sequence[Path]) -> list[str]:
    """Short names of models, no two alike: the end of each path that tells them apart."""
    for parts in range(1, 8):
        names = ["/".join(path.resolve().parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            return names
    raise BadConfig(f"A model is compared with itself: {', '.join(map(str, paths))}. Give two different ones.")


def _embedder_config(given: Sequence[str] | None) -> Any:
    from pydantic import TypeAdapter, ValidationError

    from pipeline.config import EmbedderConfig

    settings: dict[str, Any] = {}
    for text in given or []:
        name, _, value = text.partition("=")
        settings[name] = value if name == "channels" else [float(part) for part in value.split(",")] if "," in value else value
    try:
        return TypeAdapter(EmbedderConfig).validate_python(settings)
    except (ValidationError, ValueError) as error:
        raise BadConfig(
            f"--set takes channels, mean, std or input_px of the model, as --set channels=bgr; got {', '.join(given or [])}: {error}"
        ) from error


def _show(metrics: list[dict[str, Any]], compared: list[dict[str, Any]], names: list[str]) -> None:
    table = Table("dataset", "metric", *(plain(name) for name in names), *(["difference, 95 %"] if len(names) > 1 else []), box=None)
    cells = {(row["dataset"], row["metric"], row["backbone"]): row for row in metrics}
    change = {(row["dataset"], row["metric"]): row for row in compared if row["second"] == names[min(1, len(names) - 1)]}
    for dataset, metric in dict.fromkeys((row["dataset"], row["metric"]) for row in metrics):
        row = [plain(dataset), metric, *(_cell(cells.get((dataset, metric, name))) for name in names)]
        if len(names) > 1:
            row.append(_change(change.get((dataset, metric))))
        table.add_row(*row)
    wide = _out if _out.is_terminal else Console(width=_WIDE)
    wide.print(table, highlight=False)


def _cell(row: dict[str, Any] | None) -> str:
    if row is None or row["value"] is None:
        return "too few pairs"
    ends = f" ({row['low']:.4f}..{row['high']:.4f})" if row.get("low") is not None else ""
    return f"{row['value']:.4f}{ends}"


def _change(row: dict[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"{row['difference']:+.4f}" + (f" ({row['low']:+.4f}..{row['high']:+.4f})" if row.get("low") is not None else "")


def _show_gap(metrics: list[dict[str, Any]], names: list[str]) -> None:
    from pipeline.metrics import gap_recovered

    value = {(row["dataset"], row["backbone"]): row["value"] for row in metrics if row["metric"] == "accuracy"}
    for dataset in dict.fromkeys(dataset for dataset, _ in value):
        share = gap_recovered(*(value[dataset, name] for name in names))
        said = "no gap: true labels are no better" if share is None else f"{share:.1%} of the gap recovered"
        _out.print(f"{plain(dataset)}: {said} (accuracy)", highlight=False)
