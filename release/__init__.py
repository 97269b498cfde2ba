"""Makes a release: ``make release VERSION=X.Y.Z`` runs ``prepare``, builds the image, and runs ``finish``.

Nothing here talks to a registry or pushes anything: what is made is in ``dist``, and a commit and a tag in this clone.
"""
