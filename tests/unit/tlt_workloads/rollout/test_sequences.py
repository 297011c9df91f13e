"""Rows and tokens of an engine's steps become the sequences that were really generated."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tlt_workloads.rollout.capture import NewRequest, StepRows
from tlt_workloads.rollout.sequences import SequenceTable, final_length
from tlt_workloads.shards import CapturedSequence

PROMPT = (10, 11, 12)
STOP = 2


def request(prompt: tuple[int, ...] = PROMPT, max_tokens: int | None = 100, first_row: int = 0) -> NewRequest:
    return NewRequest(prompt_ids=prompt, max_tokens=max_tokens, stop_ids=frozenset({STOP}), first_row=first_row)


def step(
    *parts: tuple[str, int, list[int], list[int], bool],
    new: dict[str, NewRequest] | None = None,
    version: int = 1,
    resumed: dict[str, int] | None = None,
) -> StepRows:
    """Each part: request, first position, fed tokens, sampled tokens, whether its prompt is unfinished.

    A row's value is the token that was fed, so that a wrong row is seen in the result.
    """
    rows = torch.cat([torch.tensor(fed, dtype=torch.float32).reshape(-1, 1, 1) for _, _, fed, _, _ in parts])
    width = max(len(sampled) for _, _, _, sampled, _ in parts)
    return StepRows(
        requests=tuple(part[0] for part in parts),
        counts=tuple(len(part[2]) for part in parts),
        rows=rows.to(torch.bfloat16),
        positions=torch.cat([torch.arange(start, start + len(fed)) for _, start, fed, _, _ in parts]),
        sampled=torch.tensor([[*sampled, *[-1] * (width - len(sampled))] for _, _, _, sampled, _ in parts]),
        partial=tuple(part[4] for part in parts),
        resumed=resumed or {},
        new=new or {},
        policy_version=version,
        copied=None,
    )


def feed(table: SequenceTable, *steps: StepRows) -> list[str]:
    return [name for item in steps for name in table.add(item)]


def values(sequence: CapturedSequence | None) -> list[int]:
    assert sequence is not None
    return [int(value) for value in sequence.hidden_states[:, 0, 0]]


def test_a_rejected_draft_leaves_no_trace() -> None:
    table = SequenceTable()
    feed(
        table,
        step(("a", 0, [10, 11, 12], [20], False), new={"a": request()}),
        step(("a", 3, [20, 91, 92, 93], [21], False)),  # all drafts rejected
        step(("a", 4, [21, 22, 94, 95], [22, 23], False)),  # one accepted
    )
    sequence = table.close("a")
    assert sequence is not None
    assert sequence.token_ids.tolist() == [10, 11, 12, 20, 21, 22, 23]
    assert values(sequence) == [10, 11, 12, 20, 21, 22]
    assert (sequence.prompt_length, sequence.first_row, sequence.finished) == (3, 0, False)


def test_a_prompt_in_chunks_is_one_prompt() -> None:
    table = SequenceTable()
    feed(
        table,
        step(("a", 0, [10, 11], [77], True), new={"a": request()}),
        step(("a", 2, [12], [20], False)),
        step(("a", 3, [20], [21], False)),
    )
    assert values(table.close("a")) == [10, 11, 12, 20]


def test_a_cached_prefix_has_no_rows() -> None:
    table = SequenceTable()
    feed(table, step(("a", 2, [12], [20], False), new={"a": request()}), step(("a", 3, [20], [21], False)))
    sequence = table.close("a")
    assert sequence is not None
    assert sequence.first_row == 2
    assert values(sequence) == [12, 20]
    assert sequence.token_ids.tolist() == [10, 11, 12, 20, 21]


def test_a_preempted_request_is_computed_again() -> None:
    table = SequenceTable()
    feed(
        table,
        step(("a", 0, [10, 11, 12], [20], False), new={"a": request()}),
        step(("a", 3, [20], [21], False)),
        step(("a", 0, [10, 11, 12, 20], [21], False), resumed={"a": 1}),  # the token in flight was dropped
        step(("a", 4, [21], [22], False)),
    )
    sequence = table.close("a")
    assert values(sequence) == [10, 11, 12, 20, 21]
    assert sequence is not None
    assert sequence.token_ids.tolist() == [10, 11, 12, 20, 21, 22]


def test_rows_of_an_older_policy_are_left_out() -> None:
    table = SequenceTable()
    feed(
        table,
        step(("a", 0, [10, 11, 12], [20], False), new={"a": request()}, version=1),
        step(("a", 3, [20], [21], False), version=2),
        step(("a", 4, [21], [22], False), version=2),
    )
    sequence = table.close("a")
    assert sequence is not None
    assert (sequence.policy_version, sequence.first_row) == (2, 3)
    assert values(sequence) == [20, 21]


def test_what_came_before_a_missing_step_is_kept() -> None:
    table = SequenceTable()
    torn = feed(
        table,
        step(("a", 0, [10, 11, 12], [20], False), new={"a": request()}),
        step(("a", 3, [20], [21], False)),
        step(("a", 4, [21, 22], [22, 23], False)),
        # the step that fed 23 was dropped
        step(("a", 7, [24, 91, 92, 93], [25], False)),
    )
    assert torn == ["a"]
    sequence = table.close("a", cut=True)
    assert sequence is not None
    assert sequence.token_ids.tolist() == [10, 11, 12, 20, 21]  # what followed may have been taken back
    assert values(sequence) == [10, 11, 12, 20]
    assert not sequence.finished


def test_a_missing_step_is_noticed_behind_rejected_drafts() -> None:
    table = SequenceTable()
    torn = feed(
        table,
        step(("a", 0, [10, 11, 12], [20], False), new={"a": request()}),
        step(("a", 3, [20, 91, 92, 93], [21], False)),
        step(
            ("a", 6, [23], [24], False)
        ),  # between them 21 and 22 were fed and dropped; rows reach up to here all the same
    )
    assert torn == ["a"]


def test_nothing_is_left_of_a_sequence_torn_in_its_prompt() -> None:
    table = SequenceTable()
    torn = feed(
        table,
        step(("a", 0, [10], [77], True), new={"a": request()}),
        step(("a", 2, [12], [20], False)),
    )
    assert torn == ["a"]
    assert table.close("a", cut=True) is None


def test_rows_of_a_prompt_that_nobody_wants_are_not_there() -> None:
    table = SequenceTable()
    feed(
        table,
        step(("a", 0, [], [77], True), new={"a": request(first_row=2)}),
        step(("a", 2, [12], [20], False)),
        step(("a", 3, [20], [21], False)),
    )
    sequence = table.close("a")
    assert sequence is not None
    assert (sequence.first_row, values(sequence)) == (2, [12, 20])
    assert sequence.token_ids.tolist() == [10, 11, 12, 20, 21]


def test_a_sequence_without_any_prompt_row() -> None:
    table = SequenceTable()
    feed(
        table,
        step(("a", 0, [], [20], False), new={"a": request(first_row=3)}),
        step(("a", 3, [20, 21], [21, 22], False)),
        step(("a", 5, [22], [23], False)),
    )
    sequence = table.close("a")
    assert sequence is not None
    assert (sequence.first_row, values(sequence)) == (3, [20, 21, 22])


def test_more_rows_than_wanted_do_no_harm() -> None:
    table = SequenceTable()
    feed(
        table,
        step(("a", 0, [10, 11, 12], [20], False), new={"a": request(first_row=2)}),
        step(("a", 3, [20], [21], False)),
    )
    assert values(table.close("a")) == [12, 20]


def test_what_follows_the_end_is_cut_off() -> None:
    assert final_length(request(), [20, STOP, 30]) == (5, True)
    assert final_length(request(max_tokens=2), [20, 21, 22]) == (5, True)
    assert final_length(request(max_tokens=9), [20, 21]) == (5, False)
    assert final_length(request(max_tokens=None), [20, 21]) == (5, False)


def test_requests_that_were_not_admitted_leave_nothing() -> None:
    table = SequenceTable()
    feed(table, step(("a", 0, [10], [20], False)))
    assert table.size == 0
    assert table.close("a") is None


def test_an_aborted_prompt_is_not_worth_keeping() -> None:
    table = SequenceTable()
    feed(table, step(("a", 0, [10, 11], [77], True), new={"a": request()}))
    assert table.close("a") is None


@settings(deadline=None)  # a loaded machine is not a failure
@given(st.data())
def test_whatever_is_accepted_the_rows_are_those_of_the_tokens(data: st.DataObject) -> None:
    """A simulated engine: random drafts, random acceptance, two requests side by side."""
    table = SequenceTable()
    truth = {name: list(PROMPT) for name in ("a", "b")}
    first = True
    token = 20
    for _ in range(data.draw(st.integers(1, 12))):
        parts = []
        for name, known in truth.items():
            start = 0 if first else len(known) - 1
            drafts = data.draw(st.integers(0, 3)) if not first else 0
            accepted = data.draw(st.integers(0, drafts))
            sampled = list(range(token, token + accepted + 1))
            token += accepted + 1
            fed = [*known[start:], *sampled[:accepted], *[99] * (drafts - accepted)]
            parts.append((name, start, fed, sampled, False))
            known.extend(sampled)
        feed(table, step(*parts, new={name: request() for name in truth} if first else None))
        first = False
    for name, known in truth.items():
        if len(known) == len(PROMPT) + 1:
            continue
        sequence = table.close(name)
        assert sequence is not None
        assert sequence.token_ids.tolist() == known
        assert values(sequence) == known[:-1]
