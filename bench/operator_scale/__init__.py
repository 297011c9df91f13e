"""How the operator behaves with very many rollout pods."""
