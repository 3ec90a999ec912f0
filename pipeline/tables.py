"""The Arrow schemas: every column with its unit, and the direction of every score, in the field's metadata.

`data/README.md` is generated from these (`python -m pipeline.contract > data/README.md`), and a test holds the two together.
"""

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.columns import VERSION as VERSION
from pipeline.columns import field as _field
from pipeline.columns import schema as _schema
from pipeline.errors import SchemaMismatch
from pipeline.evaluation_tables import CONTAMINATION as CONTAMINATION
from pipeline.evaluation_tables import DIFFERENCES as DIFFERENCES
from pipeline.evaluation_tables import METRICS as METRICS
from pipeline.evaluation_tables import ROC as ROC
from pipeline.evaluation_tables import SCORES as SCORES

STATUSES: dict[str, str] = {
    "ok": "decoded whole and stored as a crop",
    "duplicate": "the same bytes under the same identity as an earlier item (`duplicate_set` names the set)",
    "empty": "no bytes",
    "unsupported_format": "the bytes are no picture of a format that is read (JPEG, PNG, WebP, GIF, BMP, AVIF; HEIC with the extra `heif`)",
    "truncated": "an image that ends early",
    "undecodable": "an image that is damaged otherwise",
    "bomb": "more pixels than `ingest.max_pixels`, or made of so many parts or passes that decoding would take minutes",
    "too_small": "a side below `ingest.min_side_px`",
    "too_large": "more bytes than `ingest.max_item_bytes`",
    "no_face": "the detector found no face, or none that is large and sure enough",
    "not_aligned": "neither a square crop nor five usable landmarks, and no detector was asked",
    "bad_key": "a name that leads out of its archive, is absolute, empty, or has control characters, the folder's included",
    "bad_identity": "nothing names the identity, or its name is empty or longer than 1,024 bytes",
    "unreadable": "the file could not be read, or is no regular file",
    "forgotten": "removed by `purify forget`: no pixels, no name, and a keyed hash for a source_uri",
}

VERDICTS: dict[str, str] = {
    "keep": "exported under its identity",
    "drop": "not exported",
    "relabel": "not this identity; `other_identity` is proposed (exported only with `export.apply_relabels`, or when a person says so)",
    "review": "no sound evidence either way; not exported",
}


_SAMPLE_ID = _field("sample_id", pa.string(), "hex hash of identity and bytes: stable across runs and re-crawls; null when unreadable")
_IDENTITY = _field(
    "identity", pa.string(), "the crawl's claimed name, verbatim but for Unicode form (NFC), never renumbered", nullable=False
)
_DEGREES = "degrees, 0..180"

