"""What the tests of the control unit share: both ends of a link, in memory and not served."""

from random import Random

import msgspec

from fusemirror.channel.link import Link
from tests.channel.conftest import BACKUP, PRIMARY, connect_pair, shake_hands
from tests.memory_network import MemoryNetwork


async def make_links() -> tuple[Link, Link]:
    """The primary's and the backup's end of one link."""
    network = MemoryNetwork(Random(1))
    alpha, beta = network.host("alpha"), network.host("beta")
    mirror = await shake_hands(await connect_pair(alpha, beta, "beta"), PRIMARY, BACKUP)
    asking, asked = (msgspec.structs.replace(hello, path="forward") for hello in (BACKUP, PRIMARY))
    forward = await shake_hands(await connect_pair(beta, alpha, "alpha"), asking, asked)
    return Link(dialed=mirror[0], accepted=forward[1]), Link(dialed=forward[0], accepted=mirror[1])
