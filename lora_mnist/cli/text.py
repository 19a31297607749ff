"""Running text for a terminal: wrapped at words, with numbers and their units together and paths whole."""

import re
import textwrap
from collections.abc import Iterator

from rich.console import Console, ConsoleOptions
from rich.text import Text

NO_BREAK = "\N{NO-BREAK SPACE}"  # textwrap does not break there; rich would, so it gets lines that are done
TOGETHER = re.compile(
    r"(?<=\d) (?=[%→a-zA-Z])"  # 54 %, 45 → 13, 3 more
    r"|(?<=[→=<·]) (?=\S)"  # p = 0.05, W + scaling · B A
    r"| (?=[=<·] )"
    r"|(?<=\bmissed) (?=\d)|(?<=\bdigit) (?=\d)|(?<=\brank) (?=\d)|(?<=\bof) (?=\d)|(?<=\bat) (?=\d)"
)


class Paragraph:
    """Text that wraps at words, never within a number and its unit, and never within a path.

    Args:
        text: without line breaks.
        label: what stands before it; further lines are indented as far.
        style, label_style: in rich's words.
    """

    def __init__(self, text: str, label: str = "", style: str = "", label_style: str = "dim"):
        self.text, self.label, self.style, self.label_style = text, label, style, label_style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        lines = textwrap.wrap(
            TOGETHER.sub(NO_BREAK, self.text),
            options.max_width,
            initial_indent=self.label,
            subsequent_indent=" " * len(self.label),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for line in lines:
            label, text = line[: len(self.label)], line[len(self.label) :].replace(NO_BREAK, " ")
            yield Text.assemble((label, self.label_style), (text, self.style), no_wrap=True, overflow="ignore")
