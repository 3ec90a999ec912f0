"""The Arrow schemas of evaluation: protected sets met in the crawl, metrics, differences between models, curves and histograms."""

import pyarrow as pa

from pipeline.columns import field, schema

CONTAMINATION = schema(
    "contamination",
    [
        field("kind", pa.string(), "`identity`: its consensus is near to a protected image. `image`: the same image", nullable=False),
        field("identity", pa.string(), "as in the items table", nullable=False),
        field("sample_id", pa.string(), "of an image"),
        field("source_uri", pa.string(), "of an image"),
        field("protected_set", pa.string(), "stem of the set", nullable=False),
        field("protected_image", pa.string(), "path in its folder, or number in its .bin file", nullable=False),
        field(
            "angle_deg", pa.float32(), "angle between the two; 0 for equal bytes", unit="degrees, 0..180", direction="lower is more alike"
        ),
    ],
)

METRICS = schema(
    "metrics",
    [
        field(
            "backbone",
            pa.string(),
            "`round-1` (trained on the noisy crawl), `round-2` (on what was kept) ...; `embedder` (was given), or a model's name",
            nullable=False,
        ),
        field(
            "dataset",
            pa.string(),
            "`held-out` identities of the crawl, the stem of a `.bin` file, or the name of a protocol",
            nullable=False,
        ),
        field(
            "metric",
            pa.string(),
            "`accuracy` (k-fold), `accuracy_by_distance` (insightface's), `accuracy_std`, `auroc`, `eer`, `val@far=0.001`, `tar@far=0.001`, "
            "`tar@nearest_far=1e-06`, `rank-1`, `tpir@fpir=0.01` ...: data/protocols/README.md",
            nullable=False,
        ),
        field(
            "value",
            pa.float64(),
            "0..1; null when the pairs are too few to say",
            direction="higher is better, but for eer and accuracy_std",
        ),
        field(
            "low",
            pa.float64(),
            "lower end of the 95 % interval (of val@far: one standard deviation of the folds); null where none is known",
        ),
        field("high", pa.float64(), "upper end, likewise"),
        field(
            "far",
            pa.float64(),
            "operating point: the false accept rate (or FPIR) asked for; of val and nearest, the one reached",
            direction="lower is stricter",
        ),
        field(
            "threshold",
            pa.float64(),
            "cosine from which on a pair is accepted there; of accuracy the mean over folds",
            direction="higher is stricter",
        ),
        field("pairs", pa.int64(), "pairs compared, or probes searched", nullable=False),
        field("genuine", pa.int64(), "of these, of one person; probes with a mate", nullable=False),
        field("impostor", pa.int64(), "of these, of two people; probes without a mate", nullable=False),
        field("protocol", pa.string(), "name and version of the arithmetic, as verification/1", nullable=False),
    ],
)

DIFFERENCES = schema(
    "differences",
    [
        field("first", pa.string(), "a model", nullable=False),
        field("second", pa.string(), "another, on the same pairs", nullable=False),
        field("dataset", pa.string(), "as in metrics", nullable=False),
        field("metric", pa.string(), "as in metrics", nullable=False),
        field("first_value", pa.float64(), "of the first model", nullable=False),
        field("second_value", pa.float64(), "of the second", nullable=False),
        field("difference", pa.float64(), "second less first", nullable=False),
        field("low", pa.float64(), "lower end of the 95 % interval, by paired bootstrap; null where pairs were only counted"),
        field("high", pa.float64(), "upper end, likewise"),
    ],
)

ROC = schema(
    "roc",
    [
        field("backbone", pa.string(), "as in metrics", nullable=False),
        field("dataset", pa.string(), "as in metrics", nullable=False),
        field("far", pa.float64(), "false accept rate", nullable=False),
        field("tar", pa.float64(), "true accept rate", nullable=False),
    ],
)

SCORES = schema(
    "scores",
    [
        field("backbone", pa.string(), "as in metrics", nullable=False),
        field("dataset", pa.string(), "as in metrics", nullable=False),
        field("cosine", pa.float64(), "lower edge of a bin of 0.01", nullable=False),
        field("genuine", pa.int64(), "genuine pairs in it", nullable=False),
        field("impostor", pa.int64(), "impostor pairs in it", nullable=False),
    ],
)