_ITEM_FIELDS = [
    _SAMPLE_ID,
    _IDENTITY,
    _field(
        "source_uri", pa.string(), "where the item stands in the crawl; unique. `#face=2` is the second face of its picture", nullable=False
    ),
    _field("shard", pa.string(), "stem of the raw shard (tar and twin) that holds the item's row", nullable=False),
    _field("content_sha256", pa.string(), "SHA-256 of the item's bytes as crawled"),
    _field("width_px", pa.int32(), "width as crawled", unit="pixels"),
    _field("height_px", pa.int32(), "height as crawled", unit="pixels"),
    _field("status", pa.string(), "what ingest found: " + ", ".join(STATUSES), nullable=False),
    _field("status_detail", pa.string(), "the reason in words, for every status but `ok`"),
    _field(
        "note", pa.string(), "what was done to a picture that is well: `exif orientation`, `first of 12 frames`, `icc profile ignored`, ..."
    ),
    _field("duplicate_set", pa.string(), "shared by items of equal bytes, within an identity and across; null when unique"),
    _field(
        "near_duplicate_set",
        pa.string(),
        "shared by samples of an identity that look the same by perceptual hash: sample_id of the best, the largest as crawled, then the sharpest",
    ),
    _field("source_url", pa.string(), "where the crawler says that it found the picture"),
    _field("caption", pa.string(), "what stood beside the picture, as crawled"),
    _field(
        "license",
        pa.string(),
        "the terms of the picture as the crawl gives them, a name, a URL or a text; nobody looked whether they are true",
    ),
    _field("face_number", pa.int16(), "number of the face in its picture, from 1, best first; null when no detector was asked"),
    _field("face_score", pa.float32(), "how sure the detector is", unit="0..1", direction="higher is surer"),
    _field("face_x_px", pa.float32(), "left edge of the face's box", unit="pixels of the upright picture"),
    _field("face_y_px", pa.float32(), "upper edge", unit="pixels of the upright picture"),
    _field("face_width_px", pa.float32(), "width of the box", unit="pixels of the upright picture"),
    _field("face_height_px", pa.float32(), "height of the box", unit="pixels of the upright picture"),
    _field(
        "yaw_deg",
        pa.float32(),
        "estimate from the landmarks: 0 is frontal, positive is turned to the right edge of the picture",
        unit="degrees, -90..90",
    ),
    _field("sharpness", pa.float32(), "variance of the Laplacian of the crop's luma, which is 0..255", direction="higher is sharper"),
    _field("brightness", pa.float32(), "mean luma of the crop", unit="0..1", direction="higher is brighter"),
    _field("is_gone", pa.bool_(), "true when the item was ingested earlier and is no longer in the crawl"),
]

FREE_TEXTS = ("status_detail", "note", "source_url", "caption", "license")
"""Columns of an item in which anything may stand, other people's names too."""

ITEMS = _schema(
    "items",
    [
        *_ITEM_FIELDS,
        _field(
            "landmarks_px",
            pa.list_(pa.float32()),
            "left eye, right eye, nose, left and right mouth corner: x, y of each",
            unit="pixels of the upright picture",
        ),
        _field("perceptual_hash", pa.string(), "64 bits of the crop's coarse pattern, in hex; near pictures differ in few bits"),
        _field("crop_offset", pa.int64(), "where the crop's bytes begin in the raw tar; null when none is stored", unit="bytes"),
        _field("crop_size", pa.int32(), "length of the crop's bytes", unit="bytes"),
    ],
)

IDENTITIES = _schema(
    "identities",
    [
        _IDENTITY,
        _field("items", pa.int64(), "items that claim this identity", nullable=False),
        _field("samples", pa.int64(), "of these, with status `ok`", nullable=False),
    ],
)

CLASSES = _schema(
    "classes",
    [
        _field("class_index", pa.int32(), "row in this round's head", nullable=False),
        _IDENTITY,
        _field("samples", pa.int64(), "samples trained on", nullable=False),
    ],
)

METRICS_OF_TRAINING = _schema(
    "training",
    [
        _field("step", pa.int64(), "optimiser step, from 1"),
        _field("epoch", pa.int32(), "from 0"),
        _field("loss", pa.float32(), "mean cross-entropy of the batch", unit="nats", direction="lower is better"),
        _field("learning_rate", pa.float32(), "of this step"),
        _field(
            "grad_norm", pa.float32(), "L2 norm of the backbone's gradient before clipping; not finite where a float16 step was left out"
        ),
        _field("images_per_s", pa.float32(), "of all processes together", direction="higher is better"),
        _field("wait_share", pa.float32(), "share of the step's time in which the batch was waited for", direction="lower is better"),
        _field(
            "dominant_share",
            pa.float32(),
            "share of the batch that is nearest to the sub-center which most of its identity were nearest to of late; NaN for one sub-center",
        ),
    ],
)

EMBEDDING_FIELDS = [
    _SAMPLE_ID,
    _IDENTITY,
    _field("source_uri", pa.string(), "as in the items table", nullable=False),
    _field("quality", pa.float32(), "norm of the feature, before normalisation", direction="higher is better"),
]


