"""A list of descriptors in a JSON document, one on each line and in the order of their names, searched unparsed."""

from __future__ import annotations

from dataclasses import dataclass, field

from deltareg.manifest import Descriptor, Index, parse

__all__ = ["SortedLines"]

_HEAD = b'"manifests":['
_TAIL = b"]"


@dataclass(frozen=True)
class SortedLines:
    """The descriptors in `data` from `begin` to `end`, sorted by their annotation `key`.

    That they are is not checked: it has to be known of `data`. Lines that are no descriptors are noticed only where a
    search comes to them.
    """

    data: bytes = field(repr=False)
    begin: int
    end: int
    key: str
    what: str

    @classmethod
    def of(cls, data: bytes, *, key: str, what: str) -> SortedLines | None:
        """The lines of an image index whose only line breaks stand around its manifests; None for another."""
        # No string of a JSON document holds a line break: it would be escaped.
        first, last = data.find(b"\n"), data.rfind(b"\n")
        if first == last or not data.endswith(_HEAD, 0, first) or not data.startswith(_TAIL, last + 1):
            return None
        return cls(data, first + 1, last, key, what)

    def between(self, low: str, high: str) -> list[Descriptor]:
        """Those whose names are `low` or above, and below `high`. Raises BadManifest, UnsupportedFormat."""
        lines = self.data[self._place(low) : self._place(high)].rstrip(b",\n")
        return parse(Index, b'{"schemaVersion":2,"manifests":[' + lines + b"]}", what=self.what).manifests

    def _place(self, name: str) -> int:
        """Where the first line begins whose name is not below `name`; behind the last one where all are."""
        low, high = self.begin, self.end + 1
        while low < high:
            begin = self.data.rfind(b"\n", low, (low + high) // 2) + 1 or low
            end = self.data.index(b"\n", begin)
            if self._name(begin, end) < name:
                low = end + 1
            else:
                high = begin
        return low

    def _name(self, begin: int, end: int) -> str:
        descriptor = parse(Descriptor, self.data[begin:end].rstrip(b","), what=self.what)
        return (descriptor.annotations or {}).get(self.key, "")
