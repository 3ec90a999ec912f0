"""Review in a real Chromium: twenty samples by the keyboard, a reload, an undo, an export, a server that dies; hostile names do nothing."""

import contextlib
import csv
import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline import decisions
from pipeline.audit import write_audit
from tests.browser import Browser
from tests.pipeline.reviewed import IMG, request, reviewable, served

pytestmark = pytest.mark.browser

KEY = "return document.querySelector('[data-key]')?.dataset.key"
SAMPLE = "return document.querySelector('[data-key]')?.dataset.sample"
SAID = "return document.querySelector('[role=status]').textContent"
TROUBLE = "const trouble = document.getElementById('trouble'); return trouble.hidden ? null : trouble.textContent"
QUESTION = "return document.getElementById('question').textContent"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return reviewable(tmp_path / "run")


FOCUSED = "return document.activeElement.dataset.sample"


def begin(browser: Browser, address: str, name: str = "Ann", *, width: int = 1280) -> None:
    browser.open(address, width=width)
    browser.run("localStorage.clear()")
    browser.open(address, width=width)
    browser.until("return document.activeElement.id === 'name'")
    browser.press(name, "Enter")
    browser.until(KEY)


@contextlib.contextmanager
def at_first_identity(browser: Browser, run: Path) -> Iterator[None]:
    """As Ann, on the page of the first identity."""
    write_audit(run, run / "audit", title="t", identities=9, faces=12, inversions={})
    with served(run) as address:
        begin(browser, address)
        browser.open(address.replace("review.html", "identity.html#n0"))
        browser.until("return document.body.dataset.ready === '0'")
        yield


def standing(run: Path) -> dict[str, tuple[str, str]]:
    return {row["sample_id"]: (row["verdict"], row["decided_by"]) for row in decisions.read_standing(run).to_pylist()}


def press(browser: Browser, key: str) -> tuple[str, str]:
    """(key of the case, sample) that was answered, once the next case is shown."""
    case, sample = browser.run(KEY), browser.run(SAMPLE)
    browser.press(key)
    browser.until(f"return ({KEY.removeprefix('return ')}) !== arguments[0] && !document.querySelector('.answers button:disabled')", case)
    return case, sample


def test_twenty_samples_by_the_keyboard_then_reload_undo_and_export(browser: Browser, run: Path) -> None:
    with served(run) as address:
        begin(browser, address)
        said: dict[str, tuple[str, str]] = {}
        while len(said) < 20:
            merge = browser.run(QUESTION) == "Are these one person?"
            key = "s" if merge else "kd"[len(said) % 2]
            _, sample = press(browser, key)
            if not merge:
                said[sample] = ({"k": "keep", "d": "drop"}[key], "Ann")
        assert standing(run) == said
        assert browser.run("return document.getElementById('progress').textContent").startswith("20 decided by you, 0 by others")

        before = browser.run(KEY)
        browser.reload()
        browser.until(KEY)
        assert browser.run(KEY) == before, "a reload asks the same again"

        last = list(said)[-1]
        press(browser, "u")
        assert browser.run(SAMPLE) == last and last not in standing(run) and len(standing(run)) == 19
        assert browser.run("return document.getElementById('said').textContent") == "Taken back: 1 decision."
        browser.run("document.querySelector('details').open = true")
        link = browser.run("return document.querySelector('a[href=\"export/csv\"]').href")
        rows = list(csv.DictReader(io.StringIO(request(link)[2].decode())))
        assert {row["sample_id"]: (row["verdict"], row["decided_by"]) for row in rows} == standing(run)
        assert [entry["message"] for entry in browser.console()] == []


