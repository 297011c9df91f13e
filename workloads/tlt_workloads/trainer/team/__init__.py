"""Several trainers as one: who belongs together, whose weights count, and how gradients are summed.

One replica runs on each lent device.  A lighthouse (torchft) introduces them; everything else they agree on among
themselves, so that neither a single replica nor a team ever waits for it.  See docs/adr/0019-elastic-training.md.
"""
