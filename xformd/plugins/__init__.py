"""From installed packages to a Registry, and the transforms that come with xformd."""
