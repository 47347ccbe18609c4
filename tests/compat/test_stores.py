"""One table of features over S3 servers of four makers; docs/compatibility.md is that table."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from compat.features import FEATURES
from compat.servers import SERVERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from compat.features import Row
    from compat.servers import Server

pytestmark = [pytest.mark.compat, pytest.mark.timeout(600)]

DOCUMENT = Path(__file__).parents[2] / "docs" / "compatibility.md"
BEGIN, END = "<!-- written by make test-compat -->\n", "<!-- until here -->\n"
Cell = tuple["Row", BaseException | None]
Results = dict[tuple[str, str], Cell]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Each feature at each server, the servers side by side."""
    with ExitStack() as stack:
        servers = [stack.enter_context(kind(tmp_path_factory.mktemp("server"))) for kind in SERVERS]
        home = tmp_path_factory.mktemp("home")

        def column(server: Server) -> Results:
            place = home / server.name.replace(" ", "-")
            return {(server.name, feature.__name__): _tried(feature, server, place) for feature in FEATURES}

        with ThreadPoolExecutor(len(servers)) as threads:
            columns = list(threads.map(column, servers))
    return {key: cell for column in columns for key, cell in column.items()}


def _tried(feature: Callable[[Server, Path], Row], server: Server, home: Path) -> Cell:
    try:
        return feature(server, home / feature.__name__), None
    except Exception as exc:  # noqa: BLE001 - the test of this feature raises it
        return {}, exc


@pytest.mark.parametrize("feature", [feature.__name__ for feature in FEATURES])
@pytest.mark.parametrize("server", [server.name for server in SERVERS])
def test_feature(results: Results, server: str, feature: str) -> None:
    """What is promised holds at this server, whatever the server makes of the request."""
    _, failure = results[server, feature]
    if failure is not None:
        raise failure


def test_document_is_what_was_found(results: Results) -> None:
    """Another outcome is written into docs/compatibility.md, and fails until somebody has looked at it."""
    if any(failure for _, failure in results.values()):
        pytest.skip("a feature failed: there is no table")
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    found = f"{before}{BEGIN}{_table(results)}{END}{after}"

    if found != text:
        DOCUMENT.write_text(found)
    assert found == text, f"{DOCUMENT.name} has been written anew: look at the difference"


def _table(results: Results) -> str:
    names = [server.name for server in SERVERS]
    cells: dict[str, Row] = {name: {} for name in names}
    for (name, _), (row, _) in results.items():
        cells[name] |= row
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    lines += [f"| {what} | {' | '.join(cells[name][what] for name in names)} |" for what in cells[names[0]]]
    return "\n".join(lines) + "\n"
