"""The operator's environment, and what is said when it is wrong."""

import json
import logging
from pathlib import Path

import pytest

from anneal_operator.__main__ import main
from anneal_operator.errors import SettingsError
from anneal_operator.logs import JsonFormatter, log_event
from anneal_operator.settings import read_settings

LEAST = {
    "ANNEAL_RELEASE": "anneal",
    "ANNEAL_POD_NAMESPACE": "anneal-system",
    "ANNEAL_POD_NAME": "operator-0",
    "ANNEAL_PROGRESS_URL": "https://anneal-progress.anneal-system.svc:8443",
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in LEAST.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_the_least_environment(environment: pytest.MonkeyPatch) -> None:
    settings = read_settings()
    assert settings.identity == "anneal.anneal-system"
    assert settings.leader_lease == "anneal-leader"
    assert settings.watch_namespaces == ()
    assert settings.tracking_server("http://mlflow:5000") is None


def test_what_the_chart_writes(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("ANNEAL_WATCH_NAMESPACES", "team-a, team-b")
    servers = [{"uri": "http://mlflow:5000/", "credentialsDir": "/etc/anneal/tracking/0"}]
    environment.setenv("ANNEAL_TRACKING_SERVERS", json.dumps(servers))
    settings = read_settings()
    assert settings.watch_namespaces == ("team-a", "team-b")
    server = settings.tracking_server("http://mlflow:5000")
    assert server is not None
    assert server.credentialsDir == Path("/etc/anneal/tracking/0")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param("ANNEAL_PROGRESS_URL", "http://plain", id="no TLS"),
        pytest.param("ANNEAL_WORKERS", "none", id="no number"),
        pytest.param("ANNEAL_LOG_LEVEL", "LOUD", id="no level"),
        pytest.param("ANNEAL_RELEASE", "", id="empty"),
        pytest.param("ANNEAL_TRACKING_SERVERS", "{", id="no JSON"),
        pytest.param("ANNEAL_TRACKING_SERVERS", '[{"url": "x"}]', id="an unknown key"),
    ],
)
def test_a_wrong_value_is_named(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    environment.setenv(name, value)
    with pytest.raises(SettingsError) as caught:
        read_settings()
    assert name.removeprefix("ANNEAL_").lower() in str(caught.value).lower()
    assert "chart's values" in str(caught.value)


def test_a_log_line_is_one_json_object(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        log_event(logging.getLogger("t"), "job_changed", namespace="a", message="two\nlines")
    line = JsonFormatter().format(caplog.records[-1])
    assert "\n" not in line
    parsed = json.loads(line)
    assert (parsed["event"], parsed["namespace"]) == ("job_changed", "a")


def test_the_program_says_where_its_settings_come_from(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    assert "environment variables ANNEAL_" in capsys.readouterr().out
