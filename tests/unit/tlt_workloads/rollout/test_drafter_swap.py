"""A drafter in a worker: checked before it is near the engine, and undone when loading goes wrong."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

from tests.support.eventually import eventually
from tests.support.tiny_target import write_tiny_target
from tlt_workloads.drafter import write_initial_drafter
from tlt_workloads.rollout.drafter_swap import DrafterSwap
from tlt_workloads.rollout.locations import JobFolder
from tlt_workloads.rollout.revision_folder import RefusedDrafterError


class Policy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(96, 32)
        self.layer = nn.Linear(32, 32)


class Drafter(nn.Module):
    def __init__(self, policy: Policy) -> None:
        super().__init__()
        self.embed_tokens = policy.embed_tokens


class Worker:
    """The two models and what vLLM's loader would do; `harm` happens once, while a drafter is loaded."""

    def __init__(self, folder: Path) -> None:
        target = write_tiny_target(folder / "target")
        config = write_initial_drafter(target, folder / "drafter", draft_vocab_size=32)
        self.initial = load((folder / "drafter" / "model.safetensors").read_bytes())
        self.policy = Policy()
        self.drafter = Drafter(self.policy)
        self.loaded: list[Mapping[str, torch.Tensor]] = []
        self.harm = lambda: None
        self.generation = 0
        self.head: torch.Tensor | None = torch.zeros(96, 32, dtype=torch.bfloat16)
        self.swap = DrafterSwap(
            policy=self.policy,
            drafter=self.drafter,
            find=JobFolder(str(folder)).folder,
            config=config,
            initial=lambda: self.initial,
            load_tensors=self._load,
            generation=lambda: self.generation,
            head_rows=lambda ids: None if self.head is None else self.head[ids],
        )
        self.shape = config

    def _load(self, tensors: Mapping[str, torch.Tensor]) -> None:
        self.loaded.append(tensors)
        harm, self.harm = self.harm, lambda: None
        harm()

    def stage(self, folder: Path, tensors: Mapping[str, torch.Tensor], *, head_is_copy: bool = True) -> None:
        folder.mkdir(exist_ok=True)
        shape = dataclasses.replace(self.shape, head_is_copy=head_is_copy)
        (folder / "config.json").write_text(json.dumps(shape.to_json()))
        data = save(dict(tensors))
        (folder / "model.safetensors").write_bytes(data)
        self.swap.stage(str(folder), sha256=hashlib.sha256(data).hexdigest())
        eventually(self.swap.ready, reason="the drafter is staged")

    def change_policy(self, *, row: int) -> None:
        """What a policy update does to a worker."""
        self.generation += 1
        with torch.no_grad():
            self.policy.embed_tokens.weight[row] += 1
            if self.head is not None:
                self.head[row] += 1


@pytest.fixture
def worker(tmp_path: Path) -> Worker:
    return Worker(tmp_path.resolve())


def changed(worker: Worker) -> dict[str, torch.Tensor]:
    return worker.initial | {"norm.weight": worker.initial["norm.weight"] * 2}


def test_a_good_drafter_is_put_in_place(worker: Worker, tmp_path: Path) -> None:
    worker.stage(tmp_path / "r1", changed(worker))
    answer = worker.swap.apply()
    assert answer["before"] == answer["after"]
    (loaded,) = worker.loaded
    assert "t2d" not in loaded
    assert torch.equal(loaded["norm.weight"], changed(worker)["norm.weight"])


def test_nothing_is_applied_twice_or_unasked(worker: Worker, tmp_path: Path) -> None:
    with pytest.raises(RefusedDrafterError, match="no drafter is staged"):
        worker.swap.apply()
    worker.stage(tmp_path / "r1", worker.initial)
    worker.swap.apply()
    with pytest.raises(RefusedDrafterError, match="no drafter is staged"):
        worker.swap.apply()


