"""The arguments of every command. Building the parser imports no library, so `--help` is fast and works even if a
library is missing.
"""

from __future__ import annotations

import argparse
from argparse import SUPPRESS
from pathlib import Path
from typing import Any, get_args

from worker import __version__
from worker.types import Format

# The formats of a transcript beside the JSON of a result.
TRANSCRIPTS = tuple("txt" if form == "text" else form for form in get_args(Format) if form != "json")
LEVELS = ("word", "segment", "char")
STYLES = ("detailed", "brief", "technical")


def parser() -> argparse.ArgumentParser:
    """Return the parser. Each command's namespace has `run`, which takes the namespace and returns the exit code."""
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
        _diarize,
        _score,
        _evaluate,
        _manifest,
        _listen,
        _serve,
        _mcp,
        _models,
        _doctor,
    ):
        add(commands)
    return top


# The commands


def _transcribe(commands: Any) -> None:
    command = _asks(commands, "transcribe", "transcribe speech", TRANSCRIPTS)
    _speech(command)
    _lines(command)
    _writing(command)


def _translate(commands: Any) -> None:
    command = _asks(commands, "translate", "translate speech into another language", TRANSCRIPTS)
    _speech(command)
    _lines(command)
    _writing(command)


def _caption(commands: Any) -> None:
    command = _asks(commands, "caption", "describe the audio", ("txt",))
    _captions(command)
    _writing(command)


def _embed(commands: Any) -> None:
    command = _asks(commands, "embed", "compute embedding vectors", ("npy",))
    _vectors(command)


def _chat(commands: Any) -> None:
    command = _asks(commands, "chat", "answer a question about each input", ("txt",))
    command.add_argument("--prompt", required=True, help="the question to answer")
    command.add_argument("--system", help="instructions for the model, before the question")
    _writing(command)


def _analyze(commands: Any) -> None:
    command = _asks(commands, "analyze", "describe the audio and compute embedding vectors, in one pass", ())
    _captions(command)
    _writing(command)
    _vectors(command)


def _diarize(commands: Any) -> None:
    command = _asks(commands, "diarize", "find who speaks when, without text", ())
    _number_of_speakers(command)


def _score(commands: Any) -> None:
    command = commands.add_parser("score", help="compare how recordings and a reference clip sound, and what they say")
    _model(command)
    _inputs(command)
    _results(command, ("json", "jsonl"))
    command.add_argument("--reference", metavar="FILE", help="the clip to compare with")
    command.add_argument(
        "--config",
        type=Path,
        metavar="config.json",
        help="a configured folder of reference clips, instead of --reference",
    )
    command.add_argument("--uid", help="with --config: the video of the reference clip")
    command.add_argument("--cid", help="with --config: the reference clip")
    command.set_defaults(run=_lazily("worker.entrypoints.cli.score"))


def _evaluate(commands: Any) -> None:
    command = commands.add_parser("evaluate", help="measure error rates on labeled audio")
    _model(command)
    command.add_argument("--audio-dir", metavar="FOLDER", help="the folder of the audio; subfolders are included")
    command.add_argument(
        "--gt-dir",
        metavar="FOLDER",
        help="the folder of the labels, one .txt file for each audio file (default: the audio folder)",
    )
    command.add_argument("--manifest", metavar="FILE", help="a manifest in NeMo's format, instead of the folders")
    command.add_argument(
        "--match-mode",
        default="exact",
        help="when a text matches its label: exact (default; only case and white space may differ) or normalized "
        "(after Whisper's normalizer)",
    )
    command.add_argument(
        "--normalizer",
        default="whisper",
        help="what error rates are computed on. whisper (default) drops case, punctuation and text in brackets, and "
        "unifies the numbers, contractions and spelling of English. plain drops case and repeated white space, and "
        "keeps the rest. The rates of plain are always reported too",
    )
    command.add_argument("--language", help="the spoken language: a code, such as en, an English name, or auto")
    command.add_argument("--prompt", help="a prompt for the model")
    command.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="the maximum number of new tokens, for models that generate tokens",
    )
    command.add_argument("--output", metavar="FILE", help="write here instead of stdout")
    command.add_argument(
        "--html", metavar="FILE", help="also write an HTML page with each file's text beside its label"
    )
    command.set_defaults(run=_lazily("worker.entrypoints.cli.evaluate"))


