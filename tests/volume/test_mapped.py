"""Mapped files: what was looked at is memory of this process, until it lets go of it."""

import mmap
from pathlib import Path

from fusemirror.volume.mapped import let_go_of_pages

SIZE = 1 << 20


def resident_bytes(path: Path) -> int:
    """Of all mappings of a file in this process."""
    found, is_of_file = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            is_of_file = line.endswith(str(path))
        elif is_of_file and words[0] == "Rss:":
            found += int(words[1]) * 1024
    return found


def test_pages_are_let_go_of_and_found_again(tmp_path: Path) -> None:
    path, other = tmp_path / "mapped", tmp_path / "other"
    with path.open("w+b") as file, other.open("w+b") as others:
        for each in (file, others):
            each.write(b"x" * SIZE)
            each.flush()
        mapped = mmap.mmap(file.fileno(), SIZE, prot=mmap.PROT_READ)
        also_mapped = mmap.mmap(others.fileno(), SIZE, prot=mmap.PROT_READ)
        assert mapped[:].count(b"x") == also_mapped[:].count(b"x") == SIZE
        assert resident_bytes(path) == resident_bytes(other) == SIZE
        let_go_of_pages(path)
        assert (resident_bytes(path), resident_bytes(other)) == (0, SIZE)
        assert mapped[:] == b"x" * SIZE
        mapped.close()
        also_mapped.close()
    let_go_of_pages(path)  # nobody maps it any more
