"""systemd: `notify` reports to the service manager; `install` installs the daemon as a service.

`units` renders the unit files; `directories` creates folders without following links.
"""
