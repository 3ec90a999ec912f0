"""A run folder's copy in a real S3 server on loopback, which throttles and fails: always the folder of one moment, and the same when it is pulled."""

import ctypes
import errno
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from flows import cli
from pipeline import stores
from pipeline.errors import BadInput, StaleInput
from pipeline.forget import forget
from pipeline.layout import RunLayout
from pipeline.mirroring import push as pushing
from pipeline.mirroring.files import Seen, look
from pipeline.mirroring.memo import earlier_of, half_pulled, url_of
from pipeline.mirroring.pull import begin, pull, would_take
from pipeline.mirroring.push import Mirror, kept
from pipeline.run_folder import claimed, require_claimable
from pipeline.status import record_of
from pipeline.stores import names
from pipeline.verify import verify
from tests.pipeline.mirroring.copies import contents, get, push, put, replace, told
from tests.pipeline.store_server import SECRET, Faulty

ROOT = Path(__file__).resolve().parents[3]


def test_a_copy_that_is_pulled_is_the_run_folder(run: Path, url: str, s3: Faulty, tmp_path: Path) -> None:
    wanted = contents(run)
    done = push(run, url)
    assert done.files == len(wanted) and done.sent_files == len({sha256 for sha256, _ in wanted.values()})
    assert [path for path in told(s3, "PUT") if "/objects/" not in path] == [told(s3, "PUT")[-1]], "the index comes last"
    other = tmp_path / "other"
    assert pull(url, other) == len(wanted)
    assert contents(other) == wanted and "run.json" in wanted and (other / "forgotten" / "key").stat().st_mode & 0o777 == 0o600
    assert any(".work/checkpoint" in path for path in wanted) and not any("lock" in path or "status" in path for path in wanted)
    shutil.rmtree(other / "rounds" / "2" / ".train.partial-0123456789abcdef")
    assert verify(str(other), workers=1).findings == verify(str(run), workers=1).findings
    assert url_of(other) == url_of(run) == url


def test_only_what_is_new_is_sent_and_a_new_name_is_nothing_new(run: Path, url: str, s3: Faulty) -> None:
    push(run, url)
    s3.asked.clear()
    assert push(run, url).sent_files == 0
    assert not told(s3, "PUT") and not told(s3, "DELETE")

    (run / "rounds" / "2" / ".train.partial-0123456789abcdef").rename(run / "rounds" / "2" / "train")
    replaced = run / "new"
    replaced.write_bytes(b"{}")
    replaced.replace(run / "clean" / "dataset.json")
    old = hashlib.sha256(b"one state" * 1000).hexdigest()
    (run / "rounds" / "2" / "train" / ".work" / "checkpoint.safetensors").unlink()
    done = push(run, url)
    assert (done.sent_files, done.sent_bytes) == (1, 2)
    deleted = {path.partition("?")[0].rpartition("/")[2] for path in told(s3, "DELETE")}
    assert old in deleted and len(deleted) == 2, "what no index names goes"
    assert s3.asked.index(("DELETE", next(iter(told(s3, "DELETE"))))) > max(
        at for at, (_, path) in enumerate(s3.asked) if "index.json" in path
    )


def test_a_push_that_breaks_leaves_the_copy_as_it_was(run: Path, url: str, s3: Faulty, tmp_path: Path) -> None:
    push(run, url)
    before = contents(run)
    for number in range(6):
        (run / "evaluation" / f"new-{number}.svg").write_text(f"<svg>{number}</svg>")
    puts = 0

    def breaks(method: str, _: str) -> int | None:
        nonlocal puts
        puts += method == "PUT"
        return 403 if method == "PUT" and puts > 3 else None

    s3.fault = breaks
    with pytest.raises(BadInput, match=r"objects/\w+ cannot be used: PermissionError"):
        push(run, url)
    s3.fault = lambda _method, _path: None
    pull(url, tmp_path / "then")
    assert contents(tmp_path / "then") == before
    done = push(run, url)
    assert 0 < done.sent_files <= 3, "what had arrived is not sent again"
    pull(url, tmp_path / "now")
    assert contents(tmp_path / "now") == contents(run)


@pytest.mark.parametrize("status", [503, 500])
def test_a_store_that_is_busy_is_asked_again(run: Path, url: str, s3: Faulty, status: int, tmp_path: Path) -> None:
    met: set[tuple[str, str]] = set()

    def first_time(method: str, path: str) -> int | None:
        is_new = (method, path) not in met
        met.add((method, path))
        return status if is_new else None

    s3.fault = first_time
    push(run, url)
    pull(url, tmp_path / "other")
    assert contents(tmp_path / "other") == contents(run) and len(met) > 20


