"""For authors of plugins: ``xformd new`` makes one, and the pytest plugin tests it."""
