"""Writes unicode_tables.inc from fastmtr/features/unicode_tables.py: ``python csrc/core/make_unicode_tables.py``."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

_HERE = Path(__file__).parent
_TABLES = runpy.run_path(str(_HERE.parents[1] / "fastmtr" / "features" / "unicode_tables.py"))

_HEAD = """// Unicode 14, as fastmtr/features/unicode_tables.py has it; made by make_unicode_tables.py.
"""


def _lines(entries: list[str]) -> str:
    lines, line = [], "   "
    for entry in entries:
        if len(line) + len(entry) > 118:
            lines.append(line)
            line = "   "
        line += f" {entry}"
    return "\n".join([*lines, line])


def main() -> None:
    lower = []
    for run in re.finditer(r"(\w+)(?:-(\w+))?(/2)?([+-]\w+)", _TABLES["_LOWER"]):
        first, last, alternate, shift = run.groups()
        lower.append(f"{{0x{first}, 0x{last or first}, {2 if alternate else 1}, {int(shift, 16)}}},")
    word = [f"{{0x{first}, 0x{last or first}}}," for first, last in re.findall(r"(\w+)(?:-(\w+))?", _TABLES["_WORD"])]
    text = (
        f"{_HEAD}constexpr LowerRun kLower[] = {{\n{_lines(lower)}\n}};\n"
        f"constexpr WordRun kWord[] = {{\n{_lines(word)}\n}};\n"
    )
    (_HERE / "unicode_tables.inc").write_text(text)


if __name__ == "__main__":
    main()
