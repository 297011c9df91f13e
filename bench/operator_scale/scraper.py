"""The peer: finds idle pods as one would without a plugin, by reading vLLM's `/metrics` of every pod once a second.

It is given every advantage: it knows the pods, keeps its connections, looks for two lines with a regular expression
instead of parsing the page, and decides nothing.  Each idle edge is a line of JSON on standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time

import aiohttp

from bench.operator_scale.fleet import PORT, address_of, name_of

INTERVAL = 1.0  # seconds between two looks at one pod
LINE = re.compile(r"^vllm:num_requests_(?:running|waiting)\{[^}]*\} (\S+)$", re.MULTILINE)


async def watch(session: aiohttp.ClientSession, number: int, *, count: int) -> None:
    """Looks at one pod for ever; pods take turns within the interval."""
    url, name = f"http://{address_of(number)}:{PORT}/metrics", name_of(number)
    was_idle, due = True, time.monotonic() + INTERVAL * number / count
    while True:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        async with session.get(url) as answer:
            page = await answer.text()
        idle = not any(float(value) for value in LINE.findall(page))
        if idle and not was_idle:
            sys.stdout.write(json.dumps({"kind": "worker", "pod": name, "to": "Idle"}) + "\n")
            sys.stdout.flush()
        was_idle = idle
        due = max(due + INTERVAL, time.monotonic())


async def run(count: int) -> None:
    """Looks at all pods for ever."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        await asyncio.gather(*(watch(session, number, count=count) for number in range(count)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    asyncio.run(run(parser.parse_args().count))
