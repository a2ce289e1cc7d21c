"""What the tests of the mirror share: a volume, who changes it, and a mirror path in memory."""

from tests.channel.conftest import memory, memory_pair, memory_sessions
from tests.volume.conftest import directory, volume, writer

__all__ = ["directory", "memory", "memory_pair", "memory_sessions", "volume", "writer"]
