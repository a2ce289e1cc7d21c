"""The identities of this process's requests to the primary: its instance, and a serial that only grows.

They outlast the roles: what this host asked as the backup it may carry out itself as the primary, and ask
again as the backup later. No two requests of a mount have the same one.
"""

import struct

from fusemirror.identifiers import RequestId

_IDENTITY = struct.Struct(">8sQ")


class RequestIds:
    """Gives each request one, in the order in which they are made."""

    def __init__(self, instance: bytes) -> None:
        # Padded or cut, two processes could give one identity: the second request would count as done (G4).
        assert len(instance) == 8
        self._instance = instance
        self._serial = 1

    def take(self) -> RequestId:
        """The next one, which nobody else gets."""
        identity = RequestId(_IDENTITY.pack(self._instance, self._serial))
        self._serial += 1
        return identity

    def upcoming(self) -> RequestId:
        """What `take` will return: every request so far has a smaller one."""
        return RequestId(_IDENTITY.pack(self._instance, self._serial))
