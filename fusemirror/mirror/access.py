"""The access in effect: one for the pair, which the primary decides and the backup follows.

It outlasts links and changes of the role: whoever becomes the primary goes on with what the pair has.
"""

import trio

from fusemirror.settings import Access


class PairAccess:
    """As far as this host knows; one object for a mount."""

    def __init__(self, in_effect: Access = Access.ROUTED) -> None:
        """`in_effect` until the other host is met, or a person changes it."""
        self.in_effect = in_effect
        self.changed = trio.Event()
        """Set, and replaced, with each change."""

    def take(self, access: Access) -> None:
        """Go by it from now on."""
        if access is not self.in_effect:
            self.in_effect = access
            changed, self.changed = self.changed, trio.Event()
            changed.set()
