"""What a witness does: it keeps one record for each filesystem, and swaps it for another, whole or not."""

from abc import ABC, abstractmethod
from typing import NamedTuple


class WitnessRecord(NamedTuple):
    """Who may go on alone, as the witness has it. `holder` is a host's identity, or empty where either may.

    `revision` is another one after each change of the record, also by the same host; never one from before.
    """

    holder: str
    revision: int


class Witness(ABC):
    """One record, which both hosts see. Both methods raise `WitnessUnreachable`.

    A swap that raised, or was cancelled, may have taken effect, or do so later: its caller looks again.
    """

    identity = ""
    """Which witness it is, as the last look has found: two hosts that find the same go by the same one,
    whatever address each has for it. Empty where it is not known."""

    @abstractmethod
    async def look(self) -> WitnessRecord:
        """The record as it is, not as some copy of it was; revision 0 where there was none yet."""

    @abstractmethod
    async def swap(self, holder: str, revision: int) -> bool:
        """Make `holder` the holder if the revision is still this one; else False, and nothing is done."""