def _manifest(commands: Any) -> None:
    command = commands.add_parser("manifest", help="process a JSONL manifest of any length; a second run resumes it")
    _model(command)
    command.add_argument(
        "manifest", metavar="FILE.jsonl", help="the manifest: one JSON object per line, with audio_filepath"
    )
    command.add_argument("--output", required=True, metavar="FOLDER", help="the folder for <manifest>.<task>.jsonl")
    command.add_argument(
        "--task", default="transcribe", help="transcribe (default), caption, embed, analyze or diarize"
    )
    engine = command.add_mutually_exclusive_group()
    engine.add_argument(
        "--server", metavar="URL", help="use this server or Runpod endpoint (default: an engine on this machine)"
    )
    engine.add_argument(
        "--endpoint", metavar="ID", help="use this Runpod endpoint, with --api-key or the variable RUNPOD_API_KEY"
    )
    engine.add_argument(
        "--ray",
        nargs="?",
        const="local",
        metavar="ADDRESS",
        help="use engines on this Ray cluster (auto, ray://host:port), or on a local one without an ADDRESS",
    )
    command.add_argument("--api-key", help="the API key of the server, or of Runpod")
    command.add_argument(
        "--batch",
        action="store_true",
        help="with --endpoint: as Batch Jobs, which run on workers of their own and may take hours to begin",
    )
    command.add_argument(
        "--engines",
        type=_at_least_1,
        metavar="N",
        help="with --ray: how many engines (default: one per GPU, or per machine without GPUs)",
    )
    command.add_argument(
        "--concurrency",
        type=_at_least_1,
        default=16,
        metavar="N",
        help="lines in flight at a time (default: 16); with --ray: per engine",
    )
    command.add_argument("--retry-failed", action="store_true", help="process failed lines again")
    command.add_argument(
        "--timestamps", action="store_true", default=None, help="transcribe: add the times of words and segments"
    )
    command.add_argument("--language", help="the spoken language: a code, such as en, an English name, or auto")
    command.add_argument("--target-language", help="transcribe: the language to write")
    command.add_argument("--prompt", help="a prompt for the model")
    command.add_argument("--style", choices=STYLES, help="caption, analyze: detailed unless said otherwise")
    _keywords(command)
    _punctuation(command)
    _confidence(command)
    _speakers(command)
    _condition(command)
    _long_audio(command)
    _channels(command)
    command.add_argument(
        "--pooling",
        choices=("none", "mean"),
        help="embed, analyze: none (default) for one vector per frame, mean for one per input",
    )
    _writing(command)
    command.set_defaults(run=_lazily("worker.entrypoints.cli.manifest"))


def _listen(commands: Any) -> None:
    command = commands.add_parser("listen", help="transcribe a microphone or stdin while the audio comes in")
    _model(command)
    command.add_argument(
        "input",
        nargs="?",
        metavar="-",
        help="- reads stdin: raw PCM16 (little-endian, mono), or a file such as WAV (default: the microphone)",
    )
    command.add_argument(
        "--rate", type=_at_least_1, metavar="HZ", help="stdin is raw audio of this sample rate (default: 16000)"
    )
    command.add_argument(
        "--server", "--url", metavar="URL", help="use this server (default: an engine on this machine)"
    )
    command.add_argument("--api-key", help="the API key of the server")
    command.add_argument("--language", help="the spoken language: a code, such as en, an English name, or auto")
    command.add_argument("--prompt", help="Flamingo: the instruction; Whisper: words to expect")
    command.add_argument("--json", action="store_true", help="print the events of /v1/realtime, one a line")
    command.set_defaults(run=_lazily("worker.entrypoints.cli.listen"))


def _serve(commands: Any) -> None:
    command = commands.add_parser("serve", help="start the HTTP server")
    _model(command)
    command.add_argument("--host", help="the address to bind to (HOST)")
    command.add_argument("--port", type=int, help="the port to bind to (PORT)")
    command.add_argument(
        "--config", type=Path, metavar="FILE.yaml", help="a file of settings; the environment and flags override it"
    )
    command.add_argument(
        "--workers", metavar="N", help="the number of server processes; auto or 0: one per GPU (WORKERS)"
    )
    command.set_defaults(run=_lazily("worker.entrypoints.cli.serve"))


def _mcp(commands: Any) -> None:
    command = commands.add_parser("mcp", help="serve the tools of a language model (Model Context Protocol)")
    _model(command)
    command.add_argument("--url", help="use this server or Runpod endpoint (default: an engine in this process)")
    command.add_argument("--api-key", metavar="KEY", help="with --url: the API key of the server, or of Runpod")
    command.add_argument(
        "--http",
        nargs="?",
        type=int,
        const=8765,
        metavar="PORT",
        help="serve http://127.0.0.1:PORT/mcp (PORT: 8765 unless specified) instead of stdin and stdout",
    )
    command.set_defaults(run=_lazily("worker.entrypoints.cli.mcp"))


