"""`make demo`: from nothing to a GRPO run whose idle accelerators train its drafter, beside the same run without.

Stages (`__main__`) build and start what is missing; `follow` watches a run and records it; `summary` and `picture`
make tables, figures and the timeline out of recordings, which stay in build/demo, so that a report can be made again.
"""
