"""Transcribe a clip with OpenAI's own client, then read the same transcript as a stream.

Start a server, then run this example from the root of the repository (it requires `pip install openai`):

    MODEL=pocketsphinx .venv/bin/python -m worker serve
    .venv/bin/python -m examples.openai_client [http://127.0.0.1:8000]
"""

from __future__ import annotations

import sys
from pathlib import Path

from openai import OpenAI


def main(server: str = "http://127.0.0.1:8000") -> None:
    """Print the words of a sample with their times, then its text as it arrives."""
    client = OpenAI(base_url=f"{server}/v1", api_key="none")  # The server checks the key only if API_KEY is set.
    audio = Path("samples/week.wav")

    transcript = client.audio.transcriptions.create(
        file=audio, model="pocketsphinx", response_format="verbose_json", timestamp_granularities=["word"]
    )
    for word in transcript.words or []:
        print(f"{word.start:5.2f} s  {word.word}")

    for event in client.audio.transcriptions.create(file=audio, model="pocketsphinx", stream=True):
        if event.type == "transcript.text.delta":
            print(event.delta, end="", flush=True)
    print()


if __name__ == "__main__":
    main(*sys.argv[1:])
