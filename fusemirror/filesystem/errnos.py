"""The edge to the kernel: every error becomes an errno, and a bug never becomes a vanished mount.

pyfuse3's request handlers let only `FUSEError` through: any other exception would end its main loop.
"""

import errno
import functools
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar

import pyfuse3

from fusemirror.errors import CheckReport, FusemirrorError, OperationFailed
from fusemirror.limits import ERROR_REPEATED_S, ERRORS_LOGGED_MAX
from fusemirror.recent import Recent

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class ErrorLog:
    """The errors that requests met: ours go to the log, each once in a while, however often a program asks
    for it. One that is not ours is a bug, and `on_bug` hears of it."""

    def __init__(self, on_bug: Callable[[], None]) -> None:
        self.on_bug = on_bug
        self._logged = Recent[str](ERROR_REPEATED_S, ERRORS_LOGGED_MAX)

    def log(self, error: FusemirrorError) -> None:
        text = str(error)
        if text not in self._logged:
            self._logged.add(text)
            log.error("%s", text)


class HasErrors(Protocol):
    """Whoever handles requests."""

    errors: ErrorLog


Part = TypeVar("Part", bound=HasErrors)
Method = Callable[Concatenate[Part, P], Coroutine[Any, Any, T]]


def answers_errno(handler: Method[Part, P, T]) -> Method[Part, P, T]:
    """Wrap a request handler so that nothing but `FUSEError` leaves it.

    One of ours goes to the log. One that is not is a bug: the caller gets EIO, the log a trace, and the
    mount is asked to stop in good order (`ErrorLog.on_bug`).
    """

    @functools.wraps(handler)
    async def wrapped(self: Part, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(self, *args, **kwargs)
        except OperationFailed as error:
            raise pyfuse3.FUSEError(error.errno) from None
        except pyfuse3.FUSEError:
            raise
        except CheckReport as error:
            raise pyfuse3.FUSEError(error.errno) from None
        except FusemirrorError as error:
            self.errors.log(error)
            raise pyfuse3.FUSEError(error.errno) from None
        except Exception:
            log.critical("a bug in %s: please report it", handler.__name__, exc_info=True)
            self.errors.on_bug()
            raise pyfuse3.FUSEError(errno.EIO) from None

    return wrapped
