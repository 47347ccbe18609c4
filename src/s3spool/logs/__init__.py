"""Structured logs.

`events` lists every event and its sentence. `log_thread` takes entries off the calling threads; `render` makes lines,
`sinks` and `journal` write them; `text` masks secrets and makes names printable, `units` sizes and durations.
"""
