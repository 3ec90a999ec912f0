"""What tests of several folders share."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # tests work on small tensors, where a second thread only waits for the first
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
settings.register_profile("without a clock", deadline=None)  # a busy machine is no defect
settings.load_profile("without a clock")


@pytest.fixture(scope="session")
def tiny_crawl(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A rendered crawl of 12 identities of 8 pictures, 30 % noise, hostile items among them; and its truth."""
    from pipeline.synthetic import SyntheticCrawl, write_folder

    root = tmp_path_factory.mktemp("synthetic")
    write_folder(SyntheticCrawl(identities=12, images=8, noise=0.3, seed=5), root / "crawl", root / "truth.parquet")
    return root / "crawl", root / "truth.parquet"
