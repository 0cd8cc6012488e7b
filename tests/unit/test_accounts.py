# SPDX-License-Identifier: Apache-2.0
"""What subjects and addresses may use, in one front and in several, until a day or minute ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from entering import entrance, refused
from hypothesis import given
from hypothesis import strategies as st

from lipsync_fast.config import Limits, Listen
from lipsync_fast.supervisor.ledger import Ledger, keep
from lipsync_fast.tokens.accounts import Accounts, Visit
from lipsync_fast.tokens.refusals import Refusal
from lipsync_fast.tokens.subject import ANYONE, Allowance, Subject
from lipsync_fast.tokens.usage import DAY_S, Use

NOON = 20_000 * DAY_S + DAY_S / 2
HOME, AWAY = "192.0.2.1", "192.0.2.2"


def anna(**allowed: Any) -> Subject:
    return Subject(name="anna", by="jwt", allowed=Allowance(**allowed))


class Server:
    """Fronts, the supervisor's ledger between them, and a clock."""

    def __init__(self, fronts: int = 1, **limits: Any) -> None:
        self.now, self._limits = NOON, Limits(**limits)
        self.ledger = Ledger(lambda: self.now)
        self.fronts: dict[str, Accounts] = {}
        for number in range(fronts):
            self.start(f"front-{number}")

    def start(self, name: str) -> Accounts:
        made = self.fronts[name] = Accounts(self._limits, lambda: self.now)
        made.apply_update(self.ledger.others(name))
        return made

    def beat(self) -> None:
        """All heartbeats come, and are passed on."""
        for name, front in self.fronts.items():
            changes = front.changes()
            self.ledger.told(name, changes)
            self._pass_on(name, set(changes))
        self.ledger.sweep()

    def die(self, name: str) -> None:
        del self.fronts[name]
        self._pass_on(name, self.ledger.forget(name))

    def _pass_on(self, source: str, accounts: set[str]) -> None:
        for name, front in self.fronts.items():
            if name != source:
                front.apply_update(self.ledger.others(name, accounts))


def words(refusal: Refusal | None) -> tuple[int, str] | None:
    return None if refusal is None else (refusal.status, refusal.reason)


# ---------------------------------------------------------------- one front
def test_sessions_of_a_subject_and_of_an_address() -> None:
    front = Server(sessions_per_address=3).fronts["front-0"]
    visits = [front.open(anna(sessions=2), HOME) for _ in range(2)]
    assert words(front.session_refusal(anna(sessions=2), AWAY)) == (429, "over_quota")
    assert front.session_refusal(ANYONE, HOME) is None
    visits.append(front.open(ANYONE, HOME))
    assert words(front.session_refusal(ANYONE, HOME)) == (503, "connection")
    for visit in visits:
        visit.close()
    assert front.session_refusal(anna(sessions=2), HOME) is None
    assert front.session_refusal(ANYONE, "") is None


def test_what_a_token_does_not_say_the_configuration_does() -> None:
    front = Server(sessions_per_subject=1, speakers_per_subject=1).fronts["front-0"]
    front.open(anna(), HOME).begin_speech()
    assert words(front.session_refusal(anna(), HOME)) == (429, "over_quota")
    assert front.session_refusal(anna(sessions=5), HOME) is None
    second = front.open(anna(sessions=5), HOME)
    assert words(second.speech_refusal()) == (429, "over_quota")
    assert front.open(anna(speakers=2), HOME).speech_refusal() is None
    assert front.open(ANYONE, HOME).speech_refusal() is None, "who has no name has no such limit"


def test_seconds_of_a_day() -> None:
    server = Server(seconds_per_day_per_address=100.0)
    visit = server.fronts["front-0"].open(anna(seconds_per_day=10.0), HOME)
    assert visit.spend(9.9) is None
    assert visit.used_up() is None
    over = visit.spend(0.2)
    assert over is not None
    assert (over.status, over.reason, over.headers["Retry-After"]) == (429, "over_quota", "43200")
    assert visit.used_up() == visit.speech_refusal() == over
    other = server.fronts["front-0"].open(ANYONE, HOME)
    assert other.spend(80) is None
    assert words(other.spend(20)) == (429, "over_quota"), "of the address, whoever speaks there"
    server.now += DAY_S / 2
    assert visit.used_up() is None
    assert other.used_up() is None
    assert visit.spoken_s == pytest.approx(10.1)


def test_connects_of_a_minute() -> None:
    server = Server(connects_per_minute_per_address=3)
    front = server.fronts["front-0"]
    limited = anna(connects_per_minute=2)
    assert [words(front.connect(limited, AWAY)) for _ in range(3)] == [
        None,
        None,
        (429, "over_quota"),
    ]
    assert [words(front.connect(ANYONE, AWAY)) for _ in range(2)] == [None, (429, "over_quota")]
    server.now += 45
    over = front.connect(limited, HOME)
    assert over is not None
    assert over.headers["Retry-After"] == "15"
    server.now += 15
    assert front.connect(limited, AWAY) is None


def test_connects_are_counted_where_somebody_comes_in() -> None:
    door = entrance(Listen(token="all"), limits=Limits(connects_per_minute_per_address=2))

    def status(token: str) -> int:
        head = {"Host": "127.0.0.1", "Authorization": f"Bearer {token}"}
        found = refused(door.admit(head.get, "/", HOME))
        return 200 if found is None else found.status

    assert [status(word) for word in ("no", "all", "all", "all", "no")] == [401, 200, 200, 429, 401]


