"""Small files that other programs read: kubeconfigs and the ends of logs."""

import base64
import json
from pathlib import Path

from certificates import Pair
from kubeconfigs import write_kubeconfig
from logs import tail


def test_a_kubeconfig_is_whole_in_itself_and_private(tmp_path: Path) -> None:
    for name in ("ca.crt", "user.crt", "user.key"):
        (tmp_path / name).write_text(name)
    path = write_kubeconfig(
        tmp_path / "sub" / "kubeconfig",
        server="https://198.18.0.1:6443",
        authority=tmp_path / "ca.crt",
        user=Pair(certificate=tmp_path / "user.crt", key=tmp_path / "user.key"),
    )
    config = json.loads(path.read_text())
    assert config["clusters"][0]["cluster"]["server"] == "https://198.18.0.1:6443"
    key = config["users"][0]["user"]["client-key-data"]
    assert base64.b64decode(key) == b"user.key"
    assert path.stat().st_mode & 0o777 == 0o600


def test_the_tail_is_the_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "a.log"
    log.write_text("".join(f"line {number}\n" for number in range(10_000)))
    assert tail(log, lines=2) == "line 9998\nline 9999"


def test_a_log_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    assert "there is no" in tail(tmp_path / "absent.log")
