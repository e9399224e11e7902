"""Stage: a recipe → the whole grid of variants through all stages, resumable, on one machine or on Ray.

A job is one `pipeline …` command with files in and files out, run as a process of its own. It can be repeated
by hand, it is killed safely, and its exit code says what happened. `plan` decides which jobs there are and
`done` which of them are done; `sweep` runs the rest, in a pool (`local`, `ray_pool`), and leaves a ledger.
"""
