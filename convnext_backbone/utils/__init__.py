"""What every package shares: checks, whole files, command lines, lazy and awaited imports."""
