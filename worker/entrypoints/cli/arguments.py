"""What may be typed. Building it imports nothing but argparse: `--help` is quick, and works where a library is
missing."""

from __future__ import annotations

import argparse
from argparse import SUPPRESS
from pathlib import Path
from typing import Any

from worker import __version__

LEVELS = ("word", "segment", "char")
STYLES = ("detailed", "brief", "technical")


def parser() -> argparse.ArgumentParser:
    """Each command's namespace has `run`: what takes the namespace and returns the exit code."""
    top = argparse.ArgumentParser(prog="aviary", description="One worker for NVIDIA's speech and audio models.")
    top.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    _model(top, default=None)
    commands = top.add_subparsers(title="commands", required=True, metavar="COMMAND", dest="command")
    for add in (
        _transcribe,
        _translate,
        _caption,
        _embed,
        _chat,
        _analyze,
        _score,
        _evaluate,
        _manifest,
        _serve,
        _models,
        _doctor,
    ):
        add(commands)
    return top


# The commands


def _transcribe(commands: Any) -> None:
    command = _asks(commands, "transcribe", "what is said", ("txt", "srt", "vtt", "verbose_json"))
    _speech(command)
    _writing(command)


def _translate(commands: Any) -> None:
    command = _asks(commands, "translate", "what is said, in another language", ("txt", "srt", "vtt", "verbose_json"))
    _speech(command)
    _writing(command)


def _caption(commands: Any) -> None:
    command = _asks(commands, "caption", "what is to be heard, in words", ("txt",))
    _captions(command)
    _writing(command)


def _embed(commands: Any) -> None:
    command = _asks(commands, "embed", "vectors", ("npy",))
    _vectors(command)


def _chat(commands: Any) -> None:
    command = _asks(commands, "chat", "the answer to a question about each input", ("txt",))
    command.add_argument("--prompt", required=True, help="the question")
    command.add_argument("--system", help="what the model is told beforehand")
    _writing(command)


def _analyze(commands: Any) -> None:
    command = _asks(commands, "analyze", "a caption and vectors, from one pass", ())
    _captions(command)
    _writing(command)
    _vectors(command)


def _score(commands: Any) -> None:
    command = commands.add_parser("score", help="how alike recordings and a reference sound, and what is said in them")
    _model(command)
    _inputs(command)
    _results(command, ("json", "jsonl"))
    command.add_argument("--reference", metavar="FILE", help="the clip to compare with")
    command.add_argument(
        "--config", type=Path, metavar="config.json", help="a folder of clips, in place of --reference"
    )
    command.add_argument("--uid", help="with --config: the clip's video")
    command.add_argument("--cid", help="with --config: the clip")
    command.set_defaults(run=_lazily("worker.entrypoints.cli.score"))


def _evaluate(commands: Any) -> None:
    command = commands.add_parser("evaluate", help="labelled audio: error rates")
    _model(command)
    command.add_argument("--audio-dir", metavar="FOLDER", help="audio, with all subfolders")
    command.add_argument(
        "--gt-dir", metavar="FOLDER", help="its labels: a .txt file for each; by default the same folder"
    )
    command.add_argument("--manifest", metavar="FILE", help="NeMo's manifest, in place of the folders")
    command.add_argument(
        "--match-mode", default="exact", help="when a text counts as right: exact (default), normalized"
    )
    command.add_argument(
        "--normalizer", default="basic", help="what error rates are counted on: basic (default), whisper"
    )
    command.add_argument("--language", help="what is spoken (ISO code)")
    command.add_argument("--prompt", help="what the model is told")
    command.add_argument("--max-new-tokens", type=int, metavar="N", help="most tokens written, by models that do so")
    command.add_argument("--output", metavar="FILE", help="in place of stdout")
    command.add_argument("--html", metavar="FILE", help="also a page with every file beside its label")
    command.set_defaults(run=_lazily("worker.entrypoints.cli.evaluate"))


def _manifest(commands: Any) -> None:
    command = commands.add_parser("manifest", help="a JSONL manifest of any length; goes on where it stopped")
    _model(command)
    command.add_argument("manifest", metavar="FILE.jsonl", help="a JSON object a line, with audio_filepath")
    command.add_argument("--output", required=True, metavar="FOLDER", help="where <manifest>.<task>.jsonl goes")
    command.add_argument("--task", default="transcribe", help="transcribe (default), caption, embed, analyze")
    whom = command.add_mutually_exclusive_group()
    whom.add_argument("--server", metavar="URL", help="ask this server, or Runpod endpoint; by default this machine")
    whom.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="ask engines on this Ray cluster (auto, ray://host:port); without an address, on one of this machine",
    )
    command.add_argument("--api-key", help="the server's")
    command.add_argument(
        "--engines", type=_at_least_1, metavar="N", help="--ray: how many; by default one a GPU, or machine"
    )
    command.add_argument(
        "--concurrency",
        type=_at_least_1,
        default=16,
        metavar="N",
        help="lines asked about at a time (16); --ray: by each engine",
    )
    command.add_argument("--retry-failed", action="store_true", help="ask about lines that failed again")
    command.add_argument(
        "--timestamps", action="store_true", default=None, help="transcribe: times of words and segments too"
    )
    command.add_argument("--language", help="what is spoken (ISO code)")
    command.add_argument("--target-language", help="transcribe: what is to be written")
    command.add_argument("--prompt", help="what the model is told")
    command.add_argument("--style", choices=STYLES, help="caption, analyze: detailed unless said otherwise")
    _punctuation(command)
    command.add_argument(
        "--pooling", choices=("none", "mean"), help="embed, analyze: none (default): one a frame; or mean"
    )
    _writing(command)
    command.set_defaults(run=_lazily("worker.entrypoints.cli.manifest"))


