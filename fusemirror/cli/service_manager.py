"""Words with the service manager that started this process, as sd_notify(3) has them; without one, nothing.

A few lines instead of a library: a datagram to the socket that NOTIFY_SOCKET names.
"""

import os
import socket


def notify(state: str) -> None:
    """Tell the service manager, such as `READY=1`. OSError: it is gone."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as connection:
        connection.connect(address)
        connection.sendall(state.encode())
