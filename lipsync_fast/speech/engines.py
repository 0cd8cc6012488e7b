# SPDX-License-Identifier: Apache-2.0
"""Which engines of speech synthesis there are, and how one is opened."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

from lipsync_fast import plugins
from lipsync_fast.config import Speech as SpeechConfig
from lipsync_fast.errors import ConfigError, LipsyncError

GROUP = "lipsync_fast.speech"
SHIPPED = {
    "openai": "lipsync_fast.speech.openai:OpenAISpeech",
    "espeak": "lipsync_fast.speech.commands:espeak",
    "piper": "lipsync_fast.speech.commands:piper",
}


class Speech(Protocol):
    """An engine. ``speak`` is called in threads, several at a time.

    Attributes:
        rate: samples a second of what it gives.
    """

    rate: int

    def speak(self, text: str, voice: str) -> Iterator[bytes]:
        """The sound of a text, piece by piece as it is made: s16le, mono, at ``rate``.

        The iterator is closed (a generator's ``close``) where nobody wants the rest.

        Args:
            text: 1 to 4,000 characters.
            voice: its name; the engine's usual one where empty.

        Raises:
            SpeechError: it cannot be made; the message says why, for whoever sent the text.
        """
        ...


Make = Callable[[SpeechConfig], Speech]


def check_engine(config: SpeechConfig) -> None:
    """What can be said of the configuration without speaking.

    Raises:
        ConfigError: there is no such engine, or it cannot work so.
    """
    if config.engine:
        open_speech(config)


def open_speech(config: SpeechConfig) -> Speech:
    """The engine that is configured.

    Raises:
        ConfigError: there is none of that name, or it cannot work so.
    """
    try:
        return _factory(config.engine)(config)
    except LipsyncError:
        raise
    except Exception as error:  # somebody else's code: whatever it raises is for the user to read
        raise ConfigError(
            f"speech.engine {config.engine}: cannot start ({type(error).__name__}: {error})"
        ) from error


def _factory(name: str) -> Make:
    if ":" in name:
        if not plugins.is_place(name):
            raise ConfigError(f"speech.engine {name!r}: expected a name, or module:function")
    elif name not in (known := plugins.known(GROUP, SHIPPED)):
        raise ConfigError(
            f"speech.engine {name!r}: expected {', '.join(known)}, or module:function"
        )
    try:
        return plugins.load(name, GROUP, SHIPPED)  # type: ignore[return-value]
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"speech.engine {name}: cannot be loaded ({error})") from None
