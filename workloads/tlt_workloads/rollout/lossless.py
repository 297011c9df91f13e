"""Refuses what would let speculation change the policy's words.

Verification as in arXiv 2211.17192 leaves the distribution of the policy untouched, and so does block verification
(arXiv 2403.10444).  vLLM 0.32 can also accept drafts by other rules: its `synthetic` rejection sampling accepts them at
a rate that is asked for, whatever the policy thinks of them.  Rollouts sampled like that are not the policy's, and a
learner that takes them for such learns something else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

LOSSLESS_METHODS = ("standard", "block")
METHOD = "rejection_sample_method"
LOSSY = ("synthetic_acceptance_rates", "synthetic_acceptance_length")


class LossyOptionError(ValueError):
    """Drafts would be accepted that the policy would not have sampled; the message names option and remedy."""


def check_lossless(option: Callable[[str], Any]) -> None:
    """Looks at a speculative configuration; `option` reads one of its fields, None when it is not set.

    Raises:
        LossyOptionError: an option changes the distribution.
    """
    method = option(METHOD)
    if method is not None and method not in LOSSLESS_METHODS:
        raise LossyOptionError(
            f"--speculative-config: {METHOD} {method!r} accepts drafts that the policy would not have sampled, which "
            f"changes what the learner learns from; leave it out or use {' or '.join(LOSSLESS_METHODS)}"
        )
    for name in LOSSY:
        if option(name) is not None:
            raise LossyOptionError(
                f"--speculative-config: {name} accepts drafts at a fixed rate, whatever the policy thinks of them; "
                "leave it out"
            )


def check_config(speculative: Any) -> None:
    """The same for vLLM's `SpeculativeConfig`; None is fine.

    Raises:
        LossyOptionError: an option changes the distribution.
    """
    if speculative is not None:
        check_lossless(lambda name: getattr(speculative, name, None))


def check_command_line(arguments: Sequence[str]) -> None:
    """The same for the words of `vllm serve`, however they spell the option.

    Raises:
        LossyOptionError: an option changes the distribution.
    """
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    speculative = parser.parse_args(list(arguments)).speculative_config
    if speculative:
        check_lossless(dict(speculative).get)