def test_a_policy_that_loading_touched_is_put_back(worker: Worker, tmp_path: Path) -> None:
    before = worker.policy.embed_tokens.weight.detach().clone()
    worker.stage(tmp_path / "r1", changed(worker))

    def overwrite() -> None:
        with torch.no_grad():
            worker.policy.embed_tokens.weight[50, 7] += 1

    worker.harm = overwrite
    with pytest.raises(RefusedDrafterError) as caught:
        worker.swap.apply()
    assert caught.value.reason == "PolicyTouched"
    assert torch.equal(worker.policy.embed_tokens.weight, before)
    assert_is_initial(worker)


def assert_is_initial(worker: Worker) -> None:
    """The drafter that the server started with is back."""
    assert worker.loaded[-1].keys() == worker.initial.keys() - {"t2d"}
    assert all(torch.equal(tensor, worker.initial[name]) for name, tensor in worker.loaded[-1].items())


def test_a_policy_that_changes_while_a_drafter_is_staged_is_not_put_back(worker: Worker, tmp_path: Path) -> None:
    """The drafter was compared with the policy of before; the new policy must stay as it is."""
    worker.stage(tmp_path / "r1", changed(worker))
    worker.change_policy(row=5)
    policy = worker.policy.embed_tokens.weight.detach().clone()
    answer = worker.swap.apply()
    assert answer["before"] == answer["after"]
    assert torch.equal(worker.policy.embed_tokens.weight, policy)


def test_a_touched_policy_is_put_back_as_it_was_last(worker: Worker, tmp_path: Path) -> None:
    worker.stage(tmp_path / "r1", changed(worker))
    worker.change_policy(row=5)
    policy = worker.policy.embed_tokens.weight.detach().clone()

    def overwrite() -> None:
        with torch.no_grad():
            worker.policy.embed_tokens.weight[50, 7] += 1

    worker.harm = overwrite
    with pytest.raises(RefusedDrafterError):
        worker.swap.apply()
    assert torch.equal(worker.policy.embed_tokens.weight, policy)


class TestHeadThatIsACopy:
    def drafted(self, worker: Worker) -> torch.Tensor:
        return worker.initial["t2d"].nonzero().flatten()

    def test_it_follows_the_policy(self, worker: Worker) -> None:
        row = int(self.drafted(worker)[3])
        worker.change_policy(row=row)
        assert worker.swap.follow_policy()
        (loaded,) = worker.loaded
        assert loaded.keys() == {"lm_head.weight"}
        assert worker.head is not None
        assert torch.equal(loaded["lm_head.weight"], worker.head[self.drafted(worker)])

    def test_a_later_drafter_gets_the_rows_that_the_policy_has_now(self, worker: Worker, tmp_path: Path) -> None:
        worker.change_policy(row=int(self.drafted(worker)[0]))
        worker.stage(tmp_path / "r1", changed(worker))
        worker.swap.apply()
        assert worker.head is not None
        assert torch.equal(worker.loaded[-1]["lm_head.weight"], worker.head[self.drafted(worker)])
        assert torch.equal(worker.loaded[-1]["norm.weight"], changed(worker)["norm.weight"])

    def test_before_the_first_update_the_file_is_taken_as_it_is(self, worker: Worker, tmp_path: Path) -> None:
        worker.stage(tmp_path / "r1", changed(worker))
        worker.swap.apply()
        assert torch.equal(worker.loaded[-1]["lm_head.weight"], worker.initial["lm_head.weight"])
        assert not worker.swap.follow_policy()

    def test_a_head_that_was_trained_stays(self, worker: Worker, tmp_path: Path) -> None:
        worker.stage(tmp_path / "r1", changed(worker), head_is_copy=False)
        worker.swap.apply()
        worker.change_policy(row=3)
        assert not worker.swap.follow_policy()
        assert torch.equal(worker.loaded[-1]["lm_head.weight"], worker.initial["lm_head.weight"])

    def test_a_policy_whose_head_cannot_be_read_leaves_it_as_it_is(self, worker: Worker) -> None:
        worker.head = None
        worker.change_policy(row=3)
        assert not worker.swap.follow_policy()
        assert worker.loaded == []

    def test_going_back_after_a_failure_takes_the_current_rows(self, worker: Worker, tmp_path: Path) -> None:
        worker.stage(tmp_path / "r1", changed(worker))
        worker.change_policy(row=int(self.drafted(worker)[0]))

        def fail() -> None:
            raise RuntimeError("kernel")

        worker.harm = fail
        with pytest.raises(RefusedDrafterError, match="kernel"):
            worker.swap.apply()
        assert worker.head is not None
        assert torch.equal(worker.loaded[-1]["lm_head.weight"], worker.head[self.drafted(worker)])


