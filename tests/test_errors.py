"""The tree of errors: each can be said in one line, and carries its exit code and errno."""

import errno

import pytest

from fusemirror.errors import CommandFailed, FusemirrorError, OperationFailed


def every_error(base: type[FusemirrorError] = FusemirrorError) -> list[type[FusemirrorError]]:
    return [base, *(found for child in base.__subclasses__() for found in every_error(child))]


WITH_ARGUMENTS_OF_THEIR_OWN = (OperationFailed, CommandFailed)


@pytest.mark.parametrize("error", every_error())
def test_an_error_has_an_exit_code_and_an_errno(error: type[FusemirrorError]) -> None:
    assert error.exit_code in {*range(1, 11), 12}
    assert error.errno in errno.errorcode


@pytest.mark.parametrize("error", [e for e in every_error() if e not in WITH_ARGUMENTS_OF_THEIR_OWN])
def test_an_error_is_one_line(error: type[FusemirrorError]) -> None:
    template = error.__doc__ or ""
    line = str(error(1.5 if "{0:g}" in template else "x", "y", "z"))
    assert line
    assert not set("{}\n") & set(line)


def test_an_operation_that_failed_says_what_the_system_says() -> None:
    error = OperationFailed(errno.ENOSPC)
    assert (str(error), error.errno) == ("No space left on device", errno.ENOSPC)


def test_an_answer_of_the_mount_process_keeps_its_exit_code() -> None:
    error = CommandFailed("the peer is away", 5)
    assert (str(error), error.exit_code) == ("the peer is away", 5)
