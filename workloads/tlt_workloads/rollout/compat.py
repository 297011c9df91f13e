"""Everything that vLLM 0.32 does not offer an extension point for, in one place.

Each entry says what it works around, where upstream stands, and which test fails once it can go.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from typing import TYPE_CHECKING, Any

from tlt_workloads.rollout.lossless import check_config

if TYPE_CHECKING:
    from tlt_workloads.rollout.capture import CaptureTap
    from tlt_workloads.rollout.drafts import Drafts
    from tlt_workloads.rollout.speculation import Speculation

logger = logging.getLogger("vllm.tlt")

SUPPORTED_SERIES = ("0.32",)
OVERRIDE_VARIABLE = "TLT_ALLOW_UNSUPPORTED_ENGINE"


class UnsupportedEngineError(RuntimeError):
    """This vLLM was not tried with the plugin."""


def check_engine_version(version: str) -> None:
    """Refuses a vLLM series that the plugin was not tested with.

    Raises:
        UnsupportedEngineError: names the supported series and the way to insist.
    """
    series = ".".join(version.split(".")[:2])
    if series in SUPPORTED_SERIES or os.environ.get(OVERRIDE_VARIABLE) == "1":
        return
    supported = ", ".join(f"{item}.*" for item in SUPPORTED_SERIES)
    raise UnsupportedEngineError(
        f"vLLM {version} is not supported, use {supported}; set {OVERRIDE_VARIABLE}=1 to run it all the same"
    )


def engine_version() -> str:
    """The version of the installed vLLM; its CPU distribution has another name, so metadata of `vllm` may be absent."""
    from vllm.version import __version__

    version: str = __version__
    return version


def attach_to_workers() -> None:
    """Gives each worker the control routes' methods and its model runner the capture tap, once its device is up.

    vLLM's plugin guide wants the general plugin to install what endpoint plugins call, but has no hook for it; the slot
    `--worker-extension-cls` exists once and RL frameworks take it: https://docs.vllm.ai/en/latest/design/plugin_system/.
    Attached to instances, so that neither the platform nor the order of imports matters.  Goes when plugins can
    register worker methods; `tests/engine` fails as a whole when it stops to work.
    """
    from vllm.v1.worker.worker_base import WorkerWrapperBase

    original = WorkerWrapperBase.init_device
    if hasattr(original, "_tlt"):
        return

    @functools.wraps(original)
    def init_device(self: Any) -> None:
        check_config(self.vllm_config.speculative_config)  # no other extension point sees it before weights are loaded
        original(self)
        from tlt_workloads.rollout.worker import WorkerSide

        WorkerSide(self.worker).attach()

    init_device._tlt = True  # type: ignore[attr-defined]
    WorkerWrapperBase.init_device = init_device


def tap_model_runner(runner: Any, tap: CaptureTap) -> None:
    """Shows each step's hidden states to the tap.

    vLLM hands hidden states out only by the speculative method `extract_hidden_states`, which takes the place of the
    drafter: https://docs.vllm.ai/en/latest/features/spec_decode/.  Goes when an engine can do both at once;
    `tests/engine/test_capture.py` compares what is captured with a second implementation of the model.
    """
    if not hasattr(runner, "propose_draft_token_ids"):
        logger.warning("capture: this model runner cannot be tapped, start with VLLM_USE_V2_MODEL_RUNNER=0")
        return
    propose, update = runner.propose_draft_token_ids, runner._update_states
    sample, keep_books = runner.sample_tokens, runner._bookkeeping_sync
    unseen: list[Any] = []  # what the model put out in a step that the tap has not seen yet

    @functools.wraps(sample)
    def sample_tokens(grammar: Any) -> Any:
        unseen[:] = [runner.execute_model_state] if runner.execute_model_state is not None else []
        return sample(grammar)

    @functools.wraps(propose)
    def propose_draft_token_ids(
        scheduled: Any, sampled: Any, sampling: Any, hidden: Any, sampled_hidden: Any, auxiliary: Any, *rest: Any
    ) -> Any:
        unseen.clear()
        _guard(tap.before_propose, runner, scheduled, sampled, hidden, auxiliary)
        return propose(scheduled, sampled, sampling, hidden, sampled_hidden, auxiliary, *rest)

    @functools.wraps(keep_books)
    def _bookkeeping_sync(scheduled: Any, output: Any, *rest: Any) -> Any:
        # While one request is within a draft of the model's longest length, vLLM drafts for none of the batch.
        for state in unseen:
            tokens, hidden, auxiliary = output.sampled_token_ids, state.hidden_states, state.aux_hidden_states
            _guard(tap.before_propose, runner, scheduled, tokens, hidden, auxiliary)
        unseen.clear()
        return keep_books(scheduled, output, *rest)

    @functools.wraps(update)
    def _update_states(scheduled: Any) -> Any:
        _guard(tap.before_update, scheduled)
        return update(scheduled)

    runner.sample_tokens = sample_tokens
    runner.propose_draft_token_ids = propose_draft_token_ids
    runner._bookkeeping_sync = _bookkeeping_sync
    runner._update_states = _update_states


def steer_drafter(runner: Any, drafts: Drafts) -> None:
    """Puts `drafts` between a model runner and its drafter.

    vLLM runs an EAGLE drafter in every step, also when nothing is to be drafted, and an engine has one kind of drafter
    for its whole life: https://docs.vllm.ai/en/latest/features/spec_decode/.  Goes when vLLM skips the pass and can
    switch drafters; `tests/engine/test_speculation.py` compares drafts with and without.
    """
    propose, update = runner.propose_draft_token_ids, runner._update_states

    @functools.wraps(propose)
    def propose_draft_token_ids(scheduled: Any, sampled: Any, *rest: Any) -> Any:
        _sampling, _hidden, _sampled_hidden, auxiliary, _verified, attention, *_ = rest
        nothing = drafts.left_out(scheduled, sampled, auxiliary, attention)
        return propose(scheduled, sampled, *rest) if nothing is None else nothing

    @functools.wraps(update)
    def _update_states(scheduled: Any) -> Any:
        drafts.before_update(scheduled)
        return update(scheduled)

    runner.propose_draft_token_ids = propose_draft_token_ids
    runner._update_states = _update_states
    runner.drafter.propose = drafts.propose


def sample_plainly_without_drafts(runner: Any) -> None:
    """Steps that verify nothing are sampled as those of an engine without a drafter are.

    vLLM's rejection sampler copies the logits of the whole batch and more, to accept none of no drafts: 2 % of a small
    model's step on a CPU.  Tokens and random numbers are the same.  No upstream issue yet; goes when vLLM leaves it out
    by itself, which `tests/engine/test_lossless.py` does not notice: only the benchmark `rollout_overhead` does.
    """
    sample = runner._sample

    @functools.wraps(sample)
    def _sample(logits: Any, verified: Any) -> Any:
        return sample(logits, verified if verified is not None and any(verified.num_draft_tokens) else None)

    runner._sample = _sample


def add_core_methods() -> None:
    """Lets draft lengths be decided while the engine runs, from step to step, by what the steps before took.

    vLLM reads `num_speculative_tokens_per_batch_size` at start only, into a table that its scheduler asks in each step;
    `--scheduler-cls` is left to whoever needs it.  Drafts are fetched only where some were made.  Goes when the
    schedule can be set by a public call and step times can be had; `tests/engine/test_speculation.py` changes it on a
    live server.
    """
    core = sys.modules.get("vllm.v1.engine.core")  # a worker's process has no core, and need not import one
    if core is None:
        return

    def tlt_speculate(self: Any, message: str) -> None:
        from tlt_workloads.rollout.speculation import SpeculationOrder

        _speculation_of(self.scheduler).obey(SpeculationOrder.decoded(message))

    def tlt_speculation_report(self: Any) -> str:
        from tlt_workloads.rollout.speculation import report_message

        return report_message(_speculation_of(self.scheduler))

    collect = core.EngineCore.post_step

    @functools.wraps(collect)
    def post_step(self: Any, model_executed: bool) -> None:
        from tlt_workloads.rollout.speculation import Speculation

        # Asking the workers for drafts costs two messages between processes, in each step.
        lookup = self.scheduler.dynamic_sd_lookup
        if isinstance(lookup, Speculation) and not lookup.is_drafting:
            return
        collect(self, model_executed)

    if not hasattr(collect, "_tlt"):
        post_step._tlt = True  # type: ignore[attr-defined]
        core.EngineCore.post_step = post_step
    core.EngineCore.tlt_speculate = tlt_speculate
    core.EngineCore.tlt_speculation_report = tlt_speculation_report


def _speculation_of(scheduler: Any) -> Speculation:
    """The scheduler's decider, put in place at the first call."""
    from tlt_workloads.rollout.counters import inherited_page
    from tlt_workloads.rollout.speculation import SchedulerTap, Speculation

    if isinstance(scheduler.dynamic_sd_lookup, Speculation):
        return scheduler.dynamic_sd_lookup

    def tokens_of(name: str) -> Any:
        request = scheduler.requests.get(name)
        return None if request is None else request.all_token_ids

    speculation = Speculation(
        longest=scheduler.num_spec_tokens,
        page=inherited_page(),
        is_working=scheduler.has_unfinished_requests,
        tokens_of=tokens_of,
    )
    tap, schedule, update = SchedulerTap(speculation), scheduler.schedule, scheduler.update_from_output

    @functools.wraps(schedule)
    def tapped_schedule(*arguments: Any, **named: Any) -> Any:
        output = schedule(*arguments, **named)
        _guard(tap.scheduled, output)
        return output

    @functools.wraps(update)
    def update_from_output(output: Any, outcome: Any) -> Any:
        result = update(output, outcome)
        _guard(tap.finished, output, outcome)
        return result

    scheduler.schedule, scheduler.update_from_output = tapped_schedule, update_from_output
    scheduler.dynamic_sd_lookup = speculation
    return speculation


