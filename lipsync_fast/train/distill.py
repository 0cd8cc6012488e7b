# SPDX-License-Identifier: Apache-2.0
"""From an avatar to a narrower one of the same person: what ``avatar distill`` does.

teacher's package -> its frames, its audio encoder, its answers to any sound
                  -> a network of the same family, with fewer channels and pixels
                  -> a package with the teacher's frames and statements, and what was lost
"""

from __future__ import annotations

import datetime
import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec

from lipsync_fast import machine
from lipsync_fast.avatars.derived import DerivedPackage
from lipsync_fast.avatars.manifest import Manifest, Student, Window
from lipsync_fast.avatars.package import AvatarPackage
from lipsync_fast.avatars.storage import MANIFEST
from lipsync_fast.errors import CheckpointError, OutputError, TrainingError
from lipsync_fast.models.export import export_unet
from lipsync_fast.models.unet import UNet
from lipsync_fast.train.asked import (
    check_former,
    check_out,
    device_of,
    nearest_folder,
    precision_of,
)
from lipsync_fast.train.exam import Exam
from lipsync_fast.train.options import MOST_STEPS, Options, checked
from lipsync_fast.train.pace import paces
from lipsync_fast.train.progress import StepProgress
from lipsync_fast.train.speech import Speech, learnt_and_held, read_speech
from lipsync_fast.train.state import SHEET, Best, State, Work
from lipsync_fast.train.taught import TaughtData, TaughtLesson
from lipsync_fast.train.teacher import Seat, Teacher
from lipsync_fast.train.trainer import Schedule, Trainer
from lipsync_fast.version import __version__

FAMILY = "synctalk2d"
MINUTES = 60.0
REGION = 256
"""The student's, unless told otherwise; the teacher's where that is smaller."""
LOOK_EVERY, SAVE_EVERY = 200, 50
HELD_SHARE, FEW = 12, 24
"""One of so many frames is held out, at a stretch; of fewer than so many, none."""
TEXT = 19_000
"""Characters of a provenance that still leave room for what is said of the student."""
WEIGHT_BYTES = 4 * 12_000 * 8
"""Of a network of width w there are some 12,000 w x w numbers; checkpoints have them eight times
(weights, their average, two of the optimiser, the best; and a checkpoint is whole before the
former one goes)."""


class Usual(NamedTuple):
    """What a student has, unless told otherwise."""

    width: int
    region: int
    batch: int = 12
    rate: float = 4e-3
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillRequest:
    """What the command line asked for; None: as the training that goes on has it, else chosen here.

    Attributes:
        avatar: the teacher's package.
        out: the student's.
        speech: recordings beside the shipped one.
        minutes: of this run.
        work: the training's folder; beside ``out`` by default.
        restart: forget a former training.
        force: replace a package at ``out``.
    """

    avatar: Path
    out: Path
    width: int | None = None
    region: int | None = None
    minutes: float | None = None
    steps: int | None = None
    speech: Sequence[Path] = ()
    work: Path | None = None
    device: str = "auto"
    precision: str = "auto"
    batch: int | None = None
    rate: float | None = None
    seed: int | None = None
    threads: int | None = None
    validate_every: int | None = None
    restart: bool = False
    force: bool = False
    quiet: bool = False


class DistillResult(msgspec.Struct, frozen=True):
    """How it ended.

    Attributes:
        path: the package.
        width, region: of the student.
        steps: done in all.
        student: what its manifest says of it.
        held_frames: of the avatar, that were not learnt from.
        teacher_signed: the teacher's signature was left out.
    """

    path: str
    work: str
    width: int
    region: int
    steps: int
    seconds: float
    best: Best
    student: Student
    speech: list[str]
    held_frames: int
    teacher_signed: bool


def distill(request: DistillRequest) -> DistillResult:
    """Teach, resuming where a former run stopped, and pack the student.

    Raises:
        LipsyncError: the avatar, a sound or an option cannot be used; the training came to grief;
            an output cannot be written.
        KeyboardInterrupt, SystemExit: a signal came; the same call goes on from there.
    """
    check_out(request.out, force=request.force)
    work = Work(request.work or work_beside(request.out))
    with AvatarPackage.open(request.avatar) as package:
        check_teacher(package, request.out)
        package.verify()
        # What can be refused is, before anything is written or takes time.
        former = None if request.restart else work.load()
        options = _options(request, package.manifest, former)
        speech, warnings = read_speech(request.speech, package.manifest.audio)
        key = _key(package, speech)
        changed = "the avatar or the recordings have changed" if _is_other(former, key) else ""
        check_former(former, options, work, changed)
        _check_room(package, request.out, work, options)
        progress = StepProgress(quiet=request.quiet)
        for text in warnings:
            progress.say(text)
        with work.locked():
            if request.restart:
                work.clear()
            former = work.load()  # now nobody else changes it
            return _taught(request, package, options, speech, key, work, former, progress)


