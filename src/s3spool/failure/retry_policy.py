"""Whether and when a failed file is tried again: pure decisions."""

from __future__ import annotations

import random
from dataclasses import dataclass

from s3spool.config.schema import RetryConfig
from s3spool.errors import UploadError
from s3spool.ledger.rows import Failures

PROVISIONAL = 3  # so many refusals, without any success since, and the file is parked, but not for good
REFUSED_S = 1.0  # the longest wait after a first refusal, whatever retry.initial_s: people want to know
UNPROVEN_S = 10.0  # while nobody knows whose fault it is, a file waits no longer than this (or initial_s) ...
UNPROVEN_SHARE = 1 / 6  # ... or this share of the time since its first failure, whichever is longer


@dataclass(frozen=True, slots=True)
class Delay:
    """Try again in `seconds`."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Park:
    """Do not try again unless the file changes or a person says so; `provisional`: or another file succeeds."""

    reason: str
    provisional: bool = False


def backoff_s(attempt: int, *, initial_s: float, max_s: float, rng: random.Random) -> float:
    """Seconds until the next attempt after `attempt` (from 1) failures: exponential, capped, with full jitter.

    Full jitter (anything between almost nothing and the cap) keeps many failed files, and many hosts, from
    coming back in step.
    """
    cap_s = min(max_s, initial_s * 2.0 ** min(attempt - 1, 62))
    return rng.uniform(min(0.1, cap_s), cap_s)


def decide(error: UploadError, failures: Failures, *, policy: RetryConfig, rng: random.Random) -> Delay | Park:
    """What follows from this error, the last of these failures; the rules 1 and 2 of `CircuitBreaker`.

    A file whose failures are proven to be its own backs off up to `policy.max_s`, or is parked. Any other one backs
    off for a share of the time since its first failure: after an outage of 90 s the last one goes out 15 s later.
    """
    own = failures.own > 0
    if own and error.permanent:
        return Park(error.cause)
    if own and policy.max_attempts and failures.own >= policy.max_attempts:
        return Park(f"{failures.own} attempts failed (retry.max_attempts), the last with {error.code}: {error.cause}")
    if error.permanent and failures.attempts >= PROVISIONAL:
        return Park(error.cause, provisional=True)
    unproven_s = max(policy.initial_s, UNPROVEN_S, UNPROVEN_SHARE * (failures.last_error_at - failures.first_error_at))
    max_s = policy.max_s if own else min(policy.max_s, unproven_s)
    initial_s = min(policy.initial_s, REFUSED_S) if error.permanent else policy.initial_s
    delay_s = backoff_s(failures.attempts, initial_s=initial_s, max_s=max_s, rng=rng)
    if error.retry_after_s is not None:
        delay_s = max(delay_s, min(error.retry_after_s, policy.max_s))
    return Delay(delay_s)
