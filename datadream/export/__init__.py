"""A finished run's parts for other tools, as files or in a hub."""
