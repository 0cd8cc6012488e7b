# SPDX-License-Identifier: Apache-2.0
"""The exceptions of lipsync_fast: one tree, whose messages say what to do next.

The command line prints the message on one line and exits with status 2 for any ``LipsyncError``.
Modules define no public exceptions of their own; one that never leaves its module is private there.
"""

import errno
import os
from typing import ClassVar

from lipsync_fast_client.errors import AudioFormatError as AudioFormatError
from lipsync_fast_client.errors import ErrorCode as ErrorCode
from lipsync_fast_client.errors import LipsyncError as LipsyncError
from lipsync_fast_client.errors import ProtocolError as ProtocolError
from lipsync_fast_client.errors import ReportedError as ReportedError
from lipsync_fast_client.errors import SessionError as SessionError
from lipsync_fast_client.errors import UnsupportedAudioError as UnsupportedAudioError


# ---------------------------------------------------------------- what a client of a server is told
class UnsupportedVideoError(ReportedError):
    """A client wants pictures of a form that this server cannot make."""

    code: ClassVar[ErrorCode] = "unsupported_video"


class UnknownUtteranceError(ReportedError):
    """Nothing was pre-rendered for the avatar under that name."""

    code: ClassVar[ErrorCode] = "unknown_utterance"


class SpeechError(ReportedError):
    """A text cannot be spoken: no speech synthesis is set up, or it fails."""

    code: ClassVar[ErrorCode] = "speech_failed"


class EngineLostError(ReportedError):
    """No engine could make a frame: they have died, or are too busy."""

    code: ClassVar[ErrorCode] = "engine_lost"


class OverloadedError(ReportedError):
    """The server has as much to do as it can; try again later."""

    code: ClassVar[ErrorCode] = "overloaded"


class ForbiddenError(ReportedError):
    """The client's token does not allow that."""

    code: ClassVar[ErrorCode] = "forbidden"


class OverQuotaError(ReportedError):
    """The client has used up what it may."""

    code: ClassVar[ErrorCode] = "over_quota"


class LegacyRequestError(LipsyncError):
    """A client of the old protocols sent what is no request; the message is one that clients know.

    Attributes:
        frame_id: the request's own where it could be read, else 0.
    """

    def __init__(self, message: str, frame_id: int = 0) -> None:
        super().__init__(message)
        self.frame_id = frame_id


class UnsatisfiableRangeError(LipsyncError):
    """A client asks for bytes of which there is none."""


class SocketClosedError(Exception):
    """The client has gone, or the connection was closed; no more comes and no more can be sent.

    No ``LipsyncError``: nobody is left who could be told, so what reports mistakes must not take it
    for one.
    """


class ClosingError(Exception):
    """The server closes a client's connection, which is no mistake: no ``LipsyncError`` either.

    Attributes:
        close_code, reason: of the WebSocket's close.
    """

    def __init__(self, close_code: int, reason: str) -> None:
        super().__init__(reason)
        self.close_code, self.reason = close_code, reason


# ---------------------------------------------------------------- sound, avatars, output
class MediaError(LipsyncError):
    """A sound or video file is missing, unreadable, not media, or holds no sound."""


class NotMediaError(MediaError):
    """A file that FFmpeg cannot open.

    Attributes:
        known: whether the message says what it is instead.
    """

    def __init__(self, text: str, *, known: bool) -> None:
        super().__init__(text)
        self.known = known


class NoSoundError(MediaError):
    """A file can be read, and has no track of sound: there is nothing to decode."""


class AvatarError(ReportedError):
    """An avatar cannot be used; base of the more exact ones below."""

    code: ClassVar[ErrorCode] = "unknown_avatar"


class AvatarNotFoundError(AvatarError):
    """No avatar of that name or path; the message lists where it was looked for."""


class AvatarFormatError(AvatarError):
    """An avatar package is damaged, or holds sizes and offsets that cannot be true."""


class AvatarVersionError(AvatarError):
    """An avatar package was written by a newer version of this software."""


class AvatarSignatureError(AvatarError):
    """A package is not signed by whom it must be, or a key cannot be used."""


class AvatarStoreError(AvatarError):
    """A store of avatars cannot be reached, read or written, or has no room here."""


class AvatarImportError(AvatarError):
    """A folder to import lacks a part or holds a wrong one; the message names file and line."""


class CheckpointError(AvatarError):
    """A checkpoint is hostile, of another family, or has missing or extra tensors."""


class UnsafePickleError(LipsyncError):
    """A pickle is more than a list of tensors, or none; the message says why."""


class UnexpectedGraphError(LipsyncError):
    """Bytes are no ONNX graph, or not one that is known; the message says why."""