def test_nothing_is_kept_of_who_has_gone() -> None:
    server = Server(connects_per_minute_per_address=100, sessions_per_subject=5)
    front = server.fronts["front-0"]
    for k in range(300):
        address = f"10.0.{k >> 8}.{k & 255}"
        front.connect(ANYONE, address)
        visit = front.open(Subject(name=str(k), by="key"), address)
        visit.begin_speech()
        visit.end_speech()
        visit.close()
    server.beat()
    server.now += 61
    server.beat()
    assert (len(front._own), len(server.ledger._of["front-0"])) == (0, 0)


# ---------------------------------------------------------------- several
def test_what_is_used_in_one_front_counts_in_others() -> None:
    server = Server(2, sessions_per_address=2, connects_per_minute_per_address=4)
    one, other = server.fronts.values()
    visit = one.open(anna(sessions=1, speakers=1, seconds_per_day=10.0), HOME)
    visit.begin_speech()
    visit.spend(6.0)
    for _ in range(4):
        assert one.connect(ANYONE, AWAY) is None
    server.beat()
    assert words(other.session_refusal(anna(sessions=1), AWAY)) == (429, "over_quota")
    assert words(other.connect(ANYONE, AWAY)) == (429, "over_quota")
    assert other.speaking_elsewhere(HOME) == 1
    there = other.open(anna(speakers=1, seconds_per_day=10.0), HOME)
    assert words(there.speech_refusal()) == (429, "over_quota")
    assert words(there.spend(4.0)) == (429, "over_quota")
    visit.end_speech()
    visit.close()
    server.beat()
    assert other.speaking_elsewhere(HOME) == 0
    assert one.open(anna(seconds_per_day=10.0), HOME).used_up() is not None


def test_what_a_front_has_used_outlives_it() -> None:
    server = Server(2)
    subject = anna(seconds_per_day=10.0, sessions=2, connects_per_minute=2)
    for front in server.fronts.values():
        front.open(subject, HOME).spend(4.0)
        assert front.connect(subject, HOME) is None
    server.beat()
    server.die("front-0")
    assert server.fronts["front-1"].session_refusal(subject, HOME) is None, "its sessions ended"
    heir = server.start("front-2")
    visit = heir.open(subject, HOME)
    assert visit.spend(1.9) is None
    assert visit.spend(0.1) is not None
    assert words(heir.connect(subject, HOME)) == (429, "over_quota")
    server.now += DAY_S
    server.beat()
    assert visit.used_up() is None


@given(
    st.lists(st.tuples(st.sampled_from("odscb"), st.integers(0, 1), st.integers(0, 2)), max_size=60)
)
def test_after_a_heartbeat_fronts_agree(steps: list[tuple[str, int, int]]) -> None:
    server, visits = Server(2), []
    subject = anna(seconds_per_day=1e6)
    spoken = 0.0
    for what, front, amount in steps:
        if what == "o":
            visits.append(server.fronts[f"front-{front}"].open(subject, HOME))
        elif what == "c" and visits:
            visits.pop().close()
        elif what == "s" and visits:
            visits[-1].spend(amount)
            spoken += amount
        elif what == "d":
            server.now += amount
        else:
            server.beat()
    server.beat()
    for front in server.fronts.values():
        total = front._total("jwt:anna")
        assert (total.sessions, total.spoken_s) == (len(visits), spoken)


def test_a_use_of_yesterday_is_none() -> None:
    total = Use()
    total.add(Use(1, 1, int(NOON // DAY_S) - 1, 50.0, 1, 9), NOON)
    assert (total.sessions, total.speaking, total.spoken_s, total.connects) == (1, 1, 0.0, 0)


def test_a_visit_without_limits_is_counted_for_itself() -> None:
    visit: Visit = Server().fronts["front-0"].open(ANYONE, HOME)
    assert [visit.spend(0.5) for _ in range(3)] == [None] * 3
    assert visit.spoken_s == 1.5


# ---------------------------------------------------------------- from one run to the next
def test_seconds_of_a_day_outlive_the_server(tmp_path: Path) -> None:
    file = tmp_path / "state" / "spoken.json"
    server = Server(2)
    for front in server.fronts.values():
        front.open(anna(seconds_per_day=10.0), HOME).spend(3.0)
    assert server.ledger.spoken() == b""
    server.beat()
    server.die("front-0")
    keep(file, server.ledger.spoken())
    again = Server()
    again.ledger.restore(file)
    visit = again.start("front-1").open(anna(seconds_per_day=10.0), HOME)
    assert visit.spend(3.9) is None
    assert visit.spend(0.1) is not None
    tomorrow = Server()
    tomorrow.now += DAY_S
    tomorrow.ledger.restore(file)
    assert tomorrow.start("front-1").open(anna(seconds_per_day=1.0), HOME).used_up() is None


def test_a_file_that_cannot_be_used_stops_nothing(tmp_path: Path) -> None:
    ledger = Ledger()
    for text in ("", "{", "[" * 100_000, '{"day": "x"}'):
        (tmp_path / "spoken.json").write_text(text)
        ledger.restore(tmp_path / "spoken.json")
    ledger.restore(tmp_path / "none")
    ledger.restore(tmp_path)
    assert ledger.others("front-1") == {}
    keep(tmp_path / "spoken.json" / "below a file", b"{}")
    keep(tmp_path, b"{}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["spoken.json"]
