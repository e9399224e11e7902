"""Hostile files of every kind that commands read: `make fuzz` for minutes, `make test` for one."""