def _models(commands: Any) -> None:
    command = commands.add_parser("models", help="list the models, with their sizes on disk; download or remove one")
    command.set_defaults(run=_lazily("worker.entrypoints.cli.models"))
    actions = command.add_subparsers(title="actions", metavar="ACTION")
    pull = actions.add_parser("pull", help="download a model; an interrupted download resumes")
    pull.add_argument("name", metavar="NAME", help="an alias or id of the catalog, or a repository (owner/name)")
    pull.set_defaults(run=_lazily("worker.entrypoints.cli.models", "pull"))
    remove = actions.add_parser("rm", help="remove a model from the caches")
    remove.add_argument("name", metavar="NAME", help="an alias or id of the catalog, or a repository (owner/name)")
    remove.add_argument("--yes", action="store_true", help="ask no question on a terminal")
    remove.set_defaults(run=_lazily("worker.entrypoints.cli.models", "remove"))


def _doctor(commands: Any) -> None:
    command = commands.add_parser("doctor", help="check this machine's setup, and advise on problems")
    _model(command)
    command.set_defaults(run=_lazily("worker.entrypoints.cli.doctor"))


# Groups of options


def _asks(commands: Any, task: str, help_: str, forms: tuple[str, ...]) -> Any:
    command = commands.add_parser(
        task, help=help_, description=f"{help_[0].upper()}{help_[1:]}, for any number of inputs."
    )
    _model(command)
    _inputs(command)
    _many_results(command, ("json", "jsonl", *forms))
    command.set_defaults(run=_lazily("worker.entrypoints.cli.infer"), forms=("json", "jsonl", *forms))
    return command


def _model(command: Any, default: Any = SUPPRESS) -> None:
    """Add the options of the model, which may also precede the command.

    The default suppresses an option that does not follow the command, so that it keeps its value from before.
    """
    command.add_argument(
        "--model", default=default, help="the model: an alias, id, .nemo file or checkpoint folder (MODEL)"
    )
    command.add_argument(
        "--model-dir",
        default=default,
        type=Path,
        metavar="FOLDER",
        help="a checkpoint, or a folder of checkpoints (MODEL_DIR)",
    )
    command.add_argument(
        "--device",
        default=default,
        help="the device: auto, cpu, cuda, cuda:N, or several, such as cuda:0,cuda:1 (DEVICE)",
    )


def _inputs(command: Any) -> None:
    command.add_argument(
        "inputs", nargs="*", metavar="INPUT", help="files, folders and URLs; - reads a list from stdin"
    )
    command.add_argument("--path", metavar="FILE", help="another input")
    command.add_argument("--paths", nargs="+", default=[], metavar="FILE", help="more inputs")


def _results(command: Any, forms: tuple[str, ...]) -> None:
    _output(command)
    command.add_argument("--format", default="json", choices=forms, help=_described(forms))


def _many_results(command: Any, forms: tuple[str, ...]) -> None:
    folder = command.add_mutually_exclusive_group()
    _output(folder)
    folder.add_argument(
        "--output-dir",
        metavar="FOLDER",
        help="write one file per input and format into this folder, which is made if it is missing",
    )
    command.add_argument(
        "--format",
        default=("json",),
        type=lambda text: _formats(text, forms),
        metavar="FORMATS",
        help=f"{_described(forms)}; several, separated by commas; or all of them, without jsonl",
    )
    command.add_argument(
        "--skip-existing",
        action="store_true",
        help="skip each input whose files in the folder all exist, are not empty, and are no older than the input; the "
        "same command then resumes after an interruption",
    )
    command.add_argument(
        "--failed-list",
        metavar="FILE",
        help="write each failed input to this file, one a line; INPUT - reads such a list",
    )


def _output(command: Any) -> None:
    command.add_argument(
        "--output",
        metavar="FILE|FOLDER",
        help="write here instead of stdout; a path that ends with / is a folder, with one file per input",
    )


def _described(forms: tuple[str, ...]) -> str:
    return ", ".join(("json (default)", "jsonl (one line per input, in the order of completion)", *forms[2:]))


def _speech(command: Any) -> None:
    command.add_argument("--language", help="the spoken language: a code, such as en, an English name, or auto")
    command.add_argument(
        "--target-language",
        help="the language to write; the speech is translated if it differs from the spoken language",
    )
    command.add_argument(
        "--timestamps", type=_levels, metavar="LEVELS", help="word, segment and char, separated by commas"
    )
    _keywords(command)
    _punctuation(command)
    _confidence(command)
    _speakers(command)
    _condition(command)
    _long_audio(command)
    _channels(command)
    command.add_argument("--prompt", help="Flamingo: the instruction; Whisper: words to expect")


