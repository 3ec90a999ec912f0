"""The commands that ask a finished run, or tell it what people decided. None of them needs Prefect or torch."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.table import Table

from flows.outputs import NewFolder, OutFile, form_of
from flows.screen import plain, write_data
from pipeline.errors import BadConfig, BadInput
from pipeline.outside import require_outside
from pipeline.visible import counted, escaped_json, visible

if TYPE_CHECKING:
    from collections.abc import Callable

    import pyarrow as pa

Format = Annotated[
    Literal["table", "csv", "json", "markdown", "parquet"] | None,
    Parameter(help="How to print: as --out ends (.csv, .json, .md, .parquet), else a table. parquet goes to --out or a pipe."),
]
_BY_SUFFIX = {".csv": "csv", ".json": "json", ".jsonl": "json", ".ndjson": "json", ".md": "markdown", ".parquet": "parquet"}
FreeText = Annotated[str, Parameter(allow_leading_hyphen=True)]
"""Anything that a person may write, also what begins as an option does: SQL that begins with a comment."""
By = Annotated[str, Parameter(help="Who decides.", allow_leading_hyphen=True)]
_out = Console()
_MOST_AGAIN = 3


def add_to(app: App) -> None:
    """Put these commands into the program."""
    for command in (report, query, why, diff, decide, undo, sample_review, estimate):
        app.command(command)


def report(run: Path, name: str | None = None, *, format: Format = None, out: OutFile = None) -> None:
    """Print a saved query of a run; without a name, list those that there are.

    Parameters
    ----------
    run:
        A run folder.
    name:
        summary, noisiest, merges, sources ... : a file of data/sql/.
    """
    from pipeline.answers import saved_queries
    from pipeline.layout import RunLayout
    from pipeline.report import open_run
    from pipeline.report import report as answer
    from pipeline.status import read_status

    if name is None:
        open_run(run).close()
        for saved in saved_queries().values():
            _out.print(f"[bold]{saved.name:<16}[/bold] {saved.title}", highlight=False)
        return
    _show(lambda: answer(run, name), format, out, run)
    if RunLayout(run).run_json.exists():
        for told in read_status(run).todo:
            Console(stderr=True).print(plain(told), style="yellow", highlight=False, soft_wrap=True)


def query(run: Path, sql: FreeText, *, format: Format = None, out: OutFile = None) -> None:
    """Ask a run anything in SQL (DuckDB): views manifest, identities, noise, proposals, decisions, contamination, training, metrics, differences, roc, scores.

    Parameters
    ----------
    run:
        A run folder.
    sql:
        One SELECT statement, as "select verdict, count(*) from manifest group by all".
    """
    from pipeline.report import query as answer

    _show(lambda: answer(run, sql), format, out, run)


def why(run: Path, sample: str, *, format: Format = None, out: OutFile = None) -> None:
    """Why was this image dropped, or kept: its whole life, from the crawl to the manifest.

    Parameters
    ----------
    run:
        A run folder.
    sample:
        Its sample_id.
    """
    from pipeline.report import why as answer

    _show(lambda: answer(run, sample), format, out, run)


def diff(run_a: Path, run_b: Path, *, format: Format = None, out: OutFile = None) -> None:
    """How two runs of one crawl differ: verdicts in the first, verdicts in the second. Says so when they hardly share an item.

    Parameters
    ----------
    run_a:
        A run folder.
    run_b:
        Another one of the same crawl.
    """
    from pipeline.report import diff as answer
    from pipeline.report import unlike

    found = _show(lambda: answer(run_a, run_b), format, out, run_a, run_b)
    if warning := unlike(found):
        Console(stderr=True).print(warning, style="yellow", highlight=False, soft_wrap=True)


def decide(
    run: Path,
    *,
    by: By,
    sample: Annotated[list[str] | None, Parameter(negative="", help="A sample_id. May be repeated.")] = None,
    verdict: Annotated[Literal["keep", "drop", "relabel"] | None, Parameter(help="What it is to be.")] = None,
    identity: Annotated[str | None, Parameter(help="Of a relabel: whose it is.", allow_leading_hyphen=True)] = None,
    new_identity: Annotated[
        bool, Parameter(negative="", help="Relabel to names that the run does not have, too; without, they are refused as mistyped.")
    ] = False,
    note: Annotated[str, Parameter(help="Why.", allow_leading_hyphen=True)] = "",
    import_: Annotated[
        Path | None, Parameter(name="--import", help="Many at once: .parquet or .csv with sample_id, verdict, clean_identity, note.")
    ] = None,
    dry_run: Annotated[bool, Parameter(negative="", help="Check, and record nothing.")] = False,
) -> None:
    """Decide on samples yourself. People win over rules; `purify undo` takes it back; `purify export` or `purify run` carries it out.

    Parameters
    ----------
    run:
        A run folder.
    """
    from pipeline.decisions import decide as record
    from pipeline.decisions import read_file

    if (import_ is None) == (not sample):
        raise BadConfig("Give --sample and --verdict, or --import FILE.")
    if import_ is None and verdict is None:
        raise BadConfig("Give --verdict: keep, drop or relabel.")
    told = {"--verdict": verdict, "--identity": identity, "--note": note}
    if import_ is not None and (given := [option for option, value in told.items() if value]):
        raise BadConfig(f"{' and '.join(given)} beside --import FILE: the file says it of each sample. Give one or the other.")
    rows: list[dict[str, Any]] = (
        read_file(import_)
        if import_
        else [{"sample_id": one, "verdict": verdict, "clean_identity": identity, "note": note or None} for one in sample or []]
    )
    count = record(run, rows, by=by, new_identities=new_identity, dry_run=dry_run)
    done = "would be recorded" if dry_run else "recorded"
    already = len({row["sample_id"] for row in rows}) - count
    if already:
        done += f", {already:,} {'stands' if already == 1 else 'stand'} already"
    _out.print(f"{counted(count, 'decision')} {done}. To carry them out: purify export {run}", highlight=False, soft_wrap=True)


def undo(
    run: Path,
    *,
    by: Annotated[
        str, Parameter(help="Who takes it back. Only what was decided under the same name is taken back.", allow_leading_hyphen=True)
    ],
    of: Annotated[
        str | None, Parameter(help="Whose decision to take back, where it is somebody else's.", allow_leading_hyphen=True)
    ] = None,
    sample: Annotated[list[str], Parameter(negative="", help="A sample_id. May be repeated.")],
    note: Annotated[str, Parameter(help="Why.", allow_leading_hyphen=True)] = "",
) -> None:
    """Take your standing decision on samples back; what stood before, perhaps somebody else's, stands again.

    Parameters
    ----------
    run:
        A run folder.
    """
    from pipeline.decisions import standing_on
    from pipeline.decisions import undo as record

    count = record(run, sample, by=by, of=of, note=note)
    again = _again(list(standing_on(run, sample).values()))
    _out.print(
        f"{counted(count, 'decision')} undone{again}. To carry it out: purify export {run}",
        highlight=False,
        soft_wrap=True,
    )


def _again(standing: list[dict[str, Any]]) -> str:
    """Of the decisions that stand again after an undo: how many, what they say, and whose they are."""
    if not standing:
        return ""
    told = dict.fromkeys(
        f"{row['verdict']}{' to ' + plain(row['clean_identity']) if row['clean_identity'] else ''} by {plain(row['decided_by'])}"
        for row in standing
    )
    more = ", ..." if len(told) > _MOST_AGAIN else ""
    listed = ", ".join(list(told)[:_MOST_AGAIN]) + more
    one = len(standing) == 1
    return f"; {'an earlier decision' if one else f'{len(standing):,} earlier decisions'} ({listed}) {'stands' if one else 'stand'} again"


def sample_review(
    run: Path,
    out: NewFolder,
    *,
    n: Annotated[int, Parameter(validator=Number(gte=2), help="How many, half of the kept and half of the others.")] = 200,
    seed: Annotated[int, Parameter(help="The same seed draws the same samples.")] = 0,
) -> None:
    """Draw samples for a person to judge: OUT/review.csv, with an empty column is_right, and OUT/images/.

    Asked is the name that a sample is exported under; of one that is not exported, the crawl's.

    Parameters
    ----------
    run:
        A run folder.
    out:
        Folder to make.
    """
    from pipeline.review import draw

    require_outside(out, run)
    count = draw(run, out, count=n, seed=seed)
    _out.print(
        f"{count} samples in {out}. Is the face in `image` who `asked_identity` says? Write yes or no into is_right of {out / 'review.csv'}, or leave it empty;\n"
        f"then: purify estimate {run} {out / 'review.csv'}",
        highlight=False,
        soft_wrap=True,
    )


def estimate(run: Path, review: Path) -> None:
    """From a judged review: how much noise is left among the kept, and how much of the clean was lost, with 95 % intervals.

    Parameters
    ----------
    run:
        A run folder.
    review:
        The review.csv that sample-review wrote, with is_right filled in: yes, y, true, right or 1; no, n, false, wrong or 0, in small letters or
        capitals; empty where you cannot tell.
    """
    from pipeline.review import estimate as found

    result = found(run, review)
    table = Table("", "estimate", "95 % interval", "judged")
    for name, (value, low, high), judged in (
        ("noise left among the kept", result.residual_noise, result.judged_kept),
        ("clean among the others", result.dropped_clean, result.judged_dropped),
        ("clean samples lost, of all clean", result.clean_loss, result.judged_kept + result.judged_dropped),
    ):
        table.add_row(name, f"{value:.1%}", f"{low:.1%} to {high:.1%}", str(judged))
    _out.print(table)


def _show(ask: "Callable[[], pa.Table]", given: str | None, out: Path | None, *runs: Path) -> "pa.Table":
    """The answer, printed in one of the forms or written to a file; where it must not go is said before anything is asked."""
    require_outside(out, *runs)
    form = form_of(given, out, _BY_SUFFIX, "table")
    answer = ask()
    _print(answer, form, out)
    return answer


def _print(answer: "pa.Table", form: str, out: Path | None) -> None:
    import pyarrow.parquet as pq

    if form == "parquet":
        if out is None and sys.stdout.isatty():
            raise BadInput("Parquet is no text: give --out FILE, or a pipe.")
        pq.write_table(answer, out if out else sys.stdout.buffer)
        return
    if form == "table" and out is None:
        table = Table(*map(plain, answer.column_names))
        for row in answer.to_pylist():
            table.add_row(*(plain(_cell(value)) for value in row.values()))
        # Into a file or a pipe nothing is cut; on a screen rich fits the columns to it.
        (_out if _out.is_terminal else Console(width=400)).print(table)
        return
    text = _text(answer, form)
    if out:
        out.write_text(text, "utf-8")
    else:
        write_data(text)


def _text(answer: "pa.Table", form: str) -> str:
    if form == "csv":
        return str(answer.to_pandas().to_csv(index=False))
    if form == "json":
        return escaped_json(str(answer.to_pandas().to_json(orient="records", lines=True, force_ascii=False)))
    rows = [[_cell(value) for value in row.values()] for row in answer.to_pylist()]
    told = [[visible(cell).replace("|", "\\|") for cell in row] for row in (answer.column_names, *rows)]
    lines = [told[0], ["---"] * answer.num_columns, *told[1:]]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _cell(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
