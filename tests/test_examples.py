"""The examples are run as users run them: on the shards alone, in a process that has not this project on its path."""

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import simplejpeg

from pipeline.exporters.base import FACTS, Wanted
from pipeline.exporters.stage import export_to
from tests.pipeline.clean_run import write_clean, write_clean_run

EXAMPLES = Path(__file__).parents[1] / "examples"


def ran(*words: str, cwd: Path) -> str:
    """What an example prints."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(cwd / "hf cache"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, "-P", *words], cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    return found.stdout


def coloured(identity: int, number: int) -> bytes:
    """A picture in the colour of its identity, with a little noise."""
    random = np.random.default_rng([identity, number])
    colour = np.array([(40, 60, 200), (200, 60, 40), (60, 200, 60), (200, 200, 60)][identity])
    pixels = np.clip(colour + random.normal(0, 12, (112, 112, 3)), 0, 255).astype(np.uint8)
    return bytes(simplejpeg.encode_jpeg(pixels, colorspace="RGB"))


def test_a_network_is_trained_on_the_shards_alone(tmp_path: Path) -> None:
    people = [f"person {number}" for number in range(4)]
    folder = write_clean(tmp_path / "clean", [(people[number % 4], coloured(number % 4, number)) for number in range(48)], per_shard=20)
    export_to(folder, tmp_path / "out", Wanted(form="webdataset", samples_per_shard=20, val=0.3), workers=1)
    said = ran(str(EXAMPLES / "train_downstream.py"), "out", "--epochs", "6", "--batch", "12", "--workers", "0", cwd=tmp_path)
    shares = [float(share) for share in re.findall(r"right ([0-9.]+) of 36", said)]
    assert len(shares) == 6 and shares[-1] > 0.9, said
    assert (tmp_path / "embedder.pt").stat().st_size > 100_000


def test_clean_shards_need_no_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_clean_run(tmp_path / "run")
    monkeypatch.setattr(sys, "argv", ["x", str(run.clean), "--epochs", "1", "--workers", "0", "--out", str(tmp_path / "embedder.pt")])
    runpy.run_path(str(EXAMPLES / "train_downstream.py"), run_name="__main__")
    assert capsys.readouterr().out.endswith("of 34\n")


def test_what_holds_no_tars_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_clean_run(tmp_path / "run")
    for form in ("hf", "parquet", "recordio", "imagefolder"):
        export_to(run.clean, tmp_path / form, Wanted(form=form), workers=1)
    for folder, why in (
        ("hf", "the form 'hf'"),
        ("parquet", "'parquet'"),
        ("recordio", "'recordio'"),
        ("imagefolder", "'imagefolder'"),
        ("run", "no dataset.json"),
    ):
        monkeypatch.setattr(sys, "argv", ["x", str(tmp_path / folder)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(EXAMPLES / "train_downstream.py"), run_name="__main__")
        said = capsys.readouterr().err
        assert stop.value.code == 2 and why in said and "Give RUN/clean, or DIR of `purify export RUN --to webdataset --out DIR`." in said


def test_the_filter_in_the_docs_leaves_a_tenth_out_whatever_the_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "quality" in FACTS.names
    monkeypatch.chdir(tmp_path)
    (tmp_path / "DIR" / "data").mkdir(parents=True)
    lines = (EXAMPLES.parent / "docs" / "exports.md").read_text("utf-8").splitlines()
    program = "\n".join(line for line in lines if 'read_parquet("DIR/data"' in line)
    for largest in (1.0, 40.0):
        pd.DataFrame({"quality": np.linspace(0, largest, 100, dtype=np.float32)}).to_parquet("DIR/data/train-000000.parquet")
        found: dict[str, Any] = {"pandas": pd}
        exec(program, found)
        assert len(found["faces"]) == 90 and found["faces"]["quality"].min() > 0.09 * largest


def test_hugging_face_loads_three_of_the_forms(tmp_path: Path) -> None:
    pytest.importorskip("datasets", reason="wants the extra `test`: pip install datasets")
    run = write_clean_run(tmp_path / "run")
    for form in ("hf", "webdataset", "imagefolder"):
        export_to(run.clean, tmp_path / form, Wanted(form=form, samples_per_shard=7, val=0.4), workers=1)
    program = """
import runpy, sys
from datasets import load_dataset
runpy.run_path(sys.argv[1], run_name="__main__")
rows = {row["sample_id"]: row for row in load_dataset("hf", split="train")}
for row in load_dataset("webdataset", data_files={"train": "webdataset/train-*.tar"}, split="train", streaming=True):
    one = rows.pop(row["__key__"])
    assert (row["cls"], row["json"]["identity"], row["jpg"].tobytes()) == (one["label"], one["identity"], one["image"].tobytes())
assert not rows
faces = load_dataset("imagefolder", data_dir="imagefolder/train", split="train")
print(faces.features["label"].names, len(faces))
"""
    (tmp_path / "test.py").write_text(program.replace("sys.argv[1]", repr(str(EXAMPLES / "load_huggingface.py"))))
    said = ran("test.py", "hf", cwd=tmp_path).splitlines()
    assert said[0] == "train: 23 samples of 4 identities, 112 x 112 pixels" and said[1].startswith("val: 11 samples of 2 identities")
    assert said[2] == """['Ada', 'Bob', 'Cleo', "O'Brien"] 23"""
