"""When and where: Prefect is imported in this package and nowhere else.

Prefect reads its settings while it is imported, so what our users need is set here, before, and only where they have not set it.
"""

import os

_DEFAULTS = {
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "180",  # the first start on a fresh home makes a database: about 30 s, 20 are allowed
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "DO_NOT_TRACK": "1",
}
for _name, _value in _DEFAULTS.items():
    os.environ.setdefault(_name, _value)
