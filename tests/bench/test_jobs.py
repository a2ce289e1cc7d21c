"""The bench leaves nothing where it is started, which is the checkout of whoever runs it."""

import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

from tests.bench.jobs import QUICK, fio
from tests.bench.systems import System


class Recording(System):
    """It runs nothing, and looks where fio was told to put what it keeps of a run that is broken off."""

    def run(self, *command: str | Path) -> Any:
        (kept_in,) = (str(word).removeprefix("--aux-path=") for word in command if "--aux-path=" in str(word))
        assert Path(kept_in).is_dir()
        assert Path(kept_in) != Path.cwd()
        assert "--verify_state_save=0" in command
        self.kept_in = Path(kept_in)
        return CompletedProcess(command, 0, json.dumps({"jobs": [{"error": 0}]}), "")


def test_fio_keeps_what_it_keeps_in_a_directory_of_its_own(tmp_path: Path) -> None:
    system = Recording.__new__(Recording)
    object.__setattr__(system, "directory", tmp_path)
    fio(system, QUICK)
    assert not system.kept_in.exists()
