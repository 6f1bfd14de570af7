"""The config of a cluster: its model, its checks, and reading it."""
