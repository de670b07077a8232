"""A group is a name; what is told to it is seen by those who hold it.

Groups carry what is no row of a model: an object with a name for what happened to it. It
goes through the log as a delta of the model ``$group`` and so is ordered, replayed and
resumed like any other.
"""

from __future__ import annotations

from typing import Any

from syncserver.dealers.keyed import KeyedDealer
from syncserver.delta import GROUP_MODEL, Delta, InvalidDelta
from syncserver.errors import InvalidQuery

_LONGEST = 200


class GroupDealer(KeyedDealer):
    """Show what is told to a group to the items whose query is its name."""

    model = GROUP_MODEL
    key = "group"

    def parse_query(self, query: Any) -> Any:
        """Refuse what is no name of a group."""
        if not is_group(query):
            raise InvalidQuery(_NO_NAME)
        return super().parse_query(query)

    def item(self, group: str) -> dict[str, Any]:
        """Return the item of a group, as it is authorised; its tag is the group."""
        return {"dealer": self.name, "query": group, "tag": group}

    def delta(self, group: Any, type_: Any, data: Any) -> Delta:
        """Return what tells a group of an object; InvalidDelta names the param at fault."""
        if not is_group(group):
            raise InvalidDelta(_NO_NAME, field="group")
        row, bare = {"group": group, "object": data}, {"group": group}
        match type_:
            case "create":
                return Delta(self.model, None, row)
            case "update":
                return Delta(self.model, bare, row)
            case "delete":
                return Delta(self.model, row, None)
        raise InvalidDelta("type must be create, update or delete", field="type")


def is_group(name: Any) -> bool:
    """Tell whether a name is one that a group can have."""
    return isinstance(name, str) and 0 < len(name) <= _LONGEST and name.isprintable()


_NO_NAME = f"a group is a text of 1 to {_LONGEST} printable characters"
