"""What doctor says: one line a cause, with a code that does not change."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import groupby

from ..errors import UserError


ERROR, WARNING = "error", "warning"
SEVERITIES = (ERROR, WARNING)
CODES = frozenset(
    (
        "affine-mismatch alpha annotations bit-depth channels class-missing class-share contradiction duplicate "
        "empty-mask few-images flat-image frames full-mask group-by ignored-mask inverted-mask label-map layout "
        "leakage lossy-mask mask-values missing-image missing-mask missing-slices mixed-crs mixed-encoding "
        "near-duplicate nodata normalization not-finite odd-file odd-size orientation other-grid palette refused "
        "same-stem size-mismatch soft-edges spacing split-shift tiny-object truncated unreadable"
    ).split()
)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        severity: "error" (a training refuses it, or its numbers would be wrong) or "warning".
        code: the kind, such as "size-mismatch"; one of `CODES`.
        file: the file, or the row, or the data set.
        value: what is wrong there.
        fix: what to do about it.
        cause: findings of one severity and code with equal causes share a line; unset = those with one fix do.
    """

    severity: str
    code: str
    file: str
    value: str
    fix: str
    cause: str | None = None

    @property
    def kind(self) -> tuple[int, str, str]:
        """What the findings of one cause have in common; errors come first."""
        return SEVERITIES.index(self.severity), self.code, self.fix if self.cause is None else self.cause

    def line(self, others: int = 0) -> str:
        """The finding in a line that stands for `others`, too."""
        also = f" and {others} more" if others else ""
        return f"{self.severity:<8} {self.code:<15} {self.file}{also}: {self.value}; {self.fix}"


def from_error(error: UserError, file: str, code: str | None = None) -> Finding:
    """The finding that a reader's error about `file` is; `code` in place of the error's own."""
    code = code or (error.code if error.code in CODES else "unreadable")
    value = error.problem if error.where in (None, file) else f"{error.where}: {error.problem}"
    # The fixes of these name values of the one mask.
    cause = code if code == "mask-values" else None
    return Finding(ERROR, code, file, value, error.fix or "fix or remove the file", cause)


class Findings:
    """Collects findings in bounded memory.

    Args:
        limit: how many of each cause are kept; the others are counted. 0 = all.
    """

    def __init__(self, limit: int = 20) -> None:
        self.limit = limit
        self.kept: list[Finding] = []
        self.counts: Counter[tuple[str, str]] = Counter()
        self.causes: Counter[tuple[int, str, str]] = Counter()

    def add(self, findings: Iterable[Finding]) -> None:
        for finding in findings:
            self.counts[finding.severity, finding.code] += 1
            self.causes[finding.kind] += 1
            if not self.limit or self.causes[finding.kind] <= self.limit:
                self.kept.append(finding)

    def total(self, severity: str) -> int:
        return sum(count for (kind, _), count in self.counts.items() if kind == severity)

    def ordered(self) -> list[Finding]:
        """What was kept: errors first, each code and cause together, in the order of the files."""
        return sorted(self.kept, key=lambda finding: (finding.kind, finding.file))

    def lines(self, shown: int = 1) -> list[str]:
        """A line for each cause, with one of its files and the number of the others.

        Args:
            shown: files of a cause that get a line of their own, 0 = all that were kept.
        """
        lines = []
        for kind, group in groupby(self.ordered(), key=lambda finding: finding.kind):
            findings = list(group)[: shown or None]
            lines += [finding.line() for finding in findings[:-1]]
            lines.append(findings[-1].line(self.causes[kind] - len(findings)))
        return lines
