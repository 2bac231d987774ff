"""Who may do what: an access file, and services that let each identity do what it may."""
