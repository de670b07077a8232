"""The reference pages name what the code has, all of it and nothing else.

Each test compares two sets, so that a name missing on either side fails it.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from syncserver import cli
from syncserver.config import Backend, Config
from syncserver.errors import CloseCode, RefetchReason
from syncserver.metrics.measures import METRICS, PREFIX, REFUSALS

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"

# Fields of the settings that no file can set: they say where something was found.
NOT_SETTABLE = {(Config, "source"), (Config, "given"), (Backend, "key_file")}
MOST_COLUMNS = 110
# What stands for the name of the user's own in a term of the reference.
OWN_NAMES = {"models": "NAME", "services": "NAME", "dealers": "DEALER", "protocols": "NAME"}


def page(name: str) -> str:
    return (REFERENCE / name).read_text("utf-8")


def section(text: str, title: str) -> str:
    """Return what stands below a heading, up to the next one."""
    _, _, rest = text.partition(f"\n{title}\n{'-' * len(title)}\n")
    assert rest, f"no section {title!r}"
    return re.split(r"\n[^\n]+\n-{3,}\n", rest)[0]


def terms(text: str) -> dict[str, str]:
    """Return the terms of the definition lists, with what is said of them."""
    found = re.findall(r"^((?:``[^`\n]+``(?:, )?)+)\n((?:    .*\n|\n)+)", text, re.MULTILINE)
    return {
        term: " ".join(said.split())
        for names, said in found
        for term in re.findall(r"``([^`]+)``", names)
    }


def first_column(table: str) -> dict[str, str]:
    """Return the rows of a table by the literal that stands first in them."""
    return dict(re.findall(r"^``([^`]+)``\s*(.*)$", table, re.MULTILINE))


def settings(kind: type, prefix: str = "") -> Iterator[tuple[str, dataclasses.Field[Any]]]:
    """Give every setting below a dataclass by its dotted name."""
    hints = get_type_hints(kind)
    for one in dataclasses.fields(kind):
        name, hint = prefix + one.name, hints[one.name]
        if (kind, one.name) in NOT_SETTABLE:
            continue
        if dataclasses.is_dataclass(hint):
            yield from settings(hint, f"{name}.")
        elif get_origin(hint) is Mapping:
            yield from settings(get_args(hint)[1], f"{name}.{OWN_NAMES[one.name]}.")
        else:
            yield name, one


def flags(parser: argparse.ArgumentParser) -> Iterator[str]:
    for action in parser._actions:
        for flag in action.option_strings:
            if flag.startswith("--"):
                yield f"{flag} {action.metavar}" if action.metavar else flag


def commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    (choices,) = (a.choices for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    return dict(choices)


def error_codes(tree: ast.AST) -> Iterator[str]:
    """Give the error codes that a module names.

    ``code = "..."`` in a class, ``code="..."`` in a call or as the default of a
    parameter, and the values of a table ``_CODES``.
    """
    for node in ast.walk(tree):
        match node:
            case ast.ClassDef():
                yield from _texts(_value_of(node.body, "code"))
            case ast.Module():
                table = _value_of(node.body, "_CODES")
                yield from _texts(*table.values if isinstance(table, ast.Dict) else ())
            case ast.Call():
                yield from _texts(*(k.value for k in node.keywords if k.arg == "code"))
            case ast.arguments():
                named = zip(node.kwonlyargs, node.kw_defaults, strict=True)
                yield from _texts(*(default for arg, default in named if arg.arg == "code"))


def _value_of(body: list[ast.stmt], name: str) -> ast.expr | None:
    for statement in body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=found)]) if found == name:
                return statement.value
            case ast.AnnAssign(target=ast.Name(id=found)) if found == name:
                return statement.value
    return None


def _texts(*nodes: ast.expr | None) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def sources() -> Iterator[ast.Module]:
    for path in sorted((ROOT / "syncserver").rglob("*.py")):
        yield ast.parse(path.read_text("utf-8"))


def test_every_setting_is_in_the_reference() -> None:
    assert set(terms(page("settings.rst"))) == {name for name, _ in settings(Config)}


def test_no_page_names_a_setting_that_is_not_there() -> None:
    known = {name for name, _ in settings(Config)}
    sections = "|".join({name.partition(".")[0] for name in known if "." in name})
    named = re.compile(rf"``((?!log\.db)(?:{sections})\.[a-zA-Z_.]+)``")
    pages = [*(ROOT / "docs").rglob("*.rst"), ROOT / "README.rst"]
    found = {name: path.name for path in pages for name in named.findall(path.read_text("utf-8"))}
    assert len(found) > len(known) / 2
    assert {name: where for name, where in found.items() if name not in known} == {}


def test_the_reference_has_the_defaults() -> None:
    said = terms(page("settings.rst"))
    wrong = []
    for name, one in settings(Config):
        if isinstance(one.default, bool | int | float | str):
            default = f"default ``{json.dumps(one.default)}``"
        elif one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
            default = "Required"
        else:
            continue
        if default not in said[name]:
            wrong.append(f"{name}: {default}")
    assert wrong == []


def test_every_command_and_flag_is_in_the_reference() -> None:
    parser = cli._parser()
    expected = set(flags(parser))
    for name, command in commands(parser).items():
        expected.add(f"syncserver {name}")
        expected |= {f"{name} {flag}" for flag in flags(command) if flag != "--help"}
    variables = set(terms(section(page("commands.rst"), "Environment")))
    assert set(terms(page("commands.rst"))) - variables == expected


def test_every_error_code_is_in_the_reference() -> None:
    used = {code for tree in sources() for code in error_codes(tree)}
    assert set(first_column(section(page("codes.rst"), "Error codes"))) == used


def test_every_close_code_is_in_the_reference() -> None:
    table = first_column(section(page("codes.rst"), "Close codes"))
    named = {int(number): re.findall("``([A-Z_]+)``", row)[0] for number, row in table.items()}
    assert named == {code.value: code.name for code in CloseCode}


def test_the_reference_says_which_close_codes_nobody_sends_yet() -> None:
    said = " ".join(section(page("codes.rst"), "Close codes").split())
    kept = said.partition("nothing sends them yet:")[2]
    sent = {
        node.attr
        for tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "CloseCode"
    }
    by_tornado = {"GOING_AWAY", "MESSAGE_TOO_BIG"}
    unsent = {code.value for code in CloseCode if code.name not in sent | by_tornado}
    assert {int(number) for number in re.findall(r"\d{4}", kept.partition(".")[0])} == unsent


def test_every_reason_to_fetch_again_is_in_the_reference() -> None:
    reasons = first_column(section(page("wire.rst"), "Reasons to fetch again"))
    assert set(reasons) == {reason.value for reason in RefetchReason}
    assert all(reasons.values()), "each with why"


def test_every_metric_is_in_the_reference_with_its_kind_and_labels() -> None:
    said = terms(page("metrics.rst"))
    assert set(said) == {PREFIX + name for name in METRICS}
    for name, metric in METRICS.items():
        text = said[PREFIX + name]
        assert text.lower().startswith(metric.kind), name
        missing = [label for label in metric.labels if f"``{label}``" not in text]
        assert not missing, (name, missing)
    reasons = said[PREFIX + "connections_refused_total"].partition("``reason``")[2]
    assert set(re.findall("``([a-z]+)``", reasons)) == set(REFUSALS)


def test_every_module_and_package_is_on_the_page_that_walks_through_them() -> None:
    text = (ROOT / "docs" / "explanation" / "way-of-a-delta.rst").read_text("utf-8")
    floors = text.partition("\nFloors\n")[2].partition("\nOn the way in\n")[0]
    package = ROOT / "syncserver"
    modules = {path.name for path in package.glob("*.py") if not path.name.startswith("__")}
    packages = {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert set(re.findall(r"``([a-z_]+(?:\.py|/))``", floors)) == modules | packages


def test_every_file_that_the_page_walks_past_is_there() -> None:
    text = (ROOT / "docs" / "explanation" / "way-of-a-delta.rst").read_text("utf-8")
    named = set(re.findall(r"\b[a-z_]+(?:/[a-z_]+)*\.py\b", text)) - {"tests/test_floors.py"}
    assert len(named) > 40
    assert [name for name in sorted(named) if not (ROOT / "syncserver" / name).is_file()] == []


def test_the_lines_of_the_log_that_a_page_shows_are_written_by_the_code() -> None:
    text = (ROOT / "docs" / "howto" / "troubleshoot.rst").read_text("utf-8")
    shown = re.findall(r"INFO (syncserver\.[a-z]+): (Refused a [a-z ]+?) (?:'|\d)", text)
    code = [path.read_text("utf-8") for path in (ROOT / "syncserver").rglob("*.py")]
    assert len(shown) == 2
    for logger, words in shown:
        assert any(f'getLogger("{logger}")' in one and f'"{words} %' in one for one in code), words


def prose(text: str) -> Iterator[str]:
    """Give the lines that can be broken: not what stands in a directive, a table, or as a term."""
    within: int | None = None
    for line in text.splitlines():
        indent = len(line) - len(line.lstrip())
        if within is not None and (indent > within or not line.strip()):
            continue
        within = indent if line.endswith("::") else None
        if not re.match(r"\s*(``[^`]+``(,|\s\s|$)|==|\.\. )", line) and "   " not in line.strip():
            yield line


def test_lines_of_prose_can_be_read_in_a_diff() -> None:
    pages = [
        *(ROOT / "docs").rglob("*.rst"),
        *(ROOT / "demos").glob("*/*.rst"),
        ROOT / "README.rst",
    ]
    lines = [(page.name, line) for page in pages for line in prose(page.read_text("utf-8"))]
    assert len(lines) > 2000
    assert [(name, line) for name, line in lines if len(line) > MOST_COLUMNS] == []


def test_error_codes_are_found_wherever_they_stand() -> None:
    source = """
_CODES = {401: "in_a_table", 402: other}
class A:
    code = "in_a_class"
class B:
    code: ClassVar[str] = "annotated"
    def f(self, *, code: str = "a_default", reason="not_this", other=None):
        raise RPCError("not this", code="in_a_call", field="nor_this") from unknown(code=code)
"""
    assert set(error_codes(ast.parse(source))) == {
        "in_a_table",
        "in_a_class",
        "annotated",
        "a_default",
        "in_a_call",
    }


def test_terms_are_read_from_definition_lists_alone() -> None:
    text = "Page\n====\n\n``a.b``\n    Said of\n    it.\n\n``A``, ``B``\n    Both.\n\n``no`` term\n"
    assert terms(text) == {"a.b": "Said of it.", "A": "Both.", "B": "Both."}
