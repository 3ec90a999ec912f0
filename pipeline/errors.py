"""The errors a user can cause, each with its next step in the message.

    PurifyError
    ├── BadConfig         a setting that does not exist, or has no sense
    ├── BadInput          a file or folder given to us that cannot be used
    │   ├── BadCrawl      the crawl: not there, empty, one identity
    │   ├── BadShard      a tar, or its Parquet twin, that is not what its sidecar says
    │   └── BadCheckpoint weights that do not fit or are damaged
    ├── SchemaMismatch    a table of another version, or of another tool
    ├── StaleInput        a run folder that belongs to something else
    ├── TrainingFailed    a training that diverged, or lost a process
    ├── HeadNotLearned    the head separates no identities: its angles judge nothing
    ├── NoSpace           the disk is full, or will be
    ├── NotWritable       a file or folder of the run that this user may not write or read
    └── WorkerLost        processes that do parts of a stage die, again and again

A bad *image* is a row with a status, never an exception.
"""


class PurifyError(Exception):
    """Anything that the user can mend; the message says how."""


class BadConfig(PurifyError):  # noqa: N818 - the tree is named after what is wrong, all of it errors
    """A setting that does not exist, or a value outside its range."""


class BadInput(PurifyError):  # noqa: N818
    """A file or folder that cannot be used."""


class BadCrawl(BadInput):
    """The crawl is not there, is empty, or cannot teach anything."""


class BadShard(BadInput):
    """A shard differs from its sidecar, or cannot be read."""


class BadCheckpoint(BadInput):
    """Weights that are damaged or made for another model."""


class SchemaMismatch(PurifyError):  # noqa: N818
    """A table whose schema or version is not ours."""


class StaleInput(PurifyError):  # noqa: N818
    """A run folder that belongs to another crawl, or is none."""


class TrainingFailed(PurifyError):  # noqa: N818
    """A training diverged, or one of its processes ended."""


class HeadNotLearned(PurifyError):  # noqa: N818
    """The trained head does not tell identities apart, so judging by its angles would be noise."""


class NoSpace(PurifyError):  # noqa: N818
    """Not enough room on the disk."""


class NotWritable(PurifyError):  # noqa: N818
    """The run folder may not be written by this user, or not any more."""


class WorkerLost(PurifyError):  # noqa: N818
    """A process that did a part of a stage died, even when it worked alone."""
