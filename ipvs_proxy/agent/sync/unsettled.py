"""Finds what is not as desired although nothing waits for another attempt: what a fault made forgotten ends here."""

from __future__ import annotations

import asyncio

from ipvs_proxy.agent.sync.kernel_writer import KernelWriter
from ipvs_proxy.plan.difference import suspects, unsettled_among
from ipvs_proxy.plan.table_keys import TableKeys
from ipvs_proxy.plan.tables import Operation

#: Virtual servers that are compared before the event loop may do something else: some 10 ms.
COMPARED_AT_ONCE = 5000


class Unsettled:
    """Compares what is desired with what is known of the kernel, which is not read."""

    def __init__(self, writer: KernelWriter) -> None:
        self._writer = writer
        #: The number of the writer's changes behind which nothing was found.
        self._settled_at = -1

    async def write(self) -> list[Operation]:
        """Write what differs; return the operations that succeeded.

        As long as nothing changes after nothing was found, there is nothing to look for. A thread looks, beside
        changes, and what it finds is compared again.
        """
        writer, before = self._writer, self._writer.changes
        if self._settled_at == before:
            return []
        found, keys = await asyncio.to_thread(suspects, writer.desired, writer.actual)
        for start in range(0, len(keys), COMPARED_AT_ONCE):
            piece = keys[start : start + COMPARED_AT_ONCE]
            found.virtual_servers |= unsettled_among(piece, writer.desired, writer.actual)
            await asyncio.sleep(0)
        if not found:
            self._settled_at = before
        return await writer.write(
            TableKeys(
                {key for key in found.virtual_servers if key not in writer.retries},
                {address for address in found.addresses if address not in writer.retries},
                {entry for entry in found.entries if entry not in writer.retries},
            )
        )
