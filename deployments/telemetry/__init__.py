"""Traces, logs and metrics of the processes: what is recorded, where it is kept, how it is shown."""
