# SPDX-License-Identifier: Apache-2.0
"""The server's configuration: one typed tree, from a TOML file, the environment and flags.

Later ones win: defaults, file, environment (``LIPSYNC_FAST_SECTION_KEY``), flags.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Port = Annotated[int, Meta(ge=0, le=65_535)]
Positive = Annotated[float, Meta(gt=0)]
Amount = Annotated[int, Meta(ge=0)]
AtLeastOne = Annotated[int, Meta(ge=1)]


class Listen(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where clients connect.

    Attributes:
        host: address to bind; 127.0.0.1 serves this machine alone.
        ports: of the stream protocols (WebSocket, any path); 0 takes a free one.
        http_port: of the page, HTTP and /ws; 0 takes a free one.
        origins: foreign Origins that browsers may come from; "*" allows all. Pages of the server
            itself, and clients that send no Origin, are always allowed.
        token: what clients must show (Authorization: Bearer, or ?token=); none asked where empty.
        tls_cert: file of the server's certificate, with its chain (PEM): all ports speak TLS then.
        tls_key: file of its private key; that of ``tls_cert`` where empty.
        tls_client_ca: file of authorities: clients must show a certificate of one of them.
        insecure: others may reach a server that asks for nothing, or does not encrypt what is said.
        proxies: addresses of reverse proxies of ours, or networks of them: a client that comes
            through one has the address that it names last in X-Forwarded-For, and they have no
            share of connections.
        admin_token: who shows it (Authorization: Bearer) may load and unload avatars from another
            machine; where empty, only this machine may.
        grpc_ports: of the old service's gRPC; webrtc_ports: of WebRTC's signalling, which is HTTP;
            0 takes a free one. None of both: no gateway.
    """

    host: str = "127.0.0.1"
    ports: tuple[Port, ...] = (8084,)
    http_port: Port = 8086
    origins: tuple[str, ...] = ()
    token: str = ""
    admin_token: str = ""
    proxies: tuple[str, ...] = ()
    tls_cert: str = ""
    tls_key: str = ""
    tls_client_ca: str = ""
    insecure: bool = False
    grpc_ports: tuple[Port, ...] = ()
    webrtc_ports: tuple[Port, ...] = ()
    livekit_ports: tuple[Port, ...] = ()


