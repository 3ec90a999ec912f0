"""What to do while an object store is busy: ask again, later each time."""

import errno
import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from pipeline.errors import PurifyError

R = TypeVar("R")
_log = logging.getLogger("purify.stores")
ATTEMPTS = 8
WAIT_S, LONGEST_WAIT_S = 0.5, 30.0
"""Between attempts: doubled each time, and between half and all of it, so that workers do not come back together."""
_TOLD_AT, _TOLD_EVERY_S = 3, 60.0
"""The attempt at which it is said, some four seconds after the first, and how often by one process."""
_told_at = -_TOLD_EVERY_S
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
            if attempt == _TOLD_AT:
                _say(error)
            time.sleep(min(WAIT_S * 2**attempt, LONGEST_WAIT_S) * random.uniform(0.5, 1))
    raise AssertionError  # the loop returns or raises


def _say(error: Exception) -> None:
    """By its kind: its words may hold an address that is a secret."""
    global _told_at
    if time.monotonic() - _told_at > _TOLD_EVERY_S:
        _told_at = time.monotonic()
        _log.warning("A store is busy, or does not answer (%s). It is asked again for about a minute.", type(error).__name__)


def _may_pass(error: Exception) -> bool:
    if isinstance(error, _KINDS_FOR_GOOD) or (isinstance(error, OSError) and error.errno in _FOR_GOOD):
        return False
    return isinstance(error, OSError) or any(kind.__name__ == "HTTPClientError" for kind in type(error).__mro__)
