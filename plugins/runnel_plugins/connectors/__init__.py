"""Connectors: the sources and sinks that come with Runnel, one kind per file.

Files: `table` (csv, tsv), `jsonl`, `npy`, `parquet`, `sound` (wav, flac, ogg, aiff), `raw` (raw, txt). Live:
`lines` (a serial port, a pipe), `host` (this machine's own sensors), `microphone`, `zeromq` (sub, pub),
`prometheus`, `plot`.
"""
