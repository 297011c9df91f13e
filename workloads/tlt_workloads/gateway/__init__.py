"""One URL in front of all rollout pods of a job.

Takes what an RL learner sends to a single vLLM server, splits a batch into single completions, gives each to the pod
with the least outstanding work, and fans control calls out to all pods.  It keeps no copy of the policy and no queue
on disk: after a restart it learns all it needs from the pods and from the next policy update.
"""
