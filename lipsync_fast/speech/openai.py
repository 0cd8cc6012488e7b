# SPDX-License-Identifier: Apache-2.0
"""Any server that has OpenAI's ``/v1/audio/speech``: theirs, and many that run at home."""

from __future__ import annotations

from collections.abc import Iterator

from lipsync_fast.config import Speech as SpeechConfig
from lipsync_fast.errors import ConfigError, SpeechError
from lipsync_fast.extras import how_to_get
from lipsync_fast.speech.wav import samples_of

RATE = 24_000
"""What ``pcm`` is by OpenAI's reference; the configuration may say otherwise."""
CONNECT_S, SILENT_S = 5.0, 20.0
"""How long it may take to connect, and to say something more."""
PIECE = 4_800
SHOWN = 200


class OpenAISpeech:
    """Asks a server; see ``Speech``.

    Raises:
        ConfigError: no URL, or httpx is not installed.
    """

    def __init__(self, config: SpeechConfig) -> None:
        try:
            import httpx
        except ImportError:
            raise ConfigError(f"speech.engine openai needs httpx: {how_to_get('speech')}") from None
        if not config.url.startswith(("http://", "https://")):
            raise ConfigError(
                f"speech.url {config.url!r}: expected where the server is, such as"
                " https://api.openai.com/v1"
            )
        self.rate = config.rate or RATE
        self._url = config.url.rstrip("/").removesuffix("/audio/speech") + "/audio/speech"
        self._model, self._voice = config.model, config.voice
        self._failed = httpx.HTTPError
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {config.key}"} if config.key else {},
            timeout=httpx.Timeout(SILENT_S, connect=CONNECT_S),
            follow_redirects=False,  # the key goes where it was meant to
        )

    def speak(self, text: str, voice: str) -> Iterator[bytes]:
        """See ``Speech``."""
        asked = {"input": text, "model": self._model, "voice": voice or self._voice}
        asked = {name: value for name, value in asked.items() if value}
        try:
            with self._client.stream(
                "POST", self._url, json=asked | {"response_format": "pcm"}
            ) as response:
                if response.status_code != 200:
                    response.read()
                    said = " ".join(response.text.split())[:SHOWN]
                    raise SpeechError(f"speech synthesis answers {response.status_code}: {said}")
                yield from samples_of(response.iter_bytes(PIECE), self.rate)
        except self._failed as error:
            reason = str(error) or type(error).__name__
            raise SpeechError(f"speech synthesis cannot be reached ({reason})") from None
