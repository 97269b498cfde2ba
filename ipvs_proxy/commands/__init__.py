"""The commands that show what an agent does: each asks the agent, or reads the kernel itself, and prints."""
