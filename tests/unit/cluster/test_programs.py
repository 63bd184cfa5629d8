"""Every program is pinned, and its file name changes with anything that changes the program."""

import re
from dataclasses import replace

import pytest
from builds import program_path
from errors import ClusterError
from needs import go_version
from places import Places, places_from
from programs import PROGRAMS, Program


@pytest.mark.parametrize("program", [pytest.param(p, id=p.name) for p in PROGRAMS])
def test_a_module_with_checksums_pins_the_version(program: Program) -> None:
    module = (program.module_folder / "go.mod").read_text()
    assert re.search(rf"\bv{re.escape(program.version)}$", module, re.MULTILINE)
    assert (program.module_folder / "go.sum").stat().st_size > 0


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"tags": "other"}, id="build tags"),
        pytest.param({"linker_flags": "-X a=b"}, id="linker flags"),
        pytest.param({"cgo": "1"}, id="cgo"),
        pytest.param({"module": "runc"}, id="module"),
        pytest.param({"version": "0.0.0"}, id="version"),
    ],
)
def test_another_build_is_another_file(change: dict[str, str]) -> None:
    etcd = PROGRAMS[0]
    assert replace(etcd, **change).file_name() != etcd.file_name()  # type: ignore[arg-type]


def test_integration_tests_need_not_wait_for_the_node_programs() -> None:
    names = [program.name for program in PROGRAMS]
    assert names[:2] == ["etcd", "kube-apiserver"]


def test_an_unknown_program_is_refused_with_the_known_names() -> None:
    places = places_from({"HOME": "/nowhere"})
    with pytest.raises(ClusterError, match=r"no program named 'kubelt'.*kubelet"):
        program_path("kubelt", places=places)


@pytest.mark.parametrize(
    ("text", "want"),
    [
        pytest.param("go1.26.8", (1, 26), id="go env GOVERSION"),
        pytest.param("go version go1.19 linux/amd64", (1, 19), id="go version"),
        pytest.param("go1.27rc1", (1, 27), id="a candidate"),
        pytest.param("devel", None, id="no release"),
    ],
)
def test_go_versions_are_read(text: str, want: tuple[int, int] | None) -> None:
    assert go_version(text) == want


def test_the_environment_moves_cache_and_state() -> None:
    places = places_from({"HOME": "/home/a", "ANNEAL_CACHE": "/c", "ANNEAL_STATE": "/s"})
    assert (str(places.cache), str(places.state)) == ("/c", "/s/cluster")


def test_without_them_both_are_below_the_home_folder() -> None:
    places: Places = places_from({"HOME": "/home/a"})
    assert str(places.cache) == "/home/a/.cache/anneal"
    assert str(places.state) == "/home/a/.local/state/anneal/cluster"
