"""How raw data becomes configuration, and what a user reads when it does not."""

from typing import Any

import pytest
from pydantic import ValidationError

from anneal_operator.api.profile import FineTuneProfileSpec
from anneal_operator.api.spec import FineTuneJobSpec
from anneal_pipeline.config.schema import ConfigError

SMALLEST: dict[str, Any] = {"model": {"uri": "s3://m/x"}, "dataset": {"uri": "s3://d/x"}}


def faults(spec: object) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        FineTuneJobSpec.parse(spec)
    return [str(fault) for fault in caught.value.faults]


def test_every_fault_is_listed_at_once_with_its_path() -> None:
    spec = {
        "model": {"uri": "hf://org/name"},
        "dataset": {"uri": "s3://d/x"},
        "training": {"epochs": "3", "learning_rate": 1e-4},
        "evaluation": {"prompts": ["ok", 7]},
    }
    assert faults(spec) == [
        "model: revision is required for hf://org/name; name the commit to train from",
        'training.epochs: got "3", expected a number; remove the quotes',
        "training.learning_rate: unknown field; did you mean learningRate? "
        "(`anneal explain` lists all fields)",
        "evaluation.prompts[1]: got 7, expected text; put it in quotes",
    ]


@pytest.mark.parametrize(
    ("section", "hint"),
    [
        pytest.param({"training": {"epohcs": 1}}, "did you mean epochs?", id="misspelt"),
        pytest.param({"training": {"rank": 8}}, "did you mean tuning.lora.rank?", id="elsewhere"),
        pytest.param({"lora": {"rank": 8}}, "did you mean tuning.lora?", id="section elsewhere"),
        pytest.param({"zzz": 1}, "remove it or correct its spelling", id="like nothing"),
        pytest.param(
            {"dataset": {"uri": "s3://d", "split": {"validaton": 0.1}}},
            "did you mean validation?",
            id="within an optional object",
        ),
    ],
)
def test_an_unknown_field_is_met_with_the_one_it_resembles(
    section: dict[str, Any], hint: str
) -> None:
    [fault] = faults({**SMALLEST, **section})
    assert f"unknown field; {hint}" in fault


def test_a_missing_section_is_named() -> None:
    assert faults({"dataset": {"uri": "s3://d/x"}}) == ["model: is required but missing"]


def test_a_spec_that_is_no_mapping_is_refused() -> None:
    assert len(faults(["model"])) == 1


def test_what_is_written_and_read_back_is_the_same() -> None:
    spec = FineTuneJobSpec.parse({**SMALLEST, "training": {"maxSteps": 5}})
    assert FineTuneJobSpec.parse(spec.to_data()) == spec


@pytest.mark.parametrize(
    ("change", "same"),
    [
        pytest.param({"training": {"learningRate": 1e-3}}, False, id="learning rate"),
        pytest.param({"tuning": {"lora": {"rank": 8}}}, False, id="rank"),
        pytest.param({"evaluation": {"prompts": ["Hi"]}}, True, id="prompts"),
        pytest.param({"checkpoint": {"keep": 9}}, True, id="checkpoints kept"),
    ],
)
def test_the_config_hash_covers_what_changes_the_mathematics(
    change: dict[str, Any], same: bool
) -> None:
    before = FineTuneJobSpec.parse(SMALLEST).pipeline().mathematical_hash()
    after = FineTuneJobSpec.parse({**SMALLEST, **change}).pipeline().mathematical_hash()
    assert (before == after) is same


HUB = "hf://org/rows"


@pytest.mark.parametrize(
    ("sections", "want"),
    [
        pytest.param(
            {"model": {"uri": "s3://m/x", "revision": "main"}},
            "model: revision has no effect on s3://m/x, which is no hf:// model; remove it",
            id="model in S3",
        ),
        pytest.param(
            {"model": {"uri": "./model", "revision": "main"}},
            "model: revision has no effect on ./model, which is no hf:// model; remove it",
            id="model in a local folder",
        ),
        pytest.param(
            {"dataset": {"uri": "pvc://d/x", "revision": "main"}},
            "dataset: revision has no effect on pvc://d/x, which is no hf:// dataset; remove it",
            id="dataset on a volume",
        ),
        pytest.param(
            {"dataset": {"files": {"train": "s3://a", "test": "b"}, "revision": "main"}},
            "dataset: revision has no effect on s3://a, b, which is no hf:// dataset; remove it",
            id="files elsewhere",
        ),
        *(
            pytest.param(
                {"dataset": {"files": {"train": "s3://a/b", part: HUB}}},
                f"dataset: revision is required for {HUB}; name the commit to read",
                id=f"{part} file on the hub",
            )
            for part in ("train", "validation", "test")
        ),
    ],
)
def test_a_revision_is_given_for_the_hub_and_for_nothing_else(
    sections: dict[str, Any], want: str
) -> None:
    assert faults({**SMALLEST, **sections}) == [want]


