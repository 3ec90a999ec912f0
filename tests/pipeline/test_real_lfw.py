"""The whole path from real pictures to a figure, where the pictures are at hand."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.evaluation import Choices, measure_set, open_sets
from pipeline.protocols import PairSet
from tests.pipeline.evaluation_sets import colours

LFW = Path(__file__).parents[2].parent / "shared" / "data" / "lfw112.tar"


@pytest.mark.skipif(not LFW.exists(), reason="no real faces here: shared/data/lfw112.tar")
def test_labeled_faces_in_the_wild_from_pictures_to_accuracy() -> None:
    """Coarse colours of the middle of the face, no network: 0.629 was measured. Counts, order and alignment of the real set are checked on the way."""
    [(name, found)] = open_sets({"lfw": LFW}, Choices()).items()
    assert isinstance(found, PairSet) and found.counts() == {"pairs": 6000, "genuine": 3000} and found.folds == 10
    [measured] = measure_set(name, found, colours(), Choices(), None)
    value = {row["metric"]: row["value"] for row in measured.rows}
    assert value["accuracy"] == pytest.approx(0.629, abs=0.004) and value["accuracy_by_distance"] == pytest.approx(0.630, abs=0.004)
    assert value["tar@far=0.0001"] is None and 0.25 < value["tar@far=0.1"] < 0.38
    assert np.isclose(measured.curve[-1], (1, 1)).all()
