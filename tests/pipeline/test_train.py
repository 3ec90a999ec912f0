"""Training on shards: batches in a fixed order, a killed training that ends the same, selections by the round before, weights to start from."""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from arcface_core.backbones import build_backbone
from arcface_core.training import StepMetrics, TrainState, training_steps
from pipeline import embed as embed_module
from pipeline import tables
from pipeline.config import Config, load
from pipeline.embed import embed, read_embeddings
from pipeline.errors import BadCheckpoint, BadConfig, BadCrawl, TrainingFailed
from pipeline.fit import precision_of
from pipeline.ingest import ingest
from pipeline.layout import RunLayout
from pipeline.learned import advice_on_too_few
from pipeline.models import load_into, load_tensors, pick_device
from pipeline.ranks import process_count
from pipeline.receipts import run_stage, write_json
from pipeline.shards import read_facts, shard_stems, write_twin
from pipeline.status import Story, read_status
from pipeline.train import held_out, is_held_out, read_classes, train

SMALL = ["train.epochs=2", "train.input_px=16", "train.embedding_dim=16", "train.batch_size=16", "workers=1", "ingest.samples_per_shard=20"]


def config(*changed: str) -> Config:
    return load(preset="demo", overrides=[*SMALL, *changed])


@pytest.fixture(scope="module")
def raw(tiny_crawl: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("train") / "raw"
    ingest(tiny_crawl[0], folder, config())
    return folder


def test_classes_are_sorted_and_leave_out_the_held_out(raw: Path, tmp_path: Path) -> None:
    settings = config("evaluate.holdout=0.3")
    receipt = train(raw, tmp_path / "t", settings)
    names, centers_CKD = read_classes(tmp_path / "t")
    hidden = held_out(raw, settings)["identity"].to_pylist()
    assert names == sorted(names) and hidden and not set(hidden) & set(names)
    assert centers_CKD.shape == (len(names), 3, 16)
    assert torch.allclose(centers_CKD.norm(dim=2), torch.ones(len(names), 3), atol=1e-5)
    assert receipt.counts["identities"] == len(names)
    assert train(raw, tmp_path / "t", settings).reused


def test_holding_out_follows_the_name_alone() -> None:
    names = [f"Person {n}" for n in range(4000)]
    chosen = [name for name in names if is_held_out(name, share=0.1, seed=0)]
    assert 300 < len(chosen) < 500
    assert set(chosen) <= {name for name in names if is_held_out(name, share=0.2, seed=0)}
    assert not any(is_held_out(name, share=0.0, seed=0) for name in names)


_TRAIN = """
import sys
from pathlib import Path
from pipeline.config import load
from pipeline.train import train
torch_threads = __import__("torch").set_num_threads(1)
slow = float(sys.argv[3])
def progress(done, total):
    print(done, flush=True)
    __import__("time").sleep(slow)
train(Path(sys.argv[1]), Path(sys.argv[2]), load(preset="demo", overrides=sys.argv[4:]), progress=progress)
"""


def _train_process(raw: Path, out: Path, slow: float) -> "subprocess.Popen[str]":
    options = [*SMALL, "train.checkpoint_steps=1", "device=cpu"]
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", _TRAIN, str(raw), str(out), str(slow), *options],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_training_killed_at_any_step_ends_with_the_same_weights(raw: Path, tmp_path: Path) -> None:
    whole = _train_process(raw, tmp_path / "whole", 0)
    assert whole.wait(120) == 0
    victim = _train_process(raw, tmp_path / "killed", 0.3)
    assert victim.stdout is not None
    for line in victim.stdout:
        if int(line) == 4:
            os.killpg(victim.pid, signal.SIGKILL)
            break
    victim.wait(60)
    assert not (tmp_path / "killed").exists()
    again = _train_process(raw, tmp_path / "killed", 0)
    steps = again.communicate(timeout=120)[0].split()
    assert again.returncode == 0 and int(steps[0]) > 1, "it went on, it did not begin anew"
    for name in ("backbone.safetensors", "head.safetensors"):
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "killed" / name).read_bytes()
    losses = [pq.read_table(tmp_path / name / "metrics.parquet")["loss"].to_pylist() for name in ("whole", "killed")]
    assert losses[0] == losses[1]
    assert whole.stdout is not None
    whole.stdout.close()
    victim.stdout.close()


