"""Kubernetes objects that the operator makes, as plain dictionaries.  Pure functions: job and pods in, manifest out."""
