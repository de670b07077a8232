"""Functions of at most 50 lines, files of at most 300: what is longer holds two thoughts."""

from __future__ import annotations

import ast
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "syncserver"
FUNCTION_LINES = 50
FILE_LINES = 300


def too_long(root: Path) -> list[str]:
    """Return the files and functions that are longer than they may be, a line for each."""
    found = []
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        text = path.read_text("utf-8")
        lines = len(text.splitlines())
        if lines > FILE_LINES:
            found.append(f"{name}: {lines} lines, at most {FILE_LINES}")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES:
                    found.append(f"{name}:{node.lineno} {node.name}: {lines} lines")
    return found


def test_functions_and_files_are_short() -> None:
    found = too_long(PACKAGE)
    assert not found, "\n".join(found)


def test_what_is_too_long_is_reported(tmp_path: Path) -> None:
    body = "    pass\n" * FUNCTION_LINES
    (tmp_path / "long.py").write_text(f"class A:\n  def f():\n{body}\n", "utf-8")
    (tmp_path / "many.py").write_text("x = 1\n" * (FILE_LINES + 1), "utf-8")
    assert too_long(tmp_path) == ["long.py:2 f: 51 lines", "many.py: 301 lines, at most 300"]
