"""A real Chromium, driven by the few commands of the W3C WebDriver protocol that we need. Tests, benchmarks and pictures of the docs use it."""

import base64
import contextlib
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
KEYS = {"ArrowDown": "\ue015", "ArrowUp": "\ue013", "ArrowLeft": "\ue012", "ArrowRight": "\ue014", "Enter": "\ue007", "Tab": "\ue004",
        "End": "\ue010", "Home": "\ue011", "Escape": "\ue00c"}  # fmt: skip


class Browser:
    """One window."""

    def __init__(self, url: str, profile: Path, chromium: str) -> None:
        self._url = url
        options = {"binary": chromium, "args": [*FLAGS, f"--user-data-dir={profile}"]}
        wanted = {"browserName": "chrome", "goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        self._session = "/session/" + self._send("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})["sessionId"]

    def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._url + path, data, {"Content-Type": "application/json"}, method=method)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def open(self, page: Path | str, *, width: int = 1280, height: int = 900, scale: float = 1) -> None:
        """Go to a file or an address. A window is never narrower than 500 px; the viewport, which pages see, may be."""
        device = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": False}
        self.devtools("Emulation.setDeviceMetricsOverride", device)
        self._send("POST", self._session + "/url", {"url": page if isinstance(page, str) else page.as_uri()})

    def reload(self) -> None:
        self._send("POST", self._session + "/refresh", {})

    def scheme(self, name: str) -> None:
        """`light` or `dark`."""
        self.devtools("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": name}]})

    def run(self, script: str, *args: Any) -> Any:
        return self._send("POST", self._session + "/execute/sync", {"script": script, "args": list(args)})

    def until(self, script: str, *args: Any, seconds: float = 20) -> Any:
        """What `script` returns once that is true. Raises TimeoutError."""
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            if found := self.run(script, *args):
                return found
            time.sleep(0.02)
        raise TimeoutError(f"Not true within {seconds} s: {script}; the page says {self.run('return document.body.innerText')[:2000]!r}")

    def press(self, *keys: str) -> None:
        """Keys by their name (`ArrowDown`), or text to type, into what has the focus."""
        typed = [sign for key in keys for sign in ([KEYS[key]] if key in KEYS else key)]
        actions = [{"type": kind, "value": sign} for sign in typed for kind in ("keyDown", "keyUp")]
        self._send("POST", self._session + "/actions", {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]})

    def devtools(self, command: str, params: dict[str, Any] | None = None) -> Any:
        return self._send("POST", self._session + "/goog/cdp/execute", {"cmd": command, "params": params or {}})

    def picture(self, file: Path, *, whole: bool = False) -> None:
        """A PNG of what is in sight, or of the whole page."""
        taken = self.devtools("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": whole})
        if whole:
            size = self.devtools("Page.getLayoutMetrics")["cssContentSize"]
            clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
            taken = self.devtools("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True, "clip": clip})
        file.write_bytes(base64.b64decode(taken["data"]))

    def console(self) -> list[dict[str, Any]]:
        entries: list[dict[str, Any]] = self._send("POST", self._session + "/se/log", {"type": "browser"})
        return entries

    def asked(self) -> list[str]:
        """Addresses of all that was asked for since the last call, whoever asked."""
        entries = self._send("POST", self._session + "/se/log", {"type": "performance"})
        events = [json.loads(entry["message"])["message"] for entry in entries]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def quit(self) -> None:
        self._send("DELETE", self._session)


def is_there() -> bool:
    return shutil.which("chromium") is not None and shutil.which("chromedriver") is not None


@contextlib.contextmanager
def browser_in(folder: Path) -> Iterator[Browser]:
    """A browser whose profile and log are in `folder`. Raises FileNotFoundError without chromium and chromedriver."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        raise FileNotFoundError("chromium or chromedriver is not installed")
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
