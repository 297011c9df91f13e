"""The cluster tier's own cluster, operator and namespace."""

import warnings

from tests.cluster.conftest import cluster, namespace, operator

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch warns of itself while speculators is imported
    import speculators.models.eagle3  # noqa: F401

__all__ = ["cluster", "namespace", "operator"]
