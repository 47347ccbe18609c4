"""A library that lies to one process about its disk, its clock and its names: `LD_PRELOAD`, compiled when it is needed.

It sits between the program and the C library, so what is tested is the real daemon with all it is made of.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

_SOURCE = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

/* While the file that FAIL_FSYNC names exists, no fsync succeeds. */
static int failing(void) {
    const char *flag = getenv("FAIL_FSYNC");
    return flag && access(flag, F_OK) == 0;
}

/* The disk is slow: each fsync takes SLOW_FSYNC milliseconds more. */
static void be_slow(void) {
    const char *delay = getenv("SLOW_FSYNC");
    if (delay) usleep(1000 * atoi(delay));
}

int fsync(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fsync");
    be_slow();
    if (failing()) { errno = EIO; return -1; }
    return real(fd);
}

int fdatasync(int fd) {
    int (*real)(int) = dlsym(RTLD_NEXT, "fdatasync");
    be_slow();
    if (failing()) { errno = EIO; return -1; }
    return real(fd);
}

/* The wall clock is ahead by the seconds that the file named by CLOCK_OFFSET holds. */
static time_t ahead(void) {
    const char *name = getenv("CLOCK_OFFSET");
    FILE *file = name ? fopen(name, "re") : NULL;
    long seconds = 0;
    if (file) {
        if (fscanf(file, "%ld", &seconds) != 1) seconds = 0;
        fclose(file);
    }
    return seconds;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    int (*real)(clockid_t, struct timespec *) = dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (result == 0 && clock == CLOCK_REALTIME) now->tv_sec += ahead();
    return result;
}

time_t time(time_t *where) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (where) *where = now.tv_sec;
    return now.tv_sec;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

/* Who asks for a name in "hangs.test" waits for five minutes: no name server answers. */
int getaddrinfo(const char *restrict node, const char *restrict service, const struct addrinfo *restrict hints,
                struct addrinfo **restrict found) {
    int (*real)(const char *, const char *, const struct addrinfo *, struct addrinfo **) =
        dlsym(RTLD_NEXT, "getaddrinfo");
    if (!node || !strstr(node, "hangs.test")) return real(node, service, hints, found);
    sleep(300);
    return EAI_AGAIN;
}
"""


def lying(
    directory: Path, *, fail_fsync: Path | None = None, clock_offset: Path | None = None, slow_fsync_ms: int = 0
) -> dict[str, str]:
    """The environment of a process that is lied to; skips the test where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no C compiler")
    source, library = directory / "lying.c", directory / "lying.so"
    source.write_text(_SOURCE)
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
    lies = {"FAIL_FSYNC": fail_fsync, "CLOCK_OFFSET": clock_offset, "SLOW_FSYNC": slow_fsync_ms or None}
    return {"LD_PRELOAD": str(library)} | {name: str(value) for name, value in lies.items() if value is not None}
