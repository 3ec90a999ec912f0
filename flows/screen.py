"""What commands print of foreign text. Names, sources and details come from the crawl: none of their control characters reaches a terminal."""

import sys

from rich.markup import escape

from pipeline.visible import visible


def plain(value: object) -> str:
    """A text for rich to print as it is: no markup, on one line, control characters and direction overrides spelled out."""
    return escape(visible(str(value)))


def plain_lines(text: str) -> str:
    """The same, with its line breaks: for messages of ours that a name stands in."""
    return escape(visible(text, keep="\n"))


def write_data(text: str) -> None:
    """Data on standard output: exact into a pipe or file; on a terminal, where people read it, with control characters spelled out."""
    sys.stdout.write(visible(text, keep="\r\n") if sys.stdout.isatty() else text)
