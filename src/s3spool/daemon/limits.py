"""How many open files the process may have, and how many workers that is enough for."""

from __future__ import annotations

import resource

BASE = 60  # log, ledger and its readers, inotify, control socket and its clients, boto3, epoll
PER_WORKER = 6  # two connections, two by which libcurl wakes itself, a file, a large one


def open_files_needed(workers: int) -> int:
    return PER_WORKER * workers + BASE


def raise_open_files(workers: int) -> None:
    """Ask for no more than needed: a soft limit above 1,024 breaks select(2) in what others have loaded."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = open_files_needed(workers)
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def affordable_workers(wanted: int) -> int:
    """So many of these workers have enough open files by the soft limit; at least one."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, (soft - BASE) // PER_WORKER))
