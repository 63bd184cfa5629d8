"""Says on each FineTuneProfile whether jobs can use it. Only a cluster-wide install writes this:
several namespaced installs may share a profile and know different MLflow servers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from anneal_operator.admission import profile_problem
from anneal_operator.api import names
from anneal_operator.api.profile import FineTuneProfileStatus
from anneal_operator.api.reasons import ConditionType, Reason
from anneal_operator.conditions import with_condition
from anneal_operator.kube import Kube
from anneal_operator.observation import Profile
from anneal_operator.reconciler import read_profile
from anneal_operator.resources import FINE_TUNE_PROFILES
from anneal_operator.settings import Settings
from anneal_operator.store import Store
from anneal_operator.workqueue import Key


@dataclass(frozen=True, slots=True)
class ProfileReconciler:
    """Keeps the Ready condition of profiles."""

    kube: Kube
    settings: Settings
    profiles: Store
    now: Callable[[], datetime]

    async def reconcile(self, key: Key) -> float | None:
        """Judge one profile."""
        obj = self.profiles.get(key)
        if obj is None:
            return None
        before = FineTuneProfileStatus.parse(obj.get("status") or {})
        after = self._judge(read_profile(obj), before=before)
        if after != before:
            body = {
                "apiVersion": FINE_TUNE_PROFILES.api_version,
                "kind": FINE_TUNE_PROFILES.kind,
                "metadata": {"name": key.name},
                "status": after.to_data(),
            }
            await self.kube.apply(
                FINE_TUNE_PROFILES, body, field_manager=names.FIELD_MANAGER, subresource="status"
            )
        return None

    def _judge(self, profile: Profile, *, before: FineTuneProfileStatus) -> FineTuneProfileStatus:
        known = tuple(server.uri for server in self.settings.tracking_servers)
        problem = profile_problem(profile.spec, known_uris=known)
        conditions = with_condition(
            before.conditions,
            ConditionType.READY,
            "False" if problem else "True",
            reason=problem.reason if problem else Reason.READY,
            message=problem.message if problem else "Jobs can use this profile.",
            generation=profile.generation,
            now=self.now(),
        )
        return FineTuneProfileStatus(observed_generation=profile.generation, conditions=conditions)
