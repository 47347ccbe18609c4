"""The running service: `main` starts it, `components` builds its parts, `supervisor` watches over them.

`handlers` answers the control socket, `reload` applies a changed configuration, `watch_manager` keeps inotify going.
"""
