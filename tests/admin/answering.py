"""A mount process as the commands see it: a socket that answers each request with chosen lines."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

Answers = Callable[[dict[str, Any]], list[bytes]]


def result(value: Any) -> bytes:
    return json.dumps({"ok": True, "result": value}).encode() + b"\n"


def failure(text: str, exit_code: int) -> bytes:
    return json.dumps({"ok": False, "error": text, "exit_code": exit_code}).encode() + b"\n"


def progress(done: int, total: int) -> bytes:
    return json.dumps({"progress": {"done": done, "total": total, "unit": "bytes"}}).encode() + b"\n"


@contextmanager
def answering(runtime_dir: Path, name: str, answers: Answers) -> Iterator[list[dict[str, Any]]]:
    """Serve `runtime_dir/name.sock`; gives the requests as they come. A connection has one answer."""
    requests: list[dict[str, Any]] = []
    runtime_dir.mkdir(exist_ok=True)

    def serve(listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection, connection.makefile("rwb") as stream:
                line = stream.readline()
                if line:
                    requests.append(json.loads(line))
                    stream.writelines(answers(requests[-1]))

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(runtime_dir / f"{name}.sock"))
        listener.listen()
        thread = threading.Thread(target=serve, args=(listener,))
        thread.start()
        try:
            yield requests
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
