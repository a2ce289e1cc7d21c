"""fusemirror on a host that knows one name more: FUSEMIRROR_TEST_NAME=NAME=ADDRESS,ADDRESS...

A test cannot change /etc/hosts for one network namespace: the mount would be in a mount namespace, too.
"""

import os
import socket
from typing import Any

from fusemirror.cli.main import main

name, _, addresses = os.environ["FUSEMIRROR_TEST_NAME"].partition("=")
getaddrinfo = socket.getaddrinfo


def known(host: Any, *more: Any, **options: Any) -> list[Any]:
    if host not in (name, name.encode()):
        return getaddrinfo(host, *more, **options)
    return [found for address in addresses.split(",") for found in getaddrinfo(address, *more, **options)]


socket.getaddrinfo = known
main()
