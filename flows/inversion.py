"""The command that draws what a network has learned of a name: `imagine`. It needs no Prefect."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console

from flows.outputs import NewFolder
from pipeline.outside import require_outside

_out = Console()


def add_to(app: App) -> None:
    """Put this command into the program."""
    app.command(imagine)


def imagine(
    run: Path,
    out: NewFolder,
    *,
    identity: Annotated[list[str] | None, Parameter(negative="", help="A name, as the crawl gives it. May be repeated.")] = None,
    sample: Annotated[list[str] | None, Parameter(negative="", help="A sample_id: what the network sees in it. May be repeated.")] = None,
    steps: Annotated[int, Parameter(validator=Number(gte=1, lte=10**5), help="Gradient steps.")] = 400,
) -> None:
    """Draw the faces that the network imagines (inversion), for sub-centers of names and for samples, as PNG files.

    Two different faces for two sub-centers of one name: two people share it, or noise has gathered there.

    Parameters
    ----------
    run:
        The folder of a finished run.
    out:
        A folder for the pictures; made when it is not there.
    """
    from flows.progress import shown
    from pipeline.config import validate
    from pipeline.errors import BadInput
    from pipeline.imagine import imagine as of_identities
    from pipeline.imagine import imagine_samples, why_none
    from pipeline.layout import RunLayout
    from pipeline.run_folder import read_finished

    if not (identity or sample):
        raise BadInput("Say whose face: --identity NAME or --sample SAMPLE_ID. `purify report RUN noisiest` lists names worth a look.")
    require_outside(out, run)
    layout = RunLayout(run)
    config = validate(read_finished(layout)["config"])
    config = dataclasses.replace(config, audit=dataclasses.replace(config.audit, inversion_steps=steps))
    rounds = [layout.round(number) for number in range(1, config.rounds + 1)]
    if why := why_none(rounds[-1], config):
        raise BadInput(
            f"No face can be drawn: {why} Weights of a backbone have them (--embedder weights.pt), and so has a run that trains."
        )
    with shown("imagine") as progress:
        found = of_identities(layout.raw, rounds, identity or [], config, progress=progress) if identity else {}
        missing = [name for name in identity or [] if name not in found]
        if missing:
            raise BadInput(
                f"{run} has no center that could be drawn for {len(missing)} of the names. `purify query {run} 'FROM identities'`."
            )
        samples = imagine_samples(rounds[-1], sample, config, steps=steps, progress=progress) if sample else {}
    out.mkdir(parents=True, exist_ok=True)
    faces = [(f"identity-{place}-{number}", face) for place, name in enumerate(identity or []) for number, face in enumerate(found[name])]
    faces += [(f"sample-{re.sub('[^0-9a-f]', '', one)}", face) for one, face in samples.items()]
    for name, face in faces:
        (out / f"{name}.png").write_bytes(face.png)
        _out.print(f"{out / name}.png: {face.about}, {face.angle_deg:.0f} degrees away", highlight=False, soft_wrap=True)
