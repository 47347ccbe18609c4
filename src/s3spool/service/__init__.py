"""What the daemon says to those who run it.

events.py   every log event by its stable name: level, sentence, MESSAGE_ID
logs.py     structlog set up so that a log call costs microseconds; the thread that writes the lines
sinks.py    where the lines go: stream, terminal, journal
deaths.py   exceptions that nobody caught, into the log
text.py     hostile names made visible, secrets masked, objects made plain
journal.py  log events as native journal entries
memory.py   the C library gives back what was freed
systemd.py  sd_notify: READY=1, STATUS=, WATCHDOG=1
control.py  questions and orders to a running daemon, over a Unix socket
seaweed.py  an S3 server on loopback, for `s3spool demo` and the tests
"""
