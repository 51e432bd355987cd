"""What a user would otherwise run, each behind one interface, for the benchmarks.

A package of its own between the evaluation, whose figures tune every method, and the stages: our
own line, which is made of stages, meets the same interface in `stages/benchmark_line.py`.
"""