def test_relabel_by_name_with_the_keyboard_alone(browser: Browser, run: Path) -> None:
    with served(run) as address:
        begin(browser, address)
        sample = browser.run(SAMPLE)
        browser.press("o")
        browser.until("return document.activeElement.id === 'whose'")
        browser.press("onerror")
        browser.until("return document.querySelectorAll('#suggested li').length === 1")
        assert browser.run("return document.getElementById('suggested').textContent") == IMG
        browser.press("ArrowDown", "Enter")
        browser.until("return document.getElementById('said').textContent.startsWith('Relabelled')")
        (row,) = decisions.read_standing(run).to_pylist()
        assert (row["sample_id"], row["verdict"], row["clean_identity"]) == (sample, "relabel", IMG)
        browser.press("o")
        browser.press("nobody of this name", "Enter")
        browser.until("return !document.getElementById('trouble').hidden")
        assert "no identity of exactly that name" in browser.run("return document.getElementById('trouble').textContent")
        assert len(standing(run)) == 1
        browser.press("Escape")
        assert browser.run("return document.getElementById('relabel').hidden && document.activeElement.id === 'question'")
        assert browser.run("return document.getElementById('trouble').hidden"), "what was wrong goes with the dialog"
        browser.press("o", "Enter")
        assert "Type a name first" in browser.until(TROUBLE) and browser.run("return document.activeElement.id") == "whose"
        browser.press("x")
        assert browser.run(TROUBLE) is None, "typing on, nothing is wrong any more"


def test_keys_that_are_no_answer_say_so(browser: Browser, run: Path) -> None:
    with served(run) as address:
        browser.open(address)
        browser.run("localStorage.clear()")
        browser.open(address)
        browser.until("return document.activeElement.id === 'name'")
        browser.press(" ", "Enter")
        assert "Type your name first" in browser.until(TROUBLE)
        browser.press("Ann", "Enter")
        browser.until(KEY)
        assert browser.run(TROUBLE) is None
        while browser.run("return Boolean(document.querySelector('[aria-keyshortcuts=r]'))"):
            press(browser, "s")
        browser.press("r")
        assert "No identity is proposed" in browser.run(SAID)
        browser.press("m")
        assert "Of this face: K, D, R or O" in browser.run(SAID)
        while browser.run(QUESTION) != "Are these one person?":
            press(browser, "s")
        browser.press("d")
        assert "M merges them, A keeps them apart" in browser.run(SAID) and standing(run) == {}


def test_a_server_that_dies_loses_nothing_that_was_confirmed(browser: Browser, run: Path) -> None:
    with served(run) as address:
        begin(browser, address)
        _, first = press(browser, "d")
        waiting = browser.run(SAMPLE)
    browser.press("k")
    browser.until("return !document.getElementById('trouble').hidden")
    assert "this was not recorded" in browser.run("return document.getElementById('trouble').textContent")
    assert browser.run(SAMPLE) == waiting and standing(run) == {first: ("drop", "Ann")}
    browser.console()
    with served(run) as address:
        begin(browser, address)
        assert browser.run(SAMPLE) == waiting and "1 decided by you" in browser.run(
            "return document.getElementById('progress').textContent"
        )
        press(browser, "k")
        assert standing(run) == {first: ("drop", "Ann"), waiting: ("keep", "Ann")}


def test_merge_by_the_keyboard_and_back(browser: Browser, run: Path) -> None:
    with served(run) as address:
        begin(browser, address)
        while browser.run(QUESTION) != "Are these one person?":
            press(browser, "s")
        browser.press("k")
        assert standing(run) == {}, "keep is no answer to this question"
        press(browser, "m")
        assert set(standing(run).values()) == {("relabel", "Ann")} and len(standing(run)) == 4
        assert "Merged, 4 samples" in browser.run("return document.getElementById('said').textContent")
        press(browser, "u")
        assert standing(run) == {} and browser.run(QUESTION) == "Are these one person?"


def test_hostile_names_are_text_and_pictures_have_words(browser: Browser, run: Path) -> None:
    with served(run) as address:
        begin(browser, address, name="<b>Ann</b> & 'co'")
        seen = set()
        for _ in range(12):
            seen.add(browser.run(QUESTION))
            pictures = browser.until(
                "const all = Array.from(document.images); return all.every(i => i.complete) && all.map(i => [i.naturalWidth, i.alt])"
            )
            assert all(width == 112 and len(alt) > 8 for width, alt in pictures)
            assert (
                browser.run("return document.title").endswith("review") and browser.run("return document.querySelectorAll('b').length") == 0
            )
            press(browser, "s")
        assert {f"Is this {IMG}?", "Is this abc⟨U+202E⟩cba?"} <= seen
        assert [entry["message"] for entry in browser.console()] == []


