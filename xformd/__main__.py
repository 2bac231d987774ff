"""``python -m xformd`` is ``xformd``."""

from xformd.cli import main

main(prog_name="xformd")
