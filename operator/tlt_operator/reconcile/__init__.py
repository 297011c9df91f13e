"""Observe, decide, act: what happens to one TLTJob, and that it happens to all of them.

Every loop catches what goes wrong at its own edge, logs it and backs off; nothing here may end because an API server,
a pod or a network did.
"""
