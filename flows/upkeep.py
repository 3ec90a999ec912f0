"""The command that changes what a run has: `forget`. It needs neither Prefect nor torch."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

from pipeline.errors import PurifyError
from pipeline.visible import visible

_out = Console()


def add_to(app: App) -> None:
    """Put these commands into the program."""
    app.command(forget)


def forget(
    run: Path,
    *,
    identity: Annotated[
        list[str] | None, Parameter(negative="", allow_leading_hyphen=True, help="A name, as the crawl gives it. May be repeated.")
    ] = None,
    sha256: Annotated[list[str] | None, Parameter(negative="", help="SHA-256 of a picture's bytes as crawled. May be repeated.")] = None,
    sample: Annotated[list[str] | None, Parameter(negative="", help="A sample_id. May be repeated.")] = None,
    by: Annotated[
        str | None, Parameter(allow_leading_hyphen=True, help="Who does it, for the log; the account's name when left out.")
    ] = None,
    in_advance: Annotated[
        bool, Parameter(negative="", help="Also what the run does not have: no later `purify run` into this folder brings it in.")
    ] = False,
    retrain: Annotated[
        bool, Parameter(negative="", help="Remove the rounds, the manifest and the clean shards too: the next `purify run` trains anew.")
    ] = False,
    yes: Annotated[bool, Parameter(negative="", help="Do it. Without, it is only said what would be done.")] = False,
) -> None:
    """Remove a person or a picture from a run: pixels, embeddings, names, captions, URLs. It cannot be undone; docs/privacy.md says what stays.

    Parameters
    ----------
    run:
        A run folder.
    """
    from pipeline.forget import forget as remove
    from pipeline.mirroring.memo import earlier_of, url_of
    from pipeline.mirroring.push import Mirror

    found = remove(
        run,
        identities=identity or [],
        contents=sha256 or [],
        samples=sample or [],
        by=by,
        in_advance=in_advance,
        retrain=retrain,
        yes=yes,
    )
    if found.finished_earlier:
        _say("An earlier call that had been stopped half way is finished.")
    if not (identity or sha256 or sample):
        return
    if not found.items and not found.files and not in_advance:
        _say("All of it is forgotten already.")
    table = Table("" if yes else "would be removed", "", show_header=not yes, box=None)
    rows = {"items of the crawl": found.items, "of these usable samples": found.samples, "of these under other names": found.elsewhere}
    rows |= {"crops in tars": found.crops, "decisions of people": found.decisions}
    rows |= {"rows of others that name them": found.others, "half-made folders, and the audit page": found.folders}
    rows |= {f"files to write anew: {what}": count for what, count in found.files.items()}
    for what, count in rows.items():
        table.add_row(what, f"{count:,}")
    _out.print(table)
    if found.alike:
        _say(
            f"{found.alike} other names differ from these only in case, accents or what parts the words, and stay. Name them too if they are meant."
        )
    if found.near_duplicates:
        _say(f"{found.near_duplicates} samples that look the same as one of these stay. Name them with --sample if they are meant.")
    if found.unknown:
        _say(f"{len(found.unknown)} files in {run} are not this program's, and were not looked into; the first is {found.unknown[0]}.")
    if found.trained and not retrain:
        _say(
            f"The backbones of {found.trained} rounds were trained on these pictures, and their weights cannot be edited. To be rid of that too, "
            "give --retrain: the rounds and what follows from them are removed, and the next `purify run` makes them without these pictures."
        )
    if not yes:
        _say("Nothing was changed. The same command with --yes does it, and it cannot be undone.")
        return
    if (url := url_of(run)) is not None:
        try:
            with Mirror(run, url) as mirror:
                mirror.push()
        except PurifyError as error:
            raise type(error)(
                f"It is forgotten here, and still in the copy at {url}: {error} It goes from there when `purify push {run}` succeeds, "
                "when the run folder that writes the copy now forgets it too, or when you remove the prefix."
            ) from error
        _say(f"The copy at {url} has it no more either; versions that the bucket itself keeps are for you to remove.")
    for left in earlier_of(run):
        _say(
            f"An earlier copy at {left} has it still, unless it is gone: remove that prefix, or bring it up to date: purify push {run} {left}"
        )
    _say(
        f"Done. Not ours to change: the crawl itself, copies of {run / 'clean'}, data sets of `purify export --to`, review folders of "
        "`purify sample-review`, exports of queries, backups. "
        f"{'The rest' if retrain else 'The audit page'} is made anew by `{f'purify run CRAWL {run}' if retrain else f'purify export {run}'}`."
    )


def _say(text: str) -> None:
    _out.print(visible(text), highlight=False, markup=False, soft_wrap=True)
