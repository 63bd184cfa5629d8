"""Whole manifests, held by golden files (refresh: pytest tests/unit/controller --update)."""

from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from tests.unit.controller.conftest import JOB, profile_spec, spec

from anneal_operator.api.names import attempt_name
from anneal_operator.api.profile import FineTuneProfileSpec
from anneal_operator.api.run_config import RunConfig
from anneal_operator.api.spec import FineTuneJobSpec
from anneal_operator.errors import OperatorError
from anneal_operator.manifests import (
    ca_config_map,
    ca_config_map_name,
    child_job,
    run_config_map,
)
from anneal_operator.stored_config import run_config

GOLDEN = Path(__file__).parent / "golden"
RELEASE = "anneal.anneal-system"

PLAIN = (spec(), profile_spec())
RICH = (
    spec(
        model={"uri": "pvc://models/smollm2"},
        output={"uri": "pvc://results/team-a"},
        compute={"gpusPerWorker": 1, "cpus": "8", "memory": "64Gi", "sharedMemory": "8Gi"},
        checkpoint={"graceSeconds": 3000},
    ),
    profile_spec(
        storage={
            "endpoint": "https://s3.example",
            "credentialsSecret": "s3",
            "allowedReadURIs": ["s3://team-data"],
            "allowedWriteURIs": ["pvc://results"],
        },
        models={
            "allowedURIs": ["pvc://models"],
            "tokenSecret": "hub",
            "hubEndpoint": "https://hub.example",
        },
        tracking={"uri": "http://mlflow.anneal:5000", "credentialsSecret": "mlflow"},
        serviceAccountName="trainer",
        gpuResource="example.com/gpu",
        nodeSelector={"pool": "gpu"},
        tolerations=[{"key": "gpu", "operator": "Exists", "effect": "NoSchedule"}],
        volumes=[{"claim": "env", "mountPath": "/opt/anneal/env"}],
        env=[{"name": "OMP_NUM_THREADS", "value": "2"}, {"name": "HOME", "value": "/root"}],
    ),
)
CASES = [pytest.param("plain", *PLAIN, id="plain"), pytest.param("rich", *RICH, id="rich")]


def made(job_spec: FineTuneJobSpec, profile: FineTuneProfileSpec) -> dict[str, Any]:
    return child_job(
        JOB,
        spec=job_spec,
        profile=profile,
        attempt=2,
        run_id="3f9c0000",
        progress_url="https://anneal-progress.anneal-system.svc:8443",
        release=RELEASE,
    )


def check(name: str, manifest: dict[str, Any], *, update: bool) -> None:
    yaml = YAML()
    yaml.width = 4096
    yaml.representer.ignore_aliases = lambda _: True
    yaml.indent(mapping=2, sequence=4, offset=2)
    file = GOLDEN / f"{name}.yaml"
    if update:
        with file.open("w") as stream:
            yaml.dump(manifest, stream)
    assert manifest == YAML(typ="safe").load(file)


@pytest.fixture
def update(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update"))


@pytest.mark.parametrize(("name", "job_spec", "profile"), CASES)
def test_child_job(
    name: str, job_spec: FineTuneJobSpec, profile: FineTuneProfileSpec, update: bool
) -> None:
    check(f"job-{name}", made(job_spec, profile), update=update)


def test_ranks_share_the_resources_of_their_pod() -> None:
    one, two = (spec(compute={"ranksPerWorker": ranks}) for ranks in (1, 2))
    profile = profile_spec(resources={"gpusPerWorker": 0})
    assert made(two, profile) == made(one, profile)
    config = run_config(
        JOB, spec=two, profile=profile, output_uri="s3://models/out", release=RELEASE
    )
    assert config.compute.ranks_per_worker == 2


@pytest.mark.parametrize(("name", "job_spec", "profile"), CASES)
def test_run_config_map(
    name: str, job_spec: FineTuneJobSpec, profile: FineTuneProfileSpec, update: bool
) -> None:
    config = run_config(
        JOB, spec=job_spec, profile=profile, output_uri="s3://models/out", release=RELEASE
    )
    config_map = run_config_map(JOB, config=config, release=RELEASE)
    check(f"config-{name}", config_map, update=update)
    assert RunConfig.model_validate_json(config_map["data"]["job.json"]) == config


def test_ca_config_map(update: bool) -> None:
    owner = {"apiVersion": "v1", "kind": "X", "name": "anneal", "uid": "1"}
    manifest = ca_config_map(
        namespace="team-a", release=RELEASE, ca="PEM", owner_references=(owner,)
    )
    check("ca", manifest, update=update)


@pytest.mark.parametrize(("name", "job_spec", "profile"), CASES)
def test_every_pod_meets_the_restricted_standard(
    name: str, job_spec: FineTuneJobSpec, profile: FineTuneProfileSpec
) -> None:
    pod = made(job_spec, profile)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] != 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "projected", "secret"}
    mounted = [mount["name"] for mount in container["volumeMounts"]]
    assert sorted(mounted) == sorted(volume["name"] for volume in pod["volumes"])


