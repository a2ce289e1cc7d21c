"""Progress: what counts as applied, and which process was sent what."""

from fusemirror.identifiers import ChangeNumber
from fusemirror.mirror.progress import Progress


def test_what_is_held_back_counts_once_it_is_released() -> None:
    progress = Progress(ChangeNumber(3))
    assert progress.number == 3
    progress.hold_back(ChangeNumber(6))
    progress.hold_back(ChangeNumber(7))
    seen = []
    for applied in (4, 8):
        progress.applied = ChangeNumber(applied)
        seen.append(progress.number)
    progress.release()
    assert [*seen, progress.number] == [4, 5, 8]


def test_a_process_knows_what_it_was_sent_itself() -> None:
    progress = Progress(ChangeNumber(3))
    progress.sends_to(b"one")
    progress.sent = ChangeNumber(5)
    progress.sends_to(b"one")
    assert progress.held_unknown_to(b"one") == 0
    assert progress.held_unknown_to(b"two") == 5
    progress.sends_to(b"two")
    progress.sent = ChangeNumber(8)
    assert progress.held_unknown_to(b"two") == 5
    assert progress.held_unknown_to(b"one") == 8