def test_focus_and_names_of_what_can_be_pressed(browser: Browser, run: Path) -> None:
    with served(run) as address:
        begin(browser, address)
        assert browser.run("return document.activeElement.id") == "question", "a new case is read out from its question"
        order = []
        for _ in range(8):
            browser.press("Tab")
            order.append(browser.run("return document.activeElement.textContent"))
        assert order[:5] == ["Overview and identities", "You are Ann. Somebody else?", "KKeep", "DDrop", order[4]] and order[-1] != ""
        shown = "Array.from(document.querySelectorAll('button, input, a')).filter(e => e.offsetParent)"
        unnamed = f"return {shown}.filter(e => !(e.textContent.trim() || e.labels?.length)).length"
        assert browser.run(unnamed) == 0


@pytest.mark.parametrize("width", [320, 380, 1600])
def test_nothing_scrolls_sideways(browser: Browser, run: Path, width: int) -> None:
    with served(run) as address:
        begin(browser, address, width=width)
        for _ in range(3):
            assert browser.run("return document.documentElement.scrollWidth") <= width
            press(browser, "s")


def test_the_served_pages_draw_what_was_not_drawn(browser: Browser, run: Path) -> None:
    write_audit(run, run / "audit", title="t", identities=1, faces=4, inversions={})
    with served(run) as address:
        browser.open(address.replace("review.html", "identity.html#n3"))
        browser.until("return document.body.dataset.ready === '3'")
        assert browser.until("return document.images.length > 0 && Array.from(document.images).every(i => i.complete && i.naturalWidth)")
        assert [entry["message"] for entry in browser.console()] == []


def test_faces_are_answered_on_their_identitys_page(browser: Browser, run: Path) -> None:
    with at_first_identity(browser, run):
        browser.run("document.querySelector('.couples .face[data-sample]').focus()")
        relabelled = browser.run(FOCUSED)
        browser.press("r")
        browser.until("return document.querySelectorAll('.couples .answered').length === 1")
        assert "Relabelled to Bob by Ann" in browser.run("return document.querySelector('.couples .said-by').textContent")
        browser.run("document.querySelector('.subcenter .face').focus()")
        first = browser.run(FOCUSED)
        browser.press("d")
        browser.until("return document.activeElement.classList.contains('answered')")
        browser.press("ArrowRight")
        assert browser.run(FOCUSED) not in (first, None)
        assert standing(run) == {relabelled: ("relabel", "Ann"), first: ("drop", "Ann")}
        browser.press("u")
        browser.until("return document.querySelectorAll('.subcenter .answered').length === 1")
        assert standing(run) == {relabelled: ("relabel", "Ann")}
        browser.press("r")
        assert standing(run) == {relabelled: ("relabel", "Ann")}, "nothing is proposed for this one"
        assert "No identity is proposed" in browser.run(SAID)
        browser.press("m")
        assert "answers a case of the queue" in browser.run(SAID)
        assert [entry["message"] for entry in browser.console()] == []


def test_a_face_is_relabelled_by_name_on_its_identitys_page(browser: Browser, run: Path) -> None:
    with at_first_identity(browser, run):
        browser.press("k")
        assert "Go to a face first" in browser.run(SAID)
        browser.run("document.querySelector('.subcenter .face').focus()")
        sample = browser.run(FOCUSED)
        browser.press("o", "nobody", "Enter")
        browser.until(f"return ({SAID.removeprefix('return ')}).includes('no identity of exactly that name')")
        browser.press("Escape")
        assert browser.run(FOCUSED) == sample and browser.run(SAID) == "" and standing(run) == {}
        browser.press("o", "onerror")
        browser.until("return document.querySelectorAll('#suggested li').length === 1")
        browser.press("ArrowDown", "Enter")
        browser.until("return document.querySelectorAll('.subcenter .answered').length === 1 && document.getElementById('relabel').hidden")
        assert browser.run(FOCUSED) == sample and browser.run(SAID) == "Relabelled. U takes it back."
        (row,) = decisions.read_standing(run).to_pylist()
        assert (row["sample_id"], row["verdict"], row["clean_identity"]) == (sample, "relabel", IMG)
        assert browser.run(
            "const b = document.querySelector('.bench').getBoundingClientRect(); return b.bottom <= innerHeight && b.height > 0"
        )
        browser.run("localStorage.clear()")
        browser.reload()
        browser.until("return document.body.dataset.ready === '0'")
        browser.press("d")
        assert "Say who you are first" in browser.run(SAID) and len(standing(run)) == 1
