"""The daemon's Unix socket, and the answers that it gives.

`protocol` has one request and its answer, `server` and `access` the daemon's end, `client` and `offline` the command
line's end. `views` and `status` are the rows and the status that both ends share.
"""
