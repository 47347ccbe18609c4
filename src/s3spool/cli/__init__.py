"""The commands that a person types.

`commands` has the group and the commands that upload, `queries` those that ask a daemon; `options` finds the
configuration, `output` has the tables, `wait`, `dry_run` and `service` one command each.
"""