def test_one_run_folder_writes_a_copy(run: Path, url: str, s3: Faulty, template: Path, tmp_path: Path) -> None:
    push(run, url)
    stranger = shutil.copytree(template, tmp_path / "stranger")
    with pytest.raises(StaleInput, match=r"was written at .* from another run folder. To go on from it, give a run folder that is empty"):
        push(stranger, url)
    with pytest.raises(StaleInput, match="another run folder"):
        begin(stranger, url)

    heir = tmp_path / "heir"
    assert would_take(heir, url) == begin(heir, url) > 0 and begin(heir, url) == 0
    push(run, url)  # nobody else has written yet
    (heir / "evaluation" / "new.svg").write_text("<svg/>")
    assert push(heir, url).sent_files == 1, "what was pulled is known to be there"
    with pytest.raises(StaleInput, match="another run folder"):
        push(run, url)
    (heir / "evaluation" / "new.svg").unlink()
    push(heir, url)
    with Mirror(heir, url), pytest.raises(StaleInput, match="Another process copies"), Mirror(heir, url):
        pass


def test_a_folder_goes_back_to_an_earlier_copy_of_its_own(run: Path, url: str, s3: Faulty, tmp_path: Path) -> None:
    push(run, url)
    for place, other in ((f"{url}-2", url), (url, f"{url}-2"), (f"{url}-2", url)):
        push(run, place)
        assert (url_of(run), earlier_of(run)) == (place, [other])
    (run / "evaluation" / "more.svg").write_text("<svg/>")
    assert push(run, url).sent_files == 1
    assert (url_of(run), earlier_of(run)) == (url, [f"{url}-2"])
    twin = shutil.copytree(run, tmp_path / "twin")
    push(run, f"{url}-2")
    (twin / "evaluation" / "more.svg").write_text("<svg></svg>")
    push(twin, url)
    with pytest.raises(StaleInput, match="from another run folder"):
        push(run, url)


def test_of_two_twins_one_writes_the_copy(run: Path, url: str, s3: Faulty, tmp_path: Path) -> None:
    push(run, url)
    twin = shutil.copytree(run, tmp_path / "twin")
    (twin / "evaluation" / "twin.svg").write_text("<svg/>")
    push(twin, url)
    (run / "evaluation" / "run.svg").write_text("<svg/>")
    with pytest.raises(StaleInput, match="another run folder"):
        push(run, url)
    pull(url, tmp_path / "other")
    assert contents(tmp_path / "other") == contents(twin)


def test_its_writer_is_known_after_a_kill_at_the_index(run: Path, url: str, s3: Faulty, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pushing.stores, "remove", killed)  # right behind the index
        put(url, f"objects/{'0' * 64}", b"left by a push that was killed")
        with pytest.raises(KeyboardInterrupt):
            push(run, url)
    assert push(run, url).sent_files == 0
    assert "0" * 64 not in names(f"{url}/objects")


@pytest.mark.parametrize("at", [6, 14])
def test_a_pull_that_is_killed_is_gone_on_with_and_nothing_else_works_there(
    run: Path, url: str, s3: Faulty, at: int, tmp_path: Path
) -> None:
    push(run, url)
    other = tmp_path / "other"
    gets = 0

    def breaks(method: str, path: str) -> int | None:
        nonlocal gets
        gets += method == "GET" and "/objects/" in path
        return 403 if method == "GET" and "/objects/" in path and gets > at else None

    s3.fault = breaks
    with pytest.raises(BadInput, match=r"cannot be read: .* Set AWS_PROFILE"):
        pull(url, other)
    s3.fault = lambda _method, _path: None
    assert half_pulled(other) == url and not (other / "run.json").exists()
    with pytest.raises(StaleInput, match=f"was stopped half way, or goes on. To finish it: purify pull {url} "):
        require_claimable("crawl", RunLayout(other))
    with pytest.raises(StaleInput, match="was stopped half way"), claimed("crawl", RunLayout(other)):
        pass
    s3.asked.clear()
    begin(other, url)
    fetched = len([path for path in told(s3, "GET") if "/objects/" in path])
    assert contents(other) == contents(run) and half_pulled(other) is None
    assert fetched <= len(contents(run)) - at + 4, "what had come is not fetched again, but for the four that were on their way"


