"""Everything the operator is told by its pod: environment variables with the prefix ANNEAL_.

Read once at start and printed with secrets masked (there are none in it: credentials come as files,
and only their folders are named here).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from anneal_operator.errors import SettingsError


class TrackingServer(BaseModel):
    """One MLflow server that the operator may talk to."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    uri: str
    """As profiles spell it in tracking.uri."""
    credentialsDir: Path | None = None
    """Folder with the files username and password, or token. Default: the server is open."""
    publicUrl: str | None = None
    """Address of the server for people's browsers. Default: uri."""


class Settings(BaseSettings):
    """The operator's settings. A wrong one ends the process with one sentence."""

    model_config = SettingsConfigDict(env_prefix="ANNEAL_", frozen=True, extra="ignore")

    release: str = Field(min_length=1, max_length=53)
    """Name of the Helm release."""
    pod_namespace: str = Field(min_length=1)
    """Namespace of the release; the Lease lives here."""
    pod_name: str = Field(min_length=1)
    """Name of this pod: the lease holder's identity."""
    pod_ip: str = "127.0.0.1"
    """Address that standbys forward progress reports to."""
    watch_namespaces: Annotated[tuple[str, ...], NoDecode] = ()
    """Comma-separated namespaces to serve. Empty: the whole cluster."""
    lease_name: str = ""
    """Default: <release>-leader."""
    owner_cluster_role: str = ""
    """ClusterRole that owns the Leases and CA ConfigMaps made at run time. Empty: no owner."""
    progress_url: str = Field(pattern=r"^https://[^/]+$")
    """Base address of the progress server, as training pods reach it."""
    progress_port: int = Field(default=8443, ge=0, le=65535)
    """Port the progress server listens on; 0 takes a free one."""
    progress_host: str = "0.0.0.0"  # noqa: S104 - pods reach it through the Service
    """Address the progress server listens on."""
    progress_tls_dir: Path = Path("/etc/anneal/progress-tls")
    """Folder with tls.crt, tls.key and ca.crt."""
    health_port: int = Field(default=8080, ge=0, le=65535)
    """Port of /healthz, /readyz and /metrics; 0 takes a free one."""
    health_host: str = "0.0.0.0"  # noqa: S104 - the kubelet reaches it by the pod's address
    """Address the health server listens on."""
    tracking_servers: tuple[TrackingServer, ...] = ()
    """JSON list of MLflow servers: uri, credentialsDir, publicUrl."""
    workers: int = Field(default=4, ge=1, le=64)
    """Reconciles at the same time."""
    writes_per_second: float = Field(default=20.0, gt=0)
    """Limit on writes to the API server."""
    writes_burst: int = Field(default=40, ge=1)
    """Writes saved up for a burst."""
    resync_seconds: float = Field(default=600.0, gt=0)
    """Each job is looked at again at least this often."""
    log_level: str = Field(default="INFO", pattern=r"^(DEBUG|INFO|WARNING|ERROR)$")
    """Least level that is logged."""
    kubeconfig: Path | None = None
    """Kubeconfig file, outside a cluster. Default: the pod's service account."""
    kube_context: str | None = None
    """Context in it. Default: its current one."""

    @field_validator("watch_namespaces", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(part.strip() for part in value.split(",") if part.strip())

    @property
    def identity(self) -> str:
        """Which installation this is; on labels, the lease and MLflow tags."""
        return f"{self.release}.{self.pod_namespace}"

    @property
    def address(self) -> str:
        """Where standbys reach this replica's progress server."""
        host = f"[{self.pod_ip}]" if ":" in self.pod_ip else self.pod_ip
        return f"{host}:{self.progress_port}"

    @property
    def leader_lease(self) -> str:
        return self.lease_name or f"{self.release}-leader"

    def tracking_server(self, uri: str) -> TrackingServer | None:
        """The server of that URI, if we were told of it."""
        wanted = uri.rstrip("/")
        return next((s for s in self.tracking_servers if s.uri.rstrip("/") == wanted), None)


def read_settings() -> Settings:
    """Read the environment, or raise `SettingsError` with what to change."""
    try:
        return Settings()
    except (ValidationError, ValueError) as error:
        problems = (
            "; ".join(
                f"ANNEAL_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}" for e in error.errors()
            )
            if isinstance(error, ValidationError)
            else str(error)
        )
        raise SettingsError(
            f"the operator's environment is wrong: {problems}; correct the chart's values"
        ) from error
