"""The habits of the house that a tool can hold: purity, nurseries, one test file each. That imports go down
import-linter holds (pyproject.toml).

Everything is read from the syntax tree: imports under TYPE_CHECKING and inside functions count too.
"""

import ast
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import get_args

import pytest

from fusemirror.operations import AnyOperation

CHECKOUT = Path(__file__).resolve().parent.parent
PACKAGE = CHECKOUT / "fusemirror"
TESTS = CHECKOUT / "tests"

PURE: list[str] = next(
    contract["source_modules"]
    for contract in tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["tool"][
        "importlinter"
    ]["contracts"]
    if contract["id"] == "pure"
)
"""Modules without I/O; import-linter looks at what they import."""

TESTED_ELSEWHERE = {
    "bounds": "protocol/test_checks",
    "change": "protocol/test_codec",
    "cli/defining": "cli/test_create",
    "cli/export": "cli/test_fsck",
    "cli/join": "cli/test_create",
    "cli/main": "cli/test_arguments",
    "cli/release": "cli/test_reserve",
    "cli/umount_helper": "cli/test_umount",
    "communication/memory_volume": "communication/test_volume",
    "communication/outstanding": "control/test_calling",
    "control/arrivals": "control/test_calling",
    "control/backup": "simulation/test_simulation",
    "control/backup_modes": "admin/test_snapshot",
    "control/backup_reads": "simulation/test_simulation",
    "control/backup_service": "simulation/test_simulation",
    "control/forwarding": "control/test_gathering",
    "control/management": "control/test_reservations",
    "control/meeting": "control/test_roles",
    "control/admission": "simulation/test_simulation",
    "control/comparing": "mirror/test_repair",
    "control/decisions": "operations/test_operation",
    "control/peer_requests": "simulation/test_simulation",
    "control/upkeep": "control/test_purge",
    "control/primary_tasks": "control/test_purge",
    "control/primary_words": "control/test_exclusive",
    "control/primary_reads": "simulation/test_simulation",
    "control/role": "test_tidy",  # nothing there computes
    "control/stepwise": "control/test_roles",
    "control/succession": "control/test_roles",
    "coherence/lock_asking": "coherence/test_locks",
    "coherence/lock_deciding": "coherence/test_locks",
    "coherence/lock_listing": "coherence/test_locks",
    "divergence/conflicts": "divergence/test_publishing",
    "divergence/exchange": "divergence/test_publishing",
    "divergence/report": "divergence/test_publishing",
    "control/primary": "simulation/test_simulation",
    "control/unit": "filesystem/requests/test_files",  # drives it without a kernel
    "volume/effects": "volume/test_volume",
    "daemon": "mount/test_life",
    "identifiers": "test_tidy",  # nothing there computes
    "limits": "test_tidy",  # its assertions run at import
    "protocol/messages": "protocol/test_codec",
    "witness/interface": "witness/test_etcd",
}
"""Modules whose tests stand in the file of another; this list is to shrink."""

MODULES = sorted(PACKAGE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8"), filename=str(path)) for path in MODULES}


OPERATIONS = {each.__name__ for each in get_args(AnyOperation)}


def name_of(path: Path) -> str:
    """`fusemirror/volume/journal.py` is `volume.journal`, `fusemirror/volume/__init__.py` is `volume`."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)


NAMES = {name_of(path): path for path in MODULES}


def is_pure(name: str) -> bool:
    return any(fnmatchcase(f"fusemirror.{name}", pattern) for pattern in PURE)


def functions(tree: ast.AST) -> Iterator[tuple[ast.FunctionDef | ast.AsyncFunctionDef, ast.AST]]:
    """Each function, and each node that stands in it and in no function inside it."""

    def walk(node: ast.AST, owner: ast.FunctionDef | ast.AsyncFunctionDef | None) -> Iterator:  # type: ignore[type-arg]
        for child in ast.iter_child_nodes(node):
            if owner is not None:
                yield owner, child
            inner = child if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) else owner
            yield from walk(child, inner)

    yield from walk(tree, None)


def calls(node: ast.AST, name: str) -> bool:
    """Whether it is a call of a function or method of that name."""
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    return name == (function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None))


def types_asked_for(tree: ast.AST) -> set[str]:
    """The names in isinstance(x, A), isinstance(x, A | B), isinstance(x, (A, B)) and type(x) is A."""
    asked: list[ast.AST] = []
    for node in ast.walk(tree):
        if calls(node, "isinstance") and isinstance(node, ast.Call):
            asked.append(node.args[1])
        elif isinstance(node, ast.Compare) and calls(node.left, "type"):
            asked.extend(node.comparators)
    return {node.id for each in asked for node in ast.walk(each) if isinstance(node, ast.Name)}


every_module = pytest.mark.parametrize("path", MODULES, ids=name_of)


@every_module
def test_a_module_says_what_it_is(path: Path) -> None:
    assert ast.get_docstring(TREES[path])


@pytest.mark.parametrize("path", [path for name, path in NAMES.items() if is_pure(name)], ids=name_of)
def test_what_is_pure_waits_for_nothing(path: Path) -> None:
    asynchronous = ast.AsyncFunctionDef | ast.AsyncFor | ast.AsyncWith | ast.Await
    assert not [node.lineno for node in ast.walk(TREES[path]) if isinstance(node, asynchronous)]


@every_module
def test_only_the_daemon_and_run_methods_open_nurseries(path: Path) -> None:
    if name_of(path) == "daemon":
        return
    openers = {owner.name for owner, node in functions(TREES[path]) if calls(node, "open_nursery")}
    assert not {name for name in openers if name != "run" and not name.startswith("run_")}


@every_module
def test_no_object_keeps_a_nursery(path: Path) -> None:
    kept = [
        node.lineno
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and node.attr.strip("_") == "nursery"
    ]
    assert not kept


@every_module
def test_no_await_inside_a_transaction(path: Path) -> None:
    blocks = [
        node
        for node in ast.walk(TREES[path])
        if isinstance(node, ast.With) and any(calls(item.context_expr, "begin") for item in node.items)
    ]
    awaits = [node.lineno for block in blocks for node in ast.walk(block) if isinstance(node, ast.Await)]
    assert not awaits


@every_module
def test_nobody_asks_for_the_type_of_an_operation(path: Path) -> None:
    """It is asked itself (`operations/operation.py`): so a new one is a file of its own."""
    assert not types_asked_for(TREES[path]) & OPERATIONS


@every_module
def test_a_module_has_a_test_file(path: Path) -> None:
    if path.stem in ("__init__", "__main__"):
        return
    place = path.relative_to(PACKAGE).with_suffix("")
    own = TESTS / place.parent / f"test_{place.name}.py"
    elsewhere = TESTED_ELSEWHERE.get(place.as_posix())
    if elsewhere is None:
        assert own.exists()
    else:
        assert (TESTS / f"{elsewhere}.py").exists()
        assert not own.exists(), "take it off the list"


def test_the_list_of_exceptions_names_modules() -> None:
    assert not set(TESTED_ELSEWHERE) - {
        path.relative_to(PACKAGE).with_suffix("").as_posix() for path in MODULES
    }
