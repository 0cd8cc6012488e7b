# SPDX-License-Identifier: Apache-2.0
"""What encoding costs, counted where it is decided who may speak, and where streams go."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from lipsync_fast.config import Limits
from lipsync_fast.errors import UnsupportedVideoError
from lipsync_fast.frontend.access.admission import Admission
from lipsync_fast.frontend.engines.placement import StreamPlacement
from lipsync_fast.frontend.engines.pool import EnginePool
from lipsync_fast.frontend.session.shown_avatar import check_codec
from lipsync_fast.ipc.control import EngineInfo
from lipsync_fast.ipc.status import FrontLoad
from lipsync_fast_client.protocol import VideoFormat


def pool(*engines: tuple[str, bool, float, float]) -> EnginePool:
    """Engines: device, whether active, frames and pictures of H.264 that they make a second."""
    nursery: Any = None
    made = EnginePool(nursery)
    made.update(
        [
            EngineInfo(
                name=f"e{k}", device=device, active=active, capacity=capacity, avatars=[],
                encodes_per_s=encodes,
            )
            for k, (device, active, capacity, encodes) in enumerate(engines)
        ]
    )  # fmt: skip
    return made


@pytest.mark.parametrize(
    ("engines", "cost"),
    [
        ([("cpu", True, 100, 400)], 0.25),
        ([("cpu", True, 100, 400), ("cpu", False, 100, 400)], 0.25),
        ([("cpu", True, 100, 400), ("cpu", True, 100, 0)], 0.5),
        ([("cuda:0", True, 300, 600)], 0.0),
        ([("cuda:0", True, 3000, 600)], 4.0),
        ([("cpu", True, 100, 0)], math.inf),
        ([("cpu", False, 100, 400)], math.inf),
        ([], math.inf),
    ],
)
def test_what_a_stream_costs(engines: list[tuple[str, bool, float, float]], cost: float) -> None:
    assert pool(*engines).encoding == cost


def test_a_server_without_an_encoder_says_so() -> None:
    with pytest.raises(UnsupportedVideoError, match="jpeg") as caught:
        check_codec(pool(("cpu", True, 100, 0)), VideoFormat(codec="h264"))
    assert caught.value.code == "unsupported_video"
    check_codec(pool(("cpu", True, 100, 0)), VideoFormat())
    check_codec(pool(("cpu", True, 100, 9)), VideoFormat(codec="h264"))


def test_fewer_may_speak_where_their_pictures_are_encoded() -> None:
    load = FrontLoad()
    admission = Admission(Limits(), load)
    admission.apply_update(3, 0)
    begun = 0
    while admission.speech_refusal("127.0.0.1", 0.5) is None:
        admission.begin_speech("127.0.0.1", 0.5)
        begun += 1
    assert begun == 2
    assert load.encoding == 1.0
    assert admission.speech_refusal("127.0.0.1") is not None, "nor one more with JPEGs"
    admission.end_speech("127.0.0.1", 0.5)
    assert admission.speech_refusal("127.0.0.1") is None
    admission.apply_update(3, 1, 0.5)
    assert admission.speech_refusal("127.0.0.1") is not None, "others' streams count"
    admission.end_speech("127.0.0.1", 0.5)
    assert load.encoding == 0.0
    admission.apply_update(1, 0)
    assert admission.speech_refusal("127.0.0.1", 7.0) is None, "one may always speak"


def test_a_stream_keeps_its_engine_and_new_ones_go_where_few_are() -> None:
    engines = [SimpleNamespace(name=n, capacity=c, frames_per_s=0.0, backlog=0)
               for n, c in (("a", 100.0), ("b", 50.0))]  # fmt: skip
    placement = StreamPlacement()
    assert [placement.choose(engines, stream).name for stream in range(6)] == list("abaaba")
    for engine in engines:
        engine.backlog = 99
    assert [placement.choose(engines, stream).name for stream in range(6)] == list("abaaba")
    assert {placement.choose(engines[1:], stream).name for stream in range(6)} == {"b"}
    assert placement.choose(engines, 0).name == "b", "it does not go back"
    assert placement.forget(0) == "b"
    assert placement.forget(0) == ""
