"""The names under which the cluster reports on itself."""