def _serve(commands: Any) -> None:
    command = commands.add_parser("serve", help="start the HTTP server")
    _model(command)
    command.add_argument("--host", help="address to bind to (HOST)")
    command.add_argument("--port", type=int, help="port (PORT)")
    command.add_argument(
        "--config", type=Path, metavar="FILE.yaml", help="settings, below the environment and the flags"
    )
    command.add_argument("--workers", metavar="N", help="server processes (WORKERS); auto, or 0: one a GPU")
    command.set_defaults(run=_lazily("worker.entrypoints.cli.serve"))


def _models(commands: Any) -> None:
    commands.add_parser("models", help="list the catalog").set_defaults(run=_lazily("worker.entrypoints.cli.models"))


def _doctor(commands: Any) -> None:
    command = commands.add_parser("doctor", help="whether this machine is set up, and what to do about it")
    _model(command)
    command.set_defaults(run=_lazily("worker.entrypoints.cli.doctor"))


# Groups of options


def _asks(commands: Any, task: str, help_: str, forms: tuple[str, ...]) -> Any:
    command = commands.add_parser(
        task, help=help_, description=f"{help_[0].upper()}{help_[1:]}, of any number of inputs."
    )
    _model(command)
    _inputs(command)
    _results(command, ("json", "jsonl", *forms))
    command.set_defaults(run=_lazily("worker.entrypoints.cli.infer"))
    return command


def _model(command: Any, default: Any = SUPPRESS) -> None:
    """These may also stand before the command: what a command is not given must not hide it."""
    command.add_argument("--model", default=default, help="alias, id, .nemo file or checkpoint folder (MODEL)")
    command.add_argument(
        "--model-dir",
        default=default,
        type=Path,
        metavar="FOLDER",
        help="a checkpoint, or a folder of checkpoints (MODEL_DIR)",
    )
    command.add_argument(
        "--device", default=default, help="auto, cpu, cuda, cuda:N, or several: cuda:0,cuda:1 (DEVICE)"
    )


def _inputs(command: Any) -> None:
    command.add_argument("inputs", nargs="*", metavar="INPUT", help="files, folders, URLs; - for a list on stdin")
    command.add_argument("--path", metavar="FILE", help="one more")
    command.add_argument("--paths", nargs="+", default=[], metavar="FILE", help="more of them")


def _results(command: Any, forms: tuple[str, ...]) -> None:
    command.add_argument(
        "--output", metavar="FILE|FOLDER", help="in place of stdout; a folder (end it with /): a file an input"
    )
    command.add_argument(
        "--format",
        default="json",
        type=lambda form: "txt" if form == "text" else form,
        choices=forms,
        help=", ".join(("json (default)", "jsonl (a line an input, as it is done)", *forms[2:])),
    )


def _speech(command: Any) -> None:
    command.add_argument("--language", help="what is spoken (ISO code)")
    command.add_argument("--target-language", help="what is to be written; translates where it is another")
    command.add_argument(
        "--timestamps", type=_levels, metavar="LEVELS", help="word, segment, char, separated by commas"
    )
    _punctuation(command)
    command.add_argument("--prompt", help="Flamingo: what is asked; Whisper: words to expect")


def _punctuation(command: Any) -> None:
    command.add_argument(
        "--no-punctuation",
        dest="punctuation",
        action="store_false",
        default=None,
        help="Canary: without punctuation and capitals",
    )


def _captions(command: Any) -> None:
    command.add_argument("--style", choices=STYLES, help="detailed unless said otherwise")
    command.add_argument("--prompt", help="what is asked, in place of the style's own words")


def _vectors(command: Any) -> None:
    command.add_argument("--pooling", choices=("none", "mean"), help="none (default): one a frame; mean: one an input")
    command.add_argument(
        "--encoding", choices=("float", "base64", "s3"), help="float (default); base64: float32 little-endian"
    )


def _writing(command: Any) -> None:
    command.add_argument("--max-new-tokens", type=int, metavar="N", help="most tokens written, by models that do so")
    command.add_argument("--temperature", type=float, help="0 (default): always the same")
    command.add_argument("--top-p", type=float, help="of sampling")


def _levels(text: str) -> list[str]:
    levels = [level.strip() for level in text.split(",")]
    if unknown := [level for level in levels if level not in LEVELS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(LEVELS)}")
    return levels


def _at_least_1(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def _lazily(module: str) -> Any:
    """The `run` of a module that is imported when it is called."""

    def run(given: argparse.Namespace) -> int:
        import importlib

        code: int = importlib.import_module(module).run(given)
        return code

    return run
