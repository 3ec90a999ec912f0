"""A run folder with raw shards, a manifest and clean shards made by the stages themselves, of planted verdicts: what exports are tested on."""

from collections.abc import Sequence
from pathlib import Path

from pipeline import tables
from pipeline.config import Config, load
from pipeline.decisions import read_standing
from pipeline.export import export_clean, write_manifest
from pipeline.layout import RunLayout
from pipeline.receipts import Receipt, run_stage, write_json
from pipeline.run_folder import claimed, write_record
from pipeline.shards import ShardWriter, table_of, write_twin
from tests.pipeline.fake_run import Planted, write_run

NAMES = ("Ada", "Bob", "Cleo", "O'Brien", "../../etc/passwd", "Zoë 100% CON.")


def config(*changed: str) -> Config:
    """Settings of such a run: shards of five, one process."""
    return load(overrides=["isolate.rule=angle", "rounds=1", "export.samples_per_shard=5", "workers=1", *changed])


def planted(each: int = 7) -> list[Planted]:
    """Pictures of all names by turns, every fifth of them dropped, and a broken file."""
    items = [
        Planted(identity=name, **({"verdict": "drop", "reason": "angle"} if (number * len(NAMES) + place) % 5 == 4 else {}))
        for number in range(each)
        for place, name in enumerate(NAMES)
    ]
    return [*items, Planted(identity="Ada", status="truncated")]


def write_clean_run(root: Path, items: list[Planted] | None = None, settings: Config | None = None) -> RunLayout:
    """The run folder `root`, whose manifest and clean shards are those of its decisions."""
    layout = RunLayout(write_run(root, planted() if items is None else items, rounds=1))
    for folder in (layout.raw, layout.round(1).noise):
        sealed = folder.with_name(f"{folder.name}-sealed")
        run_stage(sealed, stage="made", mark="0" * 64, work=lambda _: {})
        (sealed / "_receipt.json").rename(folder / "_receipt.json")
        sealed.rmdir()
    layout.run_json.write_text(f'{{"crawl": "{root}"}}', "utf-8")
    export_again(layout, config() if settings is None else settings)
    return layout


def export_again(layout: RunLayout, settings: Config) -> Receipt:
    """Manifest and clean shards of the decisions that stand now."""
    with claimed(layout.root, layout):
        found = [
            write_manifest(layout.raw, layout.round(1).noise, 1, layout.manifest, settings, decisions=read_standing(layout.root)),
            export_clean(layout.raw, layout.manifest, layout.clean, settings),
        ]
        write_record(layout.root, layout, settings, [(one.stage, one) for one in found], 1.0)
    return found[1]


def write_clean(folder: Path, samples: Sequence[tuple[str, bytes]], *, per_shard: int = 5) -> Path:
    """`folder`, a finished clean/ of (identity, bytes of a picture, or of anything), written from the schema alone."""
    folder.mkdir(parents=True)
    for number in range(0, len(samples), per_shard):
        tar = folder / f"clean-{number // per_shard:06d}.tar"
        rows = []
        with ShardWriter(tar) as writer:
            for place, (identity, content) in enumerate(samples[number : number + per_shard], number):
                key = f"{place:032x}"
                offset = writer.add(key, {"jpg": content, "cls": b"0", "json": b"{}"})["jpg"]
                rows.append(
                    {"sample_id": key, "identity": identity, "crawled_identity": identity, "source_uri": f"{place}.jpg"}
                    | {"crop_offset": offset, "crop_size": len(content)}
                )
        write_twin(tar.with_suffix(".parquet"), table_of(rows, tables.CLEAN), writer.sidecar)
    write_json(folder / "_receipt.json", {"stage": "clean", "fingerprint": "0" * 64, "counts": {}, "seconds": 1.0})
    return folder
