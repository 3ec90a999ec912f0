"""What to do while an object store is busy: ask again, later each time."""

import errno
import random
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import PurifyError

R = TypeVar("R")
ATTEMPTS = 8
WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""Between attempts: doubled each time, and between half and all of it, so that workers do not come back together."""
_FOR_GOOD = {errno.ENOENT, errno.EACCES, errno.EPERM, errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.EINVAL, errno.EMSGSIZE, errno.ENOSPC}
_KINDS_FOR_GOOD = (PermissionError, FileNotFoundError, FileExistsError, IsADirectoryError, NotADirectoryError, PurifyError)


def patiently(act: Callable[[], R]) -> R:
    """What `act` gives, tried eight times over about a minute while what it raises may pass: throttling, errors of the server, lost connections."""
    for attempt in range(ATTEMPTS):
        try:
            return act()
        except Exception as error:
            if attempt == ATTEMPTS - 1 or not _may_pass(error):
                raise
            time.sleep(min(WAIT_S * 2**attempt, LONGEST_WAIT_S) * random.uniform(0.5, 1))
    raise AssertionError  # the loop returns or raises


def _may_pass(error: Exception) -> bool:
    if isinstance(error, _KINDS_FOR_GOOD) or (isinstance(error, OSError) and error.errno in _FOR_GOOD):
        return False
    return isinstance(error, OSError) or any(kind.__name__ == "HTTPClientError" for kind in type(error).__mro__)