def fix_expand_kernel() -> None:
    """Gives speculative sampling on a CPU its temperatures.

    vLLM 0.32's replacement of `expand_kernel` for CPUs without Triton writes into an int64 copy of a float tensor, so
    that temperature, top-p and top-k of drafted tokens are uninitialised memory: with T > 0 nearly every draft is
    rejected and the distribution is wrong (https://github.com/vllm-project/vllm/issues/55005).  The platform registers
    the replacement after plugins are loaded, by its name in the module, so that is what is exchanged.  Goes when
    `tests/engine/test_compat.py` says that the original is right.
    """
    from vllm.utils import cpu_triton_utils

    cpu_triton_utils._expand_kernel_impl = expand_kernel


def forget_draft_probabilities(drafter: Any) -> None:
    """Before somebody else drafts: the runner asks the drafter for the probabilities of the last drafts.

    vLLM's drafter forgets them at its next `propose`.  Where that is left out, the runner would take the probabilities
    of an earlier step for those of n-grams, and the answers would not have the policy's distribution.  Goes when vLLM
    has a way to skip a drafter; `tests/engine/test_lossless.py` lets n-grams and trained drafts take turns.
    """
    drafter._last_draft_probs = None


def refresh_tied_head(model: Any) -> None:
    """Packs the output head of a model with tied embeddings anew after its weights were replaced.

    On a CPU vLLM keeps a packed copy of each matrix.  A tied head has no weights of its own in an update, so its layer
    is passed over and the copy stays what it was: the policy then reads with the new embedding and speaks with the old
    one.  No upstream issue yet; the mechanism is described in https://docs.vllm.ai/en/latest/training/layerwise/.
    Goes when `tests/engine/test_compat.py` says that an update without it is right.
    """
    from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead

    for module in model.modules():
        if isinstance(module, ParallelLMHead) and hasattr(module, "cpu_linear"):
            module.quant_method.process_weights_after_loading(module)


def expand_kernel(
    output: Any,
    input_val: Any,
    cu_num_tokens: Any,
    replace_from: int,
    replace_to: int,
    MAX_NUM_TOKENS: int | None = None,  # noqa: N803 - vLLM passes it by this name
) -> None:
    """Repeats one value per request for each of its tokens; `replace_from` becomes `replace_to`.

    Args:
        output: [tokens], written in place.
        input_val: [requests].
        cu_num_tokens: [requests], running total of tokens.
        replace_from: value to replace.
        replace_to: by this one.
        MAX_NUM_TOKENS: block size of the GPU kernel, unused.
    """
    counts = cu_num_tokens.clone()
    counts[1:] -= cu_num_tokens[:-1]
    values = input_val.masked_fill(input_val == replace_from, replace_to)
    expanded = values.repeat_interleave(counts.long())
    output[: len(expanded)] = expanded.to(output.dtype)


def _guard(action: Any, *arguments: Any) -> None:
    """A tap watches; whatever goes wrong in it must not stop the engine."""
    try:
        action(*arguments)
    except Exception:
        logger.exception("step not recorded")