def work_beside(out: Path) -> Path:
    """Where the training of a student lies, unless told otherwise."""
    return out.with_name(f".{out.name.removesuffix('.lsa')}.distilling")


def usual_width(teacher: Manifest) -> int:
    """Half of the teacher's, and even."""
    return max(2, teacher.width // 4 * 2)


def _is_other(former: State | None, key: str) -> bool:
    return former is not None and former.data != key


def check_teacher(package: AvatarPackage, out: Path) -> None:
    """Whether an avatar can teach.

    Raises:
        TrainingError: says why not.
    """
    m = package.manifest
    if m.family != FAMILY:
        raise TrainingError(
            f"{m.name}: its networks are of the family {m.family}; only avatars of {FAMILY} teach"
        )
    if m.student is not msgspec.UNSET:
        raise TrainingError(
            f"{m.name}: is a student of {m.student.teacher}; let that one teach: what a student"
            " has lost, its own student cannot learn"
        )
    if out.exists() and out.resolve() == package.path.resolve():
        raise OutputError(f"{out}: is the teacher itself; name another place by --out")
    if len(m.provenance) > TEXT:
        raise TrainingError(
            f"{m.name}: its provenance has {len(m.provenance)} characters, which leaves no room to"
            " say whose student the new one is"
        )


def _options(request: DistillRequest, teacher: Manifest, former: State | None) -> Options:
    """What decides the result, all of it chosen."""
    device = device_of(request.device)
    usual = Usual(usual_width(teacher), min(REGION, teacher.region))
    if former is not None and former.options.recipe == "distill":
        usual = Usual(*(getattr(former.options, name) for name in Usual._fields))
    told = {name: getattr(request, name) for name in Usual._fields}
    chosen = usual._replace(**{name: v for name, v in told.items() if v is not None})
    if chosen.width >= teacher.width:
        raise TrainingError(
            f"--width {chosen.width}: {teacher.name} is of width {teacher.width}; a student is"
            " narrower than its teacher"
        )
    if chosen.region > teacher.region:
        raise TrainingError(
            f"--region {chosen.region}: {teacher.name} makes squares of {teacher.region} pixels;"
            " no more can be learnt from it"
        )
    before = None if former is None else former.options
    return checked(
        Options(
            recipe="distill",
            steps=request.steps or MOST_STEPS,
            precision=precision_of(request.precision, device),
            device=device,
            validate_every=request.validate_every
            or (before.validate_every if before else LOOK_EVERY),
            threads=request.threads or (before.threads if before else machine.processors()),
            **chosen._asdict(),
        )
    )


def _key(package: AvatarPackage, speech: Speech) -> str:
    """Hash of what is learnt from."""
    manifest = hashlib.sha256(package.member_bytes(MANIFEST)).hexdigest()
    return f"{manifest} {speech.key}"


def _check_room(package: AvatarPackage, out: Path, work: Work, options: Options) -> None:
    """Whether there is space for what will be written.

    Raises:
        OutputError: there is not.
    """
    own = sum(entry.size for entry in package.manifest.files.values())
    packages = own * (2 if out.suffix == ".lsa" else 1)  # one is whole before it is packed
    network = WEIGHT_BYTES * options.width**2
    for folder, needed in ((nearest_folder(out), packages), (nearest_folder(work.folder), network)):
        free = shutil.disk_usage(folder).free
        if free < needed:
            raise OutputError(
                f"{folder}: {free / 1e6:.0f} MB are free, some {needed / 1e6:.0f} MB are needed"
            )


def held_out(count: int) -> tuple[list[int], list[int]]:
    """The frames to learn from, and those held out, of so many; of few, all are both."""
    if count < FEW:
        return list(range(count)), list(range(count))
    length = count // HELD_SHARE
    held = range(count // 2 - length // 2, count // 2 - length // 2 + length)
    return [i for i in range(count) if i not in held], list(held)


def _taught(
    request: DistillRequest,
    package: AvatarPackage,
    options: Options,
    speech: Speech,
    key: str,
    work: Work,
    former: State | None,
    progress: StepProgress,
) -> DistillResult:
    m = package.manifest
    learnt, held = held_out(m.frame_count)
    progress.say(
        f"{m.name} (width {m.width}, region {m.region}) teaches a network of width {options.width}"
        f" at region {options.region}, by {m.frame_count} frames and {speech.seconds:.0f} s of"
        " speech and variants of it"
    )
    with Teacher(package, options.threads) as teacher:
        seat = Seat(teacher, options.region)
        sounds, unheard = learnt_and_held(speech, teacher.features, m.audio, options.seed)
        exam = Exam(teacher, seat, held, unheard, 0)
        data = TaughtData(teacher, seat, learnt, sounds, options.batch, options.seed)
        lesson = TaughtLesson(options, data, exam)
        minutes = request.minutes if request.minutes or request.steps else MINUTES
        schedule = Schedule(key, 1, SAVE_EVERY, minutes)
        trainer = Trainer(options, lesson, schedule, work, former)
        if former is not None:
            progress.say(f"going on after step {trainer.step}")
        trainer.run(progress)
        best = trainer.best
        if best is None:
            raise CheckpointError(f"{work.folder}: no weights were kept; begin anew with --restart")
        net = UNet(options.width, options.region)
        net.load_state_dict(work.best(best))
        last = Exam(teacher, seat, held, unheard, 1)
        path, student = _packed(request, package, options, net, last, key, trainer, progress)
    progress.say(f"held-out frames: {work.folder / SHEET}")
    return DistillResult(
        path=str(path),
        work=str(work.folder),
        width=options.width,
        region=options.region,
        steps=trainer.step,
        seconds=round(trainer.seconds, 3),
        best=best,
        student=student,
        speech=speech.names,
        held_frames=len(held) if m.frame_count >= FEW else 0,
        teacher_signed=package.signature() is not None,
    )


def _packed(
    request: DistillRequest,
    package: AvatarPackage,
    options: Options,
    net: UNet,
    exam: Exam,
    key: str,
    trainer: Trainer,
    progress: StepProgress,
) -> tuple[Path, Student]:
    """Write the package; what it says of the student is measured on the package itself."""
    m, box = package.manifest, exam.seat.window
    windowed = m.window is not None
    image, decoder = export_unet(net.eval(), window=box if windowed else None)
    models = {"audio_encoder": package.network("audio_encoder"), "image": image, "decoder": decoder}
    student = Student(
        teacher=m.name,
        teacher_manifest=key.split()[0],
        teacher_width=m.width,
        teacher_region=m.region,
    )
    draft = msgspec.structs.replace(
        m,
        name=request.out.name.removesuffix(".lsa"),
        width=options.width,
        region=options.region,
        window=Window(x=box.x, y=box.y, width=box.width, height=box.height) if windowed else None,
        provenance=_provenance(m, student, options, trainer),
        student=student,
    )
    progress.say("trying the student against its teacher, in turns")
    with DerivedPackage(package, request.out, draft, models, overwrite=request.force) as derived:
        with AvatarPackage.open(derived.folder) as made, Teacher(made, options.threads) as its:
            marks = exam.marks(its.made(exam.frames, exam.blocks))
        speeds = paces([package.path, derived.folder], options.threads)
        student = msgspec.structs.replace(
            student,
            difference=round(marks.mouth, 3),
            r=round(marks.alike.r, 4),
            swing=round(marks.alike.swing, 3),
            sharpness=round(marks.alike.sharpness, 3),
            teacher_frames_per_s=round(speeds[0], 2),
            frames_per_s=round(speeds[1], 2),
            machine=f"{options.threads} x {machine.processor_model()}"[:200],
        )
        return derived.finish(msgspec.structs.replace(draft, student=student)), student


def _provenance(m: Manifest, student: Student, options: Options, trainer: Trainer) -> str:
    """What the teacher says, and how the student came about."""
    import torch

    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    own = (
        f"a student of the avatar {m.name} (SHA-256 of its manifest {student.teacher_manifest}):"
        f" U-Net of width {options.width} at region {options.region}, taught by one of width"
        f" {m.width} at region {m.region} by lipsync-fast {__version__} (torch {torch.__version__},"
        f" {options.device}, {options.precision}), ended on {day}; {trainer.step} steps of"
        f" {options.batch} pictures in {trainer.seconds / 60:.1f} min, learning rate"
        f" {options.rate:g}, seed {options.seed}; audio encoder: the teacher's"
    )
    return "; ".join(part for part in (m.provenance, own) if part)