def test_a_pull_that_was_killed_follows_a_copy_that_has_changed(run: Path, url: str, s3: Faulty, tmp_path: Path) -> None:
    push(run, url)
    s3.fault = lambda method, path: 403 if method == "GET" and hashlib.sha256((run / "run.json").read_bytes()).hexdigest() in path else None
    with pytest.raises(BadInput):
        pull(url, tmp_path / "other")
    s3.fault = lambda _method, _path: None
    shutil.rmtree(run / "clean")
    push(run, url)
    pull(url, tmp_path / "other")
    assert contents(tmp_path / "other") == contents(run)


def test_what_changes_while_it_is_sent_is_sent_as_it_was(run: Path, url: str, s3: Faulty, tmp_path: Path) -> None:
    before = contents(run)
    checkpoint = run / "rounds" / "2" / ".train.partial-0123456789abcdef" / ".work" / "checkpoint.safetensors"
    changed = False

    def changes(method: str, _: str) -> None:
        nonlocal changed
        if method == "PUT" and not changed:
            changed = True
            replace(checkpoint, b"two state" * 1000)
            replace(run / "run.json", b'{"finished": true}')
            shutil.rmtree(run / "evaluation")

    s3.fault = changes
    push(run, url)
    pull(url, tmp_path / "then")
    assert changed and contents(tmp_path / "then") == before != contents(run)
    push(run, url)
    pull(url, tmp_path / "now")
    assert contents(tmp_path / "now") == contents(run)
    for name in names(f"{url}/objects"):
        assert hashlib.sha256(get(url, f"objects/{name}")).hexdigest() == name


def test_looks_are_repeated_until_two_see_the_same(
    run: Path, url: str, s3: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pushing, "_PAUSE_S", 0.001)
    looks = 0

    def busy(folder: Path) -> dict[str, Seen]:
        nonlocal looks
        looks += 1
        found = look(folder)
        if looks < wild:
            replace(run / "run.json", f'{{"look": {looks}}}'.encode())
            (run / "clean" / "dataset.json").unlink(missing_ok=True)
        return found

    monkeypatch.setattr(pushing, "look", busy)
    wild = 6
    push(run, url)
    pull(url, tmp_path / "other")
    assert contents(tmp_path / "other") == contents(run) and not (run / ".mirror.sending").exists()
    wild = 10**6
    with pytest.raises(StaleInput, match="does not hold still"):
        push(run, url)
    assert not (run / ".mirror.sending").exists()


def test_a_disk_without_links_is_copied(run: Path, url: str, s3: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "hardlink_to", no_links)
    push(run, url)
    pull(url, tmp_path / "other")
    assert contents(tmp_path / "other") == contents(run)


