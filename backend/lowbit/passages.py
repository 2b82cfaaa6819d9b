"""Files of passages: JSON lines or plain lines, read one at a time. Knows no model.

A bad line is an error that names the file, the line and what is wrong with it: a corpus with a hole in it would be
noticed much later, as a wrong answer.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowbit.runtime import nearest

IDS = ("id", "_id")  # entries of a JSON line that name the passage
KINDS = (".jsonl", ".ndjson", ".txt")


@dataclass(frozen=True, slots=True)
class Passage:
    """A text to be found, its name, and what else is known of it (JSON-ready)."""

    text: str
    id: str
    metadata: dict[str, Any] = field(default_factory=dict)


class PassageFile:
    """The passages of a file, in order; can be iterated more than once.

    path: `.jsonl` or `.ndjson`, an object a line, or `.txt`, a passage a line; empty lines are passed over. fields: the
    entries that make the text, joined by a blank; "id" or "_id" becomes the id (otherwise the number of the line), all
    others become metadata. A `.txt` passage has the file's name and the line in its metadata.

    Raises FileNotFoundError, and ValueError for another kind of file; while iterating, ValueError for a bad line.

    >>> passages = PassageFile("articles.jsonl", ["title", "text"])  # doctest: +SKIP
    """

    def __init__(self, path: str | os.PathLike, fields: Sequence[str] = ("text",)) -> None:
        self.path = Path(path).expanduser()
        self.fields = tuple(fields)
        if not self.path.is_file():
            raise FileNotFoundError(f"no file {self.path}; give a .jsonl or .txt file of passages")
        if self.path.suffix.lower() not in KINDS:
            raise ValueError(f"{self.path} is none of {', '.join(KINDS)}; give a JSON object or a passage on each line")
        self._is_json = self.path.suffix.lower() != ".txt"
        if not self._is_json and self.fields != ("text",):
            raise ValueError(f"{self.path} has a passage a line and no fields; give a .jsonl file, or no field names")

    @property
    def about(self) -> dict[str, Any]:
        """What identifies the file, JSON-ready: its name, its size in bytes and the fields that are read."""
        return {"file": self.path.name, "bytes": self.path.stat().st_size, "fields": list(self.fields)}

    def __len__(self) -> int:
        with self.path.open("rb") as lines:
            return sum(1 for line in lines if not line.isspace())

    def __iter__(self) -> Iterator[Passage]:
        with self.path.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                if not line.isspace():
                    yield self._passage(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, number)

    def _passage(self, line: bytes, number: int) -> Passage:
        where = f"{self.path}, line {number}"
        try:
            text = line.decode("utf-8").strip("\r\n")
        except UnicodeDecodeError as error:
            raise ValueError(f"{where} is not UTF-8 ({error.reason} at byte {error.start}); convert the file") from None
        if not self._is_json:
            return Passage(text, str(number), {"source": self.path.name, "line": number})
        try:
            entries = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{where} is not JSON: {error}") from None
        if not isinstance(entries, dict):
            raise ValueError(f"{where} holds a {type(entries).__name__}, not an object with a field {self.fields[0]!r}")
        parts = [self._part(entries, name, where) for name in self.fields]
        own = next((entries[name] for name in IDS if entries.get(name) is not None), number)
        if isinstance(own, bool) or not isinstance(own, (str, int)):
            raise ValueError(f"{where}: the id is a {type(own).__name__}, it must be a string or a whole number")
        rest = {name: value for name, value in entries.items() if name not in (*self.fields, *IDS)}
        return Passage(" ".join(part for part in parts if part), str(own), rest)

    def _part(self, entries: dict[str, Any], name: str, where: str) -> str:
        if name not in entries:
            known = ", ".join(repr(entry) for entry in entries) or "none"
            raise ValueError(f"{where} has no field {name!r}{nearest(name, entries)} It has {known}; name another")
        if not isinstance(entries[name], str):
            raise ValueError(f"{where}: the field {name!r} is a {type(entries[name]).__name__}, it must be a string")
        return str(entries[name])
