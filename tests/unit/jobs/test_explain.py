from anneal_jobs.cli.explain import field_docs, lines_of, select, similar


def test_every_field_says_what_it_means() -> None:
    assert [doc.path for doc in field_docs() if not doc.description] == []


def test_a_field_is_found_with_and_without_spec() -> None:
    [doc] = select("training.learningRate")
    assert select("spec.training.learningRate") == [doc]
    assert (doc.type_name, doc.default, doc.is_required) == ("number", "0.0002", False)


def test_an_object_brings_its_fields() -> None:
    paths = [doc.path for doc in select("tuning.lora")]
    assert paths[0] == "spec.tuning.lora"
    assert "spec.tuning.lora.targetModules" in paths


def test_types_are_named_as_in_yaml() -> None:
    names = {doc.path: doc.type_name for doc in field_docs()}
    assert names["spec.dataset.filters.deduplicate"] == "exact | near | off"
    assert names["spec.export.formats"] == "list of adapter | merged | gguf | onnx"
    assert names["spec.tracking.tags"] == "map of string"
    assert names["spec.suspend"] == "boolean"


def test_an_unknown_field_is_not_found() -> None:
    assert select("training.nothing") == []


def test_names_are_not_broken_where_the_terminal_is_narrow() -> None:
    for doc in field_docs():
        name, *description = lines_of(doc, width=60)
        assert name.split()[0] == doc.path
        assert " ".join(line.strip() for line in description) == doc.description


def test_a_field_that_is_not_there_is_met_with_the_one_it_resembles() -> None:
    assert similar("training.learning_rate") == "training.learningRate"
    assert similar("spec.rank") == "tuning.lora.rank"
    assert similar("zzz") is None
