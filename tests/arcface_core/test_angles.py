import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arcface_core.angles import angle_deg, cos_of_deg, cosine, normalize, rowwise_cosine


@given(st.floats(0.0, 180.0))
def test_degrees_survive_the_round_trip(degrees: float) -> None:
    back = angle_deg(torch.tensor(cos_of_deg(degrees), dtype=torch.float64)).item()
    assert math.isclose(back, degrees, abs_tol=2e-6)


def test_a_zero_vector_is_at_a_right_angle_to_everything() -> None:
    zero, other = torch.zeros(1, 4), torch.randn(3, 4)
    assert torch.equal(normalize(zero), zero)
    assert torch.equal(angle_deg(cosine(zero, other)), torch.full((1, 3), 90.0))


def test_cosines_never_leave_their_range() -> None:
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
    cos = cosine(x, x)
    assert cos.max() <= 1.0 and cos.min() >= -1.0
    assert not angle_deg(cos).isnan().any()


def test_half_precision_is_widened_before_anything_is_computed() -> None:
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(1)).half()
    assert normalize(x).dtype == torch.float32
    assert rowwise_cosine(x, x).numpy() == pytest.approx(1.0, abs=1e-6)
