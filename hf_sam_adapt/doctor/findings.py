"""What doctor says: one line a finding, with a code that does not change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass


ERROR, WARNING = "error", "warning"
SEVERITIES = (ERROR, WARNING)

# The messages of the readers, and the code of what they complain about.
_CODES = (
    ("channels, but channels is", "channels"),
    ("image of mode", "channels"),
    ("NaN or infinite", "not-finite"),
    ("stored lossily", "lossy-mask"),
    ("coloured mask", "palette"),
    ("mask value", "mask-values"),
    ("floating-point image", "bit-depth"),
    ("values of type", "bit-depth"),
    ("values outside 0..65535", "bit-depth"),
    ("bits in several channels", "bit-depth"),
    ("bands, a photograph has", "channels"),
    ("of which only one would be read", "frames"),
    ("transparent", "alpha"),
    ("alpha channel", "alpha"),
)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        severity: "error" (a training refuses it, or its numbers would be wrong) or "warning".
        code: the kind, such as "size-mismatch".
        file: the file, or the row, or the data set.
        value: what was found there.
        mend: what to do about it.
    """

    severity: str
    code: str
    file: str
    value: str
    mend: str

    def line(self) -> str:
        return f"{self.severity:<8} {self.code:<15} {self.file}: {self.value}; {self.mend}"


def from_message(message: str, file: str, code: str | None = None) -> Finding:
    """The error of a reader, `file: what is wrong; how to mend it`; without `code` by its words."""
    if code is None:
        code = next((code for words, code in _CODES if words in message), "unreadable")
    value, _, mend = message.removeprefix(f"{file}: ").partition("; ")
    return Finding(ERROR, code, file, value, mend or "mend or remove the file")


class Findings:
    """Collects findings in bounded memory.

    Args:
        limit: how many of each severity and code are kept; the others are counted. 0 = all.
    """

    def __init__(self, limit: int = 20) -> None:
        self.limit = limit
        self.kept: list[Finding] = []
        self.counts: Counter[tuple[str, str]] = Counter()

    def add(self, found: Iterable[Finding]) -> None:
        for finding in found:
            kind = finding.severity, finding.code
            self.counts[kind] += 1
            if not self.limit or self.counts[kind] <= self.limit:
                self.kept.append(finding)

    def total(self, severity: str) -> int:
        return sum(count for (found, _), count in self.counts.items() if found == severity)

    def ordered(self) -> list[Finding]:
        """What was kept: errors first, each code together, in the order of the files."""
        return sorted(self.kept, key=lambda one: (SEVERITIES.index(one.severity), one.code, one.file))

    def lines(self) -> list[str]:
        """A line for each finding, and one for what a code has beyond the limit."""
        lines, ordered = [], self.ordered()
        for place, finding in enumerate(ordered):
            lines.append(finding.line())
            kind = finding.severity, finding.code
            after = ordered[place + 1] if place + 1 < len(ordered) else None
            more = self.counts[kind] - self.limit
            if self.limit and more > 0 and (after is None or (after.severity, after.code) != kind):
                lines.append(f"{finding.severity:<8} {finding.code:<15} … and {more} more (--limit 0 shows all)")
        return lines
