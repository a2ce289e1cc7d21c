"""The commands' end of the admin socket: one JSON object per line, a request and its answers.

Blocking, and without trio: a command starts quickly and asks one thing. Every wait has a limit.
"""

import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from fusemirror.errors import CommandFailed, NotMounted, PermissionRefused, TimedOut

ANSWER_TIMEOUT_S = 15.0
"""A mount process that serves answers at once; one that does not answer this long is stuck."""

_PATH_BYTES_MAX = 107
"""The longest path of a socket, see unix(7); without the zero at its end."""

Progress = Callable[[dict[str, Any]], None]


def socket_path(runtime_dir: Path, name: str) -> Path:
    """Where the mount process of `name` listens."""
    return runtime_dir / f"{name}.sock"


def mounted_names(runtime_dir: Path) -> list[str]:
    """Names with a socket in `runtime_dir`; one of a killed process may be among them. PermissionRefused."""
    try:
        return sorted(entry.name[:-5] for entry in os.scandir(runtime_dir) if entry.name.endswith(".sock"))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError:
        raise PermissionRefused(f"only root may look into {runtime_dir}; run the command as root") from None


@contextmanager
def _connected(runtime_dir: Path, name: str, timeout_s: float) -> Iterator[socket.socket]:
    path = socket_path(runtime_dir, name)
    if len(os.fsencode(path)) > _PATH_BYTES_MAX:
        raise NotMounted(name)  # no mount process could listen there
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_s)
        try:
            connection.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            raise NotMounted(name) from None
        except PermissionError:
            raise PermissionRefused("only root may ask the mount process; run the command as root") from None
        except (TimeoutError, BlockingIOError):
            raise TimedOut(timeout_s, "the mount process takes no commands") from None
        if (uid := _listener(connection).uid) not in (0, os.geteuid()):
            raise PermissionRefused(f"{path} is answered by a process of user {uid}; nothing was asked of it")
        yield connection


def process_id(runtime_dir: Path, name: str) -> int:
    """The mount process of `name`, told by the kernel: it need not answer. NotMounted if there is none."""
    with _connected(runtime_dir, name, ANSWER_TIMEOUT_S) as connection:
        return _listener(connection).pid


class _Process(NamedTuple):
    pid: int
    uid: int
    gid: int


def _listener(connection: socket.socket) -> _Process:
    """Who listens at the other end: the kernel says it."""
    form = struct.Struct("3I")
    return _Process(*form.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, form.size)))


def ask(
    runtime_dir: Path,
    name: str,
    command: str,
    arguments: dict[str, Any] | None = None,
    *,
    timeout_s: float = ANSWER_TIMEOUT_S,
    progress: Progress | None = None,
) -> Any:
    """The result of a command, as the mount process of `name` gives it.

    `progress` is called with each progress record that comes before the result; `timeout_s` is the
    longest silence. NotMounted, PermissionRefused, TimedOut, or CommandFailed with the answer's exit code.
    """
    with _connected(runtime_dir, name, timeout_s) as connection, connection.makefile("rwb") as stream:
        try:
            stream.write(json.dumps({"command": command, **(arguments or {})}).encode() + b"\n")
            stream.flush()
            for line in stream:
                answer = json.loads(line)
                if "progress" not in answer:
                    return _result(answer)
                if progress is not None:
                    progress(answer["progress"])
        except TimeoutError:
            raise TimedOut(timeout_s, f"no answer from the mount process to `{command}`") from None
        except ConnectionError:
            pass
        except (ValueError, KeyError, TypeError) as error:
            raise CommandFailed(f"the mount process answered nonsense ({error}); see its log", 1) from None
    raise CommandFailed("the mount process ended before it answered; see its log", 1)


def _result(answer: dict[str, Any]) -> Any:
    if answer["ok"]:
        return answer["result"]
    raise CommandFailed(str(answer["error"]), int(answer.get("exit_code", 1)))
