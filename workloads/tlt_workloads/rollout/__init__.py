"""The rollout engine's side: a vLLM plugin that lends its idle GPU, records hidden states and takes new drafters.

Importing this package must stay cheap: vLLM imports its plugins in every process that it starts.
"""
