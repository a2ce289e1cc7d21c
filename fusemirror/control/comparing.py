"""Comparisons of both volumes: one at a time, joined by whoever asks for the same.

The primary makes them; a backup asks it.
"""

import errno
from typing import Any

import msgspec
import trio

from fusemirror.control.decisions import Decisions
from fusemirror.control.forwarding import Forwarding
from fusemirror.control.links import Links
from fusemirror.control.role import VERIFY_UNDER_WAY, Comparing
from fusemirror.errors import OperationFailed, RefusedForSafety
from fusemirror.mirror.repair import FromBackup, FromPrimary
from fusemirror.mirror.replica import Replica
from fusemirror.mirror.sending import Mirror
from fusemirror.mirror.verify import Repair, Verifier, VerifyReport
from fusemirror.protocol.calls import StartVerify, VerifyProgress
from fusemirror.protocol.codec import refusal
from fusemirror.volume.volume import Volume


class Comparisons(Comparing):
    """Of one primary. `repairs` makes what is brought back from the backup a change."""

    def __init__(self, volume: Volume, mirror: Mirror, replica: Replica, repairs: Decisions) -> None:
        self.rate = 0
        """Bytes of images per second that a comparison reads; 0 is no limit."""
        self._volume = volume
        self._mirror = mirror
        self._replica = replica
        self._repairs = repairs
        self._verifier: Verifier | None = None
        self._keep = ""
        self._wanted = trio.Event()

    async def begin(self, keep: str = "") -> None:
        if self._verifier is not None and self._verifier.report.running:
            if self._keep != keep:
                raise RefusedForSafety(VERIFY_UNDER_WAY)
            return
        repair: Repair | None = None
        if keep:
            repair = (
                FromPrimary(self._volume) if keep == "primary" else FromBackup(self._mirror, self._repairs)
            )
        self._keep = keep
        self._verifier = Verifier(
            self._mirror,
            self._replica,
            bytes_per_second=self.rate,
            link_timeout_s=self._mirror.authority.io_timeout_s,
            repair=repair,
        )
        self._wanted.set()

    async def report(self) -> dict[str, Any]:
        report = self._verifier.report if self._verifier is not None else VerifyReport(running=False)
        return msgspec.structs.asdict(report)

    async def run_wanted(self) -> None:
        await self._wanted.wait()
        self._wanted = trio.Event()
        assert self._verifier is not None
        await self._verifier.run()
        self._mirror.written = None


class PrimaryComparisons(Comparing):
    """Those of the primary, as its backup asks for them."""

    def __init__(self, forwarding: Forwarding, links: Links) -> None:
        self._forwarding = forwarding
        self._links = links

    async def begin(self, keep: str = "") -> None:
        try:
            await self._forwarding.call(StartVerify(keep))
        except OperationFailed as error:
            if error.errno == errno.EBUSY:
                raise RefusedForSafety(VERIFY_UNDER_WAY) from None
            raise

    async def report(self) -> dict[str, Any]:
        answer, _ = await self._forwarding.call(VerifyProgress())
        try:
            report = msgspec.json.decode(answer.value, type=VerifyReport)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            if (link := self._links.link) is not None:
                why = f"value: no report of a comparison: {error}"
                link.end(link.forward, refusal(link.forward.peer_name, answer, why))
            raise OperationFailed(errno.EIO) from error
        return msgspec.structs.asdict(report)
