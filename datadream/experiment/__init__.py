"""The stages over a list of runs: what the command line, `jobs/` and Python drivers share."""
