"""The commands of ``xformd``, a file for each group."""
