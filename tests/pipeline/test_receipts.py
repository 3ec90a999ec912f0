"""Complete or not there: receipts, atomic files, full disks; settings and their errors; who owns a run folder."""

import errno
from pathlib import Path

import pytest

from pipeline.config import Config, as_dict, load, presets
from pipeline.errors import BadConfig, NoSpace, PurifyError, StaleInput
from pipeline.layout import RunLayout
from pipeline.receipts import Counts, atomic, fingerprint, mark_of, read, require_space, run_stage
from pipeline.run_folder import claimed, title_of


def test_a_matching_receipt_skips_the_work_and_another_mark_redoes_it(tmp_path: Path) -> None:
    made: list[str] = []

    def work(folder: Path) -> Counts:
        made.append(folder.name)
        (folder / "x").write_text(str(len(made)))
        return {"n": len(made)}

    first = run_stage(tmp_path / "out", stage="s", mark="a" * 64, work=work)
    again = run_stage(tmp_path / "out", stage="s", mark="a" * 64, work=work)
    assert (first.reused, again.reused, again.counts) == (False, True, {"n": 1})
    run_stage(tmp_path / "out", stage="s", mark="b" * 64, work=work)
    assert (tmp_path / "out" / "x").read_text() == "2"
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "no leftovers"


def test_what_fails_half_way_is_not_there_and_its_parts_serve_the_next_attempt(tmp_path: Path) -> None:
    def dies(folder: Path) -> Counts:
        (folder / "part").write_text("done")
        (folder / ".other.part.tmp").write_text("half, by a worker that was ended")
        raise ValueError("killed")

    with pytest.raises(ValueError, match="killed"):
        run_stage(tmp_path / "out", stage="s", mark="a" * 64, work=dies)
    assert not (tmp_path / "out").exists() and not list(tmp_path.rglob("*.tmp"))
    seen = run_stage(tmp_path / "out", stage="s", mark="a" * 64, work=lambda folder: {"kept": (folder / "part").exists()})
    assert seen.counts == {"kept": True}


def test_parts_of_other_settings_are_not_taken_over(tmp_path: Path) -> None:
    def dies(folder: Path) -> Counts:
        (folder / "part").write_text("old")
        raise ValueError("killed")

    with pytest.raises(ValueError, match="killed"):
        run_stage(tmp_path / "out", stage="s", mark="a" * 64, work=dies)
    seen = run_stage(tmp_path / "out", stage="s", mark="b" * 64, work=lambda folder: {"kept": (folder / "part").exists()})
    assert seen.counts == {"kept": False}


def test_a_damaged_receipt_is_no_receipt(tmp_path: Path) -> None:
    run_stage(tmp_path / "out", stage="s", mark="a" * 64, work=lambda _: {})
    (tmp_path / "out" / "_receipt.json").write_text('{"stage": "s"')
    assert read(tmp_path / "out") is None
    with pytest.raises(PurifyError, match="is not finished"):
        mark_of(tmp_path / "out")


