"""A training pod that reports, and what it reports last."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from tests.integration.operator.cluster import Cluster, now

from anneal_operator.kube import Object

DIGEST = "sha256:" + "a" * 64


@dataclass
class Trainer:
    """A training pod that reports: its real token, bound to the pod and to the job's audience."""

    cluster: Cluster
    pod: Object
    token: str
    url: str
    ca: Path
    attempt: int

    async def post(self, *, token: str | None = None, **anneal: Any) -> tuple[int, str]:
        """Send one report; the keyword arguments are the `anneal` object."""
        body = {
            "trainerStatus": {
                "progressPercentage": anneal.pop("percent", 0),
                "estimatedRemainingSeconds": anneal.pop("eta", 360),
                "lastUpdatedTime": now(),
            },
            "anneal": {"attempt": self.attempt, **anneal},
        }
        headers = {"Authorization": f"Bearer {token or self.token}"}
        context = ssl.create_default_context(cafile=self.ca)
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.post(self.url, json=body, ssl=context) as answer,
        ):
            return answer.status, await answer.text()


def outcome(kind: str = "Done", **fields: Any) -> Object:
    """An outcome as the trainer sends it."""
    done = {"artefactDigest": DIGEST, "modelVersion": "support-bot/1"} if kind == "Done" else {}
    reason = {"Done": "Done", "User": "DatasetNotFound", "Interrupted": "Preempted"}.get(
        kind, "StorageUnreachable"
    )
    told = {"class": kind, "reason": reason, "message": f"The attempt ended as {kind}."}
    return {**told, **done, **fields}
