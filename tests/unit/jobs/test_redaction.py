import logging
import os
from pathlib import Path

import pytest

from anneal_jobs.logs import log_to, shown
from anneal_jobs.outcome import one_sentence
from anneal_jobs.redaction import find_secrets, redact


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("http://ann:pa%20ss@mlflow:5000/api", "http://***@mlflow:5000/api"),
        ("Authorization: Bearer abc.def-123456", "Authorization: Bearer ***"),
        ("token hf_ABCDEFGHIJKLMNOPQRSTUVWX gone", "token *** gone"),
        ("GET /o?X-Amz-Signature=abc123&partNumber=2", "GET /o?X-Amz-Signature=***&partNumber=2"),
        ("sent eyJhbGciOi.eyJzdWIiOi.c2lnbmF0", "sent ***"),
        ("s3://bucket/a@b and basic authentication", "s3://bucket/a@b and basic authentication"),
    ],
)
def test_secrets_are_known_by_their_form(text: str, want: str) -> None:
    assert redact(text) == want


def test_secrets_of_this_process_are_known_by_their_value(tmp_path: Path) -> None:
    shared, token = tmp_path / "credentials", tmp_path / "token"
    shared.write_text(
        "[default]\naws_access_key_id = AKIDEXAMPLE\naws_secret_access_key = s3cr3t+key/value\n"
    )
    token.write_text("mlflow-token\n")
    environment = {"AWS_SHARED_CREDENTIALS_FILE": str(shared), "HF_TOKEN": "tiny"}
    found = find_secrets(environment, (token, tmp_path / "none"))
    assert found == ("s3cr3t+key/value", "mlflow-token")


def test_a_rotated_secret_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = tmp_path / "credentials"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(shared))
    for stamp, secret in ((1, "first-secret"), (2, "second-secret")):
        shared.write_text(f"[default]\naws_secret_access_key = {secret}\n")
        os.utime(shared, ns=(stamp, stamp))
        assert redact(f"signed with {secret}") == "signed with ***"


def test_no_secret_reaches_a_log_file_or_an_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "correct-horse")
    handlers = list(logging.getLogger().handlers)
    path = tmp_path / "driver.log"
    try:
        log_to(path, with_console=False)
        try:
            raise ValueError("refused correct-horse")
        except ValueError:
            logging.getLogger("a").exception("login with correct-horse failed")
        with path.open("a") as file:
            file.write("a library printed correct-horse\n")
        assert path.read_text().count("correct-horse") == 1
        assert b"correct-horse" not in shown(path)
        assert one_sentence("got correct-horse") == "got ***"
    finally:
        for handler in logging.getLogger().handlers:
            handler.close()
        logging.getLogger().handlers = handlers