def test_fingerprints_depend_on_everything_and_on_no_order() -> None:
    one = fingerprint("s", 1, {"a": 1, "b": 2}, raw="x")
    assert one == fingerprint("s", 1, {"b": 2, "a": 1}, raw="x")
    others = [fingerprint("t", 1, {"a": 1, "b": 2}, raw="x"), fingerprint("s", 2, {"a": 1, "b": 2}, raw="x")]
    others += [fingerprint("s", 1, {"a": 2, "b": 2}, raw="x"), fingerprint("s", 1, {"a": 1, "b": 2}, raw="y")]
    assert len({one, *others}) == 5


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("old")

    def stops() -> None:
        with atomic(tmp_path / "f") as temporary:
            temporary.write_text("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        stops()
    assert (tmp_path / "f").read_text() == "old" and len(list(tmp_path.iterdir())) == 1


def test_a_full_disk_says_what_to_do(tmp_path: Path) -> None:
    def full(_: Path) -> Counts:
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(NoSpace, match="Make room and run the same command again"):
        run_stage(tmp_path / "out", stage="s", mark="a" * 64, work=full)
    with pytest.raises(NoSpace, match="needs about"):
        require_space(tmp_path, 10**18)


def test_settings_merge_in_order(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("[isolate]\nmax_angle_deg = 66\n[train]\nepochs = 3\n")
    found = load(preset="demo", file=tmp_path / "mine.toml", overrides=["train.epochs=4", "isolate.rule=angle"])
    assert (found.train.backbone, found.isolate.max_angle_deg, found.train.epochs, found.isolate.rule) == ("tiny", 66, 4, "angle")


@pytest.mark.parametrize("name", presets())
def test_every_preset_is_valid(name: str) -> None:
    assert load(preset=name) != Config()


def test_defaults_are_the_papers() -> None:
    train = Config().train
    assert (train.subcenters, train.margin_rad, train.scale, train.embedding_dim, train.momentum, train.weight_decay) == (
        3,
        0.5,
        64,
        512,
        0.9,
        5e-4,
    )
    assert Config().isolate.max_angle_deg == 75 and Config().rounds == 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["isolate.max_angel_deg=70"], r"no setting 'isolate\.max_angel_deg'\. Did you mean 'isolate\.max_angle_deg'"),
        (["rounds=0"], "'rounds'.*greater than or equal to 1"),
        (["isolate.rule=best"], r"'isolate\.rule'.*'angle', 'nondominant'"),
        (["train.batch_size"], "takes NAME=VALUE"),
        (["train.learning_rate=nan"], r"'train\.learning_rate'"),
        (["isolate=3"], "'isolate'"),
        (["train.batch_size=1000000000000"], r"'train\.batch_size'.*less than or equal to 131072; got 1000000000000"),
        (["embed.batch_size=1000000000"], r"'embed\.batch_size'.*less than or equal to 131072"),
        (["train.epochs=-1"], r"'train\.epochs'.*greater than or equal to 1; got -1"),
        (["train.epochs=1000000"], r"'train\.epochs'.*less than or equal to 10000"),
        (["train.input_px=1000000"], r"'train\.input_px'.*less than or equal to 112"),
        (["ingest.min_side_px=1000000"], r"'ingest\.min_side_px'.*less than or equal to 10000"),
        (["ingest.samples_per_shard=0"], r"'ingest\.samples_per_shard'.*greater than or equal to 1"),
        (["export.samples_per_shard=1000000000"], r"'export\.samples_per_shard'.*less than or equal to 1000000"),
        (["workers=1000000"], r"'workers'.*less than or equal to 4096"),
        (["train.scale=inf"], r"'train\.scale'.*less than or equal to 10000"),
    ],
)
def test_senseless_settings_are_named(overrides: list[str], message: str) -> None:
    with pytest.raises(BadConfig, match=message):
        load(overrides=overrides)


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadConfig, match="There is no settings file"):
        load(file=tmp_path / "no.toml")
    (tmp_path / "bad.toml").write_text("[[[")
    with pytest.raises(BadConfig, match="is not a TOML file"):
        load(file=tmp_path / "bad.toml")
    with pytest.raises(BadConfig, match="Use one of: cpu, demo"):
        load(preset="fast")


def test_settings_survive_json() -> None:
    config = load(preset="demo", overrides=["evaluate.bins=['a.bin']"])
    from pipeline.config import validate

    assert validate(as_dict(config)) == config


def test_pages_call_a_run_by_its_crawl_whoever_draws_them(tmp_path: Path) -> None:
    run = RunLayout(tmp_path / "run")
    assert title_of(run) == "Purification of run", "a run without a record"
    for crawl, name in (
        (tmp_path / "my crawl", "my crawl"),
        ("s3://bucket/faces/", "faces"),
        ("https://host/a/crawl.tar?sig=1", "crawl.tar"),
    ):
        with claimed(crawl, run):
            assert title_of(run) == f"Purification of {name}"


def test_a_run_folder_belongs_to_one_crawl_and_one_process(tmp_path: Path) -> None:
    run = RunLayout(tmp_path / "run")
    with claimed(tmp_path / "crawl", run), pytest.raises(StaleInput, match="Another process works in"), claimed(tmp_path / "crawl", run):
        pass
    with claimed(tmp_path / "no crawl", run):
        (run.root / ".planning").mkdir()  # and it is refused, before any stage is finished
    with claimed(tmp_path / "crawl", run):
        run.raw.mkdir()
    with pytest.raises(StaleInput, match=r"is the run of another crawl, .*/crawl"), claimed(tmp_path / "other", run):
        pass
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.doc").write_text("x")
    with pytest.raises(StaleInput, match="holds files that are no run"), claimed(tmp_path / "crawl", RunLayout(tmp_path / "home")):
        pass
    assert [path.name for path in (tmp_path / "home").iterdir()] == ["thesis.doc"]
    with pytest.raises(StaleInput, match="is a file"), claimed(tmp_path / "crawl", RunLayout(tmp_path / "home" / "thesis.doc")):
        pass
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(StaleInput, match="damaged or not ours"), claimed(tmp_path / "crawl", run):
        pass
