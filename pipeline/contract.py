"""The page on the data on disk, `data/README.md`, made from the schemas: `python -m pipeline.contract > data/README.md`. A test holds the two together."""

import pyarrow as pa

from pipeline.tables import (
    CLASSES,
    CLEAN,
    CONTAMINATION,
    DECISIONS,
    DIFFERENCES,
    FORGOTTEN,
    IDENTITIES,
    ITEMS,
    MANIFEST,
    METRICS,
    METRICS_OF_TRAINING,
    NOISE,
    PROPOSALS,
    ROC,
    SCORES,
    STATUSES,
    VERDICTS,
    VERSION,
    embeddings,
)

_PAGE = """\
# The data on disk

Generated from `pipeline/tables.py` by `python -m pipeline.contract > data/README.md`. Schema version {version}; every file carries it in its
metadata, beside unit and direction of each column. This folder holds saved queries (`sql/`), settings (`presets/`) and what is known of the
evaluation protocols (`protocols/`); no Python. `runs/` and `crawls/` are yours, and ignored by git.

## A run folder

```
RUN/
  run.json          crawl, settings, versions, run id, warnings, counts, seconds and rates per stage
  history/          000001-<run id>.json ...: what each finished run, and each export of decisions, came to; the run id
                    is the start of the manifest's fingerprint, hashed with the log of the forgotten where there is one
  raw/              raw-000000.tar, its twin raw-000000.parquet (items), raw-000000.sha256 of both ..., identities.parquet
  embedder/         a model that was given in place of training (model.onnx ...), and model.json
  rounds/1/         train/ (backbone.safetensors, head.safetensors, classes.parquet, metrics.parquet, model.json),
                    embeddings/raw-*.parquet, noise/raw-*.parquet, noise/judge.json, noise/proposals.parquet,
                    noise/centers.safetensors
  manifest/         part-*.parquet: one row per crawl item; _answers/: the saved queries that need nothing else, answered
  protected/        contamination.parquet, when `protect.sets` names evaluation sets
  decisions/        a Parquet file per act of a person, never rewritten but by `purify forget`
  forgotten/        a Parquet file of keyed hashes per `purify forget`, and their key
  clean/            clean-000000.tar, its twin, clean-000000.sha256 ..., identities.parquet, dataset.json (SHA-256 per shard); copy this one folder
  evaluation/       metrics.parquet, differences.parquet, roc.parquet, scores.parquet
  audit/            index.html, identity.html, data/, sheets/, inversions/: opens from disk, without a network
```

Every folder is written as `.<name>.partial-<fingerprint>`, sealed by `_receipt.json`, and renamed: it is complete, or it is not there.
A twin's file metadata holds `num_samples`, `tar_bytes` and `tar_sha256` of its tar, that of embeddings `tar_sha256` and `model`, the fingerprint of the training.

Read a table with the files' names, as in `read_parquet('RUN/manifest/*.parquet')`.

## Statuses of an item

{statuses}

## Verdicts

{verdicts}

## Tables
{tables}"""


def page() -> str:
    """The text of `data/README.md`."""
    schemas = (
        MANIFEST,
        ITEMS,
        IDENTITIES,
        NOISE,
        PROPOSALS,
        DECISIONS,
        FORGOTTEN,
        CONTAMINATION,
        CLEAN,
        CLASSES,
        METRICS_OF_TRAINING,
        METRICS,
        DIFFERENCES,
        ROC,
        SCORES,
        embeddings(512),
    )
    return _PAGE.format(
        version=VERSION,
        statuses="\n".join(f"- `{name}`: {about}" for name, about in STATUSES.items()),
        verdicts="\n".join(f"- `{name}`: {about}" for name, about in VERDICTS.items()),
        tables="".join(_described(schema) for schema in schemas),
    )


def _described(schema: pa.Schema) -> str:
    lines = [f"\n### {schema.metadata[b'table'].decode()}\n", "| column | type | unit, direction | about |", "|---|---|---|---|"]
    for field in schema:
        facts = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
        notes = ", ".join(part for part in (facts["unit"], facts["direction"], "" if field.nullable else "never null") if part)
        kind = str(field.type).replace("|", "\\|")
        lines.append(f"| `{field.name}` | {kind} | {notes} | {facts['about']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    import sys

    sys.stdout.write(page())