class Access(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who may connect beside whoever shows ``listen.token``.

    Files are read again when they change.

    Attributes:
        jwt_keys: file of the keys that JWTs are signed with: public ones (PEM, Ed25519 or RSA), a
            JWKS (JSON), or a secret of 32 bytes or more. None where empty.
        jwt_audience, jwt_issuer: what a JWT's ``aud`` and ``iss`` must say; anything where empty.
        jwt_leeway_s: by how much clocks may differ.
        api_keys: file that ``lipsync-fast token`` writes; none where empty.
    """

    jwt_keys: str = ""
    jwt_audience: str = ""
    jwt_issuer: str = ""
    jwt_leeway_s: Annotated[float, Meta(ge=0, le=300)] = 10.0
    api_keys: str = ""


class Avatars(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Which avatars are served.

    Attributes:
        folders: looked in first (see ``avatars.library``); or URLs of stores (``avatars.store``).
        default: the avatar of clients that name none; loaded before the server is ready.
        only: names that may be used; all that are found where empty.
        require_signed: file of public keys (PEM): only packages that one of them has signed are
            used, the default one included; any where empty.
        watch: seconds between looks at the folders: what is new or replaced there is loaded, what
            is gone is unloaded. 0: they are not watched.
        cache: folder for packages of stores; the user's cache where empty.
        cache_mb: that they may take there.
    """

    folders: tuple[str, ...] = ()
    default: str = "demo"
    only: tuple[str, ...] = ()
    require_signed: str = ""
    watch: Annotated[float, Meta(ge=0)] = 0.0
    cache: str = ""
    cache_mb: AtLeastOne = 20_000


class Engines(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The processes that make frames.

    Attributes:
        gpus: "all", "none", or their numbers, such as "0,2". "all" without a GPU is one CPU engine.
        per_gpu: engines on each GPU; without a GPU, CPU engines in all.
        precision: of the networks on a GPU; a CPU computes in fp32.
        mps: engines of one GPU share it through NVIDIA's MPS daemon, which is started where none
            runs. The GPU's settings are left as they are.
        threads: of a CPU engine; chosen by the processors where 0.
        memory_mb: that a CPU engine may take for itself, beside what engines share: an avatar that
            needs more is refused; half of what this machine lets us use where 0.
        kernels: of a CPU engine's decoder; "auto" chooses by the processor's instruction set.
        spares: engines kept ready to take over at once when one dies.
        heartbeat_s: how often children say that they live.
        hung_s: a child that has not said so for this long is killed and replaced.
        backoff_s: wait before restarting a child that died young; doubles up to ``backoff_most_s``.
    """

    gpus: Annotated[str, Meta(pattern=r"^(all|none|\d+(,\d+)*)$")] = "all"
    per_gpu: AtLeastOne = 1
    precision: Literal["fp16", "bf16", "fp32"] = "fp16"
    mps: bool = False
    threads: Amount = 0
    memory_mb: Amount = 0
    kernels: Literal["auto", "onnxruntime", "avx512", "avx2", "portable"] = "auto"
    spares: Amount = 1
    heartbeat_s: Positive = 0.25
    hung_s: Positive = 2.0
    backoff_s: Positive = 0.1
    backoff_most_s: Positive = 10.0


class Live(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sessions.

    Attributes:
        margin_ms: from the moment that a frame's sound is there to the moment it is shown, at
            least; where engines take longer, utterances begin with what they take.
        margin_most_ms: and at most.
        hold_ms: how long a session waits for frames whose engine was lost before it skips them.
        headroom: share of the measured capacity that speakers may use.
        speakers: how many may speak at once; measured where 0.
        quiet_s: an utterance that gets no sound for so long, and of which all was shown that could
            be, is ended by the server.
        half_rate: where engines cannot make all pictures in time, every second one of what is
            spoken is left out; else they come late.
    """

    margin_ms: Positive = 66.0
    margin_most_ms: Positive = 400.0
    hold_ms: Annotated[float, Meta(ge=0)] = 450.0
    headroom: Annotated[float, Meta(gt=0, le=1)] = 0.8
    speakers: Amount = 0
    quiet_s: Positive = 3.0
    half_rate: bool = True


class Limits(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a client may cost.

    Attributes:
        message_bytes: the largest message; old clients send up to 10 MB.
        queued_s: seconds of sound a session may have waiting; beyond, it is not read from, also not
            an interruption that comes behind it.
        sessions: connections in all; sessions_per_address: of one address.
        speakers_per_address: of those that may speak, at most so many of one address; where 0, all
            but a quarter of them, rounded up, from four on. A loopback address, which programs of
            this machine and proxies have, may take all then.
        sessions_per_subject, speakers_per_subject, seconds_per_day_per_subject,
            connects_per_minute_per_subject: of whom a token names, where that token does not say
            otherwise; as many as there are where 0. Seconds are of speech, in a day of UTC;
            connects are upgrades, and requests of HTTP that need a token.
        seconds_per_day_per_address, connects_per_minute_per_address: the same of one address,
            whoever comes from there.
        handshake_s: to complete the upgrade; idle_s: until a session begins, and without any sign
            of life from its client: a message, or pictures that it takes.
        requests_in_flight: of one connection of the old protocols; beyond, it is not read from.
        late_frames: frames that wait for a slow reader before it is skipped to the newest.
    """

    message_bytes: Annotated[int, Meta(ge=1024, le=1 << 30)] = 10_000_000
    queued_s: Positive = 60.0
    sessions: AtLeastOne = 1000
    sessions_per_address: AtLeastOne = 200
    speakers_per_address: Amount = 0
    sessions_per_subject: Amount = 0
    speakers_per_subject: Amount = 0
    seconds_per_day_per_subject: Annotated[float, Meta(ge=0)] = 0.0
    connects_per_minute_per_subject: Amount = 0
    seconds_per_day_per_address: Annotated[float, Meta(ge=0)] = 0.0
    connects_per_minute_per_address: Amount = 0
    handshake_s: Positive = 10.0
    idle_s: Positive = 600.0
    requests_in_flight: AtLeastOne = 16
    late_frames: AtLeastOne = 12


class Utterances(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Frames that are kept, so that the same sound costs nothing the second time.

    Attributes:
        disk_mb: at most, in one file; 0: nothing is kept or looked for.
        folder: of that file; $STATE_DIRECTORY, or the user's state folder where empty.
        keep: what is spoken for the first time is kept, too; else only what was pre-rendered is
            used.
        write_mb_s: how much each engine may write, on the average; an utterance that would be more
            is not kept.
    """

    disk_mb: Amount = 1024
    folder: str = ""
    keep: bool = True
    write_mb_s: Positive = 4.0


class WebRtc(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How browsers get pictures and sound by WebRTC.

    Attributes:
        addresses: of this machine, where media goes in and out (UDP); where empty, that of
            ``listen.host``, or all but the loopback ones where it listens on all.
        public_address: what clients are told instead: of a NAT that forwards ``udp_ports`` as they
            are, such as Docker's.
        udp_ports: "FIRST-LAST", of which each client takes one for each address; any where empty.
        ice_servers: ``stun:HOST:PORT`` and ``turn:HOST:PORT?transport=udp`` (tcp; turns:), one of
            each kind. Where there are none, nothing is sent to addresses that clients name.
        ice_username, ice_credential: for the TURN server; clients are told them, too.
        bitrate: bits a second that pictures may have; what they need where 0.
        pages: folder with pages for browsers, which are served as they are; none where empty.
    """

    addresses: tuple[str, ...] = ()
    public_address: str = ""
    udp_ports: str = ""
    ice_servers: tuple[str, ...] = ()
    ice_username: str = ""
    ice_credential: str = ""
    bitrate: Annotated[int, Meta(ge=0, le=50_000_000)] = 0
    pages: str = ""


class LiveKit(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Avatars that join rooms of LiveKit where an agent asks for them (``listen.livekit_ports``).

    Attributes:
        hosts: of LiveKit servers that may be called: HOST, or HOST:PORT. None where empty.
        most: avatars in rooms at a time.
        sample_rate: of the sound that they publish.
        max_width: of their pictures; the avatar's own where 0.
    """

    hosts: tuple[str, ...] = ()
    most: AtLeastOne = 100
    sample_rate: Annotated[int, Meta(ge=8_000, le=48_000)] = 24_000
    max_width: Annotated[int, Meta(ge=0, le=8192)] = 0


class Speech(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What speaks where a client sends text; off unless an engine is named.

    Attributes:
        engine: openai (any server that has OpenAI's /v1/audio/speech), espeak, piper, a plug-in's
            name, or module:function.
        url: of the server, such as https://api.openai.com/v1.
        key: what it asks for.
        model: its model; for piper, the file of the voice.
        voice: the usual one; a client may name another.
        rate: samples a second of what comes; 0: the engine's usual.
        at_once: texts that are spoken at a time, for each front.
    """

    engine: str = ""
    url: str = ""
    key: str = ""
    model: str = ""
    voice: str = ""
    rate: Annotated[int, Meta(ge=0, le=192_000)] = 0
    at_once: AtLeastOne = 8


class Log(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What is written to standard error.

    Attributes:
        audit: file to which a line is added for each connection that begins and ends, and for who
            is refused (``audit``); none where empty.
        trace: file to which fronts add a line for each spoken frame: when it passed which hop. For
            measurements; it grows without end.
    """

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    audit: str = ""
    trace: str = ""


class Tracing(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Traces of utterances, by OpenTelemetry; off unless a collector is named.

    Attributes:
        endpoint: URL of a collector that takes OTLP by HTTP, such as http://127.0.0.1:4318.
        sample: share of the utterances that are traced, of clients that do not say it themselves
            (traceparent).
    """

    endpoint: str = ""
    sample: Annotated[float, Meta(ge=0, le=1)] = 1.0


class ServeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All that ``lipsync-fast serve`` can be told.

    Attributes:
        fronts: processes that talk to clients.
        folder: private folder of the control socket; one under the runtime folder where empty.
        drain_seconds: how long utterances may go on after SIGTERM.
    """

    listen: Listen = Listen()
    access: Access = Access()
    avatars: Avatars = Avatars()
    engines: Engines = Engines()
    live: Live = Live()
    limits: Limits = Limits()
    utterances: Utterances = Utterances()
    speech: Speech = Speech()
    webrtc: WebRtc = WebRtc()
    livekit: LiveKit = LiveKit()
    log: Log = Log()
    tracing: Tracing = Tracing()
    fronts: AtLeastOne = 1
    folder: str = ""
    drain_seconds: Annotated[float, Meta(ge=0)] = 10.0
