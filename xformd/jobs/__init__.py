"""Jobs: requests that outlive their connection. What is kept of them on disk, and their way from start to end."""
