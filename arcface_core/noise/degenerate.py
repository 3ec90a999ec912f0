"""Signs that a model tells no identity from another, which nobody is judged by. Each check gives a sentence for people, or None."""

import math

from arcface_core.noise.calibration import AngleHistogram, auroc

__all__ = ["degenerate_head", "no_better_than_chance", "too_few_pairs"]

_COLLAPSED_NULL_DEG = 50.0
_LEAST_OF_PAIRS = 0.52
_LEAST_AUROC = 0.6


def no_better_than_chance(same: AngleHistogram, other: AngleHistogram) -> str | None:
    """A sentence that says that pairs of one identity lie no nearer to each other than pairs of two, or None when they do.

    For a model that was not trained on the crawl. Angles to centers that were clustered from the very samples cannot tell: of random vectors some
    agree by chance, and the clusters are those. Pairs chosen blindly have no such choice. With a share e of noise about (1 - e)^2 of the pairs of
    an identity show one person, so the AUROC of a good model is near 0.5 + (1 - e)^2 / 2: 0.62 at half noise. Wanted: 0.52; whether so much is
    more than chance is asked by `too_few_pairs`. Other people within 50 degrees (median) are told first, as `degenerate_head` does.
    """
    if same.total == 0 or other.total == 0:
        return None
    if (other_deg := other.quantile_deg(0.5)) < _COLLAPSED_NULL_DEG:
        return f"the embeddings have collapsed: pictures of two identities lie {other_deg:.1f} degrees apart (median, about 90 wanted)"
    separation = auroc(same, other)
    if separation < _LEAST_OF_PAIRS:
        return (
            f"the embeddings do not tell identities apart: AUROC of {same.total} pairs of one identity against pairs of two is {separation:.3f} "
            f"(0.5 is chance, {_LEAST_OF_PAIRS} wanted; medians {same.quantile_deg(0.5):.1f} and {other_deg:.1f} degrees)"
        )
    return None


def too_few_pairs(same: AngleHistogram, other: AngleHistogram) -> str | None:
    """A sentence that says that the pairs are too few to tell what lies behind their AUROC, or None when it is three standard errors above chance.

    Source: variance of the AUROC without a difference, Mann and Whitney 1947.
    """
    if same.total == 0 or other.total == 0:
        return None
    by_chance = 0.5 + 3 * math.sqrt((same.total + other.total + 1) / (12 * same.total * other.total))
    separation = auroc(same, other)
    if separation >= by_chance:
        return None
    return (
        f"the crawl is too small to show whether the model tells its identities apart: AUROC of {same.total} pairs of one identity against pairs "
        f"of two is {separation:.3f}, and of so few up to {by_chance:.3f} is chance"
    )


def degenerate_head(own: AngleHistogram, null: AngleHistogram) -> str | None:
    """A sentence that says why the angles tell no identity from another, or None when they do.

    The loss cannot say: it can halve while embeddings cluster by picture source. Two signs: other people lie within 50 degrees (all embeddings
    share one direction), or the AUROC of own against null angles is below 0.6. Half a crawl of noise still leaves 0.75 to a good head.
    """
    if own.total == 0 or null.total == 0:
        return None
    null_deg = null.quantile_deg(0.5)
    if null_deg < _COLLAPSED_NULL_DEG:
        return f"the embeddings have collapsed: a random other identity lies at {null_deg:.1f} degrees (median, about 90 wanted)"
    separation = auroc(own, null)
    if separation < _LEAST_AUROC:
        return (
            f"the embeddings do not tell identities apart: AUROC of own against other identities' angles is {separation:.2f} (0.5 is chance, "
            f"at least {_LEAST_AUROC} wanted; medians {own.quantile_deg(0.5):.1f} and {null_deg:.1f} degrees)"
        )
    return None
