"""Whisper: transcribe, translate into English, and embed.

    backend ──▶ speech (cut long pauses) ──▶ encoder ──▶ decoding ──▶ alignment ──▶ words

`backend.py` has the class. `speech.py` and `words.py` are pure functions; `decoding.py` runs the decoder, and
`alignment.py` finds the times of its tokens.
"""
