"""From the file, the environment and flags to settings; a refusal names its line."""
