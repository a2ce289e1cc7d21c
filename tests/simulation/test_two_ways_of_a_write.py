"""A write goes its short way or, where something is in that, the usual one: nobody can tell which it was.

The same world twice, with every fault that it draws: once as it comes, once with the short way closed. What
is sent, answered and logged, and when, is the same to the byte.
"""

import re
from collections import Counter
from random import Random
from typing import Any

import msgspec
import pytest

from fusemirror.control.backup import BackupUnit
from fusemirror.control.decisions import Decisions
from fusemirror.control.primary import PrimaryUnit
from fusemirror.identifiers import NO_CHANGE
from tests.simulation.options import Options, draw_options
from tests.simulation.simulate import Run, simulate

SEEDS = range(8)
KINDS = ("write", "write", "append", "truncate", "read", "size", "flush", "flags", "reserve", "chmod")
SHORT = ((PrimaryUnit, "begin_write"), (BackupUnit, "begin_write"), (Decisions, "write"))


def _options(seed: int) -> Options:
    drawn = draw_options(Random(f"{seed} options"))
    modes: dict[str, Any] = {"acknowledge": ("sync", "sync"), "access": "routed", "communication": "lmdb"}
    return msgspec.structs.replace(
        drawn, kinds=KINDS, operations_per_client=max(60, drawn.operations_per_client), **modes
    )


def _seen(run: Run) -> list[str]:
    if run.failure is not None:
        raise run.failure
    return [re.sub(r"fm-simulation-\w+", "", line) for line in run.trace]


@pytest.mark.expects_warnings
def test_nobody_can_tell_which_way_a_write_went(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: Counter[str] = Counter()

    def counted(kind: type, name: str) -> Any:
        short = getattr(kind, name)

        def take(*arguments: Any, **more: Any) -> Any:
            result = short(*arguments, **more)
            taken[f"{kind.__name__}.{name}"] += bool(result)
            return result

        return take

    for kind, name in SHORT:
        monkeypatch.setattr(kind, name, counted(kind, name))
    as_it_comes = {seed: _seen(simulate(seed, _options(seed))) for seed in SEEDS}
    assert min(taken[f"{kind.__name__}.{name}"] for kind, name in SHORT) > 20, f"it was hardly gone: {taken}"

    for kind, name in SHORT:
        closed = NO_CHANGE if kind is Decisions else None
        monkeypatch.setattr(kind, name, lambda *_, closed=closed, **__: closed)
    for seed in SEEDS:
        assert _seen(simulate(seed, _options(seed))) == as_it_comes[seed], f"seed {seed}"
