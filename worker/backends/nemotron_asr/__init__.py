"""Nemotron ASR: transcribes clips, and live audio chunk by chunk.

    backend ──▶ whole clips: the encoder of transformers ──▶ greedy ──▶ tokens ──▶ text, words
            ──▶ live audio: features ──▶ streaming (the encoder with caches) ──▶ greedy, resumed ──▶ text

`backend.py` has the class. `greedy.py` decodes, and `streaming.py` encodes the next chunks of many streams at once.
"""
