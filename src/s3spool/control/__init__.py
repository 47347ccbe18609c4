"""The daemon's Unix socket: protocol, server, handlers, client, and the views that daemon and ledger answer with."""
