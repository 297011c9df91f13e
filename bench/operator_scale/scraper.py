"""The peer: finds idle pods as one would without a plugin, by reading vLLM's `/metrics` of every pod once a second.

It knows the pods, keeps its connections and decides nothing.  A page is read by the parser of `prometheus_client`, as
one would, or, with `--expression`, by a regular expression that looks for two lines only, which is the least that a
page can cost in Python.  Each idle edge is a line of JSON on standard output.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import sys
import time
from collections.abc import Callable

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from bench.operator_scale.fleet import PORT, address_of, name_of

INTERVAL = 1.0  # seconds between two looks at one pod
LINE = re.compile(r"^vllm:num_requests_(?:running|waiting)\{[^}]*\} (\S+)$", re.MULTILINE)


SAMPLES = ("vllm:num_requests_running", "vllm:num_requests_waiting")

Read = Callable[[str], list[float]]  # a page's numbers of running and waiting requests


def parse(page: str) -> list[float]:
    """By the standard parser."""
    families = text_string_to_metric_families(page)
    return [sample.value for family in families for sample in family.samples if sample.name in SAMPLES]


def search(page: str) -> list[float]:
    """By a regular expression."""
    return [float(value) for value in LINE.findall(page)]


async def watch(session: aiohttp.ClientSession, number: int, *, count: int, read: Read) -> None:
    """Looks at one pod for ever; pods take turns within the interval."""
    url, name = f"http://{address_of(number)}:{PORT}/metrics", name_of(number)
    was_idle, due = True, time.monotonic() + INTERVAL * number / count
    while True:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        async with session.get(url) as answer:
            page = await answer.text()
        idle = not any(read(page))
        if idle and not was_idle:
            sys.stdout.write(json.dumps({"kind": "worker", "pod": name, "to": "Idle"}) + "\n")
            sys.stdout.flush()
        was_idle = idle
        due = max(due + INTERVAL, time.monotonic())


async def run(count: int, read: Read) -> None:
    """Looks at all pods for ever."""
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        await asyncio.gather(*(watch(session, number, count=count, read=read) for number in range(count)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--expression", action="store_true")
    options = parser.parse_args()
    asyncio.run(run(options.count, search if options.expression else parse))
