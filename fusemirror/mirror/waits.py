"""Waits for the other host: each has its timeout, and all end at once where they are known to be in vain."""

from types import TracebackType

import trio


class Waits:
    """Of the programs of one host. Whoever is behind it says what is known, by `tell`."""

    def __init__(self) -> None:
        self.in_vain = False
        """What waits for the other host cannot succeed, as far as this host knows."""
        self._scopes: dict[trio.CancelScope, None] = {}  # in their order: a simulation repeats it

    def limited(self, timeout_s: float) -> "Limit":
        """What is awaited inside ends with the timeout, or as soon as it is in vain; the caller looks which.

        Where it is in vain already, it ends at its first checkpoint.
        """
        return Limit(self._scopes, 0 if self.in_vain else timeout_s)

    def tell(self, *, in_vain: bool) -> None:
        """From now on they are in vain, or not."""
        self.in_vain = in_vain
        if in_vain:
            for scope in self._scopes:
                scope.cancel()


class Limit:
    """A context manager: see `Waits.limited`."""

    def __init__(self, scopes: dict[trio.CancelScope, None], timeout_s: float) -> None:
        self._scopes = scopes
        self._scope = trio.move_on_after(timeout_s)

    def __enter__(self) -> None:
        self._scope.__enter__()
        self._scopes[self._scope] = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        del self._scopes[self._scope]
        return self._scope.__exit__(kind, error, trace)
