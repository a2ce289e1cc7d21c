"""The exclusive status of a volume, by image and byte range: who holds it, and who stands by, in turn.

A claim is granted at once where nothing that overlaps it is held or stands by; else it stands by
until everything before it that overlaps has been released. So a claim waits only for claims made
before it, and no claim waits for ever. Claims of different images, or of bytes apart, never meet.

A claim by main's right is held at once, before all others: main is exclusive for it, so whoever has
these bytes here has them for less, and has to take them anew.
"""

from fusemirror.identifiers import InodeNumber
from fusemirror.promise import Promise


class RangeClaim:
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
        assert not self.held, "it stood by"
        assert not self.released, "nobody would release it again, and all behind it would stand by for ever"
        self.held = True
        self._granted.resolve(None)

    def revoke(self) -> None:
        """It is not held any more, and is granted again in its turn."""
        self.held, self._granted = False, Promise()

    def reject(self, error: Exception) -> None:
        self._granted.reject(error)

    async def wait(self) -> None:
        """Return when the claim is held. Cancelled, it stands by still: release it."""
        # Looked at again after each wake: it may have been granted and revoked before this task had its turn.
        while not self.held:
            await self._granted.wait()


class Ranges:
    """The claims of one volume."""

    def __init__(self) -> None:
        self._claims: dict[InodeNumber, list[RangeClaim]] = {}  # held or standing by, in the order made

    def claim(self, inode: InodeNumber, start: int, end: int) -> RangeClaim:
        """A new claim, held already where the range is free; whoever made it releases it."""
        claim = RangeClaim(inode, start, end)
        # The common case is a file that nobody else writes: one dict entry, and no search.
        before = self._claims.get(inode)
        if before is None:
            self._claims[inode] = [claim]
            claim.held = True
            return claim
        # Those that stand by count as well, or a small write could go ahead of a large one again and again.
        if not any(other.overlaps(start, end) for other in before):
            claim.held = True
        before.append(claim)
        return claim

    def claim_by_right(self, inode: InodeNumber, start: int, end: int) -> RangeClaim:
        """A claim of what main is exclusive for: held now, and by nobody else."""
        claim = RangeClaim(inode, start, end)
        claim.held = True
        claims = self._claims.setdefault(inode, [])
        for other in claims:
            # They go on standing by where they stood: main's right costs them a turn and never their place.
            if other.held and other.overlaps(start, end):
                other.revoke()
        # Before all others, so that whoever was revoked waits for it as for any earlier claim.
        claims.insert(0, claim)
        return claim

    def release(self, claim: RangeClaim) -> None:
        """The claim ends, held or not, and those whose turn it is are granted. Again: nothing."""
        # Twice is no error: `end` may have come before whoever gives it up.
        if claim.released:
            return
        claim.released, claim.held = True, False
        claims = self._claims[claim.inode]
        claims.remove(claim)
        if not claims:
            del self._claims[claim.inode]
            return
        # Also where it was not held: one that stood by kept those behind it waiting all the same.
        for index, other in enumerate(claims):
            # Nobody else can have been waiting for this one; and who overlaps an earlier claim still has to
            # wait.
            if not other.held and other.overlaps(claim.start, claim.end):
                earlier = claims[:index]
                if not any(each.overlaps(other.start, other.end) for each in earlier):
                    other.grant()

    def end(self, error: Exception) -> None:
        """Whoever stands by gets `error`; there are no turns any more."""
        # Emptied first: whoever wakes and releases finds nothing, and grants nobody a turn.
        claims, self._claims = self._claims, {}
        for queue in claims.values():
            for claim in queue:
                # Or its own release, which is still to come, would look for a queue that is gone.
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
