"""Every figure that the README states, measured beside what people would pick instead: ``python -m benchmarks``."""
