"""Draw the pictures of the docs anew from a run: docs/audit.png (overview), identity.png, review.png and map.png.

    make pictures                       # the demo, and its pictures
    python docs/pictures.py RUN

Needs Chromium and its driver, and the extra `figures`. Only ever of the synthetic crawl: a face of a person is never committed.
"""

import contextlib
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from PIL import Image

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))  # the browser is the tests'

from pipeline.layout import RunLayout  # noqa: E402
from pipeline.pages.embedding_map import draw_map  # noqa: E402
from pipeline.reviewing.server import open_review  # noqa: E402
from tests.browser import Browser, browser_in  # noqa: E402

_COMPLETE = "return Array.from(document.images).every(i => { i.loading = 'eager'; return i.complete && i.naturalWidth })"


@contextlib.contextmanager
def reviewed(run: Path) -> Iterator[str]:
    """The address of a review of `run`, while it is served."""
    review = open_review(run, title="Purification of crawl")
    thread = threading.Thread(target=review.serve, daemon=True)
    thread.start()
    try:
        yield review.address
    finally:
        review.stop()
        thread.join(20)


def take(browser: Browser, name: str, *bands: tuple[int, int]) -> None:
    """The whole page as docs/<name>, or those bands of it (top, bottom) one below the other, in 256 colours so that it stays small."""
    path = DOCS / name
    browser.picture(path, whole=True)
    with Image.open(path) as picture:
        whole = picture.convert("RGB")
    spans = [(top, min(bottom, whole.height)) for top, bottom in bands] or [(0, whole.height)]
    made = Image.new("RGB", (whole.width, sum(bottom - top for top, bottom in spans)))
    at = 0
    for top, bottom in spans:
        made.paste(whole.crop((0, top, whole.width, bottom)), (0, at))
        at += bottom - top
    made.quantize(256, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.FLOYDSTEINBERG).save(path, optimize=True)
    print(f"{path}: {made.width} x {made.height}, {path.stat().st_size / 1000:.0f} kB")


def span(browser: Browser, first: str, last: str) -> tuple[int, int]:
    """From the top of one element to the bottom of another, in pixels of the page."""
    top, bottom = browser.run(
        "return [document.querySelector(arguments[0]).getBoundingClientRect().top, document.querySelector(arguments[1]).getBoundingClientRect().bottom]",
        first,
        last,
    )
    return max(0, int(top) - 24), int(bottom) + 12


def main() -> None:
    run = Path(sys.argv[1]).resolve()
    pages = RunLayout(run).audit
    with tempfile.TemporaryDirectory() as folder, browser_in(Path(folder)) as browser:
        browser.scheme("light")
        browser.open(pages / "index.html", width=1120)
        browser.until("return document.body.dataset.ready")
        take(
            browser,
            "audit.png",
            span(browser, "header", '[aria-label="Where every item went"]'),
            span(browser, 'section[aria-labelledby="angles"]', 'section[aria-labelledby="angles"]'),
            span(browser, 'section[aria-labelledby="identities"]', 'section[aria-labelledby="identities"]'),
        )
        # Of the noisiest, the first with a relabel that is proposed, two sub-centers or more, and a face imagined for it.
        for number in range(24):
            browser.open((pages / "identity.html").as_uri() + f"#n{number}", width=1120)
            browser.until(f"return document.body.dataset.ready === '{number}'")
            if browser.run("return document.querySelector('.couples') && document.querySelectorAll('.subcenter').length > 1"):
                break
        browser.until(_COMPLETE)
        take(browser, "identity.png", (0, 1900))
        with reviewed(run) as address:
            browser.open(address, width=1120)
            browser.press("Ann", "Enter")
            browser.until("return document.querySelector('[data-key]')")
            while browser.run("return !/proposed/.test(document.querySelector('.asked').textContent)"):
                before = browser.run("return document.querySelector('[data-key]').dataset.key")
                browser.press("s")
                browser.until("return document.querySelector('[data-key]').dataset.key !== arguments[0]", before)
            browser.until(_COMPLETE)
            take(browser, "review.png")
        with tempfile.TemporaryDirectory() as drawn:
            mapped = draw_map(run, Path(drawn), title="Purification of crawl")
            browser.open(mapped.page, width=1120)
            take(browser, "map.png")


if __name__ == "__main__":
    main()
