"""etcd as the witness: one key for each filesystem, over the JSON form of its protocol, version 3.

A second key, which whoever comes first writes, once and for all filesystems, says which etcd it is. Its own
cluster identity would not do: it is made of names and addresses, so two that were set up alike share it.

Reads are etcd's linearizable ones, and a swap is one transaction, so both go through a majority of its
members, whichever endpoint is asked. An endpoint that does not answer is passed over for the next.
Source: etcd.io, "gRPC gateway" and "etcd API Reference"; the revision is the key's `mod_revision`.
"""

import json
import os
import ssl
from base64 import b64decode, b64encode
from typing import Any

import httpx
import trio

from fusemirror.errors import WitnessUnreachable
from fusemirror.limits import WITNESS_ANSWER_BYTES_MAX
from fusemirror.witness.interface import Witness, WitnessRecord


class Etcd(Witness):
    """The record of `filesystem`. Each endpoint gets `timeout_s` in all."""

    def __init__(self, endpoints: tuple[str, ...], filesystem: str, timeout_s: float) -> None:
        self._endpoints = list(endpoints)
        self._key = _packed(f"fusemirror/{filesystem}")
        self._timeout_s = timeout_s
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # never used: else httpx loads one each time

    async def look(self) -> WitnessRecord:
        record, mark = await self._look()
        if not mark.revision:
            await self._write(_MARK, os.urandom(_MARK_BYTES).hex(), 0)  # or somebody else just has
            record, mark = await self._look()
            if not mark.revision:
                raise WitnessUnreachable("its addresses lead to more than one etcd")
        self.identity = mark.holder
        return record

    async def _look(self) -> tuple[WitnessRecord, WitnessRecord]:
        """What stands under the key, and under that of the witness itself."""
        reads = [{"requestRange": {"key": key}} for key in (self._key, _MARK)]
        answer = await self._ask("txn", {"success": reads})
        try:
            record, mark = (_record(each["response_range"].get("kvs")) for each in answer["responses"])
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise WitnessUnreachable(f"{self._endpoints[0]}: it is no etcd: {error!r}") from None
        return record, mark

    async def swap(self, holder: str, revision: int) -> bool:
        # Another endpoint may answer than the one that was looked at, and be of another etcd: a record that
        # neither has yet has the same revision in both.
        same = {"key": _MARK, "target": "VALUE", "result": "EQUAL", "value": _packed(self.identity)}
        return await self._write(self._key, holder, revision, *[same] * bool(self.identity))

    async def _write(self, key: str, value: str, revision: int, *where: dict[str, Any]) -> bool:
        # A key that is not there has mod_revision 0.
        compare = {"key": key, "target": "MOD", "result": "EQUAL", "mod_revision": str(revision)}
        put = {"requestPut": {"key": key, "value": _packed(value)}}
        answer = await self._ask("txn", {"compare": [compare, *where], "success": [put]})
        return bool(answer.get("succeeded"))

    async def _ask(self, what: str, question: dict[str, Any]) -> dict[str, Any]:
        """The answer of the first endpoint that gives one; it is asked first from then on.

        `WitnessUnreachable` says why the last one gave none.
        """
        # Not by way of a proxy, which the environment of a mount may name by accident.
        async with httpx.AsyncClient(timeout=self._timeout_s, verify=self._tls, trust_env=False) as client:
            for endpoint in list(self._endpoints):
                try:
                    # httpx's own limit is of each piece: what comes in drops would keep the others unasked.
                    with trio.fail_after(self._timeout_s):
                        found = await _answer(client, f"{endpoint}/v3/kv/{what}", question)
                except trio.TooSlowError:
                    why = f"{endpoint}: no answer within {self._timeout_s:g} s"
                    continue
                # Of another server's redirection, and of JSON that is nested too deeply, the last two.
                except (httpx.HTTPError, ValueError, httpx.InvalidURL, RecursionError) as error:
                    why = f"{endpoint}: {error or type(error).__name__}"
                    continue
                if isinstance(found, dict) and "header" in found:
                    self._endpoints.remove(endpoint)
                    self._endpoints.insert(0, endpoint)
                    return found
                why = f"{endpoint}: it is no etcd"
        raise WitnessUnreachable(why)


async def _answer(client: httpx.AsyncClient, url: str, question: dict[str, Any]) -> Any:
    """Whatever is answered, as JSON has it. httpx's errors; ValueError, RecursionError where it is none."""
    # Not compressed: no more is held than has come.
    headers = {"Accept-Encoding": "identity"}
    async with client.stream("POST", url, json=question, headers=headers) as answer:
        answer.raise_for_status()
        received = b""
        with trio.CancelScope() as enough:  # httpx's generators end in order only by what they wait for
            async for piece in answer.aiter_raw():
                received += piece
                if len(received) > WITNESS_ANSWER_BYTES_MAX:
                    enough.cancel()
    if enough.cancelled_caught:
        raise ValueError(f"it is no etcd: it answers more than {WITNESS_ANSWER_BYTES_MAX} bytes")
    return json.loads(received)


def _record(found: list[dict[str, Any]] | None) -> WitnessRecord:
    if not found:
        return WitnessRecord("", 0)
    return WitnessRecord(b64decode(found[0].get("value", "")).decode(), int(found[0]["mod_revision"]))


def _packed(text: str) -> str:
    return b64encode(text.encode()).decode()


_MARK = _packed("fusemirror/witness")  # no identity of a filesystem, which is a number
_MARK_BYTES = 16
