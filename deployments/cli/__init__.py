"""The command line: starts and stops a cluster, talks to it, and looks inside.

It never imports ray, torch or vllm: the head process does, and a child process builds models.
"""

from __future__ import annotations


def main() -> int:
    """Run `pointsman` with the arguments of this process; returns the exit status."""
    from deployments.cli.app import run

    return run()
