"""The public face: few names, all of them there, all of them explained."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "syncserver"


Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def definitions(holder: ast.Module | ast.ClassDef) -> Iterator[Definition]:
    """Give the public classes, functions or methods of a module or class."""
    for node in holder.body:
        if isinstance(node, Definition) and not node.name.startswith("_"):
            yield node


def unexplained(trees: Mapping[str, ast.Module]) -> list[str]:
    """Name what is public and has no docstring, its own or that of what it overrides."""
    classes = {
        node.name: node
        for tree in trees.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }

    def inherited(holder: ast.ClassDef, method: str) -> bool:
        bases = [classes[base.id] for base in holder.bases if getattr(base, "id", "") in classes]
        return any(explains(base, method) or inherited(base, method) for base in bases)

    def explains(holder: ast.ClassDef, method: str) -> bool:
        return any(
            node.name == method and ast.get_docstring(node) is not None
            for node in definitions(holder)
        )

    def missing(holder: ast.Module | ast.ClassDef, prefix: str) -> Iterator[str]:
        for node in definitions(holder):
            own = ast.get_docstring(node) is not None
            if not own and not (isinstance(holder, ast.ClassDef) and inherited(holder, node.name)):
                yield prefix + node.name
            if isinstance(node, ast.ClassDef):
                yield from missing(node, f"{prefix}{node.name}.")

    return sorted(line for name, tree in trees.items() for line in missing(tree, f"{name}: "))


def test_every_exported_name_exists() -> None:
    import syncserver

    assert len(set(syncserver.__all__)) == len(syncserver.__all__)
    assert [name for name in syncserver.__all__ if not hasattr(syncserver, name)] == []


def test_fewer_than_25_names_are_exported() -> None:
    import syncserver

    assert len(syncserver.__all__) < 25


def test_every_public_class_and_method_is_explained() -> None:
    trees = {
        path.relative_to(PACKAGE).as_posix(): ast.parse(path.read_text("utf-8"))
        for path in PACKAGE.rglob("*.py")
    }
    found = unexplained(trees)
    assert not found, "\n".join(found)


def test_what_is_unexplained_is_reported() -> None:
    base = '''
class Told:
    """Here."""
    def told(self):
        """Here."""
    def bare(self): ...
    async def bare_too(self): ...
    def _private(self): ...
class _Private:
    def bare(self): ...
def bare(): ...
'''
    heir = '''
class Heir(Told):
    """Here."""
    def told(self): ...
    def bare(self): ...
class Bare(Heir):
    def told(self): ...
'''
    assert unexplained({"base": ast.parse(base), "heir": ast.parse(heir)}) == [
        "base: Told.bare",
        "base: Told.bare_too",
        "base: bare",
        "heir: Bare",
        "heir: Heir.bare",
    ]
