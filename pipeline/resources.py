"""Where the files of the top-level `data/` folder are: in a checkout, or beside an installed wheel."""

import sys
from pathlib import Path


def data_folder(name: str) -> Path:
    """The folder `data/<name>` of the checkout, else the copy that the wheel installs."""
    checkout = Path(__file__).resolve().parents[1] / "data" / name
    return checkout if checkout.is_dir() else Path(sys.prefix) / "share" / "arcface-purify" / name
