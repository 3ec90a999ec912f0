"""Kill the pipeline at random points, go on, and compare the run with an undisturbed one, byte for byte.

Two scenes in turn: a crawl that is purified for the first time, and one that has grown since. Kinds in turn: kill -9 before a random change of
the run folder, kill -9 at a random time, a power cut (kill, and what was not flushed is truncated), SIGTERM.
"""

import os
import random
import shutil
import signal
import time
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

from pipeline.synthetic import SyntheticCrawl, write_folder
from tests.faults.harness import (
    Attempt,
    Scene,
    all_is_flushed,
    attempt,
    changes_of,
    contents,
    cut_power,
    differences,
    on_change,
    settings,
    watch_flushes,
)

KINDS = ("kill -9, at a change", "kill -9, at a time", "power cut", "SIGTERM")
_SLICE = 3
"""A process is killed within the first third of what a whole run does, so that a run is killed about six times."""


@dataclass(frozen=True)
class Play:
    """A scene, what a run of it changes and how long it takes, and what has to come out."""

    scene: Scene
    before: Path | None
    """A finished run of the crawl before it grew."""
    changes: int
    seconds: float
    wanted: dict[str, str]

    def begin(self, run: Path) -> Scene:
        """The scene in a new run folder."""
        if self.before is not None:
            shutil.copytree(self.before, run)
        scene = self.scene.in_folder(run)
        all_is_flushed(scene)
        return scene


def new_crawl(folder: Path, *, identities: int, rounds: int) -> Play:
    """A crawl that is purified for the first time."""
    made = folder / "new" / "crawl"
    write_folder(SyntheticCrawl(identities=identities, images=8, noise=0.3, seed=1), made, folder / "truth.parquet", workers=1)
    return _play(Scene(made, folder / "fresh", folder / "log", settings(f"rounds={rounds}")), None)


def grown_crawl(folder: Path, new: Play) -> Play:
    """The same crawl, purified when it lacked every fourth picture, and now it has them."""
    crawl = folder / "grown" / "crawl"
    shutil.copytree(new.scene.crawl, crawl)
    late = sorted(path for path in crawl.rglob("*") if path.is_file())[3::4]
    for path in late:
        path.unlink()
    scene = Scene(crawl, folder / "before", folder / "log", new.scene.config)
    _play(scene, None)
    for path in late:
        shutil.copy2(new.scene.crawl / path.relative_to(crawl), path)
    shutil.copytree(folder / "before", folder / "after")
    return _play(scene.in_folder(folder / "after"), folder / "before")


def _play(scene: Scene, before: Path | None) -> Play:
    changes, done = changes_of(scene)
    if done.code != 0:
        raise SystemExit(f"An undisturbed run failed:\n{done.said}")
    scene.log.with_suffix(".changes").unlink()
    return Play(scene, before, changes, done.seconds, contents(scene.run))


def disturbed(play: Play, scene: Scene, kind: str, chance: random.Random) -> Attempt:
    """One attempt that is killed somewhere, unless it is done before."""
    number = chance.randint(1, max(2, play.changes // _SLICE))
    if kind == "kill -9, at a time":
        return attempt(scene, watch_flushes, kill_after_s=chance.uniform(0, play.seconds / _SLICE))
    done = attempt(scene, partial(_terminate if kind == "SIGTERM" else _die, number=number))
    if kind == "power cut" and done.code == -signal.SIGKILL:
        cut_power(scene, chance)
    return done


def _die(scene: Scene, number: int) -> None:
    watch_flushes(scene)
    on_change(scene, number, lambda: os.kill(os.getpid(), signal.SIGKILL))


def _terminate(scene: Scene, number: int) -> None:
    def stop(*_: object) -> NoReturn:
        raise SystemExit(128 + signal.SIGTERM)

    watch_flushes(scene)
    signal.signal(signal.SIGTERM, stop)
    on_change(scene, number, lambda: os.kill(os.getpid(), signal.SIGTERM))


def rehearse(plays: list[Play], folder: Path, *, kills: int, seed: int) -> list[str]:
    """Kill so often; print the table; returns what was wrong: a byte that differs, a process that failed in a way that nobody caused."""
    started = time.perf_counter()
    chance = random.Random(seed)
    table: Counter[tuple[str, str]] = Counter()
    wrong: list[str] = []
    done = runs = 0
    while done < kills:
        play = plays[runs % len(plays)]
        scene = play.begin(folder / f"run-{runs}")
        history = []
        while done < kills:
            kind = KINDS[done % len(KINDS)]
            halves = set(scene.run.rglob(".*.tmp"))  # of the kills before
            one = disturbed(play, scene, kind, chance)
            if one.code == 0:
                break
            history.append(f"{kind} in {one.stage}")
            if one.code not in (-signal.SIGKILL, 128 + signal.SIGTERM):
                wrong.append(f"run {runs}, {history}: exit code {one.code}\n{one.said}")
                break
            if one.code > 0:
                left = set(scene.run.rglob(".*.tmp")) - halves
                wrong += [f"run {runs}, {history}: SIGTERM left half a file, {path.relative_to(scene.run)}" for path in sorted(left)]
            table[one.stage, kind] += 1
            done += 1
        last = attempt(scene)
        runs += 1
        if last.code != 0:
            wrong.append(f"run {runs}, {history}: going on failed\n{last.said}")
            continue
        wrong += [f"run {runs}, {history}: {one}" for one in differences(scene.run, play.wanted)]
        shutil.rmtree(scene.run)
    _print(table, done, runs, len(wrong), time.perf_counter() - started)
    return wrong


def _print(table: Counter[tuple[str, str]], kills: int, runs: int, wrong: int, seconds: float) -> None:
    stages = list(dict.fromkeys(stage for stage, _ in table))
    print(f"| {'killed in':<16} | {' | '.join(KINDS)} |")
    print(f"|{'-' * 18}|{'|'.join('-' * (len(kind) + 2) for kind in KINDS)}|")
    for stage in stages:
        print(f"| {stage:<16} | {' | '.join(str(table[stage, kind]).rjust(len(kind)) for kind in KINDS)} |")
    print(f"{kills} kills in {runs} runs, {wrong} differences from an undisturbed run, {seconds:.0f} s")