def test_one_file_on_the_hub_is_enough_for_a_revision() -> None:
    data = {"files": {"train": "s3://a/b", "test": HUB}, "revision": "0" * 40}
    spec = FineTuneJobSpec.parse({**SMALLEST, "dataset": data})
    assert spec.dataset.sources() == (("files.train", "s3://a/b"), ("files.test", HUB))


@pytest.mark.parametrize("quantization", [{"type": "fp4"}, {"doubleQuant": False}])
def test_settings_of_the_4_bit_base_are_refused_for_plain_lora(
    quantization: dict[str, Any],
) -> None:
    tuning = {"method": "lora", "quantization": {**quantization, "computeDtype": "float32"}}
    assert faults({**SMALLEST, "tuning": tuning}) == [
        "tuning: quantization.type and doubleQuant have no effect for method lora; remove them"
    ]


@pytest.mark.parametrize(
    ("tuning", "want"),
    [
        *(
            (
                {"lora": {"initialization": name}},
                f"tuning: lora.initialization {name} needs weights that are not held in 4 bits; "
                "use loftq or default, or method lora",
            )
            for name in ("orthogonal", "pissa", "pissa_niter_4")
        ),
        (
            {"method": "lora", "lora": {"initialization": "loftq"}},
            "tuning: lora.initialization loftq corrects 4-bit weights and has no effect for method "
            "lora; remove it",
        ),
        (
            {"lora": {"initialization": "loftq", "useDora": True}},
            "tuning.lora: initialization loftq excludes useDora, whose magnitudes would be those "
            "of other weights; remove one of them",
        ),
    ],
)
def test_a_beginning_that_does_not_fit_the_base_is_refused(
    tuning: dict[str, Any], want: str
) -> None:
    assert faults({**SMALLEST, "tuning": tuning}) == [want]


@pytest.mark.parametrize(
    ("lora", "want"),
    [
        (
            {"useDora": True, "rankPattern": {"q_proj": 4}},
            "rankAllocation excludes useDora and rankPattern; remove one of them",
        ),
        (
            {"initialization": "gaussian"},
            "rankAllocation excludes initialization gaussian; remove one of them",
        ),
        (
            {"rank": 8, "rankAllocation": {"initialRank": 8}},
            "rankAllocation.initialRank (8) must be greater than rank (8), the average it falls "
            "to; raise it",
        ),
    ],
)
def test_what_ranks_that_fall_do_not_go_with_is_refused(lora: dict[str, Any], want: str) -> None:
    tuning = {"lora": {"rankAllocation": {}, **lora}}
    assert faults({**SMALLEST, "tuning": tuning}) == [f"tuning.lora: {want}"]


def test_ranks_begin_to_fall_before_they_are_settled() -> None:
    tuning = {"lora": {"rankAllocation": {"startShare": 0.5}}}
    assert faults({**SMALLEST, "tuning": tuning}) == [
        "tuning.lora.rankAllocation: startShare (0.5) must be smaller than endShare (0.5); lower it"
    ]


def test_ranks_that_fall_exclude_lora_plus() -> None:
    tuning, training = {"lora": {"rankAllocation": {}}}, {"loraPlusRatio": 4.0}
    [fault] = faults({**SMALLEST, "tuning": tuning, "training": training})
    assert fault.startswith("training.loraPlusRatio excludes tuning.lora.rankAllocation")


@pytest.mark.parametrize(
    ("field", "taken", "refused"),
    [("rank", [1, 1024], [0, 1025]), ("alpha", [0.01], [0, -1]), ("dropout", [0, 0.99], [-0.1, 1])],
)
def test_numbers_of_the_adapters_have_bounds_and_the_fault_names_the_value(
    field: str, taken: list[float], refused: list[float]
) -> None:
    for value in taken:
        FineTuneJobSpec.parse({**SMALLEST, "tuning": {"lora": {field: value}}})
    for value in refused:
        [fault] = faults({**SMALLEST, "tuning": {"lora": {field: value}}})
        assert fault.startswith(f"tuning.lora.{field}: got {value}, expected ")


