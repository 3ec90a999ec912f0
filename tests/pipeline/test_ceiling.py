from pathlib import Path

import pandas as pd
import pytest

from flows.cli import app
from pipeline.config import as_dict, load
from pipeline.errors import BadConfig, BadInput
from pipeline.ingest import ingest
from pipeline.layout import RunLayout
from pipeline.receipts import write_json
from pipeline.synthetic import SyntheticCrawl, write_folder
from pipeline.train import train
from tests.pipeline.evaluation_sets import write_lfw

OPTIONS = [
    "train.epochs=1",
    "train.input_px=32",
    "train.embedding_dim=32",
    "train.batch_size=32",
    "evaluate.holdout=0.2",
    "workers=1",
    "device=cpu",
]


@pytest.fixture
def run(tiny_crawl: tuple[Path, Path], tmp_path: Path) -> Path:
    """A run of two rounds as far as the gap looks at it: raw shards, two trainings, run.json."""
    config = load(preset="demo", overrides=[*OPTIONS, "ingest.samples_per_shard=40"])
    layout = RunLayout(tmp_path / "run")
    ingest(tiny_crawl[0], layout.raw, config)
    for number in (1, 2):
        train(layout.raw, layout.round(number).train, config)
    write_json(layout.run_json, {"config": as_dict(config), "crawl": str(tiny_crawl[0]), "finished": True, "stages": []})
    return layout.root


def test_the_gap_to_true_labels_is_measured_after_the_run(
    run: Path, tiny_crawl: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lfw, out = write_lfw(tmp_path / "lfw", people=4, each=3), tmp_path / "out"
    app(["gap", str(run), str(tiny_crawl[1]), str(out), "--protocol", f"mine={lfw}"], result_action="return_value")
    assert "gap" in capsys.readouterr().out
    truth = pd.read_parquet(tiny_crawl[1]).set_index("item")["is_noise"]
    judged = pd.concat([pd.read_parquet(path) for path in sorted((out / "truth").glob("raw-*.parquet"))])
    assert (judged["verdict"] == "keep").tolist() == (~truth[list(judged["source_uri"])]).tolist() and len(judged) > 80
    metrics = pd.read_parquet(out / "evaluation" / "metrics.parquet")
    assert set(metrics["backbone"]) == {"round-1", "round-2", "truth"}
    for table, message in ((lfw / "pairs.txt", "is no truth table"), (tmp_path / "other.parquet", "does not know")):
        if table.suffix == ".parquet":
            write_folder(SyntheticCrawl(identities=3, images=4, seed=9), tmp_path / "other", table)
        with pytest.raises(BadInput, match=message):
            app(["gap", str(run), str(table), str(out), "--protocol", f"mine={lfw}"], result_action="return_value")
    with pytest.raises(BadConfig, match="2 rounds and 0 evaluation sets"):
        app(["gap", str(run), str(tiny_crawl[1]), str(out)], result_action="return_value")
