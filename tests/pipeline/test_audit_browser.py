"""The audit page in a real Chromium, from `file://`: every picture loads, nothing scrolls sideways, nothing is asked of the network."""

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.audit import write_audit
from tests.pipeline.fake_run import Planted, write_run
from tests.pipeline.test_audit import OVERRIDE, SCRIPT, png

pytestmark = pytest.mark.browser

LONG = "W" * 200
PLANTED = [
    Planted(identity=name, angle_deg=angle, verdict=verdict, reason=reason, other_identity=other, other_angle_deg=31.0)
    for name in (SCRIPT, OVERRIDE, LONG, "محمد علي", "Ada Lovelace")
    for angle, verdict, reason, other in (
        (30.0, "keep", "accepted", None),
        (81.0, "drop", "angle", None),
        (84.0, "relabel", "angle", LONG),
        (0.0, "review", "too_few_samples", None),
    )
]
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
]


class Browser:
    """The few commands of the W3C WebDriver protocol that we need."""

    def __init__(self, url: str, profile: Path, chromium: str) -> None:
        self._url = url
        options = {"binary": chromium, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
        self._session = "/session/" + self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=30) as answer:
            return json.load(answer)["value"]

    def open(self, page: Path, *, width: int) -> None:
        device = {
            "width": width,
            "height": 900,
            "deviceScaleFactor": 1,
            "mobile": False,
        }  # a window is never below 500 px, a viewport may be
        self.devtools("Emulation.setDeviceMetricsOverride", device)
        self._send("POST", self._session + "/url", {"url": page.as_uri()})

    def run(self, script: str) -> Any:
        return self._send("POST", self._session + "/execute/sync", {"script": script, "args": []})

    def devtools(self, command: str, params: dict[str, Any]) -> Any:
        return self._send("POST", self._session + "/goog/cdp/execute", {"cmd": command, "params": params})

    def console(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self._send("POST", self._session + "/se/log", {"type": "browser"})
        return entries

    def quit(self) -> None:
        self._send("DELETE", self._session)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("chromium or chromedriver is not installed")
    folder = tmp_path_factory.mktemp("browser")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([driver, "--port=0"], stdout=log, stderr=log)
    try:
        opened = Browser(f"http://127.0.0.1:{_port(folder / 'log')}", folder / "profile", chromium)
        yield opened
        opened.quit()
    finally:
        process.terminate()
        process.wait(10)


def _port(log: Path) -> int:
    for _ in range(100):
        words = log.read_text().replace(".", " ").split()
        if "port" in words and "successfully" in words:
            return int(words[len(words) - 1 - words[::-1].index("port") + 1])
        time.sleep(0.1)
    raise TimeoutError(f"chromedriver did not start: {log.read_text()}")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs") / "Bob's run #1 100%"
    run = write_run(root, PLANTED)
    write_audit(run, run / "audit", title=LONG, identities=9, faces=4, inversions={SCRIPT: (png(), 9.5)})
    return run / "audit" / "index.html"


def test_every_picture_loads_with_words_for_it(browser: Browser, page: Path) -> None:
    browser.open(page, width=1280)
    pictures = browser.run("return Array.from(document.images).map(i => [i.complete, i.naturalWidth, i.alt])")
    assert len(pictures) == len(PLANTED) + 1
    assert all(complete and width == 112 and len(alt) > 8 for complete, width, alt in pictures)


@pytest.mark.parametrize("width", [320, 400, 800, 1600])
def test_nothing_scrolls_sideways(browser: Browser, page: Path, width: int) -> None:
    browser.open(page, width=width)
    assert browser.run("return innerWidth") == width
    assert browser.run("return document.documentElement.scrollWidth") <= width


def test_a_hostile_name_is_read_as_text(browser: Browser, page: Path) -> None:
    browser.open(page, width=1280)
    headings = browser.run("return Array.from(document.querySelectorAll('h3')).map(h => h.innerText)")
    assert SCRIPT in headings and "abc⟨U+202E⟩cba" in headings
    assert browser.run("return document.scripts.length") == 0


def test_nothing_is_asked_of_the_network_and_the_policy_stops_what_would(browser: Browser, page: Path) -> None:
    browser.open(page, width=1280)
    asked = browser.run("return performance.getEntriesByType('resource').map(e => e.name)")
    assert all(url.startswith(page.parent.as_uri()) for url in asked)
    assert [entry["message"] for entry in browser.console()] == []
    browser.run("document.body.append(Object.assign(new Image(), {src: 'https://example.invalid/x.png'}))")
    assert any("Content Security Policy" in entry["message"] for entry in browser.console())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground(browser: Browser, page: Path, scheme: str) -> None:
    """WCAG 2.2 contrast of at least 4.5 for every text colour on both grounds."""
    browser.devtools("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]})
    browser.open(page, width=1280)
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
