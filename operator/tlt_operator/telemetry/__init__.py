"""What people and their tools watch: metrics, logs, the timeline and Kubernetes Events.  Nothing here decides."""
