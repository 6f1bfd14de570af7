"""Which processes belong to a cluster."""

from __future__ import annotations

from pathlib import Path

from deployments.processes import processes_in_session, processes_of

_OF_RAY = ("ray::", "/ray/")


def members_of(cluster_id: str, head: int) -> tuple[int, ...]:
    """Process ids of all live processes of a cluster, its head process `head` excepted.

    Nearly all carry the cluster's marker. Ray's agents lose it, because they write their title over their environment;
    they are found by the head's session, and told from strangers by that title: after a restart of the machine the
    number of a head that is long gone may be that of anybody's session.
    """
    marked = set(processes_of(cluster_id))
    agents = {pid for pid in processes_in_session(head) if any(sign in title_of(pid) for sign in _OF_RAY)}
    return tuple(sorted((marked | agents) - {head}))


def title_of(pid: int) -> str:
    """What `ps` shows of a process; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace").strip()
    except OSError:
        return ""
