"""Behaviour of the charts that golden files cannot show."""

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from anneal_operator.settings import read_settings

FULL = "operator-everything.yaml"
SERVICE_HOST = "trial-anneal-progress.anneal-system.svc"


@pytest.mark.parametrize("minor", range(29, 37))
def test_operator_renders_on_supported_kubernetes(minor: int, render: Any) -> None:
    result = render("anneal", values=FULL, arguments=("--kube-version", f"1.{minor}.0"))
    assert result.returncode == 0, result.stderr


def test_older_kubernetes_is_refused(render: Any) -> None:
    result = render("anneal", arguments=("--kube-version", "1.28.15"))
    assert result.returncode != 0
    assert "requires kubeVersion" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "want"),
    [
        pytest.param(
            ("--set", "progress.tls.source=Secret"),
            "progress.tls.existingSecret is needed",
            id="no certificate named",
        ),
        pytest.param(
            ("--set", "serviceAccount.create=false"),
            "serviceAccount.name is needed",
            id="no service account named",
        ),
        pytest.param(
            ("--set", "metrics.serviceMonitor.enabled=true,metrics.service.enabled=false"),
            "metrics.serviceMonitor.enabled needs metrics.service.enabled",
            id="monitor without a service",
        ),
        pytest.param(
            ("--namespace", "n" * 60), "choose a shorter release name or namespace", id="long name"
        ),
    ],
)
def test_contradicting_values_say_what_to_do(
    arguments: tuple[str, ...], want: str, render: Any
) -> None:
    result = render("anneal", arguments=arguments)
    assert result.returncode != 0
    assert want in result.stderr


