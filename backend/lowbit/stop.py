"""Stop strings in a stream of text: found across any borders, removed exactly, no more held back than could be one.

The text ends before the stop string that is complete first; where two are complete at the same character, before the
one that starts first. This does not depend on how the text arrives in pieces.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence


class StopMatcher:
    """Cuts a stream of text at the first of some stop strings (taken literally, each at least one character).

    whole: where given, a stop string counts only if the text before it (from the beginning) is whole by this function.
    """

    def __init__(self, stops: Sequence[str], whole: Callable[[str], bool] | None = None) -> None:
        self._stops = tuple(stops)
        self._whole = whole
        self._given: list[str] = []  # what was returned so far, where `whole` needs it
        self._held = ""  # the end of the text so far, as much of it as could begin a stop
        self.stopped = False

    def push(self, text: str) -> str:
        """Returns the text that now certainly belongs to the answer; sets `stopped` when a stop string is complete."""
        if self.stopped or not text:
            return ""
        text = self._held + text
        self._held = ""
        cut = find_first(text, self._stops) if self._whole is None else self._first_behind_whole(text)
        if cut is not None:
            self.stopped = True
            return text[:cut]
        held = self._open_length(text)
        self._held = text[len(text) - held :]
        certain = text[: len(text) - held]
        if self._whole is not None:
            self._given.append(certain)
        return certain

    def _first_behind_whole(self, text: str) -> int | None:
        assert self._whole is not None
        found = sorted((start + len(stop), start) for stop in self._stops for start in _occurrences(text, stop))
        before = "".join(self._given) if found else ""
        return next((start for _, start in found if self._whole(before + text[:start])), None)

    def flush(self) -> str:
        """Returns what was held back, when the text has ended without completing a stop string."""
        text, self._held = self._held, ""
        return text

    def _open_length(self, text: str) -> int:
        """The longest end of the text that begins, but does not complete, a stop string."""
        longest = max((len(stop) for stop in self._stops), default=0) - 1
        for length in range(min(longest, len(text)), 0, -1):
            end = text[-length:]
            if any(len(stop) > length and stop.startswith(end) for stop in self._stops):
                return length
        return 0


def _occurrences(text: str, stop: str) -> Iterator[int]:
    start = text.find(stop)
    while start >= 0:
        yield start
        start = text.find(stop, start + 1)


def find_first(text: str, stops: Sequence[str]) -> int | None:
    """Returns where to cut a text: the start of the stop that ends first (of equal ends the longest), or None."""
    ends = []
    for stop in stops:
        start = text.find(stop)
        if start >= 0:
            ends.append((start + len(stop), start))
    return min(ends)[1] if ends else None