def test_the_next_round_trains_on_what_was_kept_with_one_center(raw: Path, tmp_path: Path) -> None:
    """Noise tables that drop a whole identity: it is not trained on, and K is 1."""
    dropped: set[str] = set()

    def judged(folder: Path) -> dict[str, int | float | str | bool | None]:
        for path in sorted(raw.glob("raw-*.parquet")):
            rows = pq.read_table(path, filters=[("status", "=", "ok")]).to_pylist()
            dropped.add(rows[0]["identity"]) if not dropped else None
            noise = [row | {"verdict": "drop" if row["identity"] in dropped else "keep", "reason": "x"} for row in rows]
            pq.write_table(
                pa.Table.from_pylist([{name: row.get(name) for name in tables.NOISE.names} for row in noise], schema=tables.NOISE),
                folder / path.name,
            )
        return {}

    run_stage(tmp_path / "noise", stage="isolate", mark="0" * 64, work=judged)
    train(raw, tmp_path / "t", config("evaluate.holdout=0"), noise=tmp_path / "noise")
    names, centers_CKD = read_classes(tmp_path / "t")
    assert not dropped & set(names) and len(names) > 5 and centers_CKD.shape[1] == 1


def test_embeddings_are_unit_vectors_of_every_usable_sample_and_ignore_mirroring(raw: Path, tmp_path: Path) -> None:
    train(raw, tmp_path / "t", config())
    embed(raw, tmp_path / "t", tmp_path / "e", config())
    found: list[str] = []
    for path in sorted((tmp_path / "e").glob("raw-*.parquet")):
        uris, _, quality, vectors = read_embeddings(path)
        found += uris
        assert torch.allclose(torch.from_numpy(vectors.copy()).norm(dim=1), torch.ones(len(uris)), atol=1e-5) and (quality > 0).all()
    usable = [
        uri for path in raw.glob("raw-*.parquet") for uri in pq.read_table(path, filters=[("status", "=", "ok")])["source_uri"].to_pylist()
    ]
    assert sorted(found) == sorted(usable)