def test_generated_certificate_is_good_for_the_progress_address(rendered: Any) -> None:
    secrets = {m["metadata"]["name"]: m for m in rendered["operator-default"].of_kind("Secret")}
    files = {
        key: base64.b64decode(value)
        for key, value in secrets["trial-anneal-progress-tls"]["data"].items()
    }
    certificate, authority = (
        x509.load_pem_x509_certificate(files[key]) for key in ("tls.crt", "ca.crt")
    )
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert SERVICE_HOST in names.value.get_values_for_type(x509.DNSName)
    certificate.verify_directly_issued_by(authority)
    assert (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days >= 3649
    PolicyBuilder().store(Store([authority])).build_server_verifier(
        x509.DNSName(SERVICE_HOST)
    ).verify(certificate, [])


def test_operator_reads_the_environment_it_is_given(
    rendered: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("operator-default", "operator-namespaced", "operator-everything"):
        (deployment,) = rendered[name].of_kind("Deployment")
        (container,) = deployment["spec"]["template"]["spec"]["containers"]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        for variable in container["env"]:
            monkeypatch.setenv(variable["name"], variable.get("value", "anneal-system"))
        settings = read_settings()
        assert settings.identity == "trial.anneal-system"
        assert ports == {"progress": settings.progress_port, "health": settings.health_port}
        assert settings.progress_url == f"https://{SERVICE_HOST}:{settings.progress_port}"
        mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
        folders = [s.credentialsDir for s in settings.tracking_servers if s.credentialsDir]
        assert {str(folder) for folder in [settings.progress_tls_dir, *folders]} <= mounts
    assert settings.watch_namespaces == ()
    assert len(settings.tracking_servers) == 2


def test_crds_are_those_generated_and_kept(rendered: Any, charts: Path) -> None:
    got = {m["metadata"]["name"]: m for m in rendered["operator-default"].manifests
           if m["kind"] == "CustomResourceDefinition"}  # fmt: skip
    files = [yaml.safe_load(path.read_text()) for path in charts.glob("anneal/files/crds/*.yaml")]
    assert {crd["metadata"]["name"] for crd in files} == {
        "finetunejobs.anneal.dev",
        "finetuneprofiles.anneal.dev",
    }
    for crd in files:
        rendered_crd = got[crd["metadata"]["name"]]
        assert rendered_crd["spec"] == crd["spec"]
        assert rendered_crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


def test_profiles_are_plain_objects_once_the_cluster_knows_them(render: Any) -> None:
    result = render(
        "anneal",
        values=FULL,
        arguments=("--api-versions", "anneal.dev/v1alpha1/FineTuneProfile"),
    )
    (profile,) = result.of_kind("FineTuneProfile")
    assert "annotations" not in profile["metadata"]


def test_profiles_of_a_first_install_come_and_go_by_hooks(rendered: Any) -> None:
    profiles = rendered["operator-everything"].of_kind("FineTuneProfile")
    hooks = [profile["metadata"]["annotations"]["helm.sh/hook"] for profile in profiles]
    assert hooks == ["post-install,post-upgrade", "pre-delete"]
    assert profiles[0]["spec"] == profiles[1]["spec"]


def test_one_credentials_file_serves_the_server_and_every_job_namespace(rendered: Any) -> None:
    secrets = rendered["services-thin"].of_kind("Secret")
    assert {m["metadata"]["namespace"] for m in secrets} == {"anneal-system", "team-a", "team-b"}
    files = {base64.b64decode(m["data"]["credentials"]).decode() for m in secrets}
    (text,) = files
    (own,) = [m["data"] for m in secrets if "accessKey" in m["data"]]
    access, secret = (base64.b64decode(own[key]).decode() for key in ("accessKey", "secretKey"))
    assert text == (f"[default]\naws_access_key_id = {access}\naws_secret_access_key = {secret}\n")


def test_mlflow_answers_to_its_names_and_to_browsers_at_public_hosts(rendered: Any) -> None:
    (pod,) = [
        m["spec"]["template"]["spec"]
        for m in rendered["services-thin"].of_kind("Deployment")
        if m["metadata"]["name"] == "mlflow"
    ]
    env = {variable["name"]: variable["value"] for variable in pod["containers"][0]["env"]}
    hosts = env["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    for name in ("mlflow", "mlflow.anneal-system.svc.cluster.local", "localhost"):
        assert {name, f"{name}:*"} <= set(hosts)
    assert "192.0.2.1:30500" in hosts
    assert "http://192.0.2.1:30500" in env["MLFLOW_SERVER_CORS_ALLOWED_ORIGINS"].split(",")


def test_given_credentials_are_not_copied_by_the_chart(render: Any) -> None:
    result = render(
        "anneal-dev-services",
        arguments=("--set", "s3.credentials.existingSecret=mine,jobNamespaces={team-a}"),
    )
    assert result.returncode != 0
    assert (
        "put the Secret of s3.credentials.existingSecret into the job namespaces" in result.stderr
    )


@pytest.mark.parametrize("name", ["anneal", "anneal-dev-services"])
def test_readme_names_every_value(name: str, charts: Path) -> None:
    readme = (charts / name / "README.md").read_text()
    values = yaml.safe_load((charts / name / "values.yaml").read_text())
    open_ended = {"requests", "limits", "issuerRef"}

    def leaves(tree: dict[str, Any], path: str) -> list[str]:
        return [
            leaf
            for key, value in tree.items()
            for leaf in (
                leaves(value, f"{path}{key}.")
                if isinstance(value, dict) and value and not open_ended & set(value)
                else [f"{path}{key}"]
            )
        ]

    assert [leaf for leaf in leaves(values, "") if f"`{leaf}`" not in readme] == []


@pytest.mark.parametrize("name", ["services-default", "services-thin"])
def test_mlflow_sends_no_usage_data_to_its_makers(name: str, rendered: Any) -> None:
    pods = [m["spec"]["template"]["spec"] for m in rendered[name].of_kind("Deployment")]
    (mlflow,) = [c for pod in pods for c in pod["containers"] if c["name"] == "mlflow"]
    environment = {item["name"]: item.get("value") for item in mlflow["env"]}
    assert environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert environment["DO_NOT_TRACK"] == "true"
