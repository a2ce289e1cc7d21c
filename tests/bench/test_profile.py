"""What strace(1) counted is read as it writes it."""

from collections import Counter

from tests.bench.profile import calls_in

SUMMARY = """\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 61.54    1.002318           7    134120           epoll_wait
 38.46    0.626411          19     32011      1021 recvfrom
  0.00    0.000000           0         2         2 newfstatat
------ ----------- ----------- --------- --------- ----------------
100.00    1.628729           9    166133      1023 total
"""


def test_calls_are_counted_with_and_without_errors() -> None:
    assert calls_in(SUMMARY) == Counter(epoll_wait=134120, recvfrom=32011, newfstatat=2)


def test_no_call_no_count() -> None:
    assert calls_in("") == Counter()
