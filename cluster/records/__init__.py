"""What is written down of decisions, and of the replicas' time."""
