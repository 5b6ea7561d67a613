"""The ``resrank`` command: one module a sub-command, each imported when it is called."""
