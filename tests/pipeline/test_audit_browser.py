"""The audit pages in a real Chromium, from `file://`: found, sorted, looked at, by mouse and keyboard; hostile names do nothing."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.audit import write_audit
from pipeline.imagine import Imagined
from tests.browser import Browser
from tests.pipeline.fake_run import Planted, write_run
from tests.pipeline.test_audit import OVERRIDE, SCRIPT, png

pytestmark = pytest.mark.browser

LONG = "W" * 1000
IMG = "\"'><img src=x onerror=\"document.title='run'\">"
NAMES = [SCRIPT, OVERRIDE, LONG, IMG, "javascript:alert(1)", "محمد علي", "Łucja Ångström", "{{ 7 * 7 }}"]
PLANTED = [
    Planted(identity=name, angle_deg=angle, verdict=verdict, reason=reason, other_identity=other, other_angle_deg=31.0)
    for number, name in enumerate(NAMES)
    for angle, verdict, reason, other in (
        (30.0, "keep", "accepted", None),
        (81.0, "drop", "angle" if number else IMG, None),
        (84.0, "relabel", "angle", LONG if number else IMG),
        (0.0, "review", "too_few_samples", None),
    )
]
CROWD = [Planted(identity=f"Person {number:03d}", angle_deg=30.0) for number in range(60)]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "Bob's run #1 100%"
    run = write_run(root, [*PLANTED, *CROWD])
    write_audit(
        run, run / "audit", title=IMG + LONG, identities=66, faces=4, inversions={SCRIPT: [Imagined(png(), "the dominant sub-center", 9.5)]}
    )
    return run / "audit"


def index(browser: Browser, pages: Path, *, width: int = 1280) -> None:
    browser.open(pages / "index.html", width=width)
    browser.until("return document.body.dataset.ready")


def person(browser: Browser, pages: Path, number: int, *, width: int = 1280) -> None:
    browser.open((pages / "identity.html").as_uri() + f"#n{number}", width=width)
    browser.until(f"return document.body.dataset.ready === '{number}'")
    browser.until("return Array.from(document.images).every(i => { i.loading = 'eager'; return i.complete })")


def names_shown(browser: Browser) -> list[str]:
    found: list[str] = browser.run(
        "return Array.from(document.querySelectorAll('.rows li')).sort((a, b) => a.ariaPosInSet - b.ariaPosInSet).map(r => r.querySelector('a').textContent)"
    )
    return found


CUT_OFF = """
    const cards = Array.from(document.querySelectorAll('.card')).filter(c => c.scrollWidth > c.clientWidth).map(c => c.innerText.slice(0, 60));
    const texts = Array.from(document.querySelectorAll('svg text')).filter(t => {
        const own = t.getBoundingClientRect(), all = t.ownerSVGElement.getBoundingClientRect();
        return own.right > all.right + 0.5 || own.left < all.left - 0.5;
    }).map(t => t.textContent);
    return [...cards, ...texts]"""
"""Cards that scroll sideways, and labels that their chart cuts off."""


@pytest.mark.parametrize("width", [1280, 1400])
def test_no_card_scrolls_and_no_label_is_cut(browser: Browser, tmp_path: Path, width: int) -> None:
    run = write_run(tmp_path / "run", [Planted(identity="A", angle_deg=angle) for angle in (21.0, 60.0, 119.0, 178.0)])
    write_audit(run, run / "audit", title="t", identities=1, faces=4, inversions={})
    index(browser, run / "audit", width=width)
    assert browser.run(CUT_OFF) == []
    browser.run("for (const one of document.querySelectorAll('details')) one.open = true")
    assert browser.run(CUT_OFF) == [], "with the numbers shown"
    person(browser, run / "audit", 0, width=width)
    assert browser.run(CUT_OFF) == []
    filled = browser.run(
        "const [strip, card] = ['.strip', '.card'].map(c => document.querySelector(c).getBoundingClientRect()); return strip.width / card.width"
    )
    assert filled > 0.9


def type_needle(browser: Browser, text: str) -> None:
    browser.run("const n = document.getElementById('needle'); n.value = arguments[0]; n.dispatchEvent(new Event('input')); n.focus()", text)


def test_the_list_is_searched_without_accents_or_case_and_only_rows_in_sight_are_drawn(browser: Browser, pages: Path) -> None:
    index(browser, pages)
    assert browser.run("return document.getElementById('found').textContent") == "68 identities"
    assert len(names_shown(browser)) < 30
    for typed, wanted in (
        ("angstrom", ["Łucja Ångström"]),
        ("<SCRIPT", [SCRIPT]),
        ("person 05", [f"Person {n:03d}" for n in range(50, 60)]),
    ):
        type_needle(browser, typed)
        assert names_shown(browser) == wanted
        assert browser.run("return document.getElementById('found').textContent") == f"{len(wanted)} of 68 identities"
    type_needle(browser, "nobody")
    assert names_shown(browser) == []


def test_the_list_is_sorted(browser: Browser, pages: Path) -> None:
    index(browser, pages)
    choose = "const o = document.getElementById('order'); o.value = arguments[0]; o.dispatchEvent(new Event('change'))"
    browser.run(choose, "samples")
    assert set(names_shown(browser)[:8]) >= {SCRIPT, IMG, "{{ 7 * 7 }}"}
    browser.run(choose, "name")
    shown = [name.lower() for name in names_shown(browser)]
    assert shown[0].startswith("\"'><img") and shown == sorted(shown)


def test_the_keyboard_goes_through_the_list_and_opens_an_identity(browser: Browser, pages: Path) -> None:
    index(browser, pages)
    focused = "return document.activeElement.textContent"
    type_needle(browser, "person")
    browser.press("ArrowDown", "ArrowDown")
    assert browser.run(focused) == "Person 001"
    browser.press("ArrowUp", "ArrowUp")
    assert browser.run("return document.activeElement.id") == "needle"
    browser.press("ArrowDown", "End")
    assert browser.run(focused) == "Person 059", "rows out of sight are drawn when the keyboard gets there"
    browser.press("ArrowUp", "ArrowUp", "Enter")
    browser.until("return location.pathname.endsWith('/identity.html') && document.body.dataset.ready")
    assert browser.run("return document.querySelector('h1').textContent") == "Person 057"


def test_every_picture_of_an_identity_loads_with_words_for_it(browser: Browser, pages: Path) -> None:
    person(browser, pages, sorted(NAMES).index(SCRIPT))
    pictures = browser.run("return Array.from(document.images).map(i => [i.naturalWidth, i.alt])")
    assert len(pictures) == 1 + 4 + 2, "the inversion, four faces, and the proposed relabel with the other identity's face"
    assert all(width >= 112 and len(alt) > 8 for width, alt in pictures)
    browser.run("const k = document.getElementById('kinds'); k.value = 'drop'; k.dispatchEvent(new Event('change'))")
    shown = (
        "return Array.from(document.querySelectorAll('.subcenter li')).filter(l => l.offsetParent).map(l => l.firstChild.dataset.verdict)"
    )
    assert browser.run(shown) == ["drop"]


def test_an_identity_that_was_not_drawn_says_how_to_see_it(browser: Browser, pages: Path) -> None:
    browser.open((pages / "identity.html").as_uri() + "#n67")
    browser.until("return document.querySelector('main .empty')")
    assert "purify review RUN" in browser.run("return document.body.innerText")
    browser.run("location.hash = '#n9999'")
    browser.until("return document.querySelector('h1').textContent === 'No such identity'")


@pytest.mark.parametrize("width", [320, 380, 800, 1600])
def test_nothing_scrolls_sideways(browser: Browser, pages: Path, width: int) -> None:
    index(browser, pages, width=width)
    assert browser.run("return innerWidth") == width
    assert browser.run("return document.documentElement.scrollWidth") <= width
    for number in (0, 2):
        person(browser, pages, number, width=width)
        assert browser.run("return document.documentElement.scrollWidth") <= width


def test_hostile_names_are_read_as_text_and_nothing_runs(browser: Browser, pages: Path) -> None:
    index(browser, pages)
    shown = names_shown(browser)
    assert {SCRIPT, "abc⟨U+202E⟩cba", IMG, "{{ 7 * 7 }}"} <= set(shown)
    seen = set()
    for number in range(8):
        person(browser, pages, number)
        seen.add(browser.run("return document.querySelector('h1').textContent"))
        assert browser.run("return document.images.length") == 6 + (number == sorted(NAMES).index(SCRIPT))
        assert browser.run("return document.title").endswith("· audit")
    assert seen == {name if name != OVERRIDE else "abc⟨U+202E⟩cba" for name in NAMES}
    assert [entry["message"] for entry in browser.console()] == []


def test_what_an_injection_would_need_is_refused(browser: Browser, pages: Path) -> None:
    """Were a name ever taken for HTML, then: no inline script, no handler, no script of another address, no picture from the network."""
    index(browser, pages)
    tried: list[Any] = browser.run(
        """const tried = []; window.hit = 0;
        try { document.body.innerHTML += '<img src=x onerror="window.hit = 1">'; } catch (error) { tried.push(error.name); }
        const script = document.createElement('script');
        try { script.src = 'file:///evil.js'; } catch (error) { tried.push(error.name); }
        try { addresses.createScriptURL('https://example.invalid/x.js'); } catch (error) { tried.push(error.name); }
        const inline = document.createElement('div');
        try { inline.setAttribute('onclick', 'window.hit = 3'); } catch (error) { tried.push(error.name); }
        document.body.append(Object.assign(new Image(), {src: 'https://example.invalid/x.png'}));
        tried.push(window.hit); return tried"""
    )
    assert tried == ["TypeError", "TypeError", "TypeError", "TypeError", 0]
    assert any("https://example.invalid/x.png" in entry["message"] for entry in browser.console())


def test_nothing_is_asked_of_the_network(browser: Browser, pages: Path) -> None:
    browser.asked()
    index(browser, pages)
    person(browser, pages, sorted(NAMES).index(SCRIPT))
    asked = browser.asked()
    assert len(asked) >= 7 and all(url.startswith(pages.as_uri()) for url in asked)
    assert [entry["message"] for entry in browser.console()] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser: Browser, pages: Path, scheme: str) -> None:
    """WCAG 2.2 contrast of at least 4.5 for every text colour on both grounds."""
    browser.scheme(scheme)
    index(browser, pages)
    names = ["--ground", "--card", "--ink", "--soft", "--keep", "--drop", "--relabel", "--review"]
    values = browser.run(f"const s = getComputedStyle(document.documentElement); return {names}.map(n => s.getPropertyValue(n).trim())")
    ground, card, *texts = map(_luminance, values)
    assert (ground > 0.5) == (scheme == "light")
    for behind in (ground, card):
        assert all((max(text, behind) + 0.05) / (min(text, behind) + 0.05) >= 4.5 for text in texts)


def _luminance(colour: str) -> float:
    """Relative luminance of `#rrggbb`, 0..1. Source: WCAG 2.2, definition of relative luminance."""
    digits = colour.removeprefix("#")
    digits = "".join(digit * 2 for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[start : start + 2], 16) / 255 for start in (0, 2, 4)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