def test_a_drafter_that_does_not_load_leaves_the_one_before(worker: Worker, tmp_path: Path) -> None:
    worker.stage(tmp_path / "r1", changed(worker))
    worker.swap.apply()
    good = worker.loaded[-1]
    worker.stage(tmp_path / "r2", worker.initial)

    def fail() -> None:
        raise RuntimeError("kernel")

    worker.harm = fail
    with pytest.raises(RefusedDrafterError, match="kernel") as caught:
        worker.swap.apply()
    assert caught.value.reason == "LoadFailed"
    assert worker.loaded[-1].keys() == good.keys()
    assert all(torch.equal(tensor, good[name]) for name, tensor in worker.loaded[-1].items())


def test_a_second_revision_replaces_one_that_is_still_being_read(worker: Worker, tmp_path: Path) -> None:
    for name in ("r1", "r2"):
        (tmp_path / name).mkdir()
    first, second = save(worker.initial), save(changed(worker))
    (tmp_path / "r1" / "model.safetensors").write_bytes(first)
    (tmp_path / "r2" / "model.safetensors").write_bytes(second)
    worker.swap.stage(str(tmp_path / "r1"), sha256=hashlib.sha256(first).hexdigest())
    worker.swap.stage(str(tmp_path / "r2"), sha256=hashlib.sha256(second).hexdigest())
    eventually(worker.swap.ready, reason="the drafter is staged")
    worker.swap.apply()
    assert torch.equal(worker.loaded[-1]["norm.weight"], changed(worker)["norm.weight"])


def test_a_refusal_reaches_the_asker(worker: Worker, tmp_path: Path) -> None:
    content = b"not safetensors"
    folder = tmp_path / "r1"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(content)
    worker.swap.stage(str(folder), sha256=hashlib.sha256(content).hexdigest())

    def refused() -> str | None:
        try:
            worker.swap.ready()
        except RefusedDrafterError as error:
            return error.reason
        return None

    assert eventually(refused, reason="the file is refused") == "NotSafetensors"


def test_the_servers_own_drafter_is_put_back_as_it_was(worker: Worker, tmp_path: Path) -> None:
    worker.stage(tmp_path / "r1", changed(worker))
    worker.swap.apply()
    worker.swap.stage_own()
    eventually(worker.swap.ready, reason="the server's own drafter is staged")
    answer = worker.swap.apply()
    assert answer["before"] == answer["after"]
    assert torch.equal(worker.loaded[-1]["norm.weight"], worker.initial["norm.weight"])


def test_an_own_drafter_that_is_gone_leaves_the_last_one(worker: Worker, tmp_path: Path) -> None:
    worker.stage(tmp_path / "r1", changed(worker))
    worker.swap.apply()

    def gone() -> Mapping[str, torch.Tensor]:
        raise FileNotFoundError("model.safetensors")

    worker.swap._initial = gone
    worker.swap.stage_own()
    with pytest.raises(RefusedDrafterError, match=r"model\.safetensors"):
        eventually(worker.swap.ready, reason="the refusal")
    assert len(worker.loaded) == 1


def test_a_place_outside_the_job_is_refused_by_the_worker_too(worker: Worker) -> None:
    worker.swap.stage("/etc", sha256="0" * 64)

    def refused() -> str | None:
        try:
            worker.swap.ready()
        except RefusedDrafterError as error:
            return error.reason
        return None

    assert eventually(refused, reason="the place is refused") == "OutsideStore"
