"""A run folder with raw shards, a manifest and clean shards made by the stages themselves, of planted verdicts: what exports are tested on."""

from pathlib import Path

from pipeline.config import Config, load
from pipeline.decisions import read_standing
from pipeline.export import export_clean, write_manifest
from pipeline.layout import RunLayout
from pipeline.receipts import Receipt, run_stage
from pipeline.run_folder import claimed, write_record
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
