"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

__all__ = ["markdown_table"]


def markdown_table(
    head: Sequence[str], body: Iterable[Sequence[str]] = (), *, right_from: int | None = None
) -> list[str]:
    """The lines of a table; the columns from ``right_from`` on end at the right."""
    rules = ["---" if right_from is None or i < right_from else "---:" for i in range(len(head))]
    return [f"| {' | '.join(line)} |" for line in (head, rules, *body)]
