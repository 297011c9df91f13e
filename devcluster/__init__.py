"""A real one-node Kubernetes, built from Go modules and run as plain root processes.

It exists so that the demo and the tests meet real parts (API server, scheduler, kubelet, containers, dynamic
resource allocation) on a machine with nothing but Python, a compiler and package registries. Standard library only:
it runs before any environment exists. Use it as ``python3 -m devcluster VERB`` from the root of the repository.

It is a development cluster: one node, no upgrades, and ``down`` forgets everything but binaries and image layers.
"""
