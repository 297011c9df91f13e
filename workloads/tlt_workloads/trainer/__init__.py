"""The drafter trainer: a warm supervisor and one forked worker per idle window."""
