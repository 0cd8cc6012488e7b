# SPDX-License-Identifier: Apache-2.0
"""The exceptions of lipsync_fast: one small tree, whose messages say what to do next.

The command line prints the message on one line and exits with status 2 for any ``LipsyncError``.
"""


class LipsyncError(Exception):
    """Base of every error that this package raises on purpose."""


class MediaError(LipsyncError):
    """A sound or video file is missing, unreadable, not media, or holds no sound."""


class AudioFormatError(LipsyncError, ValueError):
    """PCM given by a caller has a shape, type or rate that cannot be used."""


class AvatarError(LipsyncError):
    """An avatar cannot be used; base of the more exact ones below."""


class AvatarNotFoundError(AvatarError):
    """No avatar of that name or path; the message lists where it was looked for."""


class AvatarFormatError(AvatarError):
    """An avatar package is damaged, or holds sizes and offsets that cannot be true."""


class AvatarVersionError(AvatarError):
    """An avatar package was written by a newer version of this software."""


class AvatarSignatureError(AvatarError):
    """A package is not signed by whom it must be, or a key cannot be used."""


class AvatarImportError(AvatarError):
    """A folder to import lacks a part or holds a wrong one; the message names file and line."""


class CheckpointError(AvatarError):
    """A checkpoint is hostile, of another family, or has missing or extra tensors."""


class OutputError(LipsyncError):
    """An output cannot be written: missing folder, no rights, no space, already there."""


class BackendError(LipsyncError):
    """A backend cannot run here; the message says what is missing."""


class DeviceLostError(BackendError):
    """A device has failed for this process: only a new process can use it, if any can."""


class RingError(LipsyncError):
    """Shared memory between processes cannot be made, or is not what it should be."""


class EngineLostError(LipsyncError):
    """No engine could make a frame: they have died, or are too busy."""


class OverloadedError(LipsyncError):
    """The server has as much to do as it can; try again later."""


class SessionError(LipsyncError):
    """A session with a server could not begin, or has ended as nobody wished.

    Attributes:
        code: a word of the protocol's (bad_request, unknown_avatar, unknown_utterance,
            unsupported_audio, too_large, overloaded, unauthorized, engine_lost, internal), or
            "connection": the server could not be reached, or has gone.
        retry_after_s: when to try again, where the server said so.
    """

    def __init__(self, code: str, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.code, self.retry_after_s = code, retry_after_s


class ConfigError(LipsyncError):
    """A configuration holds a key or a value that cannot be; the message names it and its place."""


class ServerError(LipsyncError):
    """The server cannot start or go on; the message says why."""