def test_a_shard_is_embedded_again_when_its_rows_or_the_model_have_changed_though_its_tar_has_not(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    embedded: list[str] = []
    embed_shard = embed_module.embed_shard
    monkeypatch.setattr(embed_module, "embed_shard", lambda part: (embedded.append(part.stem.name), embed_shard(part)))
    grown = tmp_path / "raw"
    shutil.copytree(raw, grown)
    train(grown, tmp_path / "t", config("train.epochs=1"))
    embed(grown, tmp_path / "t", tmp_path / "e", config())
    stems = shard_stems(grown)
    assert embedded == stems

    def seal(folder: Path, mark: str) -> None:
        receipt = json.loads((folder / "_receipt.json").read_text())
        write_json(folder / "_receipt.json", receipt | {"fingerprint": mark})

    twin = pq.read_table(grown / f"{stems[1]}.parquet")
    status = twin["status"].to_pylist()
    status[status.index("ok")] = "duplicate"
    place = twin.schema.get_field_index("status")
    facts = read_facts(grown / f"{stems[1]}.parquet")
    write_twin(grown / f"{stems[1]}.parquet", twin.set_column(place, twin.schema.field(place), pa.array(status)), facts)
    seal(grown, "grown")
    embedded.clear()
    receipt = embed(grown, tmp_path / "t", tmp_path / "e", config())
    assert embedded == [stems[1]] and receipt.counts["taken_over"] == len(stems) - 1
    embedded.clear()
    seal(tmp_path / "t", "another training")
    assert embed(grown, tmp_path / "t", tmp_path / "e", config()).counts["taken_over"] == 0 and embedded == stems


def test_weights_to_start_from(raw: Path, tmp_path: Path) -> None:
    """safetensors and insightface's .pt alike; what does not fit, or is no weights at all, is named before training."""
    torch.manual_seed(3)
    net = build_backbone("tiny", embedding_dim=16, input_px=16)
    save_file(net.state_dict(), tmp_path / "w.safetensors")
    torch.save({f"module.{name}": tensor for name, tensor in net.state_dict().items()}, tmp_path / "w.pt")
    other = build_backbone("tiny", embedding_dim=16, input_px=16)
    for name in ("w.safetensors", "w.pt"):
        load_into(other, tmp_path / name)
        assert torch.equal(other.get_parameter("fc.weight"), net.get_parameter("fc.weight"))
    train(raw, tmp_path / "t", config(f"train.init={tmp_path / 'w.pt'}", "train.epochs=1"))
    with pytest.raises(BadCheckpoint, match=r"does not fit the backbone \(shape: fc\.weight"):
        load_into(build_backbone("tiny", embedding_dim=8, input_px=16), tmp_path / "w.pt")
    with pytest.raises(BadCheckpoint, match="There are no weights at"):
        train(raw, tmp_path / "u", config(f"train.init={tmp_path / 'none.pt'}"))
    (tmp_path / "text.safetensors").write_text("hello")
    with pytest.raises(BadCheckpoint, match="damaged, or no weights file"):
        load_tensors(tmp_path / "text.safetensors")


class _Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch pwned",)


def test_a_hostile_checkpoint_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": _Evil()}, tmp_path / "evil.pt")
    with pytest.raises(BadCheckpoint, match="holds more than tensors"):
        load_tensors(tmp_path / "evil.pt")
    assert not (tmp_path / "pwned").exists()


def test_a_training_that_diverges_names_the_last_good_checkpoint(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = training_steps

    def breaking(state: TrainState, *given: Any, **named: Any) -> Iterator[StepMetrics]:
        for metrics in taken(state, *given, **named):
            yield metrics
            if metrics.step == 3:
                with torch.no_grad():
                    state.head.weight[0, 0] = torch.nan

    monkeypatch.setattr("pipeline.fit.training_steps", breaking)
    settings = config("train.checkpoint_steps=2")
    with pytest.raises(
        TrainingFailed, match=r"The loss is nan at step 4\. The last good checkpoint is that of step 2, (.*)\. The same comm"
    ) as raised:
        train(raw, tmp_path / "t", settings)
    kept = Path(re.findall(r"step 2, (\S+)\. The", str(raised.value))[0])
    copied = tmp_path / "kept.safetensors"
    copied.write_bytes(kept.read_bytes())
    monkeypatch.setattr("pipeline.fit.training_steps", taken)
    told: list[int] = []
    train(raw, tmp_path / "t", settings, progress=lambda done, _: told.append(done))
    assert told[0] == 3 and pq.read_table(tmp_path / "t" / "metrics.parquet")["step"].to_pylist() == list(range(1, told[-1] + 1))
    train(raw, tmp_path / "u", config(f"train.init={copied}", "train.learning_rate=0.01", "train.epochs=1"))


def test_weights_that_are_not_finite_are_no_checkpoint(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    taken = training_steps

    def breaking(state: TrainState, *given: Any, **named: Any) -> Iterator[StepMetrics]:
        for metrics in taken(state, *given, **named):
            with torch.no_grad():
                state.head.weight[0, 0] = torch.inf
            yield metrics

    monkeypatch.setattr("pipeline.fit.training_steps", breaking)
    with pytest.raises(TrainingFailed, match=r"A weight is not finite after step 1\. There is no checkpoint yet"):
        train(raw, tmp_path / "t", config("train.checkpoint_steps=1"))


@pytest.mark.parametrize("margin", ["adaface", "magface"])
def test_quality_margins_go_through_the_stage(raw: Path, tmp_path: Path, margin: str) -> None:
    """In bfloat16, with a part of the identities; only MagFace scales the features, and a finished training holds nothing but what any other does."""
    options = ["train.precision=bfloat16", "train.sample_rate=0.5", "device=cpu"]
    plain, other = train(raw, tmp_path / "plain", config(*options)), train(raw, tmp_path / "t", config(f"train.margin={margin}", *options))
    assert other.counts["steps"] == plain.counts["steps"] and other.counts["first_loss"] != plain.counts["first_loss"]
    weights = [load_tensors(tmp_path / name / "backbone.safetensors") for name in ("plain", "t")]
    assert weights[0].keys() == weights[1].keys() and bool((weights[1]["features.weight"] == 1).all()) == (margin == "adaface")
    assert load_tensors(tmp_path / "t" / "head.safetensors").keys() == {"centers"}


def test_metrics_of_every_step_and_a_board(raw: Path, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(raw, tmp_path / "t", config("train.tensorboard=true", "train.average_decay=0.9", "train.augment=['crop','colour']"))
    metrics = pq.read_table(tmp_path / "t" / "metrics.parquet")
    assert metrics.schema.equals(tables.METRICS_OF_TRAINING)
    rows = metrics.to_pylist()
    assert all(row["images_per_s"] > 0 and 0 <= row["wait_share"] <= 1 for row in rows)
    assert math.isnan(rows[0]["dominant_share"]) and 0 <= rows[-1]["dominant_share"] <= 1
    events = EventAccumulator(str(tmp_path / "t" / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("train/loss")] == pytest.approx([row["loss"] for row in rows])


def test_a_training_killed_after_its_last_step_is_finished_by_the_next(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between model.json and the receipt there is nothing to train."""
    removed = shutil.rmtree
    monkeypatch.setattr("pipeline.train.shutil.rmtree", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(raw, tmp_path / "t", config())
    monkeypatch.setattr("pipeline.train.shutil.rmtree", removed)
    told: list[int] = []
    receipt = train(raw, tmp_path / "t", config(), progress=lambda done, _: told.append(done))
    assert not told and receipt.counts["steps"] == pq.read_metadata(tmp_path / "t" / "metrics.parquet").num_rows
    assert not (tmp_path / "t" / ".work").exists()


def test_how_many_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    assert process_count(config("device=cpu")) == 1 and process_count(config("device=cpu", "train.processes=3")) == 3
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 6)
    assert process_count(config("device=cuda", "train.batch_size=128")) == 4, "those that can share the batch equally"
    assert process_count(config("device=cuda:1")) == 1
    with pytest.raises(BadConfig, match=r"train\.processes is 8, and device 'auto' stands for 6 GPUs"):
        process_count(config("train.processes=8"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_gpu_fed_by_loader_processes_has_the_losses_of_the_processor(raw: Path, tmp_path: Path, precision: str) -> None:
    options = ["train.cache_bytes=0", "train.learning_rate=0.01", "train.processes=1"]
    train(raw, tmp_path / "cpu", config("device=cpu", *options))
    train(raw, tmp_path / "gpu", config("device=cuda", f"train.precision={precision}", *options))
    alone, fed = (pq.read_table(tmp_path / name / "metrics.parquet")["loss"].to_pylist() for name in ("cpu", "gpu"))
    assert fed == pytest.approx(alone, rel=1e-3 if precision == "float32" else 0.1)


def test_auto_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    assert precision_of("auto", torch.device("cpu")) is None and precision_of("bfloat16", torch.device("cpu")) is torch.bfloat16
    for has, wanted in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation, has=has: has)
        assert precision_of("auto", torch.device("cuda")) is wanted


def test_nothing_to_train_on_is_said(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(BadCrawl, match=r"0 identities have 100 or more samples.*Give a larger crawl"):
        train(raw, tmp_path / "rounds" / "1" / "train", config("train.min_samples=100"))
    write_json(tmp_path / "run.json", {"crawl": "x", "finished": False})
    story = Story(tmp_path)
    story.begin("round 1 train")
    [told] = read_status(tmp_path).todo
    assert told == "0 identities had enough samples to train on. Give a larger crawl, or lower evaluate.holdout or train.min_samples."
    noise = RunLayout(tmp_path).round(1).noise
    noise.mkdir()
    write_json(noise / "judge.json", {"warning": "It told nobody apart. Train longer.", "judged_anyway": True})
    assert advice_on_too_few(noise).endswith("told nobody apart, as isolate.judge_anyway says. It told nobody apart. Train longer.")
    shutil.rmtree(tmp_path / "rounds" / "1" / "train", ignore_errors=True)
    story.begin("round 2 train")
    shutil.copytree(RunLayout(tmp_path).round(1).root, RunLayout(tmp_path).round(2).root)
    [told] = read_status(tmp_path).todo
    assert "It told nobody apart. Train longer." in told
    shutil.rmtree(RunLayout(tmp_path).round(2).root)
    [partial] = RunLayout(tmp_path).round(1).root.glob(".train.partial-*")
    shutil.rmtree(partial)
    found = read_status(tmp_path)
    assert found.todo == [] and "Train longer." in found.warnings[0]
    with pytest.raises(BadConfig, match=r"train\.compile and train\.recompute exclude each other"):
        train(raw, tmp_path / "t", config("train.compile=true", "train.recompute=true"))
    with pytest.raises(BadConfig, match="There is no device 'gpu0'"):
        pick_device("gpu0")
