"""The role that this host has now, and how a request outlasts a change of it.

When the role changes, the old unit ends with `RoleChanged` for everyone who waits in it, a unit of the other
role takes its place over the same volume, and the request is made anew: programs wait, and none of them hears
of it. What a program asked as the backup's and has no answer yet, the new primary carries out itself, once.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from fusemirror.control.role import Role
from fusemirror.control.states import PARKED, REFUSING
from fusemirror.errors import RoleChanged

T = TypeVar("T")


class PresentRole:
    """One for a mount. Only the succession (`succession.py`) puts another role in its place."""

    def __init__(self, role: Role) -> None:
        self.role = role

    def take(self, role: Role) -> None:
        """`role`, whose predecessor has retired, serves from now on."""
        self.role = role

    async def unparked(self) -> Role:
        """The role, once it is known which one this host goes on with."""
        while (role := self.role).life.state in PARKED:
            await role.life.until_unparked()
        return role

    async def succeeded(self, role: Role) -> None:
        """Return when another one has the place of `role`, or it serves again."""
        while self.role is role and role.life.state in REFUSING:
            await role.life.changed.wait()

    async def ask(self, ask: Callable[[Role], Awaitable[T]]) -> T:
        """What the present role answers, or the one that comes after it."""
        while True:
            role = await self.unparked()
            try:
                return await ask(role)
            except RoleChanged:
                await self.succeeded(role)
