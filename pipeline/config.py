"""Settings: frozen dataclasses, the paper's values as defaults, validated by pydantic before any work is done.

A setting is named by its path, `isolate.max_angle_deg`. `load` merges, later wins: defaults, preset, file, `--set`.
"""

import dataclasses
import difflib
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from pipeline.errors import BadConfig
from pipeline.resources import data_folder

MOST_WORKERS = 4096
Count = Annotated[int, Field(ge=1, le=10**9)]
"""Upper bounds here and below are no advice: beyond them stands a slip of the hand, or a number in another unit."""
ShardSize = Annotated[int, Field(ge=1, le=10**6)]
Batch = Annotated[int, Field(ge=2, le=2**17)]
Epochs = Annotated[int, Field(ge=1, le=10_000)]
SidePx = Annotated[int, Field(ge=1, le=10_000)]
Bytes = Annotated[int, Field(ge=1, le=2**50)]
Workers = Annotated[int, Field(ge=0, le=MOST_WORKERS)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Degrees = Annotated[float, Field(ge=0, le=180)]
Rule = Literal["angle", "nondominant", "either", "both", "calibrated"]
Mode = Literal["full", "judge", "auto"]
SourceName = Literal["auto", "export", "recordio", "img2dataset", "webdataset", "huggingface", "table", "folder"]
Backbone = Literal[
    "tiny", "iresnet18", "iresnet34", "iresnet50", "iresnet100", "iresnet200",
    "mobilefacenet", "mobilefacenet_large", "vit_t", "vit_s", "vit_b",
]  # fmt: skip

_STRICT: ConfigDict = ConfigDict(extra="forbid")


@dataclass(frozen=True, kw_only=True)
class IngestConfig:
    """How a crawl becomes raw shards."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    source: SourceName = "auto"
    """What reads the crawl; `auto` looks at it."""
    samples_per_shard: ShardSize = 10_000
    crop_px: Literal[112] = 112
    """Side of the stored crop; 112 is the ArcFace template's."""
    jpeg_quality: Annotated[int, Field(ge=50, le=100)] = 95
    """For crops that must be encoded anew; a crawl's own 112 x 112 JPEG is stored byte for byte."""
    min_side_px: SidePx = 32
    """Smaller pictures become rows with status `too_small`."""
    max_pixels: Count = 40_000_000
    """Pictures of more pixels are refused before decoding (status `bomb`)."""
    max_item_bytes: Annotated[int, Field(ge=1, le=2**34)] = 64 * 2**20
    identity_key: str = "identity"
    """Where a sample's `.json`, or a column of a table, names its identity."""
    image_column: str | None = None
    """Column of a table that holds paths or bytes; unset, the first of `image`, `bytes`, `jpg`, `png`, `path`, `file_name`, `url` that is there."""
    detector: Literal["none", "landmarks", "yunet", "scrfd"] = "none"
    """`none`: pictures are crops, or have landmarks beside them. `landmarks`: five points of `ingest.landmarks`. Else a model finds the faces."""
    detector_model: str | None = None
    """The detector's ONNX file; its SHA-256 goes into run.json. Nothing is downloaded."""
    landmarks: str | None = None
    """A JSON file of five points per source_uri, for the detector `landmarks`."""
    faces: Literal["main", "all"] = "main"
    """Of several faces in a picture: the largest and most central, or each as a sample of its own (`#face=2`)."""
    min_face_score: Fraction = 0.6
    min_face_px: SidePx = 24
    """Shorter side of the box; smaller faces are not taken."""
    near_duplicate_bits: Annotated[int, Field(ge=0, le=8)] = 3
    """Crops of one identity whose perceptual hashes differ in at most so many of 64 bits are one near_duplicate_set."""
    max_bad_items: Fraction = 0.8
    """Stop before training when more than this share of the items is neither a sample nor a duplicate."""
    url_timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 60.0
    """For a picture by URL as a whole; for a tar or table by URL, of silence."""
    url_max_bytes: Bytes = 2**40
    """Of one tar or table read by URL."""
    allow_private_addresses: bool = False
    """Read http(s) URLs that lead to loopback, private or link-local addresses."""


@dataclass(frozen=True, kw_only=True)
class EmbedderConfig:
    """A model that one has already, and what its file does not say of itself. Unset: insightface's, RGB and (x - 127.5) / 127.5."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    model: str | None = None
    """Stands in for training: an .onnx file, weights, or a folder of a run (docs/models.md). Its SHA-256 goes into run.json. Nothing is downloaded."""
    input_px: Annotated[int, Field(ge=16, le=1024)] | None = None
    """Side of the input, for an ONNX model that takes any; 112 where unset."""
    channels: Literal["rgb", "bgr"] | None = None
    mean: float | tuple[float, float, float] | None = None
    """Subtracted from pixels of 0..255, one number or one a channel in the model's order."""
    std: Positive | tuple[Positive, Positive, Positive] | None = None
    """Divided by, afterwards."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Sub-center ArcFace. Defaults: the paper's (section 4.1) and arcface_torch's where the paper is silent."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    backbone: Backbone = "iresnet50"
    embedding_dim: Annotated[int, Field(ge=8, le=4096)] = 512
    input_px: Annotated[int, Field(ge=16, le=112, multiple_of=16)] = 112
    subcenters: Annotated[int, Field(ge=1, le=64)] = 3
    """K of the first round; later rounds train K = 1 on what was kept."""
    margin: Literal["arcface", "cosface", "sphereface", "cm1", "cm2", "softmax", "adaface", "magface"] = "arcface"
    margin_rad: Annotated[float, Field(ge=0, lt=3.14159)] = 0.5
    """The additive angular margin m of `arcface`. `adaface` and `magface` are as published for 0.5, and in proportion; the others have none."""
    scale: Annotated[float, Field(gt=0, le=10_000)] = 64.0
    sample_rate: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Share of the identities that a step draws, beside those of its samples (Partial FC): for hundreds of thousands of identities and more."""
    filter_angle_deg: Degrees | None = None
    """A sample's loss leaves out other identities that are nearer than this; published runs on identities with second names use 66 (a cosine of 0.4)."""
    epochs: Epochs = 20
    batch_size: Batch = 128
    learning_rate: Annotated[float, Field(gt=0, le=1000)] = 0.1
    schedule: Literal["poly", "step"] = "poly"
    milestones: tuple[Epochs, ...] = (8, 14)
    """Epochs at which the `step` schedule divides the rate by ten."""
    warmup_epochs: Annotated[float, Field(ge=0, le=10_000)] = 1.0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0, le=1000)] = 5e-4
    grad_clip_norm: Positive = 5.0
    optimizer: Literal["sgd", "adamw"] = "sgd"
    """SGD is the paper's; vision transformers want `adamw`, with a rate of 0.001, weight decay 0.1 and momentum (its first beta) 0.9."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the backbone. `auto`: bfloat16 where a GPU has it, float16 on older ones, float32 on a processor."""
    accumulation: Annotated[int, Field(ge=1, le=2**17)] = 1
    """Parts of a batch taken one after the other, for batches that do not fit into memory; each has BatchNorm statistics of its own."""
    recompute: bool = False
    """Activation checkpointing: a third more time for much less memory. Changes no result."""
    compile: bool = False
    """torch.compile of the backbone."""
    average_decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Keep a moving average of the backbone's weights, 0.9999 as an example, and make it the result."""
    augment: tuple[Literal["crop", "low_resolution", "blur", "colour", "occlusion"], ...] = ()
    """Beside mirroring, which is always done."""
    augment_probability: Fraction = 0.2
    """Of each of `augment`, by itself."""
    processes: Workers = 0
    """Processes that share every batch; 0 is one per GPU, one without a GPU. Changes a result by rounding only."""
    sync_batchnorm: bool = True
    """BatchNorm over the batch of all processes. False is faster, and each process normalises its own part, as insightface does."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard too (extra `tensorboard`), into the training's folder."""
    init: str | None = None
    """Backbone weights to start from: a .safetensors or insightface-layout .pt file."""
    min_samples: Count = 2
    """Identities with fewer usable samples are not trained on; they are judged all the same."""
    checkpoint_steps: Count = 2000
    """A checkpoint every so many steps, and at the end of every epoch."""
    cache_bytes: Annotated[int, Field(ge=0, le=2**50)] = 4 * 2**30
    """Decoded crops are kept in memory when all fit in this budget of the machine, once for each process; else every epoch streams the shards."""
    shuffle_buffer: Count = 20_000
    """Samples whose places are held for shuffling: shards are shuffled, joined to windows of so many samples, and each window is shuffled."""
    sampling: Literal["natural", "balanced"] = "natural"
    """`natural`: every sample once an epoch. `balanced`: every identity equally often, an epoch being as long."""


