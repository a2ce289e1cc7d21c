"""The same two hosts as for the tests that mount."""

from tests.mount.conftest import hosts, seed

__all__ = ["hosts", "seed"]
