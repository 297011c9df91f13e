"""The TLT operator: lends idle rollout GPUs to drafter training and rolls out what was learned."""
