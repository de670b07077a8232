"""A file of the package imports only from the floors below it.

Tornado is met from the handlers up, redis in its engine's files and prometheus_client in
``exposition`` alone.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "syncserver"

# A name that ends in "/" is a package: all its modules live on that floor.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("errors", "version"),
    (
        "apikeys",
        "canonical",
        "counters",
        "delta",
        "logs",
        "position",
        "strict_json",
        "tls",
    ),
    ("config",),
    ("configuration/",),
    ("filters", "matching/"),
    ("dealers/", "engines/", "protocols/"),
    ("admission/",),
    ("client", "flusher", "session", "siblings", "stream", "tail", "tasks", "timers", "transport"),
    ("announcing", "publishing"),
    ("rowsync/",),
    ("services/",),
    ("registry",),
    ("handlers/",),
    ("doors",),
    ("metrics/", "process/"),
    ("server",),
    ("app", "running"),
    ("commands/",),
    ("cli", "__main__"),
)
FLOOR_OF = {name: number for number, floor in enumerate(FLOORS) for name in floor}

# Two files of one floor, of which the first stands on the second.
STANDS_ON = {
    ("__main__", "cli"),
    ("admission.accepting", "admission.bucket"),  # what may come by when
    ("admission.addresses", "admission.bucket"),
    ("admission.gate", "admission.addresses"),
    ("admission.gate", "admission.bucket"),
    ("commands.tail", "commands.tailing"),
    ("configuration.doors", "configuration.table"),
    ("configuration.file", "configuration.doors"),
    ("configuration.file", "configuration.keys"),  # and keys from their files
    ("configuration.file", "configuration.overrides"),  # after the environment was laid over it
    ("configuration.file", "configuration.table"),  # a table at a time
    ("configuration.file", "configuration.toml"),
    ("configuration.keys", "configuration.table"),  # the list of them is checked as all else is
    ("configuration.lines", "configuration.toml"),
    ("configuration.overrides", "configuration.table"),
    ("configuration.overrides", "configuration.toml"),
    ("configuration.table", "configuration.lines"),
    ("dealers.filter", "dealers.index"),
    ("dealers.group", "dealers.keyed"),  # a group is a key
    ("dealers.index", "dealers.pins"),
    ("dealers.pins", "dealers.intervals"),
    ("engines.memory", "engines.memory_grants"),
    ("engines.redis", "engines.redis_appends"),
    ("engines.redis", "engines.redis_flights"),
    ("engines.redis", "engines.redis_grants"),
    ("engines.redis", "engines.redis_link"),
    ("engines.redis", "engines.redis_nodes"),
    ("engines.redis", "engines.redis_reader"),
    ("engines.redis", "engines.redis_scripts"),
    ("engines.redis_appends", "engines.redis_flights"),
    ("engines.redis_appends", "engines.redis_link"),
    ("engines.redis_appends", "engines.redis_scripts"),
    ("engines.redis_flights", "engines.redis_link"),
    ("engines.redis_flights", "engines.redis_scripts"),
    ("engines.redis_grants", "engines.redis_scripts"),
    ("engines.redis_link", "engines.redis_grants"),
    ("engines.redis_link", "engines.redis_patience"),
    ("engines.redis_link", "engines.redis_scripts"),
    ("engines.redis_nodes", "engines.redis_flights"),
    ("engines.redis_nodes", "engines.redis_scripts"),
    ("engines.redis_reader", "engines.redis_link"),
    ("engines.sqlite", "engines.sqlite_file"),
    ("engines.sqlite", "engines.sqlite_reader"),
    ("engines.sqlite", "engines.sqlite_store"),
    ("engines.sqlite", "engines.sqlite_writer"),
    ("engines.sqlite_reader", "engines.sqlite_file"),
    ("engines.sqlite_store", "engines.sqlite_file"),
    ("engines.sqlite_store", "engines.sqlite_grants"),
    ("engines.sqlite_writer", "engines.sqlite_file"),
    ("engines.sqlite_writer", "engines.sqlite_store"),
    ("filters", "matching.comparisons"),  # a filter is made of them
    ("handlers.backend", "handlers.caller"),
    ("handlers.connection", "handlers.frames"),
    ("handlers.events", "handlers.eventstream"),  # a handler opens, its stream sends
    ("handlers.outlet", "handlers.connection"),  # a connection, and two ways for its bytes
    ("handlers.proxied", "handlers.paced"),  # too many of whoever the proxy names
    ("handlers.sockjs", "handlers.sockjs_http"),
    ("handlers.sockjs", "handlers.sockjs_polling"),
    ("handlers.sockjs", "handlers.sockjs_sending"),
    ("handlers.sockjs", "handlers.sockjs_table"),
    ("handlers.sockjs", "handlers.sockjs_websocket"),
    ("handlers.sockjs_http", "handlers.sockjs_relay"),
    ("handlers.sockjs_http", "handlers.sockjs_table"),  # where it is mounted, they are kept
    ("handlers.sockjs_polling", "handlers.sockjs_framing"),
    ("handlers.sockjs_polling", "handlers.sockjs_http"),
    ("handlers.sockjs_polling", "handlers.sockjs_session"),
    ("handlers.sockjs_sending", "handlers.sockjs_framing"),
    ("handlers.sockjs_sending", "handlers.sockjs_http"),
    ("handlers.sockjs_sending", "handlers.sockjs_session"),
    ("handlers.sockjs_session", "handlers.sockjs_framing"),
    ("handlers.sockjs_table", "handlers.sockjs_session"),
    ("handlers.sockjs_websocket", "handlers.connection"),
    ("handlers.sockjs_websocket", "handlers.frames"),
    ("handlers.sockjs_websocket", "handlers.sockjs_framing"),
    ("handlers.sockjs_websocket", "handlers.sockjs_session"),
    ("handlers.sockjs_websocket", "handlers.websocket"),  # one more way to open the same
    ("handlers.websocket", "handlers.connection"),
    ("handlers.websocket", "handlers.outlet"),
    ("matching.terms", "matching.cells"),
    ("matching.terms", "matching.comparisons"),
    ("matching.ways", "filters"),
    ("matching.ways", "matching.cells"),
    ("matching.ways", "matching.comparisons"),
    ("matching.ways", "matching.terms"),
    ("metrics.exposition", "metrics.measures"),
    ("metrics.gathering", "metrics.looplag"),
    ("metrics.gathering", "metrics.measures"),
    ("metrics.gathering", "process.pressure"),
    ("metrics.measures", "process.memory"),
    ("metrics.measures", "process.pressure"),
    ("process.pressure", "process.memory"),
    ("process.pulse", "process.notify"),  # in whose words it is told
    ("process.workers", "process.notify"),
    ("process.workers", "process.pulse"),
    ("protocols.events", "protocols.native"),  # the same messages, framed otherwise
    ("rowsync.batchframes", "rowsync.views"),  # what they see of a batch is made into frames
    ("rowsync.delivery", "rowsync.batchframes"),
    ("rowsync.delivery", "rowsync.peers"),
    ("rowsync.delivery", "rowsync.views"),
    ("rowsync.ending", "rowsync.claims"),
    ("rowsync.ending", "rowsync.peers"),
    ("rowsync.ending", "rowsync.views"),
    ("rowsync.joining", "rowsync.batchframes"),
    ("rowsync.joining", "rowsync.entries"),  # what the log holds
    ("rowsync.joining", "rowsync.peers"),
    ("rowsync.joining", "rowsync.views"),
    ("rowsync.peers", "rowsync.views"),  # a subscription is attached to views
    ("rowsync.reorder", "rowsync.entries"),
    ("rowsync.subscriptions", "rowsync.claims"),
    ("rowsync.subscriptions", "rowsync.delivery"),
    ("rowsync.subscriptions", "rowsync.ending"),
    ("rowsync.subscriptions", "rowsync.entries"),
    ("rowsync.subscriptions", "rowsync.grants"),
    ("rowsync.subscriptions", "rowsync.joining"),
    ("rowsync.subscriptions", "rowsync.peers"),
    ("rowsync.subscriptions", "rowsync.views"),
    ("rowsync.tickets", "rowsync.claims"),  # a token that is taken
    ("rowsync.tickets", "rowsync.grants"),
    ("rowsync.views", "rowsync.grants"),  # what a grant is for
    ("running", "app"),
    ("services.application", "services.datasync"),  # what it allows is carried there
    ("session", "client"),  # a session is one
    ("session", "flusher"),
    ("session", "transport"),
    ("stream", "tail"),
}

FOREIGN = {
    "tornado": lambda module: floor_of(module) >= FLOOR_OF["handlers/"],
    "redis": lambda module: re.fullmatch(r"engines\.redis(_[a-z]+)?", module) is not None,
    "prometheus_client": lambda module: module == "metrics.exposition",
}


NOWHERE = len(FLOORS)


def floor_of(module: str) -> int:
    """Return the floor of a module, named as in ``dealers.base``; NOWHERE if the table has none."""
    package = module.partition(".")[0] + "/"
    return FLOOR_OF.get(package, FLOOR_OF.get(module, NOWHERE))


def modules(root: Path) -> dict[str, Path]:
    """Return the files of a package by module name; ``""`` is the package itself."""
    found = {}
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(module: str, path: Path, known: set[str]) -> Iterator[tuple[int, str]]:
    """Give line and full name of everything that a file imports, at whatever depth it does so."""
    here = ["syncserver", *module.split(".")]
    is_package = path.name == "__init__.py"
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name) for alias in node.names)
            case ast.ImportFrom():
                up = node.level - is_package
                base = here[: len(here) - up] if node.level else []
                source = ".".join([*base, *filter(None, [node.module])])
                for alias in node.names:
                    whole = f"{source}.{alias.name}"
                    is_module = whole.removeprefix("syncserver.") in known
                    yield node.lineno, whole if is_module else source


def may_import(module: str, other: str) -> bool:
    """Say whether one module of the package may import another."""
    package, _, name = other.partition(".")
    if module.partition(".")[0] == package and package + "/" in FLOOR_OF:
        # Within a package: everyone its base; its __init__ what it re-exports.
        return name == "base" or "." not in module or (module, other) in STANDS_ON
    return floor_of(other) < floor_of(module) or (module, other) in STANDS_ON


def breaches(root: Path) -> list[str]:
    """Return what is wrong with the imports of a package, a line for each."""
    found = []
    files = modules(root)
    for module, path in files.items():
        if not module:  # the package's own __init__ re-exports from every floor
            continue
        if floor_of(module) == NOWHERE:
            found.append(f"{module}: on no floor; give it one in FLOORS")
        for line, name in sorted(set(imports(module, path, set(files)))):
            top, _, other = name.partition(".")
            where = f"{module}:{line} imports {name}"
            if top in FOREIGN and not FOREIGN[top](module):
                found.append(where)
            elif top == "syncserver":
                if not other:
                    found.append(f"{where}: the top of the house; name the module")
                elif not may_import(module, other):
                    found.append(where)
    return found


def test_imports_run_downwards() -> None:
    found = breaches(PACKAGE)
    assert not found, "\n".join(found)


def build(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, "utf-8")
    return root


SOUND = {
    "__init__.py": "from syncserver.app import App",
    "errors.py": "import enum",
    "delta.py": "from syncserver.errors import SyncError\nfrom . import errors",
    "config.py": "",
    "configuration/file.py": "from syncserver.config import Limits",
    "dealers/__init__.py": "from syncserver.dealers.keyed import KeyedDealer",
    "dealers/base.py": "from syncserver import delta",
    "dealers/keyed.py": "from .base import Dealer\nfrom ..delta import Delta",
    "engines/__init__.py": "",
    "engines/redis.py": "import redis.asyncio",
    "engines/redis_store.py": "import redis.asyncio",
    "rowsync/views.py": "from syncserver.dealers import KeyedDealer",
    "handlers/__init__.py": "",
    "handlers/websocket.py": "from tornado import web\nimport tornado.ioloop",
    "app.py": "from syncserver.handlers import websocket",
}


def test_a_sound_tree_passes(tmp_path: Path) -> None:
    assert breaches(build(tmp_path, SOUND)) == []


@pytest.mark.parametrize(
    ("name", "text", "breach"),
    [
        ("delta.py", "from syncserver.dealers.base import Dealer", "syncserver.dealers.base"),
        ("delta.py", "from syncserver import config", "syncserver.config"),
        ("delta.py", "import syncserver.config", "syncserver.config"),
        ("errors.py", "def f():\n    from .app import App", "syncserver.app"),
        (
            "config.py",
            "from syncserver.configuration.file import read",
            "syncserver.configuration.file",
        ),
        ("dealers/keyed.py", "from syncserver.engines import base", "syncserver.engines"),
        ("dealers/keyed.py", "from . import KeyedDealer", "syncserver.dealers"),
        ("dealers/base.py", "from .keyed import KeyedDealer", "syncserver.dealers.keyed"),
        ("handlers/websocket.py", "from syncserver import App", "syncserver: the top"),
        ("rowsync/views.py", "from tornado.ioloop import IOLoop", "tornado.ioloop"),
        ("dealers/base.py", "if TYPE_CHECKING:\n    import tornado", "tornado"),
        ("handlers/websocket.py", "import redis", "redis"),
        ("engines/memory.py", "import redis", "redis"),
        ("rowsync/views.py", "import prometheus_client.core", "prometheus_client"),
        ("stray.py", "", "on no floor"),
        ("delta.py", "from syncserver.rowsync import views as v", "syncserver.rowsync.views"),
    ],
)
def test_a_breach_is_reported(tmp_path: Path, name: str, text: str, breach: str) -> None:
    found = breaches(build(tmp_path, SOUND | {name: text}))
    assert len(found) == 1
    assert breach in found[0]
    assert found[0].startswith(name.removesuffix(".py").replace("/", "."))
