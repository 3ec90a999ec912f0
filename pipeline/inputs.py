"""What a run is given, looked at before anything is done: a path that leads nowhere is said at once, and not after a night of training."""

from pathlib import Path

from pipeline import faces, forgotten
from pipeline.config import Config
from pipeline.embedders import locate
from pipeline.errors import BadCheckpoint, BadConfig, BadInput, StaleInput
from pipeline.layout import RunLayout
from pipeline.places import Location, located
from pipeline.protect import require_set
from pipeline.sources import recognise


def check_inputs(crawl: Location, run: RunLayout, config: Config) -> str:
    """The form of the crawl.

    Raises BadInput, or a kind of it, for a crawl, model, weights, or a set that is not there or not what it should be, BadConfig for settings that do
    not fit together, StaleInput for a run folder inside of its crawl, which would grow by it, and BadInput where the log of the forgotten has lost its key.
    """
    if not str(crawl).strip():
        raise BadConfig(
            "No crawl is given: its name is empty. With prefect.yaml, CRAWL and RUN are to be set in the shell that deploys it."
        )
    place = located(crawl)
    source = recognise(place, config.ingest)
    root = run.root.resolve()
    if Path(place) in (root, *root.parents):
        raise StaleInput(f"{run.root} lies in the crawl, and would be read as a part of it. Give a run folder outside of {place}.")
    forgotten.read(run.root)
    faces.inputs(config.ingest)
    if config.embedder.model is not None:
        locate(Path(config.embedder.model), config.embedder)
    if config.train.init is not None and not Path(config.train.init).is_file():
        raise BadCheckpoint(f"There are no weights at {config.train.init} (--init, train.init). Check the path; nothing is downloaded.")
    for path in map(Path, config.protect.sets):
        require_set(path)
    for name in config.evaluate.bins:
        if not Path(name).is_file():
            raise BadInput(f"There is no verification file {name}. Check evaluate.bins.")
    return source