def embeddings(dim: int) -> pa.Schema:
    """Schema of embeddings of `dim` numbers."""
    vector = _field(
        "embedding", pa.list_(pa.float32(), dim), "unit vector: feature plus that of the mirror image, normalised", nullable=False
    )
    return _schema("embeddings", [*EMBEDDING_FIELDS, vector])


_EVIDENCE = [
    _field("nearest_subcenter", pa.int16(), "sub-center nearest to the sample"),
    _field("dominant_subcenter", pa.int16(), "sub-center that most samples of the identity are nearest to; ties to the lowest"),
    _field("nearest_angle_deg", pa.float32(), "angle to the nearest sub-center", unit=_DEGREES, direction="lower is better"),
    _field("angle_deg", pa.float32(), "angle to the dominant sub-center", unit=_DEGREES, direction="lower is better"),
    _field(
        "consensus_angle_deg",
        pa.float32(),
        "angle to the consensus of the identity's other samples; null when there are none",
        unit=_DEGREES,
        direction="lower is better",
    ),
    _field(
        "density_angle_deg",
        pa.float32(),
        "angle of the mean cosine with the five nearest samples of the identity, near duplicates apart",
        unit=_DEGREES,
        direction="lower is better",
    ),
    _field("other_identity", pa.string(), "identity whose consensus is the nearest, the sample's own apart"),
    _field("other_angle_deg", pa.float32(), "angle to that one", unit=_DEGREES, direction="higher is better"),
    _field(
        "near_duplicate_of",
        pa.string(),
        "sample_id of the same photograph in the same identity that stands for this one; null when none does",
    ),
    _field("copy_of", pa.string(), "sample_id of the same photograph under `other_identity`, seen by embedding; null when there is none"),
    _field(
        "noise_probability",
        pa.float32(),
        "estimated probability that the claimed identity is wrong",
        unit="0..1",
        direction="higher is worse",
    ),
    _field("quality", pa.float32(), "norm of the feature, before normalisation", direction="higher is better"),
]

NOISE = _schema(
    "noise",
    [
        _SAMPLE_ID,
        _IDENTITY,
        _field("source_uri", pa.string(), "as in the items table", nullable=False),
        *_EVIDENCE,
        _field(
            "subcenter_angles_deg", pa.list_(pa.float32()), "angle to every sub-center of the identity; 90 to an empty one", unit=_DEGREES
        ),
        _field("verdict", pa.string(), "keep, drop, relabel or review", nullable=False),
        _field("reason", pa.string(), "why", nullable=False),
    ],
)

MANIFEST = _schema(
    "manifest",
    [
        *_ITEM_FIELDS,
        *_EVIDENCE,
        _field("verdict", pa.string(), "; ".join(f"{name}: {about}" for name, about in VERDICTS.items()), nullable=False),
        _field(
            "reason",
            pa.string(),
            "why: the rule's finding, `decision`, `protected`, `gone` (export.keep_gone), or the status of an item that could not be judged",
            nullable=False,
        ),
        _field("round", pa.int16(), "round that judged; null when no round could"),
        _field("decided_by", pa.string(), "`rule:<name>`, `ingest`, or `person:<name>`", nullable=False),
        _field("rule_verdict", pa.string(), "what the rule said, also where a person said otherwise; null where no round judged"),
        _field("rule_reason", pa.string(), "why the rule said so"),
        _field("clean_identity", pa.string(), "identity in the clean dataset; null when not exported"),
        _field("clean_shard", pa.string(), "stem of the clean shard that holds it; null when not exported"),
    ],
)

