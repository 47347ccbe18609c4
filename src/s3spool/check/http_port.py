"""Whether the HTTP server could start: the extra `http`, and an address that is free."""

from __future__ import annotations

from collections.abc import Iterator

from s3spool.check.result import CheckResult, error, ok
from s3spool.config.schema import Config
from s3spool.errors import ConfigError
from s3spool.ledger.database import holder


def http_port(config: Config) -> Iterator[CheckResult]:
    address = config.service.http_listen
    if not address:
        return
    try:
        from s3spool.http.server import listener  # noqa: PLC0415 - an extra

        listener(address).close()
    except ImportError as exc:
        yield error("http", f"service.http_listen needs the extra http ({exc}): pip install 's3spool[http]'")
    except ConfigError as exc:
        pid = holder(config.state.directory)
        # Most likely the daemon itself listens there.
        yield ok("http", f"{address}, in use while the daemon runs (pid {pid})") if pid else error("http", str(exc))
    else:
        token = "with service.http_token" if config.service.http_token else "for every user of this machine"
        yield ok("http", f"http://{address}/ {token}")
