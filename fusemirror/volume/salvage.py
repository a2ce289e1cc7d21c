"""salvage: a volume whose journal is damaged keeps what is whole of it (`fsck --repair`).

The catalog gets every whole record that it lacks, those behind the damage too. The journal begins anew
behind the last gap, so that no peer is ever caught up across one; a copy of the damaged one stays beside, as
`lost-journal`. Its directory is not renamed, as it may be where a disk of its own is mounted.

What is lost is told before the catalog takes what hides it: from then on it holds a number behind the gap, as
if it held all before. A repair that is done again cannot tell the two apart: where the volume says of itself
that it is not whole, it claims no more than that the catalog may have held what stood there.

Where the catalog held all that stood in a gap, nothing is lost. Where it did not, the volume is no state
that the filesystem ever had, and must not be taken for one:

- A backup's is not consistent: it gets the primary's names, serves no reads before, and takes over by force
  only.
- A primary's is not complete: when the hosts meet, the other one, whose copy is whole, becomes the primary
  and brings this one up to date. A primary that goes on alone first does so in a line of its own that has
  nothing in common with the other's (`mirror.histories.generation_row`): that is a split brain, and a
  person chooses.

Either way every row and image is compared with the peer's.

Records say which of the peer's requests took effect. What the whole ones say is kept (`requests_done.py`). Of
the others nobody knows: the volume `forgot_requests`, and the peer, which hears of that when the hosts meet,
fails what it may have asked for before and cannot ask for twice, instead of having it done twice.
"""

import filecmp
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from fusemirror.change import decode_change
from fusemirror.identifiers import ChangeNumber
from fusemirror.seams import Seams
from fusemirror.volume.catalog import Catalog
from fusemirror.volume.durable import sync_directory, sync_filesystem, unused
from fusemirror.volume.identity import Identity
from fusemirror.volume.journal import Gap, Salvage, begin_anew, salvage
from fusemirror.volume.requests_done import RequestsDone, done_by, load_requests, store_requests
from fusemirror.volume.rows import check_rows

Report = Callable[[str], None]


def repair_journal(directory: Path, report: Report) -> None:
    """On return the journal opens, and the volume says of itself what the module says; `report` gets a line
    for each gap. To be done again after a crash, or where it failed. FusemirrorError, OSError.
    """
    place = directory / "journal"
    finished = _finish_earlier(directory)
    found = salvage(place)
    if finished:
        report("journal: the one that the repair had made is taken")
        if not found.gaps:
            _tell_what_comes(Identity.load(directory), report)
            return
    catalog = Catalog(directory / "catalog")
    try:
        held = catalog.journal_number
        kept_as = _keep_a_copy(place) if place.is_dir() else None
        if kept_as is None:
            found.gaps.append(Gap(place.name, 0, 0, held, None))
        behind = _end_of_gaps(found, held)
        lost = {gap for gap in found.gaps if _lost(gap, held)}
        in_doubt: set[Gap] = set()
        if held >= behind and not Identity.load(directory).whole:  # as a repair that was cut short leaves it
            in_doubt = {gap for gap in found.gaps if gap not in lost and _lost(gap, 0)}
        # Before the catalog hides that anything is lost: a repair that is killed here leaves a volume that
        # says of itself that it is not whole.
        _mark(directory, names_lost=bool(lost), requests_lost=bool(found.gaps))
        _tell(found, lost, in_doubt, Identity.load(directory), kept_as, report)
        _apply_before_gaps(catalog, found, held, behind)
        # Before the new journal, which leaves their records out: else a request could be carried out twice
        # (G4).
        _keep_requests(directory, found, behind)
    finally:
        catalog.close()
    if kept_as is None:
        place.mkdir(mode=0o700)
        sync_directory(directory)
    # At the end: until then the damaged one is there, and all of this can be done again.
    begin_anew(place, [record for record in found.records if record.number > behind], behind, Seams())


def _finish_earlier(directory: Path) -> bool:
    """Whether a repair of a version before was cut short, see `check_is_there`; on return its journal is
    there. OSError."""
    place, fresh = directory / "journal", directory / "journal.new"
    if not fresh.is_dir():
        return False
    if place.is_dir():  # then it is older than that, and may be half made
        shutil.rmtree(fresh)
        return False
    fresh.rename(place)
    sync_directory(directory)
    return True


def _lost(gap: Gap, held: int) -> range:
    """The changes that may have stood in the gap, and that the catalog does not hold. An open end is one."""
    first = max(gap.after, held) + 1
    return range(first, first + 1 if gap.before is None else gap.before)


