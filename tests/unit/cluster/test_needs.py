"""What a fresh machine is told, and what is installed on it."""

from pathlib import Path

import needs
import pytest
from errors import ClusterError
from places import Places, places_from

ABSENT = "anneal-package-that-is-not-there"


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    """A machine that lacks one Debian package and nothing else; apt-get only takes notes."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, body in {
        "apt-get": f'echo "$@" >> {tmp_path}/apt-get.log',
        "dpkg-query": "exit 1",
    }.items():
        (programs / name).write_text(f"#!/bin/sh\n{body}\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    monkeypatch.setattr(needs, "_PACKAGES", {})
    for check in ("_system", "_root", "_go"):
        monkeypatch.setattr(needs, check, lambda: "")
    monkeypatch.setattr(needs, "_disk", lambda _: "")
    return places_from({"HOME": str(tmp_path)})


def test_missing_packages_are_named_and_installed(
    places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs.check_needs([ABSENT], install=True, places=places)
    assert f"missing and will be installed: {ABSENT}" in capsys.readouterr().err
    (_, install) = (tmp_path / "apt-get.log").read_text().splitlines()
    assert install.split()[0] == "install"
    assert install.endswith(ABSENT)


def test_where_nothing_may_be_installed_they_are_listed(places: Places, tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match=f"apt-get install .*{ABSENT}"):
        needs.check_needs([ABSENT], install=False, places=places)
    assert not (tmp_path / "apt-get.log").exists()


def test_elsewhere_they_are_listed_by_debians_names(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(needs, "_has_apt", lambda: False)
    with pytest.raises(ClusterError, match=f"by your own system's names: {ABSENT}"):
        needs.check_needs([ABSENT], install=True, places=places)
    assert not (tmp_path / "apt-get.log").exists()
