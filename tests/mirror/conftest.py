"""What the tests of the mirror share: a volume and its changes, a mirror path in memory, a pair of hosts."""

from tests.admin.conftest import network, pair
from tests.channel.conftest import memory, memory_pair, memory_sessions
from tests.volume.conftest import directory, volume, writer

__all__ = [
    "directory",
    "memory",
    "memory_pair",
    "memory_sessions",
    "network",
    "pair",
    "volume",
    "writer",
]