class PrepareError(AvatarError):
    """A video cannot become an avatar as it is, or an option does not fit; says what to do."""


class TrainingError(LipsyncError):
    """A training cannot begin, go on or end well; the message says what to do."""


class OutputError(LipsyncError):
    """An output cannot be written: missing folder, no rights, no space, already there."""


class ObjectError(LipsyncError):
    """What lies at a URL cannot be read or written; says which, never with a secret in it.

    Attributes:
        passes: it may work later: a server that does not answer, or is overloaded.
    """

    def __init__(self, message: str, *, passes: bool = False) -> None:
        super().__init__(message)
        self.passes = passes


class ObjectMissingError(ObjectError):
    """There is nothing at a URL."""


class ObjectChangedError(ObjectError):
    """What lies at a URL has become another one meanwhile."""


class ManifestError(LipsyncError):
    """A list of recordings cannot be read, or names what cannot be; says in which line."""


# ---------------------------------------------------------------- engines and processes
class BackendError(LipsyncError):
    """A backend cannot run here; the message says what is missing."""


class DeviceLostError(BackendError):
    """A device has failed for this process: only a new process can use it, if any can."""


class RingError(LipsyncError):
    """Shared memory between processes cannot be made, or is not what it should be."""


class MessageError(LipsyncError):
    """A record of a ring cannot be read."""


class ControlError(LipsyncError):
    """The control socket cannot be used, or a peer sent what cannot be read."""


class StoreError(LipsyncError):
    """What is kept of utterances cannot be read or written."""


class StoreDamagedError(StoreError):
    """The file is no store, or not whole."""


# ---------------------------------------------------------------- servers, their users and clients
class ConfigError(LipsyncError):
    """A configuration holds a key or a value that cannot be; the message says where."""


class TokenError(LipsyncError):
    """A token is not one that lets its holder in.

    Attributes:
        reason: a word that does not change: wrong_token, expired, wrong_audience, wrong_issuer,
            used_ticket.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class ServerError(LipsyncError):
    """The server cannot start or go on; the message says why."""


class PortInUseError(ServerError):
    """Somebody else listens on a port that the server is to have."""


class FrontError(LipsyncError):
    """A front has not answered a gateway.

    Attributes:
        status: of HTTP, where it has refused the connection; else 0.
        reason: the word for why it has; retry_s: when to try again, where it says so.
    """

    def __init__(
        self, message: str, status: int = 0, reason: str = "", retry_s: float = 2.0
    ) -> None:
        super().__init__(message)
        self.status, self.reason, self.retry_s = status, reason, retry_s


class PeerError(LipsyncError):
    """A request to the gateway by HTTP is refused: WebRTC's, LiveKit's.

    Attributes:
        status: of HTTP, that says as much.
        reason: a word that does not change, where there is one.
        retry_s: when to try again, for statuses that say so.
    """

    def __init__(
        self, message: str, status: int = 400, reason: str = "", retry_s: float = 2.0
    ) -> None:
        super().__init__(message)
        self.status, self.reason, self.retry_s = status, reason, retry_s


class NotCheckedError(LipsyncError):
    """A check of ``lipsync-fast doctor`` cannot be made here; the message says why."""


class WrongResultError(LipsyncError):
    """What a check of ``lipsync-fast doctor`` computed differs from the golden data."""


def words_of(error: BaseException) -> str:
    """What is wrong, in words: without the system's number for it, and the path, which is said
    where this goes."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


_SPENT = errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EAGAIN
_NO_FOLDER = "No usable temporary directory"
"""What Python says where it cannot write to any."""
_NO_MEMORY = os.strerror(errno.ENOMEM), "bad_alloc", "failed to map segment"
"""What libraries say, each in its own kind of exception."""


def spent(error: BaseException) -> str | None:
    """What the machine has no more of, wherever that was noticed; None for any other error.

    Disk, quota, open files, processes, threads, memory: that none is left is no defect of the
    program.
    """
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(spent, error.exceptions)), None)
    words = words_of(error)
    if isinstance(error, MemoryError) or any(said in words for said in _NO_MEMORY):
        return "no memory is left (what a process may have: ulimit -v, its control group)"
    if isinstance(error, RuntimeError) and words == "can't start new thread":
        return "no thread can be started (ulimit -u, ulimit -v, or the control group's pids.max)"
    if not isinstance(error, OSError):
        return None
    no_folder = error.filename is None and _NO_FOLDER in words
    if error.errno not in _SPENT and not no_folder:
        return None
    if isinstance(error.filename, (str, bytes)):
        return f"{os.fsdecode(error.filename)}: {words}"
    hint = " (a full disk, most likely; TMPDIR names another folder)" if no_folder else ""
    return f"{words}{hint}"
