"""`make gpu`: one command that shows what this project does on an NVIDIA GPU, or rehearses it on a CPU.

`proof` has the stages, which are `pipeline`'s own commands; `page` writes what they gave.
"""