@dataclass(frozen=True, kw_only=True)
class EmbedConfig:
    """One embedding per sample, averaged with its mirror image."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    batch_size: Annotated[int, Field(ge=1, le=2**17)] = 256


@dataclass(frozen=True, kw_only=True)
class IsolateConfig:
    """Who is kept. `max_angle_deg` is the paper's 75; `calibrated` estimates the cut from the crawl itself."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    rule: Rule = "calibrated"
    max_angle_deg: Degrees = 75.0
    max_noise_probability: Fraction = 0.5
    max_noise: Fraction | None = None
    """Rule `calibrated`: the share of noise wanted among the kept, at most; sets `max_noise_probability` from the crawl."""
    min_retention: Fraction | None = None
    """Rule `calibrated`: the share of the clean samples to keep, at least; sets `max_noise_probability`, unless `max_noise` does."""
    relabel_angle_deg: Degrees | None = None
    """A dropped sample this near to another identity's consensus is proposed for it; unset, where the calibration is 90 % sure."""
    relabel_gap_deg: Degrees = 18.0
    """... and nearer than to any third identity by this much: some identity is always near to a stranger."""
    duplicate_angle_deg: Degrees = 12.0
    """Two samples of an identity within this angle are one photograph; never more than a quarter of the angle that is surely clean."""
    drop_near_duplicates: bool = True
    """Keep one of each set of near duplicates, the one nearest to the consensus."""
    judge_anyway: bool = False
    """Judge even by a head that did not learn to tell identities apart."""