def _mark(directory: Path, *, names_lost: bool, requests_lost: bool) -> None:
    identity = Identity.load(directory)
    peers = identity.peers_in_doubt if requests_lost else identity.peers
    marked = msgspec.structs.replace(identity, compare_all=True, peers=peers)
    if names_lost and identity.role == "primary":
        marked = msgspec.structs.replace(marked, complete=False)
    elif names_lost:
        marked = msgspec.structs.replace(marked, consistent=False)
    marked.store(directory)


def _keep_requests(directory: Path, found: Salvage, behind: ChangeNumber) -> None:
    """Keep what the records up to `behind` say of requests, which the new journal leaves out; and what an
    earlier repair kept."""
    kept = load_requests(directory) or RequestsDone()
    for record in found.records:
        if record.number <= behind:
            change = decode_change(record.payload)
            if change.request:
                kept[change.request] = done_by(change)
    store_requests(directory, kept)


def _end_of_gaps(found: Salvage, held: ChangeNumber) -> ChangeNumber:
    """The number behind which the journal begins anew."""
    last = found.records[-1].number if found.records else held
    ends = [max(last, held) if gap.before is None else gap.before - 1 for gap in found.gaps]
    return ChangeNumber(max(ends, default=held))


def _apply_before_gaps(catalog: Catalog, found: Salvage, held: ChangeNumber, behind: ChangeNumber) -> None:
    """Put what stands before the end of the last gap into the catalog, all or nothing.

    What stands behind it is put when the volume is opened, as after every crash.
    """
    time_ns = catalog.time_ns
    for record in found.records:
        if held < record.number <= behind:
            change = decode_change(record.payload)
            time_ns = max(time_ns, change.time_ns)
            if change.rows:  # those of data too: privileges ended with it
                check_rows(change.rows)
                catalog.apply_rows(change.rows, record.number)
    catalog.commit(max(catalog.number, behind), max(held, behind), time_ns)


def _keep_a_copy(place: Path) -> str:
    """On return a copy of the journal durably stands in the volume's directory; its name. The one of a repair
    that went no further is taken. OSError: nothing half made stays."""
    unfinished = place.with_name("lost-journal.new")
    if unfinished.is_dir():  # of one that was killed
        shutil.rmtree(unfinished)
    copies = sorted(place.parent.glob("lost-journal*"))
    kept = next((path for path in copies if _is_copy(path, place)), None)
    if kept is None:
        kept = unused(place.with_name("lost-journal"))
        try:
            unfinished.mkdir(mode=0o700)
            for path in place.glob("*.log"):
                shutil.copy(path, unfinished)
            sync_filesystem(unfinished)
            # Whole and durable before it has the name by which a later repair takes it.
            unfinished.rename(kept)
        except OSError:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    sync_directory(kept.parent)
    return kept.name


def _is_copy(directory: Path, place: Path) -> bool:
    names = {path.name for path in place.glob("*.log")}
    if {path.name for path in directory.glob("*")} != names:
        return False
    return all(filecmp.cmp(directory / name, place / name, shallow=False) for name in names)


def _tell(
    found: Salvage,
    lost: set[Gap],
    in_doubt: set[Gap],
    identity: Identity,
    kept_as: str | None,
    report: Report,
) -> None:
    for gap in found.gaps:
        where = f"journal: {gap.file} at byte {gap.offset}: {gap.size_bytes} bytes cannot be read"
        missing = _numbers(gap)
        if gap in lost:
            report(f"{where}: {missing} lost here")
        elif gap in in_doubt:
            report(f"{where}: {missing} lost here, unless the catalog held all that stood there")
        else:
            report(f"{where}; the catalog holds all that stood there")
    if found.gaps:
        report(
            f"which requests of {_peers(identity)} took effect there is not known: when the hosts meet, it "
            "fails those that it waits for and cannot ask for twice"
        )
    if kept_as is not None:
        kept = sum(record.number > gap.after for record in found.records for gap in found.gaps[:1])
        report(f"{kept} whole records behind that are kept; the old journal is {kept_as}")
    if lost or in_doubt:
        _tell_what_comes(identity, report)


def _tell_what_comes(identity: Identity, report: Report) -> None:
    if identity.whole:
        return
    if identity.role == "primary":
        report(
            f"when the hosts meet, {_peers(identity)} becomes the primary and has what is lost here; "
            "a change made here before that is a split brain, and you choose (fusemirror resolve)"
        )
    else:
        report(f"{_peers(identity)} has what is lost here: its names are taken when the hosts meet")


def _peers(identity: Identity) -> str:
    return " or ".join(peer.name for peer in identity.peers)


def _numbers(gap: Gap) -> str:
    first = gap.after + 1
    if gap.before is None:
        return f"changes from {first} on are"
    last = gap.before - 1
    return f"change {first} is" if first == last else f"changes {first} to {last} are"
