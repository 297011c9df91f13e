"""The cluster tier's own cluster, operator and namespace."""

from tests.cluster.conftest import cluster, namespace, operator

__all__ = ["cluster", "namespace", "operator"]