@dataclass(frozen=True, kw_only=True)
class ProtectConfig:
    """Evaluation sets that the clean shards are not to touch."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    sets: tuple[str, ...] = ()
    """insightface `.bin` files, or folders of aligned images."""
    angle_deg: Degrees = 50.0
    """An identity whose consensus is this near to a protected image is taken for the same person."""
    exclude: bool = False
    """Leave what matches out of the clean shards; without it, matches are only reported."""


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """What goes into `clean/`."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    samples_per_shard: ShardSize = 10_000
    apply_relabels: bool = False
    """Export samples with verdict `relabel` under the identity proposed for them."""
    keep_gone: bool = True
    """Samples whose files are no longer in the crawl stay in `clean/`; false: their verdict is `drop`, reason `gone`, unless a person decided."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How the backbones are compared."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    holdout: Annotated[float, Field(ge=0, le=0.5)] = 0.05
    """Share of the identities that no round trains on, so that pairs can be drawn from them."""
    pairs: Annotated[int, Field(ge=20, le=10**8)] = 6000
    folds: Annotated[int, Field(ge=2, le=100)] = 10
    bins: tuple[str, ...] = ()
    """insightface `.bin` verification files."""


@dataclass(frozen=True, kw_only=True)
class AuditConfig:
    """How much the audit pages show. Every identity is in their list."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    identities: Annotated[int, Field(ge=0, le=10**9)] = 2000
    """Identities whose page with faces is drawn beforehand, the noisiest first. `purify review` draws any other when it is asked for."""
    faces: Annotated[int, Field(ge=1, le=512)] = 16
    """Kept and removed faces shown per identity, each."""
    inversions: Annotated[int, Field(ge=0, le=100_000)] = 24
    """Identities for which the face that the network imagines is drawn, the noisiest first; unless 0, also the names of the surest proposals to merge."""
    inversion_steps: Annotated[int, Field(ge=0, le=100_000)] = 400
    """Gradient steps of the inversion; 0 leaves it out."""


