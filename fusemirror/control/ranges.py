"""The exclusive status of a volume, by image and byte range: who holds it, and who stands by, in turn.

A claim is granted at once where nothing that overlaps it is held or stands by; else it stands by
until everything before it that overlaps has been released. So a claim waits only for claims made
before it, and no claim waits for ever. Claims of different images, or of bytes apart, never meet.
"""

from fusemirror.identifiers import InodeNumber
from fusemirror.promise import Promise


class Claim:
    """Bytes of an image that one request wants for itself. Its table grants it; `wait` tells when."""

    __slots__ = ("_granted", "end", "held", "inode", "released", "start")

    def __init__(self, inode: InodeNumber, start: int, end: int) -> None:
        self.inode = inode
        self.start = start
        self.end = end
        self.held = False
        """Whether the exclusive status is this claim's."""
        self.released = False
        self._granted: Promise[None] = Promise()

    def overlaps(self, start: int, end: int) -> bool:
        return self.start < end and start < self.end

    def grant(self) -> None:
        self.held = True
        self._granted.resolve(None)

    def reject(self, error: Exception) -> None:
        self._granted.reject(error)

    async def wait(self) -> None:
        """Return when the claim is held. Cancelled, it stands by still: release it."""
        if not self.held:
            await self._granted.wait()


class Ranges:
    """The claims of one volume."""

    def __init__(self) -> None:
        self._claims: dict[InodeNumber, list[Claim]] = {}  # held or standing by, in the order made

    def claim(self, inode: InodeNumber, start: int, end: int) -> Claim:
        """A new claim, held already where the range is free; whoever made it releases it."""
        claim = Claim(inode, start, end)
        before = self._claims.get(inode)
        if before is None:
            self._claims[inode] = [claim]
            claim.held = True
            return claim
        if not any(other.overlaps(start, end) for other in before):
            claim.held = True
        before.append(claim)
        return claim

    def release(self, claim: Claim) -> None:
        """The claim ends, held or not, and those whose turn it is are granted. Again: nothing."""
        if claim.released:
            return
        claim.released, claim.held = True, False
        claims = self._claims[claim.inode]
        claims.remove(claim)
        if not claims:
            del self._claims[claim.inode]
            return
        for index, other in enumerate(claims):
            if not other.held and other.overlaps(claim.start, claim.end):
                earlier = claims[:index]
                if not any(each.overlaps(other.start, other.end) for each in earlier):
                    other.grant()

    def end(self, error: Exception) -> None:
        """Whoever stands by gets `error`; there are no turns any more."""
        claims, self._claims = self._claims, {}
        for queue in claims.values():
            for claim in queue:
                claim.released = True
                claim.reject(error)

    def is_exclusive(self, inode: InodeNumber, start: int, end: int) -> bool:
        """Whether someone holds any of these bytes, or stands by for them."""
        claims = self._claims.get(inode)
        return claims is not None and any(claim.overlaps(start, end) for claim in claims)

    def __len__(self) -> int:
        """Claims held."""
        return sum(claim.held for claims in self._claims.values() for claim in claims)

    @property
    def standing_by(self) -> int:
        """Claims that wait for their turn."""
        return sum(not claim.held for claims in self._claims.values() for claim in claims)
