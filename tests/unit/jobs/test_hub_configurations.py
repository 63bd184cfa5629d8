"""A repository that holds several datasets is not read as one."""

from __future__ import annotations

from typing import Any

import pytest

from anneal_jobs.storage.hub_configurations import own_places, require_one
from anneal_pipeline.errors import UserError


def split(path: Any, name: str = "train") -> dict[str, Any]:
    return {"split": name, "path": path}


@pytest.mark.parametrize(
    ("first", "second", "want"),
    [
        pytest.param(
            {"data_files": [split("main/train-*"), split("main/test-*", "test")]},
            {"data_files": "socratic/*.parquet"},
            ["main", "socratic"],
            id="folders",
        ),
        pytest.param(
            {"data_files": [split(["de/a/x-*", "de/b/x-*"])]},
            {"data_files": ["en.jsonl"]},
            ["de", "en.jsonl"],
            id="a deeper folder and a file",
        ),
        pytest.param({"data_dir": "de/"}, {"data_dir": "en"}, ["de", "en"], id="named folders"),
        pytest.param(
            {"data_files": "data/de-*"}, {"data_files": "data/en-*"}, [], id="one folder for all"
        ),
        pytest.param({"data_files": "*.csv"}, {"data_files": []}, [], id="no folder"),
    ],
)
def test_what_belongs_to_one_configuration_is_found_in_the_card(
    first: dict[str, Any], second: dict[str, Any], want: list[str]
) -> None:
    assert own_places([first, second]) == want


def test_several_configurations_are_refused_with_the_address_of_one() -> None:
    configurations = [
        {"config_name": name, "data_files": f"{name}/train-*"} for name in ("main", "socratic")
    ]
    with pytest.raises(UserError, match=r"2 configurations.*\(main, socratic\)") as caught:
        require_one("hf://org/sums", configurations)
    assert caught.value.reason == "DatasetLayoutUnknown"
    assert caught.value.message.endswith("for example hf://org/sums/main.")


@pytest.mark.parametrize(
    "configurations",
    [
        pytest.param([], id="none"),
        pytest.param([{"config_name": "default", "data_files": "data/*"}], id="one"),
        pytest.param([{"config_name": "a"}, {"config_name": "b"}], id="names without files"),
    ],
)
def test_one_dataset_is_read_as_it_is(configurations: list[dict[str, Any]]) -> None:
    require_one("hf://org/sums", configurations)  # refuses nothing
    more = [{"config_name": name, "data_files": f"{name}/*"} for name in ("x", "y")]
    with pytest.raises(UserError, match=r"\(.*x, y\)"):
        require_one("hf://org/sums", [*configurations, *more])
