# SPDX-License-Identifier: Apache-2.0
"""The parts of a front process that its protocols use: which there are, and how they are joined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from lipsync_fast.audit import Audit
from lipsync_fast.config import ServeConfig
from lipsync_fast.frontend.access.admission import Admission
from lipsync_fast.frontend.access.entrance import Entrance
from lipsync_fast.frontend.avatars.changes import AvatarChanges
from lipsync_fast.frontend.avatars.directory import AvatarDirectory
from lipsync_fast.frontend.engines.numbers import JobNumbers
from lipsync_fast.frontend.engines.pool import EnginePool
from lipsync_fast.frontend.engines.single_requests import SingleRequests
from lipsync_fast.frontend.engines.trace import Trace
from lipsync_fast.frontend.kept_utterances import KeptUtterances
from lipsync_fast.frontend.playout.idle_rate import ALONE, SHARED, IdleRate
from lipsync_fast.frontend.playout.speech_rate import SpeechRate
from lipsync_fast.frontend.playout.timer import SlotTimer
from lipsync_fast.frontend.statistics import FrontStatistics
from lipsync_fast.frontend.text_to_speech import TextToSpeech
from lipsync_fast.ipc.control import AnyMessage, Engines
from lipsync_fast.ipc.status import FrontLoad
from lipsync_fast.machine import are_shared
from lipsync_fast.tokens.accounts import Accounts
from lipsync_fast.tokens.guesses import Guesses
from lipsync_fast.tokens.identities import Identities
from lipsync_fast.tokens.refusals import Refusal
from lipsync_fast.tokens.subject import ANYONE, Subject
from lipsync_fast.tokens.tickets import Tickets
from lipsync_fast.tracing import Tracing


@dataclass(frozen=True, slots=True)
class Services:
    """One for a front process; see the parts' classes. One thread, where they do not say more.

    Attributes:
        timer: rings for all sessions.
        utterances: what is kept of those that were said before.
        margin_ns: from the moment that a frame's sound is there to its slot: what engines take now.
        trace: where the hops of frames are written; None where they are not.
        tracing: spans of utterances; None where there are none.
    """

    config: ServeConfig
    pool: EnginePool
    numbers: JobNumbers
    requests: SingleRequests
    avatars: AvatarDirectory
    avatar_changes: AvatarChanges
    admission: Admission
    accounts: Accounts
    entrance: Entrance
    tickets: Tickets
    audit: Audit
    statistics: FrontStatistics
    timer: SlotTimer
    idle_rate: IdleRate
    speech_rate: SpeechRate
    utterances: KeptUtterances
    text_to_speech: TextToSpeech
    margin_ns: Callable[[], int]
    trace: Trace | None
    tracing: Tracing | None

    @classmethod
    def of(
        cls,
        config: ServeConfig,
        pool: EnginePool,
        send: Callable[[AnyMessage], None],
        tickets: Tickets | None = None,
        audit: Audit | None = None,
        tracing: Tracing | None = None,
    ) -> Services:
        """The parts of a front.

        Args:
            pool: the engines.
            send: to the supervisor.
            tickets: that all fronts of the server share; this one's alone where None.
            audit: where it is written who was there; nowhere where None.
            tracing: spans of utterances, which the caller closes; none where None.

        Raises:
            OSError: the trace cannot be written.
            ConfigError: the speech synthesis that is configured cannot work.
        """
        statistics, numbers, live = FrontStatistics(), JobNumbers(), config.live
        tickets = tickets or Tickets.alone()
        accounts = Accounts(config.limits)
        admission = Admission(
            config.limits, statistics.load, config.listen.proxies, accounts.speaking_elsewhere
        )
        return cls(
            config=config,
            pool=pool,
            numbers=numbers,
            requests=SingleRequests(pool, numbers),
            avatars=AvatarDirectory(config.avatars, pool, send),
            avatar_changes=AvatarChanges(send),
            admission=admission,
            accounts=accounts,
            entrance=Entrance(config.listen, Identities(config, tickets), Guesses(), accounts),
            tickets=tickets,
            audit=audit or Audit("", ""),
            statistics=statistics,
            timer=SlotTimer(),
            idle_rate=_idle_rate(pool, admission, statistics.load),
            speech_rate=SpeechRate(
                lambda: pool.latency.ns,
                live.margin_most_ms * 1e6,
                lambda: (statistics.load.speaking, admission.others),
                lambda: pool.capacity,
            ),
            text_to_speech=TextToSpeech(config.speech),
            utterances=KeptUtterances(config.utterances, lambda: pool.maker),
            margin_ns=partial(pool.latency.margin_ns, live.margin_ms, live.margin_most_ms),
            trace=Trace(config.log.trace) if config.log.trace else None,
            tracing=tracing,
        )

    def apply_update(self, update: Engines) -> None:
        """The supervisor has news of engines and avatars."""
        self.admission.apply_update(update.speakers, update.others, update.encoding)
        self.avatars.apply_update(update)
        self.pool.update(update.engines)

    def note_refused(self, refusal: Refusal, address: str, subject: Subject = ANYONE) -> None:
        """Somebody from an address is refused: that is counted, and written down."""
        self.statistics.count_refused(refusal.reason)
        self.audit.refused(refusal.reason, refusal.status, address, subject.name)

    def load_now(self) -> FrontLoad:
        """What this front does, for the supervisor."""
        load, catalogue = self.statistics.load, self.avatars.catalogue
        load.avatars, load.catalogue = dict(catalogue.uses), catalogue.number
        load.utterances = dict(self.utterances.counts)
        load.queued_s = sum(p.queued_s for p in self.statistics.playouts.values())
        load.redispatched = self.pool.redispatched
        load.rest_stride, load.speech_stride = self.idle_rate.stride, self.speech_rate.stride
        return load

    def close(self) -> None:
        """Close what is kept of utterances, and forget the mapped packages."""
        self.tickets.close()
        self.audit.close()
        self.utterances.close()
        self.avatars.close()


def _idle_rate(pool: EnginePool, admission: Admission, load: FrontLoad) -> IdleRate:
    def sessions() -> tuple[int, int, int]:
        return load.speaking, admission.speakers - admission.others, load.sessions

    return IdleRate(SHARED if are_shared() else ALONE, lambda: pool.latency.ns, sessions)