def _lines(command: Any) -> None:
    command.add_argument(
        "--max-chars-per-sec",
        type=float,
        metavar="N",
        help="srt, vtt: the reading speed in characters a second; a faster cue is shown longer, up to the next cue",
    )
    command.add_argument(
        "--max-line-width",
        type=int,
        metavar="N",
        help="srt, vtt, lrc: the maximum number of characters of a line (default: 42, which two lines may exceed if no "
        "limit is set)",
    )
    command.add_argument(
        "--max-line-count",
        type=int,
        metavar="N",
        help="srt, vtt: the maximum number of lines of a cue (default: 2, or 1 with --max-words-per-line)",
    )
    command.add_argument(
        "--max-words-per-line", type=int, metavar="N", help="srt, vtt, lrc: the maximum number of words of a line"
    )


def _punctuation(command: Any) -> None:
    command.add_argument(
        "--no-punctuation",
        dest="punctuation",
        action="store_false",
        default=None,
        help="Canary: write without punctuation and capital letters",
    )


def _keywords(command: Any) -> None:
    command.add_argument(
        "--keywords",
        type=_text_lines,
        metavar="FILE",
        help="transcribe: a file of words and phrases to expect, such as names, one a line",
    )
    command.add_argument(
        "--keyword-weight",
        type=float,
        metavar="W",
        help="Parakeet, Canary: how strongly the model prefers the keywords (default: 1)",
    )


def _confidence(command: Any) -> None:
    command.add_argument(
        "--confidence",
        action="store_true",
        default=None,
        help="transcribe: report how sure the model is of the text and of each word, from 0 to 1",
    )


def _speakers(command: Any) -> None:
    command.add_argument(
        "--diarize", action="store_true", default=None, help="transcribe: add the speaker of each word and segment"
    )
    _number_of_speakers(command)


def _number_of_speakers(command: Any) -> None:
    command.add_argument("--num-speakers", type=int, metavar="N", help="the number of speakers, if it is known")
    command.add_argument("--max-speakers", type=int, metavar="N", help="the most speakers that may be found")


def _condition(command: Any) -> None:
    command.add_argument(
        "--condition-on-previous-text",
        action="store_true",
        default=None,
        help="Whisper: the text of each window is the prompt of the next one",
    )


def _long_audio(command: Any) -> None:
    command.add_argument(
        "--long-audio",
        choices=("whole", "windows"),
        help="audio longer than 30 s, on models that accept any length: at once or in windows (LONG_AUDIO)",
    )


def _channels(command: Any) -> None:
    command.add_argument(
        "--channels",
        choices=("mix", "split"),
        help="mix the channels of the audio (default), or transcribe each separately",
    )


def _captions(command: Any) -> None:
    command.add_argument("--style", choices=STYLES, help="the style of the caption (default: detailed)")
    command.add_argument("--prompt", help="the request to the model, instead of the style's own")


def _vectors(command: Any) -> None:
    command.add_argument(
        "--pooling", choices=("none", "mean"), help="none (default): one vector per frame; mean: one per input"
    )
    command.add_argument(
        "--encoding",
        choices=("float", "base64", "s3"),
        help="float (default): numbers; base64: little-endian float32; s3: files in the bucket",
    )


def _writing(command: Any) -> None:
    command.add_argument(
        "--max-new-tokens",
        type=int,
        metavar="N",
        help="the maximum number of new tokens, for models that generate tokens",
    )
    command.add_argument("--temperature", type=float, help="the sampling temperature; 0 (default) is deterministic")
    command.add_argument("--top-p", type=float, help="the probability mass to sample from")


def _levels(text: str) -> list[str]:
    """Return the timestamp levels of a comma-separated list. Raises ArgumentTypeError for an unknown level."""
    levels = [level.strip() for level in text.split(",")]
    if unknown := [level for level in levels if level not in LEVELS]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not one of {', '.join(LEVELS)}")
    return levels


def _text_lines(path: str) -> list[str]:
    """Return the lines of a text file that are not empty. Raises ArgumentTypeError if the file cannot be read."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise argparse.ArgumentTypeError(f"cannot read {path}: {error}") from None
    return [line for line in map(str.strip, text.splitlines()) if line]


def _formats(text: str, forms: tuple[str, ...]) -> tuple[str, ...]:
    """Return the formats of a comma-separated list, each once, or ("all",). Raises ArgumentTypeError for others."""
    chosen = tuple(dict.fromkeys("txt" if form == "text" else form for form in map(str.strip, text.split(","))))
    if unknown := [form for form in chosen if form not in forms and chosen != ("all",)]:
        raise argparse.ArgumentTypeError(f"invalid choice: {unknown[0]!r} (choose from {', '.join(forms)}, all)")
    return chosen


def _at_least_1(text: str) -> int:
    """Return the text as a positive integer. Raises ArgumentTypeError or ValueError if it is none."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number


def _lazily(module: str, function: str = "run") -> Any:
    """Return a function that imports `module` and calls its `function`."""

    def run(args: argparse.Namespace) -> int:
        import importlib

        code: int = getattr(importlib.import_module(module), function)(args)
        return code

    return run
