"""Bytes on each path, over all links of a mount."""

from collections import Counter

from fusemirror.channel.link import Link
from fusemirror.channel.session import Session

_COUNTERS = ("sent_bytes", "received_bytes", "sent_data_bytes", "received_data_bytes")


class Traffic:
    """Counts of links that have ended; `of_paths` adds those of the one that lives."""

    def __init__(self) -> None:
        self._ended: dict[str, Counter[str]] = {"mirror": Counter(), "forward": Counter()}

    def end(self, link: Link) -> None:
        """Keep the counts of a link that is over. Called once per link."""
        for session in (link.mirror, link.forward):
            self._ended[session.path].update(_counts(session))

    def of_paths(self, link: Link | None) -> dict[str, dict[str, int]]:
        """`paths` of `fusemirror status`."""
        totals = {path: Counter(counts) for path, counts in self._ended.items()}
        for session in (link.mirror, link.forward) if link is not None else ():
            totals[session.path].update(_counts(session))
        return {path: {name: counts[name] for name in _COUNTERS} for path, counts in totals.items()}


def _counts(session: Session) -> dict[str, int]:
    return {name: getattr(session.counters, name) for name in _COUNTERS}