@pytest.mark.parametrize(
    ("section", "words"),
    [
        pytest.param({"training": {"epochs": 0}}, "got 0, expected more than 0", id="open"),
        pytest.param({"training": {"batchSize": 0}}, "got 0, expected at least 1", id="from"),
        pytest.param({"training": {"seed": 2**31}}, "expected at most 2147483647", id="up to"),
        pytest.param({"tuning": {"lora": {"dropout": 1}}}, "expected less than 1", id="below"),
        pytest.param({"training": {"batchSize": 1.5}}, "expected a whole number", id="whole"),
        pytest.param(
            {"training": {"learningRate": None}}, "got null, expected a number", id="nothing"
        ),
        pytest.param({"suspend": "true"}, "expected true or false; remove the quotes", id="quoted"),
        pytest.param({"suspend": "yes"}, "expected true or false", id="a word"),
        pytest.param({"evaluation": {"prompts": "x"}}, "expected a list", id="list"),
        pytest.param({"training": 3}, "expected fields below it, as in name: value", id="section"),
        pytest.param({"tuning": {"method": "x"}}, "expected 'qlora' or 'lora'", id="choice"),
        pytest.param({"model": {"uri": ""}}, 'got "", expected something in it', id="empty"),
        pytest.param(
            {"evaluation": {"prompts": ["x"] * 65}}, "expected at most 64 entries", id="entries"
        ),
        pytest.param(
            {"dataset": {"uri": "s3://d/x", "columns": {"text": "x" * 129}}},
            "expected at most 128 characters",
            id="characters",
        ),
    ],
)
def test_what_was_expected_is_said_in_words_of_yaml(section: dict[str, Any], words: str) -> None:
    [fault] = faults({**SMALLEST, **section})
    assert fault.endswith(words)


def test_a_new_token_is_named_once() -> None:
    tuning = {"newTokens": ["<a>", "<b>", "<a>"]}
    assert faults({**SMALLEST, "tuning": tuning}) == ["tuning: newTokens names <a> more than once"]


@pytest.mark.parametrize("name", ["pissa_niter_0", "pissa_niter_100", "loftQ", "zeros"])
def test_an_unknown_beginning_is_refused(name: str) -> None:
    [fault] = faults({**SMALLEST, "tuning": {"lora": {"initialization": name}}})
    assert fault.startswith(f'tuning.lora.initialization: got "{name}"')


@pytest.mark.parametrize(
    ("section", "fields", "got", "next_step"),
    [
        ("training", {"epochs": 2.5, "maxSteps": 5}, "epochs (2.5) and maxSteps (5)", "remove one"),
        (
            "training",
            {"warmupSteps": 9, "warmupRatio": 0.1},
            "warmupSteps (9) and warmupRatio (0.1)",
            "remove one of them",
        ),
        (
            "training",
            {"microBatchSize": 8, "batchSize": 4},
            "microBatchSize (8) must not be greater than batchSize (4)",
            "lower it or raise batchSize",
        ),
        ("dataset", {"uri": None}, "got neither", "uri for one file or folder"),
        ("dataset", {"files": {"train": "s3://a/b"}}, "got both", "files for what is split"),
        (
            "dataset",
            {"uri": None, "files": {"train": "s3://a/b"}, "split": {}},
            "split and files exclude each other, got both",
            "remove split, or give all rows in uri",
        ),
        ("dataset", {"split": {"train": 0.5}}, "got 0.5 + 0.1 + 0.0 = 0.6", "change one of them"),
        (
            "dataset",
            {"filters": {"minTokens": 9, "maxTokens": 8}},
            "maxTokens (8) must not be less than minTokens (9)",
            "raise it or lower minTokens",
        ),
    ],
)
def test_fields_that_do_not_go_together_are_told_with_their_values_and_what_to_do(
    section: str, fields: dict[str, Any], got: str, next_step: str
) -> None:
    given = {**SMALLEST.get(section, {}), **fields}
    given = {name: value for name, value in given.items() if value is not None}
    [fault] = faults({**SMALLEST, section: given})
    assert got in fault
    assert next_step in fault[fault.index(got) :]


def test_a_profile_whose_default_breaks_its_own_limit_is_refused() -> None:
    profile = {
        "images": {"trainer": "t"},
        "tracking": {"uri": "http://mlflow"},
        "limits": {"gpusPerWorker": 0},
    }
    with pytest.raises(ConfigError, match=r"resources\.gpusPerWorker \(1\).*must not be greater"):
        FineTuneProfileSpec.parse(profile)


def test_a_configuration_cannot_be_changed() -> None:
    spec = FineTuneJobSpec.parse(SMALLEST)
    with pytest.raises(ValidationError, match="frozen"):
        spec.training.epochs = 5
    assert spec.training.epochs is None
