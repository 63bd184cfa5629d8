"""The node's configuration stays inside the state folder and parses as what reads it parses."""

import json
import tomllib
from pathlib import Path

import node
import pytest
from places import Places


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Places:
    monkeypatch.setattr(node, "plugin_folder", lambda: Path("/plugins"))
    places = Places(cache=tmp_path / "cache", state=tmp_path / "state")
    node.write_configs(pause_image="localhost/pause:1", places=places)
    return places


def test_containerd_uses_our_folders_binaries_and_pause_image(places: Places) -> None:
    config = tomllib.loads(node.containerd_config(places).read_text())
    runtime = config["plugins"]["io.containerd.cri.v1.runtime"]
    runc = runtime["containerd"]["runtimes"]["runc"]
    ours = [config["root"], config["state"], config["grpc"]["address"], runtime["cni"]["conf_dir"]]
    ours += [runc["runtime_path"], runc["options"]["BinaryName"], runc["options"]["Root"]]
    assert all(path.startswith(f"{places.state}/") for path in ours)
    images = config["plugins"]["io.containerd.cri.v1.images"]
    assert images["pinned_images"] == {"sandbox": "localhost/pause:1"}


def test_the_kubelet_keeps_images_and_asks_the_api_server_who_may_enter(places: Places) -> None:
    config = json.loads(node.kubelet_config(places).read_text())
    assert config["imageGCHighThresholdPercent"] == 100
    assert config["authentication"]["anonymous"] == {"enabled": False}
    assert config["authorization"] == {"mode": "Webhook"}
    assert config["readOnlyPort"] == 0


def test_every_server_binds_the_node_address_only(places: Places) -> None:
    proxy = json.loads(node.proxy_config(places).read_text())
    kubelet = json.loads(node.kubelet_config(places).read_text())
    addresses = [kubelet["address"], kubelet["healthzBindAddress"]]
    addresses += [proxy[key].split(":")[0] for key in ("healthzBindAddress", "metricsBindAddress")]
    assert set(addresses) == {"198.18.0.1"}
    assert "bind 198.18.0.1" in node.dns_config(places).read_text()


def test_the_same_configuration_is_not_written_again(places: Places) -> None:
    path = node.proxy_config(places)
    before = path.stat()
    node.write_configs(pause_image="localhost/pause:2", places=places)
    assert path.stat() == before
    assert "localhost/pause:2" in node.containerd_config(places).read_text()
