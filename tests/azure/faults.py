"""What a test makes go wrong. Shares are drawn from a seed, so that a run that failed fails again."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from threading import Lock

from tests.azure.identity import Identity
from tests.azure.wire import Answer, Call


@dataclass(frozen=True)
class Preemption:
    # Seconds that the attempt runs before.
    after: float
    warned: bool
    last: bool


def resource_kind(path: str) -> str:
    """What ARM calls a resource's type, without its names: `models/versions` of `.../workspaces/ws/models/m/versions/1`.
    Whatever has no workspace in its path is a kind by itself."""
    _, found, below = path.partition("/workspaces/")
    return "/".join(below.split("/")[1::2]) if found else path


class Faults:
    """Each method says how Azure fails from now on; `clear` ends it all."""

    def __init__(self, identity: Identity, retry_after: str) -> None:
        self._identity = identity
        self._retry_after = retry_after
        self._lock = Lock()
        self.clear()

    def clear(self) -> None:
        self._identity.restore()
        with self._lock:
            self._share = 0.0
            self._kinds: tuple[str, ...] = ()
            self._seed = 0
            self._calls: Counter[tuple[str, str]] = Counter()
            self._each_kind = False
            # Methods and kinds of resource that have failed.
            self.met: set[tuple[str, str]] = set()
            self.injected = 0
            self._preemptions: dict[str, list[Preemption]] = {}
            self._lost_nodes: set[str] = set()
            self.vanished: set[str] = set()
            self.bad_images: set[str] = set()
            self.forbidden = False
            self.quota_at_submit = 0
            self.quota_at_allocation = 0
            self.stale_reads = 0
            self.failing_deployments: dict[str, str] = {}
            self._lost_answers: list[tuple[str, str]] = []

    def fail(
        self,
        share: float,
        seed: int,
        *,
        kinds: tuple[str, ...] = ("throttled", "unavailable", "lost_before", "lost_after"),
        each_kind: bool = False,
    ) -> None:
        """Of each hundred calls, so many are answered 429 with Retry-After, or 503, or lose their connection before or
        after the work was done. What happens to the third GET of a path depends on the seed alone, not on what other
        threads call meanwhile. With `each_kind`, the first call of a method on a kind of resource always fails: names
        that differ from run to run draw other shares, and may draw none."""
        with self._lock:
            self._share, self._kinds, self._seed, self._each_kind = share, kinds, seed, each_kind
            self._calls.clear()
            self.met.clear()

    def preempt(
        self, job: str, times: int = 1, *, after: float = 0.0, warned: bool = True, fails: bool = False
    ) -> None:
        """Takes the job's low-priority node away, so often, each time when it has run for so many seconds: it is queued
        again and starts its command anew. Warned is with SIGTERM first, which Azure does not promise. When it fails, the
        last time is its end."""
        each = [Preemption(after, warned, last=fails and number == times) for number in range(1, times + 1)]
        with self._lock:
            self._preemptions[job] = each

    def lose_node(self, job: str) -> None:
        """The node dies, now or as soon as the job runs: the job fails."""
        self._lost_nodes.add(job)

    def vanish(self, job: str) -> None:
        """The job is killed and forgotten: 404 from now on."""
        self.vanished.add(job)

    def quota(self, *, at: str = "submit", times: int = 1) -> None:
        """No quota for the next jobs: refused when submitted, or failed when its nodes are allocated (`allocation`)."""
        if at not in ("submit", "allocation"):
            raise ValueError(f"quota runs out at 'submit' or at 'allocation', not at {at!r}")
        if at == "submit":
            self.quota_at_submit = times
        else:
            self.quota_at_allocation = times

    def bad_image(self, image: str) -> None:
        """This image cannot be pulled."""
        self.bad_images.add(image)

    def forbid(self, forbidden: bool = True) -> None:
        """The identity has no role on the workspace: 403."""
        self.forbidden = forbidden

    def expire_tokens(self, *, challenge: bool = False) -> None:
        """Tokens issued so far are expired: 401 until a new one is used. With a challenge the SDK asks for one itself."""
        self._identity.expire(challenge=challenge)

    def no_token(self, times: int = 1) -> None:
        """The identity endpoint fails so often."""
        self._identity.refuse(times)

    def stale_traffic(self, times: int) -> None:
        """After the next change of traffic, so many reads of the endpoint answer the old one."""
        self.stale_reads = times

    def fail_deployment(self, name: str, message: str = "Container failed readiness probe.") -> None:
        """Every create or update of this deployment ends in Failed."""
        self.failing_deployments[name] = message

    def lose_answer(self, method: str, path_ends: str) -> None:
        """The next such call is done, and its answer lost."""
        self._lost_answers.append((method, path_ends.lower()))

    def of(self, call: Call) -> str | None:
        """What happens to this call: a kind of `fail`, or nothing."""
        with self._lock:
            for lost in self._lost_answers:
                if call.method == lost[0] and call.path.lower().endswith(lost[1]):
                    self._lost_answers.remove(lost)
                    return "lost_after"
            self._calls[call.method, call.path] += 1
            drawn = random.Random(f"{self._seed} {call.method} {call.path} {self._calls[call.method, call.path]}")
            kind = call.method, resource_kind(call.path)
            if self._each_kind and kind not in self.met:
                drawn = random.Random(f"{self._seed} {kind}")
            elif drawn.random() >= self._share:
                return None
            self.met.add(kind)
            self.injected += 1
            return drawn.choice(self._kinds)

    def answer(self, kind: str) -> Answer:
        if kind == "throttled":
            said = "The request is being throttled as the limit has been reached for operation type."
            return Answer(
                429, {"error": {"code": "TooManyRequests", "message": said}}, {"Retry-After": self._retry_after}
            )
        if kind == "unavailable":
            return Answer(
                503, {"error": {"code": "ServiceUnavailable", "message": "The service is temporarily unavailable."}}
            )
        return Answer(500, lost=True)

    def take(self, name: str) -> bool:
        """One of what is counted, when there is one left."""
        with self._lock:
            left = getattr(self, name)
            setattr(self, name, max(0, left - 1))
            return bool(left > 0)

    def take_preemption(self, job: str, ran_seconds: float) -> Preemption | None:
        with self._lock:
            left = self._preemptions.get(job)
            return left.pop(0) if left and left[0].after <= ran_seconds else None

    def take_node(self, job: str) -> bool:
        with self._lock:
            lost = job in self._lost_nodes
            self._lost_nodes.discard(job)
            return lost
