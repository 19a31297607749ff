"""Running text for a terminal: wrapped at words, with numbers and their units together and paths whole."""

import re
import shlex
import textwrap
from collections.abc import Iterator

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, OverflowMethod
from rich.measure import Measurement
from rich.text import Text

LABEL = 10  # columns of what stands before the lines of an answer
NO_BREAK = "\N{NO-BREAK SPACE}"  # textwrap does not break there; rich would, so it gets lines that are done
TOGETHER = re.compile(
    r"(?<=\d) (?=[%→a-zA-Z])"  # 54 %, 45 → 13, 3 more
    r"|(?<=[→=<·]) (?=\S)"  # p = 0.05, W + scaling · B A
    r"| (?=[=<·] )"
    r"|(?<=\bx) (?=\d)"  # of a shape
    r"|(?<=\bmissed) (?=\d)|(?<=\bdigit) (?=\d)|(?<=\brank) (?=\d)|(?<=\bof) (?=\d)|(?<=\bat) (?=\d)"
)


class Paragraph:
    """Text that wraps at words, never within a number and its unit, and never within a path.

    Args:
        text: without line breaks.
        label: what stands before it; further lines are indented as far, or by a third of a narrow terminal.
        style, label_style: in rich's words.
        joint: what every line but the last ends with.
    """

    def __init__(self, text: str, label: str = "", style: str = "", label_style: str = "dim", joint: str = ""):
        self.text, self.label, self.joint = TOGETHER.sub(NO_BREAK, text), label, joint
        self.style, self.label_style = style, label_style

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        lines = textwrap.wrap(
            self.text,
            options.max_width - len(self.joint),
            initial_indent=self.label,
            subsequent_indent=" " * min(len(self.label), options.max_width // 3),
            break_long_words=False,
            break_on_hyphens=False,
        )
        for i, line in enumerate(lines, 1):
            until = len(self.label) if i == 1 else 0
            joint = self.joint if i < len(lines) else ""
            label, text = line[:until], line[until:].replace(NO_BREAK, " ") + joint
            too_long = cell_len(line) > options.max_width
            overflow: OverflowMethod | None = "ignore" if too_long else None  # which forbids it to stand on the right
            yield Text.assemble((label, self.label_style), (text, self.style), no_wrap=True, overflow=overflow)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        longest = max(map(cell_len, self.text.split(" ")))
        return Measurement(longest, cell_len(self.label + self.text)).with_maximum(options.max_width)


def unbroken(text: str) -> str:
    """As a `Paragraph` leaves it in one line."""
    return text.replace(" ", NO_BREAK)


def labelled(label: str, text: str) -> Paragraph:
    """A line of an answer: what it is about, and what there is to say."""
    return Paragraph(text, f"{label:<{LABEL}}")


def to_copy(label: str, command: str) -> Paragraph:
    """A shell command, which can be copied as it is also where it takes several lines."""
    words = [unbroken(shlex.quote(word)) for word in shlex.split(command)]
    return Paragraph(re.sub(r"(--\S+) (?!-)", rf"\1{NO_BREAK}", " ".join(words)), f"{label:<{LABEL}}", joint=" \\")
