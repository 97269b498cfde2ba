"""Writers of documents: one module for each, which returns the texts that it would write (``written``).

Nothing here is part of the agent. Tests compare what is in the repository with what would be written.
"""
