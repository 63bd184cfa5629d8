"""Which release serves a namespace: a small Lease in each, so that two installs never fight.

A namespaced install claims all its namespaces at start and leaves the process if another live
release holds one. A cluster-wide install looks for others' live claims at start, and claims a
namespace when the first job appears there. A claim is live while it is renewed; the leader renews.
Claims are owned by the release's ClusterRole, so `helm uninstall` removes them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from anneal_operator.api.names import LABEL_RELEASE
from anneal_operator.clock import parse_time
from anneal_operator.errors import AlreadyExists, Conflict, KubeError, NotFound, OverlappingInstall
from anneal_operator.kube import Kube, Object, Selector
from anneal_operator.leader import micro_time
from anneal_operator.logs import log_event
from anneal_operator.resources import LEASES
from anneal_operator.settings import Settings

CLAIM_NAME = "anneal-owner"
CLAIM_SECONDS = 180
RENEW_SECONDS = 60.0

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Claims:
    """The namespaces that this release serves."""

    kube: Kube
    settings: Settings
    now: Callable[[], datetime]
    owner_references: Callable[[], tuple[Object, ...]]
    _ours: set[str] = field(default_factory=set)

    async def check_at_start(self) -> None:
        """Raise `OverlappingInstall` if another live release serves one of our namespaces."""
        selected = self.settings.watch_namespaces or (None,)
        for namespace in selected:
            selector = Selector(namespace=namespace, fields=f"metadata.name={CLAIM_NAME}")
            for lease in await self.kube.list_all(LEASES, selector=selector):
                self._refuse_if_live(lease)

    async def claim_watched(self) -> None:
        """Claim every namespace that the settings name."""
        for namespace in self.settings.watch_namespaces:
            if not await self.claim(namespace):
                lease = await self.kube.get(LEASES, CLAIM_NAME, namespace=namespace)
                self._refuse_if_live(lease)

    async def claim(self, namespace: str) -> bool:
        """Claim one namespace; False if another live release holds it."""
        if namespace in self._ours:
            return True
        try:
            taken = await self._take(namespace)
        except (AlreadyExists, Conflict):
            # Another worker or replica of ours, or another release, was quicker: look who.
            taken = await self._take(namespace)
        if taken:
            self._ours.add(namespace)
            log_event(logger, "namespace_claimed", namespace=namespace)
        return taken

    async def renew(self) -> None:
        """Keep our claims alive. Runs until cancelled, on the leader."""
        while True:
            await asyncio.sleep(RENEW_SECONDS)
            for namespace in sorted(self._ours):
                try:
                    kept = await self._take(namespace)
                except KubeError as error:
                    # The claim lives on for a while; a conflict means that it was just renewed.
                    log_event(
                        logger,
                        "claim_not_renewed",
                        level=logging.WARNING,
                        namespace=namespace,
                        error=str(error),
                    )
                    continue
                if not kept:
                    self._ours.discard(namespace)

    async def _take(self, namespace: str) -> bool:
        """Write our claim; False, and nothing written, if another release's is live."""
        try:
            lease = await self.kube.get(LEASES, CLAIM_NAME, namespace=namespace)
        except NotFound:
            await self.kube.create(LEASES, self._new(namespace), namespace=namespace)
            return True
        if self._live_other(lease):
            return False
        lease["spec"] = self._spec()
        lease["metadata"].setdefault("labels", {})[LABEL_RELEASE] = self.settings.identity
        lease["metadata"]["ownerReferences"] = list(self.owner_references())
        await self.kube.update(LEASES, lease, namespace=namespace)
        return True

    def _new(self, namespace: str) -> Object:
        metadata: Object = {
            "name": CLAIM_NAME,
            "namespace": namespace,
            "labels": {
                "app.kubernetes.io/managed-by": "anneal-operator",
                LABEL_RELEASE: self.settings.identity,
            },
            "ownerReferences": list(self.owner_references()),
        }
        return {
            "apiVersion": LEASES.api_version,
            "kind": LEASES.kind,
            "metadata": metadata,
            "spec": self._spec(),
        }

    def _spec(self) -> Object:
        return {
            "holderIdentity": self.settings.identity,
            "leaseDurationSeconds": CLAIM_SECONDS,
            "renewTime": micro_time(self.now()),
        }

    def _live_other(self, lease: Object) -> bool:
        """Wall clocks are compared here: a minute of skew is within the duration's margin."""
        spec = lease.get("spec") or {}
        if spec.get("holderIdentity") in (None, "", self.settings.identity):
            return False
        renewed = parse_time(spec.get("renewTime"))
        seconds = int(spec.get("leaseDurationSeconds") or CLAIM_SECONDS)
        return renewed is not None and self.now() - renewed < timedelta(seconds=seconds)

    def _refuse_if_live(self, lease: Object) -> None:
        if not self._live_other(lease):
            return
        namespace = lease["metadata"]["namespace"]
        raise OverlappingInstall(
            f"namespace {namespace} is already served by the Anneal release "
            f"{lease['spec']['holderIdentity']}; uninstall that one, or give each release its own "
            "list of namespaces (chart value watch.namespaces)"
        )
