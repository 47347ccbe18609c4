"""The limit of open files, and the number of workers that it allows."""

from __future__ import annotations

import resource

BASE = 60  # log, ledger and its readers, inotify, control socket and its clients, boto3, epoll
PER_WORKER = 6  # two connections, two descriptors of libcurl's own, a file, a large file


def open_files_needed(workers: int) -> int:
    return PER_WORKER * workers + BASE


def raise_open_files(workers: int) -> None:
    """Raise the soft limit no further than needed: above 1,024 it breaks select(2) in other libraries."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = open_files_needed(workers)
    if soft != resource.RLIM_INFINITY and soft < needed:
        most = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def affordable_workers(wanted: int) -> int:
    """The number of workers that the soft limit allows; at least one."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, (soft - BASE) // PER_WORKER))
