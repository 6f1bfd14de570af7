"""The records database: written by a thread of each ingress, read by the command line."""
