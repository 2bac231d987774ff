"""What people would pick instead, each doing the same: lower-case a poem.

Each prints a line that ends with its address, and serves until it is told to stop.
"""
