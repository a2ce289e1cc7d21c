"""The systemd unit: systemd finds nothing wrong with it, and the mount would be seen by others."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parent.parent
UNIT = CHECKOUT / "fusemirror" / "systemd" / "fusemirror@.service"

NAMESPACE_DIRECTIVES = (
    *("Protect", "Private", "ReadOnly", "ReadWrite", "Inaccessible", "NoExecPaths", "ExecPaths", "Bind"),
    *("TemporaryFileSystem", "Mount", "Root", "DynamicUser", "Restrict", "SystemCall"),
)
"""systemd.exec(5): each gives the service a mount namespace, or keeps it from mounting."""


def directives() -> dict[str, str]:
    return dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.M))


def test_nothing_hides_the_mount_from_others() -> None:
    assert not [name for name in directives() if name.startswith(NAMESPACE_DIRECTIVES)]


def test_it_comes_back_and_stops_before_the_network_does() -> None:
    found = directives()
    assert (found["Type"], found["Restart"]) == ("notify", "on-failure")
    assert "network-online.target" in found["After"]
    assert found["ExecStart"] == "fusemirror mount --foreground %i"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd-analyze")
def test_systemd_finds_nothing_wrong(tmp_path: Path) -> None:
    unit = tmp_path / "fusemirror@data.service"
    command = f"ExecStart={CHECKOUT}/bin/fusemirror "
    unit.write_text(UNIT.read_text().replace("ExecStart=fusemirror ", command))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", unit], capture_output=True, text=True, check=False
    )
    assert (done.returncode, [line for line in done.stderr.splitlines() if "fusemirror" in line]) == (0, [])
