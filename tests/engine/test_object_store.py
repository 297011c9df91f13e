"""Drafters from a real S3 server into a live engine, as safe as from a volume."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests
import s3fs
import torch
from safetensors.torch import load_file, save

from tests.engine.conftest import DRAFTED, PROMPTS
from tests.support.eventually import eventually
from tests.support.object_store import SECRET_KEY, ObjectStore, object_store
from tests.support.rollout_server import JOB, RolloutServer, rollout_server
from tests.support.tiny_model import perturbed
from tlt_workloads.store import Store, open_store

TRIES = 3  # a read that is late has taken 20 seconds


@dataclass(frozen=True)
class Scene:
    """A server whose job's store is a bucket."""

    server: RolloutServer
    objects: ObjectStore
    job: Store

    def revision(self, name: str, weights: bytes, *, sha256: str | None = None) -> dict[str, str]:
        """Puts a revision into the bucket; the body that loads it."""
        self.job.write_atomic(f"revisions/{name}/model.safetensors", weights)
        digest = sha256 or hashlib.sha256(weights).hexdigest()
        return {"revision": name, "url": f"{self.job.url}/revisions/{name}", "sha256": digest}

    def weights(self) -> dict[str, torch.Tensor]:
        """Those that the server started with."""
        return load_file(self.server.drafter / "model.safetensors")

    def load(self, body: Mapping[str, str]) -> tuple[int, Any]:
        """Status and answer of `POST drafter`."""
        return self.server.call("POST", "/tlt/v1/drafter", dict(body))

    def refused(self, body: Mapping[str, str], *, status: int = 422) -> dict[str, str]:
        """The error; it is counted, the drafter stays, and requests that run meanwhile do not notice.

        A pod whose cores are all taken may not get its store read in time, says so, and is asked again.
        """
        before = self.server.state()
        counts = Counter(before["drafterRefusals"])
        expected = self.server.generate(PROMPTS[:2], max_tokens=20)
        with self.server.generating(PROMPTS[:2], max_tokens=20) as results:
            for _ in range(TRIES):
                found, answer = self.load(body)
                assert found in (status, 502), answer
                counts[answer["error"]["reason"]] += 1
                if found == status:
                    break
        assert found == status, answer
        assert results == [expected] * len(results)
        after, error = self.server.state(), answer["error"]
        assert after["drafterRefusals"] == counts
        for name in ("drafterRevision", "drafterDigest", "failedRequests", "abortedRequests"):
            assert after[name] == before[name]
        return dict(error)


@pytest.fixture(scope="module")
def scene(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("object-store")
    flags = ["--skip-tokenizer-init", "--dtype", "float32", "--max-model-len", "512", "--max-num-seqs", "16"]
    with object_store(tmp_path_factory.mktemp("objects")) as objects, pytest.MonkeyPatch.context() as patch:
        for name, value in objects.credentials().items():
            patch.setenv(name, value)  # for this process, and so for the server that it starts
        environment = {"TLT_STORE_URL": objects.url}
        arguments = [*flags, "--draft-vocab-size", str(DRAFTED)]
        with rollout_server(tiny_model, *arguments, folder=folder, environment=environment) as server:
            config = {"job": JOB, "storeUrl": objects.url, "idleAfter": 0.2}
            status, answer = server.call("POST", "/tlt/v1/config", config)
            assert status == 200, answer
            yield Scene(server, objects, open_store(f"{objects.url}/{JOB}"))
        s3fs.S3FileSystem.clear_instance_cache()


def test_a_revision_is_loaded_while_requests_run(scene: Scene) -> None:
    expected = scene.server.generate(PROMPTS, max_tokens=200)
    body = scene.revision("r1", save(perturbed(scene.weights(), seed=1, amount=0.05)))
    with scene.server.generating(PROMPTS, max_tokens=200) as results:
        status, answer = scene.load(body)
    assert status == 200, answer
    assert answer["policyChecksumBefore"] == answer["policyChecksumAfter"]
    assert results == [expected] * len(results)
    state = scene.server.state()
    assert (state["drafterRevision"], state["drafterDigest"]) == ("r1", body["sha256"])


def test_bad_revisions_are_refused(scene: Scene) -> None:
    good = scene.weights()
    spoilt = {name: tensor.clone() for name, tensor in good.items()}
    spoilt["norm.weight"][3] = torch.nan
    assert scene.refused(scene.revision("nan", save(spoilt)))["reason"] == "NotFinite"
    assert scene.refused(scene.revision("digest", save(good), sha256="0" * 64))["reason"] == "DigestMismatch"
    assert scene.refused(scene.revision("large", bytes(8 << 20)))["reason"] == "TooLarge"
    absent = {"revision": "none", "url": f"{scene.job.url}/revisions/none", "sha256": "0" * 64}
    missing = scene.refused(absent)
    assert missing["reason"] == "Unreadable"
    assert "not in the store" in missing["message"]


@pytest.mark.parametrize(
    "url",
    [
        "s3://another/team/job/revisions/r1",
        "{job}/../other/revisions/r1",
        "{job}/revisions/%2e%2e/r1",
        "{job}/revisions/r1?versionId=1",
        "file:///etc",
    ],
)
def test_a_place_outside_the_job(scene: Scene, url: str) -> None:
    body = {"revision": "outside", "url": url.format(job=scene.job.url), "sha256": "0" * 64}
    error = scene.refused(body)
    assert error["reason"] == "OutsideStore"
    assert f"{scene.job.url}/revisions/<revision>" in error["message"]


def test_a_store_that_is_gone_holds_nothing_up_and_is_asked_again(scene: Scene) -> None:
    body = scene.revision("r2", save(perturbed(scene.weights(), seed=2, amount=0.05)))
    scene.objects.stop()
    try:
        error = scene.refused(body, status=502)
    finally:
        scene.objects.start()
    assert error["reason"] == "StoreUnavailable"
    eventually(lambda: scene.load(body)[0] == 200, deadline=60, reason="the store is back and the drafter is taken")
    assert scene.server.state()["drafterRevision"] == "r2"
    said = scene.server.log.read_text() + requests.get(f"{scene.server.url}/metrics", timeout=30).text
    assert 'tlt:drafter_refusals_total{reason="StoreUnavailable"}' in said
    assert SECRET_KEY not in said