DECISIONS = _schema(
    "decisions",
    [
        _field("decision_id", pa.string(), "unique, and rising with time", nullable=False),
        _field("sample_id", pa.string(), "as in the manifest", nullable=False),
        _field("verdict", pa.string(), "keep, drop, relabel; undo", nullable=False),
        _field("clean_identity", pa.string(), "of a relabel: the identity it gets"),
        _field("note", pa.string(), "why, in the person's words"),
        _field("decided_by", pa.string(), "who", nullable=False),
        _field("decided_at", pa.timestamp("us", tz="UTC"), "when", nullable=False),
        _field("undoes", pa.string(), "of an undo: the decision that no longer stands"),
    ],
)

PROPOSALS = _schema(
    "proposals",
    [
        _field(
            "kind",
            pa.string(),
            "`merge`: two names, one person. `review`: perhaps; ask a person. `split`: one name, two people",
            nullable=False,
        ),
        _IDENTITY,
        _field(
            "other_identity", pa.string(), "the other name; of a split, the identity that the second person is nearest to, if any is near"
        ),
        _field("samples", pa.int64(), "samples that agree with the identity's consensus, near duplicates counted once", nullable=False),
        _field("other_samples", pa.int64(), "the same of the other name; of a split, of the second person", nullable=False),
        _field("share_near", pa.float32(), "share of the identity's clean samples that the other would accept about as well", unit="0..1"),
        _field("other_share_near", pa.float32(), "the same the other way round", unit="0..1"),
        _field("center_angle_deg", pa.float32(), "angle between the two consensus centers", unit=_DEGREES),
    ],
)

CLEAN = _schema(
    "clean",
    [
        _field("sample_id", pa.string(), "key of the sample in the tar", nullable=False),
        _field("identity", pa.string(), "identity to train on", nullable=False),
        _field("crawled_identity", pa.string(), "as crawled; differs where a relabel was applied", nullable=False),
        _field("angle_deg", pa.float32(), "angle to the dominant sub-center", unit=_DEGREES, direction="lower is better"),
        _field("noise_probability", pa.float32(), "as in the manifest", unit="0..1", direction="higher is worse"),
        _field("quality", pa.float32(), "norm of the feature", direction="higher is better"),
        _field("source_uri", pa.string(), "where the item stands in the crawl; unique", nullable=False),
        _field("source_url", pa.string(), "where the crawler says that it found the picture"),
        _field("license", pa.string(), "the terms of the picture as the crawl gives them"),
        _field("crop_offset", pa.int64(), "where the crop's bytes begin in the tar", unit="bytes", nullable=False),
        _field("crop_size", pa.int32(), "length of the crop's bytes", unit="bytes", nullable=False),
    ],
)

FORGOTTEN = _schema(
    "forgotten",
    [
        _field("act", pa.string(), "one call of `purify forget`; rising with time", nullable=False),
        _field(
            "kind",
            pa.string(),
            "what was hashed. `identity`: a name. `words`: the same as it stands in texts. `first`: its first word. `content`: the SHA-256 of bytes as crawled. "
            "`sample`: a sample_id",
            nullable=False,
        ),
        _field("hash", pa.string(), "HMAC-SHA-256 of kind and value with the key in RUN/forgotten/key, in hex", nullable=False),
        _field("items", pa.int64(), "items of the run that it took; of an identity, those under the name"),
        _field("words", pa.int16(), "of `words`: how many"),
        _field("forgotten_at", pa.timestamp("us", tz="UTC"), "when", nullable=False),
        _field("forgotten_by", pa.string(), "the account that did it", nullable=False),
    ],
)


def check(path: object, schema: pa.Schema) -> None:
    """Raise SchemaMismatch unless the Parquet file has the columns and types of `schema` and its version."""
    found = pq.read_schema(path)
    version = (found.metadata or {}).get(b"version", b"none").decode()
    if version != VERSION:
        raise SchemaMismatch(f"{path} has schema version {version}, this program reads {VERSION}. Purify the crawl into a new run folder.")
    if not found.equals(schema):
        raise SchemaMismatch(
            f"{path} is no {schema.metadata[b'table'].decode()} table of this version. Purify the crawl into a new run folder."
        )