@dataclass(frozen=True, kw_only=True)
class LimitsConfig:
    """What marks a finished run: the state `Warned` in Prefect, exit code 3, and a line in run.json. Unset, nothing does."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    noise_rate: Fraction | None = None
    """Estimated share of noise among the samples, at most."""
    kept_share: Fraction | None = None
    """Share of the samples that is exported, relabels included, at least."""
    drift: Fraction | None = None
    """Kolmogorov-Smirnov distance of the angles from those of the run before in this folder, at most."""


@dataclass(frozen=True, kw_only=True)
class RetrainConfig:
    """Beyond which mode `auto` trains anew; exactly at a limit is within it."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    new_share: Fraction = 0.2
    """Share of the samples that stand in shards the training has not seen."""
    new_identities: Fraction = 0.1
    """Share of the samples that are of identities without a trained center, of those that a new training would give one."""
    drift: Fraction = 0.1
    """Kolmogorov-Smirnov distance of the angles in new shards from those in the others, of identities held out; not counted below 200 angles."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """All settings of one run."""

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    rounds: Annotated[int, Field(ge=1, le=5)] = 2
    """1 is the paper's purification; each further round retrains with K = 1 on the kept and judges everything again."""
    workers: Workers = 0
    """Processes for decoding and copying; 0 is one per core. Changes no result."""
    device: str = "auto"
    """`auto` takes a GPU where there is one; else `cpu`, `cuda`, `cuda:1`."""
    mode: Mode = "full"
    """Of a crawl that grew: `full` trains anew; `judge` uses the trainings that stand; `auto` does so until `retrain` says otherwise."""
    ingest: IngestConfig = field(default_factory=IngestConfig)
    embedder: EmbedderConfig = field(default_factory=EmbedderConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    isolate: IsolateConfig = field(default_factory=IsolateConfig)
    protect: ProtectConfig = field(default_factory=ProtectConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    audit: AuditConfig = field(default_factory=AuditConfig)
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    retrain: RetrainConfig = field(default_factory=RetrainConfig)


def load(*, preset: str | None = None, file: Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """The merged and validated settings.

    Raises BadConfig: for an unknown preset, file or setting (with the nearest name that exists), and for a value outside its range.
    """
    merged: dict[str, Any] = {}
    if preset is not None:
        _merge(merged, _read_toml(_preset(preset)))
    if file is not None:
        _merge(merged, _read_toml(file))
    for override in overrides:
        _merge(merged, _parse_override(override))
    return validate(merged)


def validate(settings: Mapping[str, Any]) -> Config:
    """The settings of a nested mapping; every unknown name is reported with the nearest that exists."""
    try:
        return TypeAdapter(Config).validate_python(dict(settings))
    except ValidationError as error:
        raise BadConfig("\n".join(_explain(detail) for detail in error.errors())) from error


def as_dict(config: Any) -> dict[str, Any]:
    """Plain nested values of a configuration, for JSON and for fingerprints."""
    plain: dict[str, Any] = TypeAdapter(type(config)).dump_python(config, mode="json")
    return plain


def setting_names(kind: type = Config, prefix: str = "") -> Iterator[str]:
    """Every setting by its path."""
    for item in dataclasses.fields(kind):
        if isinstance(item.type, type) and dataclasses.is_dataclass(item.type):
            yield from setting_names(item.type, f"{prefix}{item.name}.")
        else:
            yield prefix + item.name


def presets() -> list[str]:
    """Names of the presets that come with the program."""
    return sorted(path.stem for path in data_folder("presets").glob("*.toml"))


def _preset(name: str) -> Path:
    if name not in presets():
        raise BadConfig(f"There is no preset {name!r}. Use one of: {', '.join(presets())}.")
    return data_folder("presets") / f"{name}.toml"


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise BadConfig(f"There is no settings file {path}. Check the path given to --config.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise BadConfig(f"{path} is not a TOML file: {error}. See data/presets/ for examples.") from error


def _parse_override(text: str) -> dict[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name.strip():
        raise BadConfig(f"--set takes NAME=VALUE, as in --set isolate.max_angle_deg=70; got {text!r}.")
    try:
        parsed: Any = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # a bare word: --set isolate.rule=angle
    for part in reversed(name.strip().split(".")):
        parsed = {part: parsed}
    result: dict[str, Any] = parsed
    return result


def _merge(into: dict[str, Any], new: Mapping[str, Any]) -> None:
    for name, value in new.items():
        if isinstance(value, Mapping) and isinstance(into.get(name), dict):
            _merge(into[name], value)
        else:
            into[name] = dict(value) if isinstance(value, Mapping) else value


def _explain(detail: Any) -> str:
    name = ".".join(str(part) for part in detail["loc"])
    if detail["type"] in {"unexpected_keyword_argument", "extra_forbidden"}:
        near = difflib.get_close_matches(name, list(setting_names()), n=1, cutoff=0.6)
        hint = f" Did you mean {near[0]!r}?" if near else " `purify run CRAWL RUN --dry-run` shows every setting with its value."
        return f"There is no setting {name!r}.{hint}"
    return f"Setting {name!r}: {detail['msg']}; got {detail['input']!r}."


RULES: tuple[str, ...] = get_args(Rule)
