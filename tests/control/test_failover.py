"""Which witness both hosts go by: compared when they meet, and remembered when they part."""

from pathlib import Path

import pytest
import trio

from fusemirror.control.primary import PrimaryUnit
from fusemirror.volume.identity import Identity
from fusemirror.witness.interface import WitnessRecord
from tests.admin.conftest import network
from tests.control.test_invitation import PATIENCE_S, Site, normal
from tests.control.test_roles import until
from tests.memory_network import MemoryNetwork
from tests.witness.test_quorum import Stub

__all__ = ["network"]

ALPHAS, BETAS = "http://alphas:2379", "http://betas:2379"


class Known(Stub):
    """A witness that says which one it is, once it was asked."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name
        self.asked = trio.Event()
        self.may_answer = trio.Event()
        self.may_answer.set()

    async def look(self) -> WitnessRecord:
        await self.may_answer.wait()
        record = await super().look()
        self.identity = self.name
        self.asked.set()
        return record


@pytest.fixture
def site(tmp_path: Path, network: MemoryNetwork) -> Site:
    return Site(tmp_path, network, tls=False)


def noted(site: Site, name: str) -> str:
    return Identity.load(site.directory / name).witness


async def test_hosts_with_one_witness_note_it(site: Site) -> None:
    one = Known("one")
    async with (
        site.mounted("alpha", "beta", one, witness=ALPHAS) as alpha,
        site.mounted("beta", "alpha", one, witness=BETAS) as beta,
    ):
        await normal(alpha, beta)
        await until(lambda: [noted(site, name) for name in ("alpha", "beta")] == ["one", "one"])


@pytest.mark.expects_warnings
@pytest.mark.parametrize("late", [False, True], ids=["known", "known-late"])
async def test_hosts_with_two_witnesses_refuse_each_other_by_name(site: Site, late: bool) -> None:
    """Also where they were linked before either could ask its own."""
    ones, others = Known("one"), Known("other")
    if late:
        ones.may_answer, others.may_answer = trio.Event(), trio.Event()
    async with (
        site.mounted("alpha", "beta", ones, witness=ALPHAS) as alpha,
        site.mounted("beta", "alpha", others, witness=BETAS) as beta,
    ):
        if late:
            await normal(alpha, beta)
            ones.may_answer.set()
            others.may_answer.set()
        for host in (alpha, beta):
            await until(
                lambda linker=host.linker: (  # type: ignore[misc]
                    "these are two" in str((linker.last_error, linker.reception.last_refusal))
                )
            )
        assert alpha.unit.link is None


@pytest.mark.expects_warnings
async def test_a_backup_whose_witness_was_changed_does_not_take_over_by_it(site: Site) -> None:
    """It would be a second primary, as the other host goes by the one that both had before."""
    one, other = Known("one"), Known("other")
    async with (
        site.mounted("alpha", "beta", one, witness=ALPHAS) as alpha,
        site.mounted("beta", "alpha", one, witness=ALPHAS) as beta,
    ):
        await normal(alpha, beta)
        await until(lambda: noted(site, "beta") == "one")
    async with site.mounted("beta", "alpha", other, witness=BETAS) as beta:
        await until(lambda: "not the one that both" in str(beta.quorum.reason))
        assert other.record.holder == ""
        assert not isinstance(beta.unit, PrimaryUnit)
    async with site.mounted("beta", "alpha", one, witness=BETAS) as beta:  # with the one it has
        with trio.fail_after(PATIENCE_S):
            await until(lambda: isinstance(beta.unit, PrimaryUnit))
