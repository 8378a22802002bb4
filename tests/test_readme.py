"""The README's examples, as they stand there."""

from __future__ import annotations

import re
from pathlib import Path

README = Path(__file__).parents[1] / "README.md"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), re.DOTALL)


def test_python_examples_run(capsys):
    (code,) = blocks("python")
    exec(compile(code, str(README), "exec"), {})
    assert "Ranking: 5 items for user" in capsys.readouterr().out


def test_commands_exist():
    from fastmtr.command_line import command_line

    parser = command_line()
    (commands,) = (block for block in blocks("sh") if block.startswith("fastmtr "))
    for line in commands.splitlines():
        parser.parse_args(line.split()[1:])
