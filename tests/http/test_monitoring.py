"""Alert rules and dashboard: checked by promtool, and against what a real daemon in trouble exports."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from support.daemon import Daemon, Make
from support.faults import Status
from support.faulty import FaultyS3
from support.processes import finished
from support.waiting import eventually
from support.web import ask, free_port

pytestmark = pytest.mark.integration

MONITORING = Path(__file__).parents[2] / "packaging" / "monitoring"
MINUTES = 300  # for so long the metrics stay as they are


@pytest.fixture
def promtool() -> str:
    return shutil.which("promtool") or pytest.skip("no promtool here: apt install prometheus")


@pytest.fixture
def daemon(make: Make, faulty: FaultyS3) -> Daemon:
    return make(
        destination={"endpoint_url": faulty.endpoint_url},
        retry={"initial_s": 0.1, "max_s": 1, "max_attempts": 1},
        service={"http_listen": f"127.0.0.1:{free_port()}"},
    ).start_ready()


def exported(daemon: Daemon) -> str:
    return ask(daemon, "/metrics")[2].decode()


def firing(promtool: str, tmp_path: Path, text: str) -> set[str]:
    """The alerts that these metrics raise when they stay so, as promtool sees them."""
    series = ['- {series: \'up{job="s3spool", instance="a"}\', values: "1x300"}']
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {"job": "s3spool", "instance": "a", **sample.labels}
            written = ", ".join(f"{name}={json.dumps(value)}" for name, value in labels.items())
            values = f"{sample.value:f}x{MINUTES}"
            series.append(f"- {{series: {json.dumps(f'{sample.name}{{{written}}}')}, values: {json.dumps(values)}}}")
    alerts = re.findall(r"alert: (\w+)", (MONITORING / "alerts.yml").read_text())
    listed = "\n  ".join(series)
    found = set()
    for alert in alerts:
        test = tmp_path / "test.yml"
        test.write_text(
            f"rule_files: [{MONITORING / 'alerts.yml'}]\nevaluation_interval: 1m\ntests:\n- interval: 1m\n"
            f"  input_series:\n  {listed}\n"
            f"  alert_rule_test:\n  - {{eval_time: {MINUTES}m, alertname: {alert}}}\n"
        )
        done = finished(promtool, "test", "rules", test)
        if done.returncode:
            assert "got:[" in done.stdout + done.stderr, done
            found.add(alert)
    return found


def test_rules(promtool: str) -> None:
    """promtool takes them, and its unit tests pass."""
    for command in ("check", "test"):
        file = "alerts.yml" if command == "check" else "alerts.test.yml"
        done = finished(promtool, command, "rules", file, cwd=MONITORING)
        assert done.returncode == 0, done


def test_alerts_of_a_daemon_in_trouble(promtool: str, daemon: Daemon, faulty: FaultyS3, tmp_path: Path) -> None:
    """Nothing while all is well; then a parked file, an outage, and a pause by hand, each as its own alert."""
    daemon.drop("good")
    daemon.wait_uploaded(1)
    assert firing(promtool, tmp_path, exported(daemon)) == set()

    faulty.script(Status(code=400, error_code="KeyTooLongError"), times=None, match="PUT .*bad")
    daemon.drop("bad")
    daemon.wait_event("file.parked")
    assert firing(promtool, tmp_path, exported(daemon)) == {"S3spoolParked"}

    faulty.script(Status(code=403, error_code="AccessDenied"), times=None, match="^PUT")
    daemon.drop("refused")
    daemon.wait_event("destination.paused")
    assert firing(promtool, tmp_path, exported(daemon)) == {"S3spoolParked", "S3spoolDestinationPaused"}

    assert daemon.cli("pause").returncode == 0
    eventually(lambda: "s3spool_paused_by_hand 1.0" in exported(daemon))
    assert firing(promtool, tmp_path, exported(daemon)) == {"S3spoolParked", "S3spoolPausedByHand"}


@pytest.mark.parametrize("file", ["alerts.yml", "dashboard.json"])
def test_every_metric_exists(file: str, daemon: Daemon) -> None:
    """What rules and dashboard ask for, the daemon exports; a renamed metric would be silence."""
    text = exported(daemon)
    samples = {sample.name for family in text_string_to_metric_families(text) for sample in family.samples}
    samples |= {"s3spool_retries_total"}  # has no sample before the first failure

    named = set(re.findall(r"\b(?:s3spool|process)_\w+", (MONITORING / file).read_text()))

    assert {"s3spool_destination_paused", "s3spool_oldest_unsent_seconds"} <= named <= samples
    assert "# TYPE s3spool_retries_total counter" in text


def test_prometheus_takes_the_metrics(promtool: str, daemon: Daemon) -> None:
    """Its own parser and linter have nothing to say."""
    daemon.drop("a")
    daemon.wait_uploaded(1)

    done = finished(promtool, "check", "metrics", input=exported(daemon))

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_dashboard_is_complete() -> None:
    """Valid JSON; no panel covers another one."""
    panels = json.loads((MONITORING / "dashboard.json").read_text())["panels"]
    places = [
        (x, y)
        for it in panels
        for x in range(it["gridPos"]["x"], it["gridPos"]["x"] + it["gridPos"]["w"])
        for y in range(it["gridPos"]["y"], it["gridPos"]["y"] + it["gridPos"]["h"])
    ]

    assert len(panels) == 14
    assert len(places) == len(set(places))
    assert all(x < 24 for x, _ in places)
