"""From the API (or from manifest files) to decoded objects."""
