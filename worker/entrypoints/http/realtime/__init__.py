"""Realtime transcription: OpenAI's transcription sessions over WebSocket, at /v1/realtime.

    WebSocket ── events ──▶ sessions ──▶ Session ──▶ Utterances ──▶ engine
        ▲                               config, turns                  │
        └────────────── events ◀─────── Session ◀────── transcripts ◀──┘

`session.Session` is a state machine without clock, threads or input and output: events and transcripts in, events and
utterances out. `sessions.Sessions` runs one for each connection.
"""