def test_a_push_that_is_stopped_ends_soon_and_leaves_the_copy_as_it_was(
    run: Path, url: str, s3: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stores, "MULTIPART_BYTES", 5 * 2**20)
    push(run, url)
    before = get(url, "index.json")
    (run / "evaluation" / "large.svg").write_bytes(b"0123456789abcdef" * (2**20 * 30 // 16))
    with Mirror(run, url) as mirror:
        s3.fault = lambda method, path: mirror.stop() if method == "PUT" and "partNumber=" in path else None
        s3.asked.clear()
        with pytest.raises(stores.Abandoned):
            mirror.push()
    assert 1 <= len([path for path in told(s3, "PUT") if "partNumber=" in path]) <= 3, "of six parts"
    assert get(url, "index.json") == before
    import boto3

    client = boto3.client("s3")
    assert not client.list_multipart_uploads(Bucket="runs").get("Uploads"), "nothing is left to be paid for"
    client.close()


def test_parts_of_a_run_that_are_links_are_copied(run: Path, url: str, s3: Faulty, tmp_path: Path) -> None:
    wanted = contents(run)
    (run / "raw").rename(tmp_path / "raw elsewhere")
    (run / "raw").symlink_to(tmp_path / "raw elsewhere")
    (run / "clean" / "dataset.json").rename(tmp_path / "dataset.json")
    (run / "clean" / "dataset.json").symlink_to(tmp_path / "dataset.json")
    (run / "clean" / "back").symlink_to(run)
    push(run, url)
    pull(url, tmp_path / "other")
    assert contents(tmp_path / "other") == wanted


def test_a_pull_that_goes_on_leaves_what_is_not_its_own(run: Path, url: str, s3: Faulty, tmp_path: Path) -> None:
    push(run, url)
    other = tmp_path / "other"
    s3.fault = lambda method, path: 403 if method == "GET" and hashlib.sha256((run / "run.json").read_bytes()).hexdigest() in path else None
    with pytest.raises(BadInput):
        pull(url, other)
    s3.fault = lambda _method, _path: None
    (other / "raw" / "._receipt.json.77.tmp").write_text("half of a file")
    (other / "notes.txt").write_text("mine")
    with pytest.raises(StaleInput, match=r"notes.txt is not of the copy. Move it elsewhere"):
        pull(url, other)
    assert (other / "notes.txt").read_text() == "mine"
    (other / "notes.txt").unlink()
    for act in (lambda: record_of(other), lambda: forget(other, identities=["Ada"], yes=True)):
        with pytest.raises(StaleInput, match="A pull into"):
            act()
    pull(url, other)
    assert contents(other) == contents(run) and not [path for path in other.rglob("*.tmp")]


@pytest.mark.parametrize("signal_", [signal.SIGTERM, signal.SIGINT])
def test_a_store_that_hangs_keeps_nobody_who_is_told_to_end(run: Path, url: str, s3: Faulty, signal_: signal.Signals) -> None:
    hangs, goes_on = threading.Event(), threading.Event()

    def hang(method: str, path: str) -> None:
        if method == "PUT" and "/objects/" in path:
            hangs.set()
            goes_on.wait(120)

    s3.fault = hang
    words = [sys.executable, "-m", "flows.cli", "push", str(run), url]
    with subprocess.Popen(words, stderr=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}, text=True) as process:
        assert hangs.wait(60)
        other = next(int(thread.name) for thread in Path(f"/proc/{process.pid}/task").iterdir() if thread.name != str(process.pid))
        assert ctypes.CDLL(None).tgkill(process.pid, other, signal_) == 0, "which wakes nobody who waits without an end"
        try:
            assert process.wait(30) == 128 + signal_
        finally:
            goes_on.set()
            process.kill()


def test_while_a_run_goes_on_the_copy_follows(run: Path, url: str, s3: Faulty, tmp_path: Path) -> None:
    said: list[tuple[str, dict[str, Any]]] = []

    def say(event: str, _: str, **facts: Any) -> None:
        said.append((event, facts))

    seen = threading.Event()
    s3.fault = lambda method, path: seen.set() if method == "PUT" and "index.json" in path else None
    with kept(run, url, say, every_s=0.05):
        assert seen.wait(30), "while it lasts"
        seen.clear()
        (run / "evaluation" / "more.svg").write_text("<svg/>")
        assert seen.wait(30)
        (run / "evaluation" / "last.svg").write_text("<svg>last</svg>")
    pull(url, tmp_path / "other")
    assert contents(tmp_path / "other") == contents(run)
    assert said[-1][0] == "mirror" and said[-1][1]["files"] == len(contents(run))

    (run / "evaluation" / "before.svg").write_text("<svg>failed</svg>")
    with pytest.raises(ZeroDivisionError), kept(run, url, say):
        raise ZeroDivisionError
    assert hashlib.sha256(b"<svg>failed</svg>").hexdigest() in names(f"{url}/objects"), "a run that fails is copied"

    s3.fault = lambda method, _path: 403 if method == "PUT" else None
    (run / "evaluation" / "unsent.svg").write_text("<svg>unsent</svg>")
    with pytest.raises(KeyboardInterrupt), kept(run, url, say):
        raise KeyboardInterrupt
    warned = threading.Event()
    with pytest.raises(BadInput, match="cannot be used"), kept(run, url, lambda *_, **__: warned.set(), every_s=0.05):
        assert warned.wait(30)
    with kept(run, None, say):
        pass


def said_by(argv: list[str], capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    found = capfd.readouterr()
    return int(ended.value.code or 0), " ".join((found.out + found.err).split())


def test_by_command(run: Path, url: str, s3: Faulty, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, words = said_by(["push", str(run)], capfd)
    assert code == 1 and "has no copy yet. Say where" in words
    assert said_by(["push", str(tmp_path / "nothing"), url], capfd)[0] == 1
    code, words = said_by(["push", str(run), url], capfd)
    assert code == 0 and f"{url}: {len(contents(run))} files" in words
    code, words = said_by(["push", str(run)], capfd)
    assert code == 0 and "sent 0" in words
    other = tmp_path / "other"
    code, words = said_by(["pull", url, str(other)], capfd)
    assert code == 0 and f"{len(contents(run))} files" in words and contents(other) == contents(run)
    s3.fault = lambda method, _path: 403 if method == "PUT" else None
    (run / "evaluation" / "more.svg").write_text("<svg/>")
    code, words = said_by(["push", str(run)], capfd)
    assert code == 1 and "Set AWS_PROFILE" in words and SECRET not in words
    assert SECRET not in (run / ".mirror.json").read_text() + get(url, "index.json").decode()
