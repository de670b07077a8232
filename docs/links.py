"""Makes every mention of a setting or a metric a link to where the reference explains it.

A name is explained where it is a term of a definition list in ``reference/``.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

Places = dict[str, tuple[str, str]]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("env-purge-doc", _forget)
    app.connect("doctree-read", _note_terms)
    app.connect("doctree-resolved", _link_mentions)
    return {"parallel_read_safe": False}


def _places(env: Any) -> Places:
    """Return page and anchor of each name."""
    if not hasattr(env, "syncserver_places"):
        env.syncserver_places = {}
    found: Places = env.syncserver_places
    return found


def _forget(app: Sphinx, env: Any, page: str) -> None:
    places = _places(env)
    for name in [name for name, (where, _) in places.items() if where == page]:
        del places[name]


def _note_terms(app: Sphinx, doctree: nodes.document) -> None:
    page = app.env.docname
    if not page.startswith("reference/"):
        return
    for term in doctree.findall(nodes.term):
        names = [one.astext() for one in term.findall(nodes.literal)]
        if not names:
            continue
        term["ids"] += map(_anchor, names)
        for name in filter(_is_unmistakable, names):
            _places(app.env)[name] = (page, _anchor(name))
        address = f"#{_anchor(names[0])}"
        term.append(nodes.reference("", "¶", refuri=address, classes=["headerlink"]))


def _link_mentions(app: Sphinx, doctree: nodes.document, page: str) -> None:
    for literal in list(doctree.findall(nodes.literal)):
        place = _places(app.env).get(literal.astext())
        if place is None or isinstance(literal.parent, nodes.term | nodes.reference):
            continue
        where, anchor = place
        address = "" if where == page else app.builder.get_relative_uri(page, where)
        link = nodes.reference("", "", refuri=f"{address}#{anchor}", internal=True)
        literal.replace_self(link)
        link += literal


def _anchor(name: str) -> str:
    return nodes.make_id(f"name-{name}")  # no heading is called so


def _is_unmistakable(name: str) -> bool:
    """Tell whether a name means the same wherever it stands."""
    return "." in name or name.startswith("syncserver_")
