"""Text for people: what users, the peer or a disk chose is shown escaped, in one line.

A file's name may hold anything but `/` and NUL. Shown as it is, it could clear a terminal, retitle it,
turn the reading order around, or forge a line of a log. Whatever is printed or logged and was not written
by us goes through `printable`; JSON needs it not, since its own strings are escaped.
"""

from typing import Any

from fusemirror.limits import DIFFERENCE_PATH_BYTES_MAX


def printable(text: str | bytes) -> str:
    r"""The text with everything escaped (`\n`, `\x1b`, `\u202e`) that is no visible character or space.

    Controls (C1 too), line ends, marks of direction and of format, unassigned characters, and bytes that
    are no text. A backslash stays as it is, so escaping twice changes nothing.
    """
    if isinstance(text, bytes):
        text = text.decode(errors="surrogateescape")
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else _escaped(c) for c in text)


def counted(count: int, one: str, many: str = "") -> str:
    """`1 image`, `2 images`; `many` is for what does not just take an s."""
    return f"{count} {one}" if count == 1 else f"{count} {many or one + 's'}"


def shortened(path: bytes, bytes_max: int) -> bytes:
    """A path, or the end of one that is too long."""
    return path if len(path) <= bytes_max else b"..." + path[3 - bytes_max :]


def path_shown(path: bytes) -> str:
    """A path for people; bytes that are no text are shown as such, and of one that is too long the end."""
    return shortened(path, DIFFERENCE_PATH_BYTES_MAX).decode(errors="backslashreplace")


def printable_all(value: Any) -> Any:
    """The same value, every text in it printable: an answer of a mount process that is to be shown."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {printable_all(key): printable_all(item) for key, item in value.items()}
    if isinstance(value, list):
        return [printable_all(item) for item in value]
    return value


def _escaped(character: str) -> str:
    if "\udc80" <= character <= "\udcff":  # a byte that is no text, as os.fsdecode gives it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")
