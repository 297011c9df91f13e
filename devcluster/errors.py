"""What goes wrong in words that a user can act on."""

ANOTHER_CLUSTER = "or set CLUSTER=current to use the cluster of your own kubeconfig instead"


class DevclusterError(Exception):
    """Something failed while the cluster was being worked on; the message says what, and where the log is."""


class RefusalError(DevclusterError):
    """The machine or the request does not allow what was asked; nothing has been changed.

    Args:
        problem: one sentence, naming the thing that is in the way.
        way_out: what the user can do, as the rest of a sentence.
    """

    def __init__(self, problem: str, *, way_out: str) -> None:
        super().__init__(f"{problem}\n  way out: {way_out}")
        self.problem = problem
        self.way_out = way_out
