"""Image files: where each image stands, and opening it without following anything.

What stands under an image's name and is no regular file, such as a link, is an error that names it.
"""

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path

from fusemirror.identifiers import InodeNumber
from fusemirror.limits import IMAGES_PER_DIRECTORY
from fusemirror.volume.beneath import open_plain
from fusemirror.volume.durable import sync_directory

_HEXADECIMAL = re.compile(r"[0-9a-f]+")


class ImageFiles:
    """The directory of the images of one volume."""

    def __init__(self, directory: Path) -> None:
        self.directory = str(directory)
        self._flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOATIME
        self._made_directory = ""

    def path(self, inode: InodeNumber) -> str:
        """Where the image is, or would be."""
        return f"{self.directory}/{inode // IMAGES_PER_DIRECTORY:x}/{inode:x}"

    def open(self, path: str, more_flags: int = 0) -> int:
        """A descriptor for reading and writing. OSError."""
        try:
            return open_plain(path, self._flags | more_flags)
        except OSError as error:
            # O_NOATIME is for the owner of a file; others still get what a mount without atime gives.
            if error.errno != errno.EPERM or not self._flags & os.O_NOATIME:
                raise
            self._flags &= ~os.O_NOATIME
            return open_plain(path, self._flags | more_flags)

    def open_to_read(self, inode: InodeNumber) -> int:
        """A descriptor of its own, for any thread. FileNotFoundError, OSError."""
        return open_plain(self.path(inode), self._flags & ~os.O_RDWR)

    def make_directory(self, path: str) -> None:
        """On return the directory of an image is there, durably. OSError."""
        if path == self._made_directory:
            return
        try:
            os.mkdir(path, 0o700)
        except FileExistsError:
            pass
        else:
            sync_directory(self.directory)  # once for IMAGES_PER_DIRECTORY images
        self._made_directory = path

    def numbers(self) -> Iterator[InodeNumber]:
        """The inode numbers of all images on the disk, in no order. OSError."""
        for directory in self.directories():
            for name in os.listdir(directory):
                if _HEXADECIMAL.fullmatch(name):
                    yield InodeNumber(int(name, 16))

    def directories(self) -> list[str]:
        """Those of the images. OSError."""
        # Whole, as the names above: who stops half way would leave a directory open.
        with os.scandir(self.directory) as directories:
            return [
                directory.path
                for directory in directories
                if _HEXADECIMAL.fullmatch(directory.name) and directory.is_dir(follow_symlinks=False)
            ]


def misfits(directory: Path) -> Iterator[Path]:
    """What stands under the name of an image in a directory of images, and is no file. OSError."""
    with os.scandir(directory) as parts:
        found = [
            part.path
            for part in parts
            if _HEXADECIMAL.fullmatch(part.name) and part.is_dir(follow_symlinks=False)
        ]
    for path in found:
        with os.scandir(path) as images:
            for image in images:
                if _HEXADECIMAL.fullmatch(image.name) and not image.is_file(follow_symlinks=False):
                    yield Path(image.path)
