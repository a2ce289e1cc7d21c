"""The edge to the kernel: every handler answers with an errno, and a bug ends in good order."""

import errno
import inspect
import logging
from typing import Any

import pyfuse3
import pytest
import trio

from fusemirror.errors import CheckReport, DiskFailed, FusemirrorError, OperationFailed, PrimaryUnreachable
from fusemirror.filesystem.errnos import ErrorLog, answers_errno
from fusemirror.filesystem.kernel_cache import KernelCache
from fusemirror.filesystem.operations import Operations
from fusemirror.filesystem.requests.attributes import AttributeRequests
from fusemirror.filesystem.requests.directories import DirectoryRequests
from fusemirror.filesystem.requests.files import FileRequests
from fusemirror.filesystem.requests.names import NameRequests
from fusemirror.limits import ERROR_REPEATED_S

REQUESTS = {name for name, _ in inspect.getmembers(pyfuse3.Operations, inspect.iscoroutinefunction)}
OURS = {
    name: getattr(part, name)
    for part in (NameRequests, DirectoryRequests, AttributeRequests, FileRequests)
    for name in REQUESTS | {"forget"}
    if hasattr(part, name)
}
NEED_NOTHING = {"access"}


class Broken:
    """A control unit with a bug in everything."""

    def __getattr__(self, name: str) -> Any:
        raise KeyError(name)


class Handler:
    """One request handler that meets `error`, and hears of bugs."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.bugs = 0
        self.errors = ErrorLog(self._on_bug)

    def _on_bug(self) -> None:
        self.bugs += 1

    @answers_errno
    async def handle(self, answer: int) -> int:
        """As documented."""
        if self.error is not None:
            raise self.error
        return answer


async def errno_of(handler: Handler) -> int:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await handler.handle(1)
    assert caught.value.__cause__ is None
    number: int = caught.value.errno
    return number


def logged(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= level]


def test_every_request_has_a_handler_of_ours() -> None:
    assert REQUESTS - set(OURS) == {"poll"}


@pytest.mark.parametrize("name", sorted(set(OURS) - {"forget"}))
def test_every_handler_is_wrapped(name: str) -> None:
    assert inspect.iscoroutinefunction(OURS[name].__wrapped__)
    assert OURS[name].__code__ is Handler.handle.__code__, "by answers_errno and by nothing around it"


def test_forget_is_not_a_coroutine() -> None:
    assert not inspect.iscoroutinefunction(OURS["forget"])


@pytest.mark.expects_warnings
@pytest.mark.parametrize("name", sorted(set(OURS) - {"forget"} - NEED_NOTHING))
async def test_a_bug_anywhere_is_an_io_error_a_trace_and_an_orderly_stop(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    bugs: list[str] = []
    operations = Operations(Broken(), KernelCache(), on_bug=lambda: bugs.append(name))  # type: ignore[arg-type]
    handler = getattr(operations, name)
    arguments = [None] * len(inspect.signature(handler).parameters)
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await handler(*arguments)
    assert caught.value.errno == errno.EIO
    assert bugs == [name]
    (record,) = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert name in record.getMessage()
    assert record.exc_info is not None


@pytest.mark.parametrize("name", sorted(NEED_NOTHING))
async def test_what_needs_nothing_cannot_fail(name: str) -> None:
    handler = getattr(Operations(Broken(), KernelCache(), on_bug=pytest.fail), name)  # type: ignore[arg-type]
    await handler(*[None] * len(inspect.signature(handler).parameters))


async def test_an_answer_is_handed_through() -> None:
    handler = Handler()
    assert await handler.handle(7) == 7
    assert (Handler.handle.__name__, Handler.handle.__doc__) == ("handle", "As documented.")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EEXIST, errno.EDQUOT])
async def test_the_ordinary_errno_of_a_filesystem_is_answered_in_silence(
    number: int, caplog: pytest.LogCaptureFixture
) -> None:
    handler = Handler(OperationFailed(number))
    assert await errno_of(handler) == number
    assert not handler.bugs
    assert not caplog.records


async def test_an_errno_of_a_handler_itself_stays() -> None:
    handler = Handler(pyfuse3.FUSEError(errno.ENAMETOOLONG))
    assert await errno_of(handler) == errno.ENAMETOOLONG
    assert not handler.bugs


@pytest.mark.parametrize("error", [CheckReport("old"), PrimaryUnreachable(30.0)])
async def test_a_check_report_is_an_io_error_and_no_bug(error: FusemirrorError) -> None:
    handler = Handler(error)
    assert await errno_of(handler) == errno.EIO
    assert not handler.bugs


@pytest.mark.expects_warnings
async def test_what_went_wrong_below_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    handler = Handler(DiskFailed("/volume", "no space"))
    assert await errno_of(handler) == errno.EIO
    assert not handler.bugs
    (text,) = logged(caplog, logging.ERROR)
    assert "no space" in text


@pytest.mark.expects_warnings
async def test_a_program_that_meets_an_error_in_a_loop_fills_no_log(
    caplog: pytest.LogCaptureFixture, autojump_clock: trio.testing.MockClock
) -> None:
    handler = Handler(DiskFailed("/volume", "no space"))
    for _ in range(3):
        await errno_of(handler)
    assert len(logged(caplog, logging.ERROR)) == 1
    handler.error = DiskFailed("/volume", "another")
    await errno_of(handler)
    assert len(logged(caplog, logging.ERROR)) == 2
    await trio.sleep(3 * ERROR_REPEATED_S)
    await errno_of(handler)
    assert len(logged(caplog, logging.ERROR)) == 3


@pytest.mark.expects_warnings
@pytest.mark.parametrize(
    "error", [KeyError("x"), AssertionError(), OSError(errno.ENOSPC, "x"), RuntimeError()]
)
async def test_any_other_error_is_a_bug(error: Exception) -> None:
    handler = Handler(error)
    assert await errno_of(handler) == errno.EIO
    assert handler.bugs == 1


async def test_a_cancellation_is_no_error() -> None:
    handler = Handler()

    @answers_errno
    async def wait(_: Handler) -> None:
        await trio.sleep_forever()

    with trio.CancelScope() as scope:
        scope.cancel()
        await wait(handler)
    assert scope.cancelled_caught
    assert not handler.bugs
