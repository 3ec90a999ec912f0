"""Foreign text on pages: what is shown of a name, what a verdict is called, and how text gets into HTML and into scripts of data.

Three rules keep a hostile name a text. HTML is made by templates that escape. Data is JSON in ASCII inside one call of one function. And the
policy of a page runs only the program's own scripts, known by their hash, which set text by `textContent` and nothing else.
"""

import base64
import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.visible import visible

SPOKEN = {"keep": "kept", "drop": "dropped", "relabel": "of another identity", "review": "to review"}
REASONS = {
    "accepted": "accepted",
    "angle": "too far from the center",
    "nondominant": "nearest to a minority sub-center",
    "angle_and_nondominant": "too far, and nearest to a minority sub-center",
    "noise_probability": "more probably noise than not",
    "too_few_samples": "the only sample: nothing to compare with",
    "no_evidence": "no angle could be measured",
    "no_consensus": "no two samples agree",
    "tie": "two people of one size under this name",
    "recovered": "kept by this round, not by the one before",
    "near_duplicate": "the same photograph as a better one",
    "same_bytes_elsewhere": "the same file under another name, where it fits better",
    "same_photo_elsewhere": "the same photograph under another name, where it fits better",
    "decision": "a person decided",
    "gone": "is no longer in the crawl",
    "protected": "stands in a protected evaluation set",
    "head_not_learned": "the model could not tell identities apart",
}
_TEMPLATES = Path(__file__).parents[1] / "templates"


def shortened(name: str, most: int = 120) -> str:
    """`visible(name)`, cut to `most` characters with an ellipsis at its end where it is longer."""
    shown = visible(name)
    return shown if len(shown) <= most else shown[: most - 1] + "…"


def reason_in_words(reason: str) -> str:
    """What a reason of the manifest means; a reason that is an item's status reads as it is."""
    return REASONS.get(reason, reason.replace("_", " "))


def data_script(name: str, value: Any) -> bytes:
    """A script that hands `value` to the page under `name`: the one form in which `file://` lets a page read data.

    The text is ASCII, and has no `<`, `>` or `&`, so that it would end no element wherever it came to stand.
    """
    text = json.dumps([name, value], ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return f"purify({text[1:-1]})\n".encode("ascii")


@cache
def asset(*names: str) -> Markup:
    """The program's own style sheets or scripts of those names, one after the other, to stand inside a page as they are."""
    return Markup("\n".join((_TEMPLATES / name).read_text("utf-8") for name in names))  # noqa: S704 - our own files


def policy(*, style: str, script: str, connect: bool = False) -> str:
    """The Content-Security-Policy of a page that holds exactly this style sheet and this script.

    Scripts of data are let in by the script that asks for them (`strict-dynamic`), whose one way to name an address is a Trusted Types policy;
    a script in a name, an attribute, or a link is refused. `connect`: it may also ask its own server.
    """
    return "; ".join(
        [
            "default-src 'none'",
            f"script-src '{_hash(script)}' 'strict-dynamic'" if script else "script-src 'none'",
            f"style-src '{_hash(style)}'",
            "img-src 'self' file:",
            *(["connect-src 'self'"] if connect else []),
            "require-trusted-types-for 'script'",
            "trusted-types purify",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def page(template: str, *, style: tuple[str, ...], script: tuple[str, ...], connect: bool = False, **facts: Any) -> str:
    """The HTML of a template of `pipeline/templates/`, which places `style`, `script` and `policy` itself."""
    own = {"style": asset(*style), "script": asset(*script)}
    return environment().get_template(template).render(**own, policy=policy(**own, connect=connect), **facts)


@cache
def environment() -> Environment:
    """The templates, with what they may call. Everything that is printed is escaped."""
    made = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {
        "visible": visible,
        "shortened": shortened,
        "count": lambda number: f"{number:,}",
        "spoken": lambda verdict: SPOKEN.get(verdict, verdict),
        "reason": reason_in_words,
        "percent": lambda share: f"{100 * share:.1f} %",
    }
    return made
