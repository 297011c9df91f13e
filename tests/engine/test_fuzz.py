"""Whatever is sent to the plugin's routes, none of them breaks: no answer is a 5xx.

Requests are made by schemathesis from the server's own OpenAPI, those that fit it and those that do not; the seed is
fixed, so that a failure can be repeated.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from tests.engine.conftest import PROMPTS, Reference
from tests.support.rollout_server import JOB, TOKEN, RolloutServer
from tlt_workloads.rollout.body_limit import LARGEST_CONTROL_BODY, LARGEST_WEIGHTS_BODY

CONTROL = ("/tlt/v1/state", "/tlt/v1/lease", "/tlt/v1/drafter", "/tlt/v1/speculation", "/tlt/v1/config")
WEIGHTS = ("/init_weight_transfer_engine", "/start_weight_update", "/update_weights", "/finish_weight_update")
OTHERS = (
    *("/weight_info", "/pause", "/resume", "/is_paused", "/get_world_size", "/reset_prefix_cache", "/server_info"),
)
STRANGER = "127.0.0.9"  # whose wrong tokens are held against nobody else
EXAMPLES = 50  # per route, method and mode
pytestmark = pytest.mark.filterwarnings("ignore")  # of libraries that schemathesis uses


@pytest.fixture
def routes(server: RolloutServer) -> Iterator[Any]:
    """The server's OpenAPI, cut to the plugin's routes; settings are put back afterwards."""
    description = server.call("GET", "/openapi.json")[1]
    description["paths"] = {path: description["paths"][path] for path in (*CONTROL, *WEIGHTS, *OTHERS)}
    for path in CONTROL:
        for operation in description["paths"][path].values():
            for parameter in operation.get("parameters", ()):
                if parameter["name"] == "wait":
                    parameter["schema"]["maximum"] = 0.1  # seconds; longer polls are tested elsewhere
    schema = schemathesis.openapi.from_dict(description)
    schema.config.update(base_url=server.url)
    yield schema
    server.call("POST", "/resume")
    server.call("POST", "/start_weight_update", {})  # gives up whatever is half open
    server.call("POST", "/finish_weight_update", {})
    config = {"job": JOB, "storeUrl": f"file://{server.store}", "idleAfter": 0.2}
    assert server.call("POST", "/tlt/v1/config", config)[0] == 200


def test_the_description_reaches_every_field(server: RolloutServer) -> None:
    paths = server.call("GET", "/openapi.json")[1]["paths"]
    body = paths["/tlt/v1/lease"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert set(body["properties"]) == {"holder", "ttl", "window", "memory"}
    answer = paths["/tlt/v1/state"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer["properties"].keys() == server.state().keys()


FUZZING = settings(
    max_examples=EXAMPLES,
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
@pytest.mark.parametrize("path", [*CONTROL, *WEIGHTS, *OTHERS])
def test_no_request_breaks_a_route(routes: Any, path: str, mode: GenerationMode) -> None:
    for found in routes.include(path=path).get_all_operations():
        operation = found.ok()
        described = operation.definition.raw
        if mode is GenerationMode.NEGATIVE and not (described.get("parameters") or described.get("requestBody")):
            continue  # takes nothing that could be wrong

        @FUZZING
        @given(case=operation.as_strategy(generation_mode=mode))
        def send(case: Any) -> None:
            answer = case.call(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60)
            assert answer.status_code < 500, f"{case.method} {case.path} {case.query} {case.body}: {answer.text}"

        send()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"[]",
        b"\xff\xfe",
        b'{"holder": "\\ud800"}',
        b'{"holder": "a", "ttl": NaN}',
        b'{"holder": "a", "ttl": 1e999}',
        b'{"holder": "a", "ttl": ' + b"9" * 5000 + b"}",
        b'{"holder": "a", "ttl": 1' + b"0" * 400 + b"}",
        b"[" * 60_000,
        b'{"a":' * 10_000,
    ],
)
@pytest.mark.parametrize("path", ["/tlt/v1/lease", "/tlt/v1/config", "/update_weights", "/finish_weight_update"])
def test_odd_json(server: RolloutServer, path: str, body: bytes) -> None:
    for kind in ("application/json", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert 400 <= server.send("POST", path, body, content_type=kind) < 500
    assert server.state()["lease"] is None


@pytest.mark.parametrize(
    ("path", "limit"), [("/tlt/v1/config", LARGEST_CONTROL_BODY), ("/update_weights", LARGEST_WEIGHTS_BODY)]
)
def test_a_body_that_is_too_large(server: RolloutServer, path: str, limit: int) -> None:
    body = json.dumps({"job": "x" * limit}).encode()
    assert server.send("POST", path, body) == 413


@pytest.mark.parametrize("path", CONTROL[1:])
def test_wrong_and_missing_tokens(server: RolloutServer, path: str) -> None:
    for token in (None, "wrong", "", "\x80"):
        assert server.send("POST", path, b"{}", token=token, source=STRANGER) in (401, 429)


def test_the_rollout_goes_on(server: RolloutServer, reference: Reference) -> None:
    """After all of this."""
    assert server.generate(PROMPTS[:2], max_tokens=16) == [reference.greedy(item, tokens=16) for item in PROMPTS[:2]]
