"""YAML with the line of everything, read so that no document can do harm.

Nothing but plain values is made: no tag makes an object, an alias is counted as often as it is used, and depth and size
are bounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import yaml

from deltareg.errors import BadMergeConfig, translate_os_errors

__all__ = ["Node", "parse_document", "read_document", "refuse"]

_LIMIT = 1 << 18
_NODES = 20_000
_DEPTH = 32
_MERGE = "tag:yaml.org,2002:merge"
_PLAIN = ("tag:yaml.org,2002:map", "tag:yaml.org,2002:seq")


@dataclass(frozen=True)
class Node:
    """A value and its line: a scalar, a list of nodes, or a mapping of them by text keys."""

    value: Any
    line: int

    @property
    def table(self) -> Mapping[str, Node] | None:
        """The mapping, if it is one."""
        found: object = self.value
        return cast("Mapping[str, Node]", found) if isinstance(found, dict) else None

    @property
    def items(self) -> list[Node] | None:
        """The list, if it is one."""
        found: object = self.value
        return cast("list[Node]", found) if isinstance(found, list) else None

    @property
    def kind(self) -> str:
        """What it is, as people say it."""
        if self.table is not None:
            return "a mapping"
        if self.items is not None:
            return "a list"
        return "nothing" if self.value is None else repr(self.value)


def refuse(path: Path, line: int | None, reason: str, hint: str | None = None) -> BadMergeConfig:
    """The error that says what is wrong in which line."""
    place = f"{path}" if line is None else f"{path}, line {line}"
    return BadMergeConfig(f"{place}: {reason}", hint=hint, path=path, line=line, reason=reason)


def read_document(path: Path) -> tuple[str, Node]:
    """The text of a file and its one document, a mapping. Raises BadMergeConfig, NotAllowed."""
    with translate_os_errors("read the merge configuration", path):
        try:
            with path.open("rb") as file:
                data = file.read(_LIMIT + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise BadMergeConfig(f"there is no file {path}", hint="name mergekit's YAML file", path=path) from error
    if len(data) > _LIMIT:
        raise refuse(path, None, f"it is larger than {_LIMIT} bytes: no merge configuration")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise refuse(path, line, "it is no text in UTF-8") from error
    return text, parse_document(text, path)


def parse_document(text: str, path: Path) -> Node:
    """The one document of a YAML text. Raises BadMergeConfig with the line."""
    try:
        loader: Any = yaml.SafeLoader(text)
        return _Reader(path, loader).document()
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else mark.line + 1
        if error.problem == "but found another document":
            raise refuse(path, line, "a second document begins", "make a file of each") from error
        said = error.problem or error.context or "it cannot be read"
        raise refuse(path, line, f"this is not valid YAML: {said}") from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise refuse(path, line, f"this is not valid YAML: {error.reason}") from error
    except RecursionError as error:
        raise refuse(path, None, f"it is nested deeper than {_DEPTH} levels") from error


class _Reader:
    """Makes nodes with lines of those that PyYAML composes."""

    def __init__(self, path: Path, loader: Any) -> None:
        self._path = path
        self._loader = loader
        self._left = _NODES

    def document(self) -> Node:
        root = self._loader.get_single_node()
        if root is None:
            raise refuse(self._path, None, "it is empty")
        found = self._node(root, root.start_mark.line + 1, 0)
        if found.table is None:
            raise refuse(self._path, found.line, f"it is {found.kind}, not a mapping")
        if not found.table:
            raise refuse(self._path, found.line, "it is empty")
        return found

    def _node(self, node: Any, line: int, depth: int) -> Node:
        self._left -= 1
        if self._left < 0:
            raise refuse(self._path, line, f"its aliases expand to more than {_NODES} values")
        if depth > _DEPTH:
            raise refuse(self._path, line, f"it is nested deeper than {_DEPTH} levels")
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _PLAIN:
            raise refuse(self._path, line, f"{node.tag!r:.80} is a tag, and no configuration has any")
        if isinstance(node, yaml.MappingNode):
            return Node(self._mapping(node, depth), line)
        if isinstance(node, yaml.SequenceNode):
            items: list[Any] = node.value
            return Node([self._node(item, item.start_mark.line + 1, depth + 1) for item in items], line)
        return Node(self._scalar(node), line)

    def _mapping(self, node: yaml.MappingNode, depth: int) -> dict[str, Node]:
        found: dict[str, Node] = {}
        pairs: list[tuple[Any, Any]] = node.value
        for key, value in pairs:
            line = key.start_mark.line + 1
            if key.tag == _MERGE:
                raise refuse(self._path, line, "merge keys (<<) are not read", "write the keys out")
            name = self._scalar(key) if isinstance(key, yaml.ScalarNode) else None
            if not isinstance(name, str):
                raise refuse(self._path, line, "a key is no text", "put it in quotation marks")
            if name in found:
                raise refuse(self._path, line, f"the key {name} occurs twice, in line {found[name].line} before")
            found[name] = self._node(value, line, depth + 1)
        return found

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            return self._loader.construct_object(node)
        except (ValueError, OverflowError) as error:  # more digits than Python takes, no such day
            raise refuse(self._path, node.start_mark.line + 1, f"{node.value!r:.40} is no value: {error}") from error
