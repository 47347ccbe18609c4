"""One table of features over S3 servers of four makers; docs/compatibility.md is that table."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from compat.features import FEATURES
from compat.servers import SERVERS

if TYPE_CHECKING:
    from compat.features import Row
    from compat.servers import Server

pytestmark = [pytest.mark.compat, pytest.mark.timeout(600)]

DOCUMENT = Path(__file__).parents[2] / "docs" / "compatibility.md"
BEGIN, END = "<!-- written by make test-compat -->\n", "<!-- until here -->\n"
Feature = Callable[["Server", Path], "Row"]
Cell = tuple["Row", BaseException | None]
Results = dict[tuple[str, str], Cell]


class Found:
    """What came of each feature at each server."""

    def __init__(self, cells: Results, missing: dict[str, str]) -> None:
        self.cells = cells
        self.missing = missing  # servers that cannot be started here, and why


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """The servers run side by side, and so do two features at each server: most of the time they wait."""
    missing = {kind.name: reason for kind in SERVERS if (reason := kind.missing())}
    with ExitStack() as stack:
        kinds = [kind for kind in SERVERS if kind.name not in missing]
        servers = [stack.enter_context(kind(tmp_path_factory.mktemp("server"))) for kind in kinds]
        home = tmp_path_factory.mktemp("home")

        def cell(pair: tuple[Feature, Server]) -> Cell:
            feature, server = pair
            return _tried(feature, server, home / server.name.replace(" ", "-"))

        pairs = list(itertools.product(FEATURES, servers))
        with ThreadPoolExecutor(2 * len(servers)) as threads:
            cells = list(threads.map(cell, pairs))
    keys = [(server.name, feature.__name__) for feature, server in pairs]
    return Found(dict(zip(keys, cells, strict=True)), missing)


def _tried(feature: Feature, server: Server, home: Path) -> Cell:
    try:
        return feature(server, home / feature.__name__), None
    except Exception as exc:  # noqa: BLE001 - the test of this feature raises it
        return {}, exc


@pytest.mark.parametrize("feature", [feature.__name__ for feature in FEATURES])
@pytest.mark.parametrize("server", [server.name for server in SERVERS])
def test_feature(found: Found, server: str, feature: str) -> None:
    """What is promised holds at this server, whatever the server makes of the request."""
    if server in found.missing:
        pytest.skip(found.missing[server])
    _, failure = found.cells[server, feature]
    if failure is not None:
        raise failure


def test_document_is_what_was_found(found: Found) -> None:
    """Another outcome is written into docs/compatibility.md, and fails until somebody has looked at it."""
    if any(failure for _, failure in found.cells.values()):
        pytest.skip("a feature failed: there is no table")
    text = DOCUMENT.read_text()
    before, _, rest = text.partition(BEGIN)
    documented, _, after = rest.partition(END)
    written = f"{before}{BEGIN}{_table(found, _rows(documented))}{END}{after}"

    if written != text:
        DOCUMENT.write_text(written)
    assert written == text, f"{DOCUMENT.name} has been written anew: look at the difference"


def _rows(table: str) -> dict[str, Row]:
    """What a table says of each server; the column of a server that is missing here stays as it is."""
    lines = [line.removesuffix(" |").split(" | ") for line in table.splitlines()]
    rows: dict[str, Row] = {name: {} for name in lines[0][1:]}
    for what, *cells in lines[2:]:
        for name, cell in zip(rows, cells, strict=True):
            rows[name][what.removeprefix("| ")] = cell
    return rows


def _table(found: Found, documented: dict[str, Row]) -> str:
    names = [server.name for server in SERVERS]
    cells: dict[str, Row] = {name: documented[name] if name in found.missing else {} for name in names}
    for (name, _), (row, _) in found.cells.items():
        cells[name] |= row
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    lines += [f"| {what} | {' | '.join(cells[name][what] for name in names)} |" for what in cells[names[0]]]
    return "\n".join(lines) + "\n"