def test_the_checkpoint_grace_is_bounded_by_the_profile() -> None:
    pod = made(*RICH)["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] == 600 + 10


def test_our_variables_win_over_the_administrators() -> None:
    environment = made(*RICH)["spec"]["template"]["spec"]["containers"][0]["env"]
    named = [item["name"] for item in environment]
    assert len(named) == len(set(named))
    assert {"name": "HOME", "value": "/tmp"} in environment


def test_no_secret_is_an_environment_variable() -> None:
    environment = made(*RICH)["spec"]["template"]["spec"]["containers"][0]["env"]
    assert not any("secretKeyRef" in item.get("valueFrom", {}) for item in environment)


def test_a_spec_that_does_not_fit_a_config_map_is_refused() -> None:
    config = run_config(
        JOB, spec=spec(), profile=profile_spec(), output_uri="s3://x" * 100_000, release=RELEASE
    )
    with pytest.raises(OperatorError, match="more than 524288"):
        run_config_map(JOB, config=config, release=RELEASE)


def test_the_name_of_the_ca_is_a_label_sized_name() -> None:
    assert ca_config_map_name("anneal.anneal-system") == "anneal-progress-ca-anneal-anneal-system"
    assert len(ca_config_map_name("r" * 53 + "." + "n" * 60)) <= 63


def test_usage_data_is_sent_only_where_the_administrator_wants_it() -> None:
    def told(**fields: Any) -> dict[str, str]:
        pod = made(spec(), profile_spec(**fields))["spec"]["template"]["spec"]
        return {e["name"]: e["value"] for e in pod["containers"][0]["env"] if "value" in e}

    assert told()["MLFLOW_DISABLE_TELEMETRY"] == told()["DO_NOT_TRACK"] == "true"
    wanted = [{"name": "MLFLOW_DISABLE_TELEMETRY", "value": "false"}]
    assert told(env=wanted)["MLFLOW_DISABLE_TELEMETRY"] == "false"


@pytest.mark.parametrize(("name", "job_spec", "profile"), CASES)
def test_what_rotates_is_mounted_as_a_folder(
    name: str, job_spec: FineTuneJobSpec, profile: FineTuneProfileSpec
) -> None:
    pod = made(job_spec, profile)["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert not [mount for mount in container["volumeMounts"] if "subPath" in mount]


def test_a_childs_name_is_cut_from_the_jobs_and_a_label() -> None:
    name = attempt_name("a" * 35 + ".long-name", "1f2e3d4c-0000", 12)
    assert name == f"{'a' * 35}-1f2e3d4c-12"
    assert len(attempt_name("a" * 253, "1f2e3d4c-0000", 99999)) <= 63


def test_claims_are_mounted_read_only_but_where_the_output_goes() -> None:
    read = {"model": {"uri": "pvc://models/a"}, "dataset": {"uri": "pvc://data/rows.jsonl"}}
    allowed = profile_spec(storage={"outputURI": "pvc://data/out"})
    pod = made(spec(**read), allowed)["spec"]["template"]["spec"]
    claims = {
        volume["persistentVolumeClaim"]["claimName"]: volume["persistentVolumeClaim"]
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    assert claims["models"]["readOnly"] is True
    assert "readOnly" not in claims["data"]
