"""Types of the numbers and names that travel through the whole house.

Index, count, size and sequence are different types; nothing here computes.
"""

from typing import NewType

InodeNumber = NewType("InodeNumber", int)
"""Given by the primary, never reused, the same on both hosts."""

ChangeNumber = NewType("ChangeNumber", int)
"""Place of a change in the one order of all changes; 0 stands before the first."""

RegionIndex = NewType("RegionIndex", int)
"""Index of a `limits.REGION_BYTES` piece of an image file."""

RequestId = NewType("RequestId", bytes)
"""Names one request of the backup for ever: 8 bytes of its process instance, 8 bytes of serial."""

NO_REQUEST = RequestId(b"")
"""The request of a change that was made at the primary."""

ROOT_INODE = InodeNumber(1)

NO_CHANGE = ChangeNumber(0)
"""Before the first change of a volume."""

NameKey = tuple[InodeNumber, bytes]
"""A name in a directory: whose name it is, and the name."""
